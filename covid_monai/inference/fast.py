# SPDX-License-Identifier: Apache-2.0
"""A copy of a network that does nothing but predict, several times as fast."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from covid_monai.inference.int8 import can_quantise, gains_by_int8, in_integers, quantise
from covid_monai.inference.precision import autocast, has_bfloat16

__all__ = ["FastNetwork"]


class FastNetwork(nn.Module):
    """A network for prediction alone, on the device where it lies.

    Batch normalisation that follows a convolution becomes part of its weights (Jacob et al., "Quantization and Training
    of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2), in float32: the same
    function but for rounding. On CPUs with bfloat16 instructions weights and activations are then bfloat16, which saves
    the conversions of automatic mixed precision; folded first, the statistics of the normalisation lose nothing by it.
    On CPUs with instructions for 8-bit integers instead, :meth:`quantised` is two to three times as fast as float32.
    CUDA, and a network without convolutions or in which some normalisation had to stay, compute under
    :func:`~covid_monai.inference.autocast`. The memory format is channels-last.

    The network itself is not changed, and later changes of it are not seen.

    Args:
        network: in evaluation mode; maps (N, C, H, W) to one tensor.
        example: input that shows which normalisation follows which convolution.
        amp: False computes in float32.
    """

    def __init__(self, network: nn.Module, example: torch.Tensor, amp: bool = True) -> None:
        super().__init__()
        self.amp, self.device = amp, example.device
        folded = _folded(network, example).requires_grad_(False)
        kinds = {type(module) for module in folded.modules()}
        self._rounds = amp and example.device.type == "cpu" and nn.Conv2d in kinds and nn.BatchNorm2d not in kinds
        self.dtype = torch.bfloat16 if self._rounds and has_bfloat16() else torch.float32
        self.network = folded.to(self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def gains_by_int8(self) -> bool:
        """Whether :meth:`quantised` is faster, on this CPU and for this network."""
        return self._rounds and self.dtype == torch.float32 and gains_by_int8() and can_quantise(self.network)

    @property
    def precision(self) -> str:
        """What the network computes in: "float32", "bfloat16", "float16", or "int8" for its larger convolutions."""
        if in_integers(self.network):
            return "int8"
        mixed = autocast(self.device, self.amp and self.dtype == torch.float32)
        dtype = mixed.fast_dtype if isinstance(mixed, torch.autocast) else self.dtype
        return str(dtype).removeprefix("torch.")

    def quantised(self, slices: torch.Tensor) -> FastNetwork:
        """A copy whose larger convolutions are in 8-bit integers, on the CPU.

        Args:
            slices: (N, C, H, W) like those it will see: they show how large the inputs of each layer become. What is
                larger still in other slices is cut off.

        Raises:
            ValueError: it does not compute in float32 on the CPU.
        """
        if self.precision != "float32" or self.device.type != "cpu":
            raise ValueError(f"a network in {self.precision} on {self.device} cannot be quantised: give float32 on cpu")
        other = copy.deepcopy(self, {id(weight): weight for weight in self.parameters()})  # which stay as they are
        quantise(other.network, slices.contiguous(memory_format=torch.channels_last))
        return other

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's answer for ``x``, in float32."""
        with autocast(x.device, self.amp and self.dtype == torch.float32):
            return self.network(x.to(self.dtype, memory_format=torch.channels_last)).float()


@torch.no_grad()
def _folded(whole: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy with batch normalisation folded into the convolutions before it."""
    network = copy.deepcopy(whole)
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[torch.Tensor] = []  # alive, so that no id is given twice
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def made(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            kept.append(output)

    def taken(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], module))

    hooks = [each.register_forward_hook(made) for each in network.modules() if isinstance(each, nn.Conv2d)]
    hooks += [each.register_forward_pre_hook(taken) for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    expected = network(example)
    for hook in hooks:
        hook.remove()
    runs = Counter(made_by.values())
    uses = Counter(module for pair in pairs for module in pair)
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        if runs[conv] == uses[conv] == uses[norm] == 1 and conv in names and norm in names:
            network.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
            network.set_submodule(names[norm], nn.Identity())
    error = (network(example) - expected).abs().max()
    if error <= 1e-3 * expected.abs().max():
        return network
    return copy.deepcopy(whole)  # a convolution is read elsewhere too
