# SPDX-License-Identifier: Apache-2.0
"""What a trainer takes out of a batch."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer

from covid_monai.networks import InfNetCascade

__all__ = ["PreparePriorBatch", "prepare_edge_batch", "prepare_image_batch"]


def prepare_edge_batch(
    batch: dict[str, torch.Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Image and ``(label, edge)`` of a batch, for MONAI trainers with Inf-Net's losses.

    Args:
        batch: ``image``, ``label`` and ``edge``, each (B, C, H, W).
        device: where to move them.
        non_blocking: as in :meth:`torch.Tensor.to`.
        kwargs: further arguments of :meth:`torch.Tensor.to`.

    Returns:
        ``(image, (label, edge))`` as plain tensors, the image channels-last.
    """
    label, edge = (_move(batch[key], device, non_blocking, **kwargs) for key in ("label", "edge"))
    return prepare_image_batch(batch, device, non_blocking, **kwargs), (label, edge)


def prepare_image_batch(
    batch: dict[str, torch.Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> torch.Tensor:
    """Image of a batch as a plain channels-last tensor (B, C, H, W), for :class:`PretextTrainer`; no label is needed.

    Args:
        batch: has ``image`` (B, C, H, W).
        device: where to move it.
        non_blocking: as in :meth:`torch.Tensor.to`.
        kwargs: further arguments of :meth:`torch.Tensor.to`.
    """
    return _move(batch["image"], device, non_blocking, **kwargs).contiguous(memory_format=torch.channels_last)


class PreparePriorBatch:
    """Image and prior of a batch, for the pre-training of :class:`~covid_monai.networks.MultiInfNet`.

    The prior is predicted on the image as it comes out of augmentation, so both are augmented as one.

    Args:
        cascade: whose single network makes the prior.
        inferer: runs it, such as :class:`covid_monai.inference.AutocastInferer`.
    """

    def __init__(self, cascade: InfNetCascade, inferer: Inferer | None = None) -> None:
        self.cascade = cascade
        self.inferer = inferer or SimpleInferer()

    def __call__(
        self,
        batch: dict[str, torch.Tensor],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, 2, H, W): image and probability of infection; the arguments are :func:`prepare_image_batch`'s."""
        image = prepare_image_batch(batch, device, non_blocking, **kwargs)
        prior = self.inferer(image, self.cascade.prior)
        return torch.cat([image, prior.float()], 1).contiguous(memory_format=torch.channels_last)


def _move(tensor: torch.Tensor, device: torch.device | str | None, non_blocking: bool, **kwargs: Any) -> torch.Tensor:
    """As a plain tensor (not a MetaTensor) on the device."""
    return torch.as_tensor(tensor).as_subclass(torch.Tensor).to(device, non_blocking=non_blocking, **kwargs)
