# SPDX-License-Identifier: Apache-2.0
"""What a trainer takes out of a batch."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["prepare_edge_batch"]


def prepare_edge_batch(
    batch: dict[str, torch.Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Image and ``(label, edge)`` of a batch, for MONAI trainers whose loss is :class:`covid_monai.losses.InfNetLoss`.

    Args:
        batch: ``image``, ``label`` and ``edge``, each (B, C, H, W).
        device: where to move them.
        non_blocking: as in :meth:`torch.Tensor.to`.
        kwargs: further arguments of :meth:`torch.Tensor.to`.

    Returns:
        ``(image, (label, edge))`` as plain tensors, the image channels-last.
    """

    def move(key: str) -> torch.Tensor:
        return torch.as_tensor(batch[key]).as_subclass(torch.Tensor).to(device, non_blocking=non_blocking, **kwargs)

    return move("image").contiguous(memory_format=torch.channels_last), (move("label"), move("edge"))
