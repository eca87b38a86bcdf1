# SPDX-License-Identifier: Apache-2.0
"""Convolutions in 8-bit integers, for CPUs that have instructions for these but none for bfloat16.

Post-training static quantization: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1; Krishnamoorthi, "Quantizing deep convolutional networks for
efficient inference", arXiv:1806.08342, section 3. Weights are symmetric, with a scale for each output channel; inputs
have a scale and a zero point for each layer, from the range they have on some slices. The integer products are those of
oneDNN, by the operators that torch.compile uses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["quantise"]

FEWEST_CHANNELS = 16
"""Convolutions from or to fewer channels stay: first and last layers take little time, and need precision most."""
AT_ONCE = 4
"""Slices, for the sake of memory."""
LONGEST_TAIL = 30.0
"""Over the root mean square of a convolution's inputs: where they span more it stays, for the steps would be coarse.
In our networks one layer of the partial decoder, where features are multiplied, has half of the error of all."""
LARGEST_WEIGHT = 127
LARGEST_INPUT = 255


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
    for conv, (low, high, size) in inputs.items():
        if high - low <= LONGEST_TAIL * size:
            network.set_submodule(names[conv], _Int8Conv2d(conv, low, high))


class _Inputs(NamedTuple):
    """Of a convolution: the lowest, at most 0, which pads; the highest, at least 0; the root of their mean square."""

    low: float
    high: float
    size: float


@contextmanager
def _inputs(network: nn.Module) -> Iterator[dict[nn.Conv2d, _Inputs]]:
    """The inputs of each convolution that is worth it, of what the network sees meanwhile."""
    found: dict[nn.Conv2d, _Inputs] = {}

    def look(conv: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        low, high = (float(end) for end in inputs[0].aminmax())
        size = float(torch.linalg.vector_norm(inputs[0])) / inputs[0].numel() ** 0.5
        before = found.get(conv, _Inputs(0.0, 0.0, 0.0))
        found[conv] = _Inputs(min(low, before.low), max(high, before.high), max(size, before.size))

    convs = (module for module in network.modules() if isinstance(module, nn.Conv2d) and _is_worth_it(module))
    hooks = [conv.register_forward_pre_hook(look) for conv in convs]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_worth_it(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
    return plain and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS


class _Int8Conv2d(nn.Module):
    """A convolution of inputs in uint8 with weights in int8; float32 in and out, channels-last.

    Args:
        conv: the convolution in float32.
        low: the lowest input, at most 0.
        high: the highest input, at least 0.
    """

    def __init__(self, conv: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        self.scale = max(high - low, torch.finfo(torch.float32).tiny) / LARGEST_INPUT
        self.zero = round(-low / self.scale)
        self.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        weight = conv.weight
        scales = weight.abs().amax((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_WEIGHT
        codes = (weight / scales[:, None, None, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qconv_prepack(codes, scales, self.scale, self.zero, *self.geometry)
        self.weight_scales, self.weight_zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self.bias = conv.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._codes(torch.zeros(1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            self._codes(x), self.scale, self.zero, self.weight, self.weight_scales, self.weight_zeros, self.bias,
            *self.geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def _codes(self, x: torch.Tensor) -> torch.Tensor:
        """What ``x`` is in uint8: the memory of torch's own quantised tensor, in one pass."""
        codes = torch.quantize_per_tensor(x, self.scale, self.zero, torch.quint8)
        return torch.empty(0, dtype=torch.uint8).set_(codes.untyped_storage(), 0, codes.shape, codes.stride())
