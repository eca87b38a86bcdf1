# SPDX-License-Identifier: Apache-2.0
"""Output heads: exchanged between segmentation and the inpainting pretext, everything before them kept.

Pre-training by inpainting replaces the last convolution of every output by a linear head that rebuilds the image
(Singh et al., "Self-Supervised Feature Learning for Semantic Segmentation of Overhead Imagery", BMVC 2018; Fung et al.,
J Transl Med 2021). What the other layers learnt is then loaded into the segmentation network.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from covid_monai.networks.weights import WeightsError

__all__ = [
    "OutputModule",
    "initialise",
    "load_trunk",
    "state_faults",
    "with_inpainting_heads",
    "with_segmentation_heads",
]

Network = TypeVar("Network", bound=nn.Module)


class OutputModule(nn.Module):
    """A part of a network whose last layer, the attribute ``head``, makes one of the network's output maps.

    A network's heads are found by this class: a new network has its outputs made by such parts, and no list to keep.
    """

    def segmentation_head(self) -> nn.Module:
        """Build a fresh head for segmentation, as in a new network."""
        raise NotImplementedError


def initialise(module: nn.Module) -> None:
    """Draw the convolutions' weights so that the variance stays when no activation follows (He et al., ICCV 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")


def with_inpainting_heads(network: Network) -> Network:
    """Give every output of a network a linear head of one channel, which rebuilds the image; all else stays.

    In this form the network's maps are ``(B, 1, H, W)`` each, images and no logits, and it is trained, saved and loaded
    as before. It is not meant to be scripted or exported.

    Args:
        network: an :class:`~covid_monai.networks.InfNet` or :class:`~covid_monai.networks.MultiInfNet`, changed in
            place. Heads stand on its device, in its precision and memory format.

    Returns:
        The same network.

    Raises:
        ValueError: if the network has no output heads.
    """
    return _with_heads(network, lambda module: nn.Conv2d(_width(module.get_submodule("head")), 1, 1))


def with_segmentation_heads(network: Network) -> Network:
    """Give every output of a network a fresh segmentation head, as in a new network; all else stays.

    Args:
        network: an :class:`~covid_monai.networks.InfNet` or :class:`~covid_monai.networks.MultiInfNet`, changed in
            place. Heads stand on its device, in its precision and memory format.

    Returns:
        The same network.

    Raises:
        ValueError: if the network has no output heads.
    """
    return _with_heads(network, lambda module: module.segmentation_head())


def load_trunk(network: Network, state_dict: Mapping[str, torch.Tensor]) -> Network:
    """Load all weights but those of the output heads, which the network keeps whatever the state has there.

    Args:
        network: the network to load into, in either form.
        state_dict: weights of the same network, in either form.

    Returns:
        The same network.

    Raises:
        WeightsError: if names or shapes of anything but the heads differ; nothing is loaded then.
        ValueError: if the network has no output heads.
    """
    heads = tuple(f"{name}.head.".lstrip(".") for name in _output_modules(network))
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(heads)}
    given = {name: tensor for name, tensor in state_dict.items() if not name.startswith(heads)}
    if faults := state_faults(own, given):
        raise WeightsError(f"the weights are not those of this {type(network).__name__}'s trunk: {faults}")
    network.load_state_dict(given, strict=False)
    return network


def state_faults(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """Name what is missing, unexpected or of another shape in a state dictionary; empty when it fits."""
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [name for name in wanted if name in given and given[name].shape != wanted[name].shape],
    }
    return "; ".join(f"{fault}: {_shorten(names)}" for fault, names in faults.items() if names)


def _output_modules(network: nn.Module) -> dict[str, OutputModule]:
    modules = {name: module for name, module in network.named_modules() if isinstance(module, OutputModule)}
    if not modules:
        raise ValueError(f"a {type(network).__name__} has no output heads; give an InfNet or a MultiInfNet")
    return modules


def _with_heads(network: Network, build: Callable[[OutputModule], nn.Module]) -> Network:
    channels_last = any(_is_channels_last(parameter) for parameter in network.parameters())
    for module in _output_modules(network).values():
        like = next(module.get_submodule("head").parameters())
        head = build(module)
        initialise(head)
        head.to(like.device, like.dtype).train(module.training)
        if channels_last:
            head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.head = head
    return network


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _width(head: nn.Module) -> int:
    return next(part.in_channels for part in head.modules() if isinstance(part, nn.Conv2d))


def _shorten(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
