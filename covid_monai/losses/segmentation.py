# SPDX-License-Identifier: Apache-2.0
"""Segmentation losses: Inf-Net's, of one map and of its five, and the multi-class network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks.utils import one_hot
from torch import nn

__all__ = ["InfNetLoss", "MultiInfNetLoss", "SegmentationLoss", "Variant", "boundary_weight"]

Variant = Literal["unweighted", "published", "weighted"]


def boundary_weight(target: torch.Tensor, window: int = 31, gain: float = 5.0) -> torch.Tensor:
    """Weigh each pixel by how much its neighbourhood differs from it: ``1 + gain * |mean over the window - target|``.

    Outside the image the mask counts as 0, as in the published code, so a mask reaching the border is weighted there.

    Args:
        target: float masks ``(B, 1, H, W)`` in [0, 1].
        window: side of the averaged square, in pixels, odd.
        gain: weight beyond 1 where mean and mask differ fully.

    Returns:
        Weights ``(B, 1, H, W)`` from 1 to ``1 + gain``.
    """
    mean, half = target, window // 2
    for dim in (2, 3):  # the mean over a square is the mean of means over its rows
        sums = F.pad(mean, (0, 0, half + 1, half) if dim == 2 else (half + 1, half, 0, 0)).cumsum(dim)
        length = target.shape[dim]
        mean = (sums.narrow(dim, window, length) - sums.narrow(dim, 0, length)) / window
    return 1 + gain * (mean - target).abs()


class SegmentationLoss(nn.Module):
    """Soft intersection over union plus binary cross-entropy of one map, averaged over the batch (Eq. 4, lambda 1).

    The first term is ``1 - (intersection + 1) / (union + 1)``, the sums of ``w * p * t`` and of ``w * (p + t - p * t)``
    over each slice, p the sigmoid of the logits; the added ones define it for empty masks. The second is the sum of
    ``w * bce`` over the sum of ``w``. Variants differ in where ``w`` is :func:`boundary_weight` rather than 1:

    - ``"unweighted"``: nowhere, the paper's Eq. 4.
    - ``"published"``: in the first term only, what Inf-Net's published code computes.
    - ``"weighted"``: in both, what Inf-Net's text says.

    The first term of a slice without lesion is near 1 for any false alarm, however small, and its gradient keeps
    pushing the logits of all slices down, while that of a lesion which is missed altogether vanishes: trained on both
    kinds of slices, a network overlooks faint lesions. ``ignore_empty`` leaves slices without lesion their second term
    alone. Inf-Net's authors train on slices with lesion only, where it changes nothing.

    Computed in float32, also under autocast.

    Args:
        variant: one of the three.
        ignore_empty: add 0 as the first term of slices without lesion.

    Raises:
        ValueError: if the variant is unknown.
    """

    def __init__(self, variant: Variant = "unweighted", ignore_empty: bool = False) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ValueError(f"variant is {variant!r}; choose one of {', '.join(get_args(Variant))}")
        self.variant = variant
        self.ignore_empty = ignore_empty

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            logits: map ``(B, 1, H, W)``.
            target: masks of that shape, 0 or 1 or between.

        Raises:
            ValueError: if the shapes differ or are not ``(B, 1, H, W)``.
        """
        _check_shapes("logits", logits, target)
        target = target.float()
        return self._loss(logits, target, self._weight(target))

    def _weight(self, target: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(target) if self.variant == "unweighted" else boundary_weight(target)

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        probability = logits.sigmoid()
        intersection = (weight * probability * target).sum((1, 2, 3))
        union = (weight * (probability + target)).sum((1, 2, 3)) - intersection
        iou_loss = 1 - (intersection + 1) / (union + 1)
        if self.ignore_empty:
            iou_loss = iou_loss * target.amax((1, 2, 3)).gt(0)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.variant == "weighted":
            bce = (weight * bce).sum((1, 2, 3)) / weight.sum((1, 2, 3))
        return iou_loss.mean() + bce.mean()


class InfNetLoss(nn.Module):
    """Inf-Net's total (Eq. 5): the segmentation loss of its lesion maps plus the cross-entropy of its edge map.

    Args:
        variant: of :class:`SegmentationLoss`.
        ignore_empty: likewise.

    Raises:
        ValueError: if the variant is unknown.
    """

    def __init__(self, variant: Variant = "unweighted", ignore_empty: bool = False) -> None:
        super().__init__()
        self.segmentation = SegmentationLoss(variant, ignore_empty)

    def forward(self, maps: Sequence[torch.Tensor], target: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            maps: Inf-Net's maps in training mode, the last one that of the edge, each ``(B, 1, H, W)``; Inf-Net has
                ``(s_g, s_5, s_4, s_3, edge)``.
            target: masks of that shape.
            edge: outlines of the masks, of that shape.

        Raises:
            ValueError: if there are no maps with an edge, or a shape differs or is not ``(B, 1, H, W)``.
        """
        if isinstance(maps, torch.Tensor) or len(maps) < 2:
            found = "one tensor" if isinstance(maps, torch.Tensor) else f"{len(maps)} maps"
            raise ValueError(f"found {found} instead of Inf-Net's maps and edge; put the network in training mode")
        names = getattr(maps, "_fields", [f"map {number}" for number in range(len(maps) - 1)] + ["edge"])
        for name, logits in zip(names, maps, strict=True):
            _check_shapes(name, logits, edge if name == "edge" else target)
        target = target.float()
        weight = self.segmentation._weight(target)
        total = F.binary_cross_entropy_with_logits(maps[-1].float(), edge.float())
        for logits in maps[:-1]:
            total = total + self.segmentation._loss(logits, target, weight)
        return total


class MultiInfNetLoss(nn.Module):
    """Dice loss of the foreground classes plus weighted cross-entropy of every class map, summed over the maps.

    The first term of a map is the mean over the foreground classes of 1 - soft Dice, each Dice taken over the whole
    batch. A class that no pixel of the batch has adds 0: it has no overlap to measure, and what is wrongly predicted
    as it costs cross-entropy. The second is the cross-entropy of all classes, background too, each pixel weighted by
    its class and the sum divided by the sum of weights. An edge map, where the network has one, adds its binary
    cross-entropy. Computed in float32, also under autocast.

    These are the two parts of :class:`monai.losses.DiceCELoss`, which cannot be used whole: it multiplies the class
    weights into the Dice losses as well, and counts an absent class as fully missed.

    Args:
        class_weights: cross-entropy weights of background, ground glass and consolidation, above 0. By default about
            the inverse square roots of their shares in MedSeg's 50 training slices (93.1, 4.3 and 2.5 %).

    Raises:
        ValueError: if there are fewer than two weights, or one is not above 0 and finite.
    """

    class_weights: torch.Tensor

    def __init__(self, class_weights: Sequence[float] = (1.0, 4.5, 6.0)) -> None:
        super().__init__()
        weights = torch.tensor(class_weights, dtype=torch.float32)
        if weights.ndim != 1 or len(weights) < 2 or not ((weights > 0) & weights.isfinite()).all():
            raise ValueError(f"class_weights is {class_weights}; give a weight above 0 for each of two or more classes")
        self.register_buffer("class_weights", weights, persistent=False)
        self.dice = DiceLoss(include_background=False, softmax=True, batch=True, reduction="none")

    def forward(self, maps: Sequence[torch.Tensor], target: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            maps: the network's maps in training mode, class logits ``(B, classes, H, W)``; if they are a named tuple
                with a field ``edge``, that one is the lesions' outline, logits ``(B, 1, H, W)``.
            target: class codes ``(B, 1, H, W)``, 0 = background.
            edge: outlines of that shape, 0 or 1, of the lesions and, where they are made from the class codes, of the
                border between two classes too; not looked at where the maps have none.

        Raises:
            ValueError: if there is no map or one tensor instead of several, a shape differs, or a code is not a class.
        """
        if isinstance(maps, torch.Tensor) or not len(maps):
            found = "one tensor" if isinstance(maps, torch.Tensor) else "no map"
            raise ValueError(f"found {found} instead of the network's maps; put the network in training mode")
        classes = len(self.class_weights)
        if target.ndim != 4 or target.shape[1] != 1:
            raise ValueError(f"target has shape {tuple(target.shape)}; it must be (B, 1, H, W)")
        if target.min() < 0 or target.max() >= classes:
            raise ValueError(f"target has codes {target.min():g} to {target.max():g}; give classes 0 to {classes - 1}")
        codes = target[:, 0].long()
        truth = one_hot(codes[:, None], classes)
        present = truth[:, 1:].amax((0, 2, 3))
        total = truth.new_zeros(())
        for name, logits in zip(getattr(maps, "_fields", ("map",) * len(maps)), maps, strict=True):
            if name == "edge":
                _check_shapes(name, logits, edge)
                total = total + F.binary_cross_entropy_with_logits(logits.float(), edge.float())
                continue
            if logits.shape != truth.shape:
                raise ValueError(
                    f"{name} has shape {tuple(logits.shape)} and its target {tuple(target.shape)}; they must be "
                    f"(B, {classes}, H, W) and (B, 1, H, W)"
                )
            dice = self.dice(logits.float(), truth).flatten()
            total = total + (dice * present).mean() + F.cross_entropy(logits.float(), codes, self.class_weights)
        return total


def _check_shapes(name: str, logits: torch.Tensor, target: torch.Tensor) -> None:
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)} and its target {tuple(target.shape)}; both must be (B, 1, H, W)"
        )
