# SPDX-License-Identifier: Apache-2.0
"""Metrics that MONAI does not have. Hard Dice of one class is MONAI's own ``DiceMetric``."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, DiceMetric

__all__ = ["ClassMeanDice", "ThresholdAveraged"]

STATISTICS = ("dice", "sensitivity", "specificity")


class ThresholdAveraged(CumulativeIterationMetric):
    """Inf-Net's own evaluation: Dice, sensitivity or specificity averaged over 256 thresholds and over images.

    Fan et al., IEEE TMI 2020. Every probability map is thresholded at 1, 254/255, ..., 0 (``p >= t``); a threshold
    without a true positive counts as 0 for all three statistics, as in the authors' evaluation. The authors stretch
    every predicted map to 0..1 first; this metric does not, since a healthy slice would then always reach 1. It is here
    to be compared with their table; report hard Dice at a fixed threshold beside it.

    Args:
        statistic: ``"dice"``, ``"sensitivity"`` or ``"specificity"``.
        thresholds: how many equally spaced thresholds from 1 to 0.

    Raises:
        ValueError: for an unknown statistic.
    """

    def __init__(self, statistic: str = "dice", thresholds: int = 256) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}.")
        self.statistic = statistic
        self.thresholds = thresholds

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """Per image: ``y_pred`` probabilities (B, 1, H, W), ``y`` binary masks (B, 1, H, W); returns (B, 1)."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError(
                f"prediction {tuple(y_pred.shape)} and mask {None if y is None else tuple(y.shape)} differ."
            )
        return torch.stack([self._image(p, g) for p, g in zip(y_pred, y, strict=True)])[:, None]

    def _image(self, probability: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        levels = self.thresholds - 1
        # the number of thresholds i/levels that a pixel reaches; a pixel is positive at threshold i when count > i
        count = torch.floor(probability.flatten().double() * levels + 1e-9).long().clamp(0, levels) + 1
        positive = mask.flatten() > 0.5
        hits = self._at_least(count[positive])
        alarms = self._at_least(count[~positive])
        foreground, background = positive.sum().double(), (~positive).sum().double()
        if self.statistic == "dice":
            value = 2 * hits / (hits + alarms + foreground).clamp(min=1)
        elif self.statistic == "sensitivity":
            value = hits / foreground.clamp(min=1)
        else:
            value = (background - alarms) / background.clamp(min=1)
        return torch.where(hits > 0, value, torch.zeros_like(value)).mean().float()

    def _at_least(self, count: torch.Tensor) -> torch.Tensor:
        """Pixels that reach threshold i, for i = 0..levels."""
        histogram = torch.bincount(count, minlength=self.thresholds + 1).double()
        return histogram.flip(0).cumsum(0).flip(0)[1:]

    def aggregate(self) -> torch.Tensor:
        """Mean over all images seen, a scalar tensor.

        Raises:
            ValueError: when no image was seen.
        """
        data = self.get_buffer()
        if not isinstance(data, torch.Tensor):
            raise ValueError("no image was evaluated: call the metric before aggregate().")
        return data.mean()


class ClassMeanDice(DiceMetric):
    """MONAI's hard Dice, averaged over slices first and over classes then, so that each class weighs the same.

    A class is averaged over the slices that have it in the reference (``ignore_empty``); with
    ``include_background=False`` background is no class. The arguments are those of :class:`monai.metrics.DiceMetric`.
    """

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Mean over the classes that any slice has, a scalar tensor; NaN when none has any."""
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("no image was evaluated: call the metric before aggregate().")
        return values.nanmean(0).nanmean()
