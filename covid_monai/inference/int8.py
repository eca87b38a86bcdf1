# SPDX-License-Identifier: Apache-2.0
"""Convolutions in 8-bit integers, for CPUs that have instructions for these but none for bfloat16.

Post-training static quantization: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1; Krishnamoorthi, "Quantizing deep convolutional networks for
efficient inference", arXiv:1806.08342, section 3. Weights are symmetric, with a scale for each output channel; inputs
have a scale and a zero point for each layer, from the range they have on some slices. The integer products are those of
oneDNN, by the operators that torch.compile uses.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from covid_monai.inference.precision import has_bfloat16

__all__ = ["can_quantise", "gains_by_int8", "in_integers", "is_exact", "quantise"]

FEWEST_CHANNELS = (16, 8)
"""Convolutions from fewer channels than the first, or to fewer than the second, stay: first and last layers take little
time, and need precision most."""
AT_ONCE = 2
"""Slices, for the sake of memory."""
LONGEST_TAIL = 60.0
"""Over the root mean square of a convolution's inputs: where they span more it stays, for the steps would be coarse.
In our networks one layer of the partial decoder, where features are multiplied, has half of the error of all; it spans
128, the next 43."""
SMALLEST_RANGE = 1e-30
"""Of a layer that is dead on all the slices, and might not be on others, nothing is known."""
LARGEST_WEIGHT = 127
LARGEST_INPUT = 255


def gains_by_int8() -> bool:
    """Whether this CPU computes convolutions fastest in 8-bit integers: on x86 by VNNI, without bfloat16."""
    return torch.cpu._is_avx2_supported() and not has_bfloat16() and is_exact()


@cache
@torch.no_grad()
def is_exact() -> bool:
    """Whether products of 8 bits are summed up exactly; without VNNI, or kept from it, they overflow."""
    conv = nn.Conv2d(32, 32, 3, bias=False, device="meta")  # draws no random weights
    conv.weight = nn.Parameter(torch.full(conv.weight.shape, float(LARGEST_WEIGHT), device="cpu"))
    x = torch.full((1, 32, 3, 3), float(LARGEST_INPUT)).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        # deprecated, of which torch warns once; there is no other in one pass
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        try:
            found = _Int8Conv2d(conv, _Inputs(0.0, float(LARGEST_INPUT), 1.0, x.shape))(x)
        except (AttributeError, RuntimeError):  # this torch has not these operators, or not for this CPU
            return False
    return bool((found == conv.weight[0].numel() * LARGEST_INPUT * LARGEST_WEIGHT).all())  # which float32 holds exactly


def can_quantise(network: nn.Module) -> bool:
    """Whether a network has convolutions that gain."""
    return any(map(_is_worth_it, network.modules()))


def in_integers(network: nn.Module) -> bool:
    """Whether a network has convolutions in 8-bit integers."""
    return any(isinstance(module, _Int8Conv2d) for module in network.modules())


@torch.no_grad()
def quantise(network: nn.Module, slices: torch.Tensor) -> None:
    """Put 8-bit integers in place of a network's larger convolutions.

    Args:
        network: on the CPU, in float32, for prediction.
        slices: (N, C, H, W) whose activations show the range of every layer's inputs; inputs beyond it are cut off.
    """
    names = {module: name for name, module in network.named_modules()}
    with _inputs(network) as inputs:
        for part in slices.split(AT_ONCE):
            network(part)
    for conv, each in inputs.items():
        if SMALLEST_RANGE <= each.high - each.low <= LONGEST_TAIL * each.size < math.inf:
            network.set_submodule(names[conv], _Int8Conv2d(conv, each))


class _Inputs(NamedTuple):
    """Of a convolution, over several parts of the slices.

    Attributes:
        low: the lowest, at most 0, which pads.
        high: the highest, at least 0.
        size: the root of their mean square, the largest of the parts.
        shape: of the last part.
    """

    low: float
    high: float
    size: float
    shape: torch.Size


@contextmanager
def _inputs(network: nn.Module) -> Iterator[dict[nn.Conv2d, _Inputs]]:
    """The inputs of each convolution that is worth it, of what the network sees meanwhile."""
    found: dict[nn.Conv2d, _Inputs] = {}

    def look(conv: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        x = inputs[0]
        low, high = (float(end) for end in x.aminmax())
        size = float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5
        before = found.get(conv, _Inputs(0.0, 0.0, 0.0, x.shape))
        size = math.inf if math.isnan(size) else max(size, before.size)
        found[conv] = _Inputs(min(low, before.low), max(high, before.high), size, x.shape)

    hooks = [each.register_forward_pre_hook(look) for each in network.modules() if _is_worth_it(each)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_worth_it(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    fewest_in, fewest_out = FEWEST_CHANNELS
    return module.groups == 1 and module.in_channels >= fewest_in and module.out_channels >= fewest_out


class _Int8Conv2d(nn.Module):
    """A convolution of inputs in uint8 with weights in int8; float32 in and out, channels-last.

    Args:
        conv: the convolution in float32.
        inputs: what it is given.
    """

    def __init__(self, conv: nn.Conv2d, inputs: _Inputs) -> None:
        super().__init__()
        self.scale = (inputs.high - inputs.low) / LARGEST_INPUT
        self.zero = round(-inputs.low / self.scale)
        self.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        weight = conv.weight
        scales = weight.abs().amax((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_WEIGHT
        codes = (weight / scales[:, None, None, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qconv_prepack  # the shape tells it the order of the weights that suits best
        self.weight = packed(codes, scales, self.scale, self.zero, *self.geometry, list(inputs.shape))
        self.weight_scales, self.weight_zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            self._codes(x), self.scale, self.zero, self.weight, self.weight_scales, self.weight_zeros, self.bias,
            *self.geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def _codes(self, x: torch.Tensor) -> torch.Tensor:
        """What ``x`` is in uint8: the memory of torch's own quantised tensor, in one pass."""
        codes = torch.quantize_per_tensor(x, self.scale, self.zero, torch.quint8)
        return torch.empty(0, dtype=torch.uint8).set_(codes.untyped_storage(), 0, codes.shape, codes.stride())
