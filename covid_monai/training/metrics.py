# SPDX-License-Identifier: Apache-2.0
"""Metrics that MONAI does not have. Hard Dice of one class is MONAI's own ``DiceMetric``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, DiceMetric

__all__ = [
    "BestThreshold",
    "ClassMeanDice",
    "KnownDice",
    "ThresholdAveraged",
    "classes_are_guessed",
    "mark_guessed_classes",
]

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
        return self._over_thresholds(y_pred, y).mean(1, keepdim=True).float()

    def _over_thresholds(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Statistic of each image at the thresholds i / (thresholds - 1), i from 0: (B, thresholds), float64."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError(
                f"prediction {tuple(y_pred.shape)} and mask {None if y is None else tuple(y.shape)} differ."
            )
        return torch.stack([self._image(p, g) for p, g in zip(y_pred, y, strict=True)])

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
        return torch.where(hits > 0, value, torch.zeros_like(value))

    def _at_least(self, count: torch.Tensor) -> torch.Tensor:
        """Pixels that reach threshold i, for i = 0..levels."""
        histogram = torch.bincount(count, minlength=self.thresholds + 1).double()
        return histogram.flip(0).cumsum(0).flip(0)[1:]

    def aggregate(self) -> torch.Tensor:
        """Mean over all images seen, a scalar tensor.

        Raises:
            ValueError: when no image was seen.
        """
        return self._seen().mean()

    def _seen(self) -> torch.Tensor:
        data = self.get_buffer()
        if not isinstance(data, torch.Tensor):
            raise ValueError("no image was evaluated: call the metric before aggregate().")
        return data


class BestThreshold(ThresholdAveraged):
    """Highest mean Dice over images that one threshold for all of them reaches, or that threshold.

    The threshold is chosen on the images that are scored, as published tables are often read, so this is no estimate
    of what a network does on other images. Compare with such tables only. Dice and thresholds are those of
    :class:`ThresholdAveraged`: an image without a true positive counts as 0, also one without lesion.

    Args:
        give: ``"dice"``, or ``"threshold"`` for the probability that reaches it, the lowest of equals.
        thresholds: how many equally spaced thresholds from 0 to 1.

    Raises:
        ValueError: for another ``give``.
    """

    def __init__(self, give: str = "dice", thresholds: int = 256) -> None:
        super().__init__("dice", thresholds)
        if give not in ("dice", "threshold"):
            raise ValueError(f"give must be dice or threshold, got {give!r}.")
        self.give = give

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """Per image and threshold: ``y_pred`` probabilities (B, 1, H, W), ``y`` masks of that shape."""
        return self._over_thresholds(y_pred, y)

    def aggregate(self) -> torch.Tensor:
        """The highest mean Dice or its threshold, 0..1, a scalar tensor.

        Raises:
            ValueError: when no image was seen.
        """
        means = self._seen().mean(0)
        best = means.argmax()
        return (means[best] if self.give == "dice" else best / (self.thresholds - 1)).float()


def classes_are_guessed(item: Mapping[str, Any]) -> bool:
    """Whether the lesion classes of an item's reference were guessed from its HU; its lesions as such are sure."""
    return item.get("class_source") == "inferred"


def mark_guessed_classes(item: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an item with its one-hot ``label`` (C, H, W) also as ``classes``, NaN all over where they are guessed."""
    label = item["label"]
    return {**item, "classes": torch.full_like(label, torch.nan) if classes_are_guessed(item) else label}


class KnownDice(DiceMetric):
    """MONAI's hard Dice, NaN for an image and channel whose reference holds NaN, which says that it is not known.

    NaN takes no part in the mean. The arguments are those of :class:`monai.metrics.DiceMetric`.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, C) from masks ``y_pred`` and ``y`` (B, C, H, W)."""
        unknown = y.isnan().flatten(2).any(2)
        values = super()._compute_tensor(y_pred, y.nan_to_num(0))
        return values.masked_fill(unknown[:, -values.shape[1] :], torch.nan)


class ClassMeanDice(KnownDice):
    """MONAI's hard Dice, averaged over slices first and over classes then, so that each class weighs the same.

    A class is averaged over the slices that have it in the reference (``ignore_empty``), where that is known; with
    ``include_background=False`` background is no class. The arguments are those of :class:`monai.metrics.DiceMetric`.
    """

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Mean over the classes that any slice has, a scalar tensor; NaN when none has any."""
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("no image was evaluated: call the metric before aggregate().")
        return values.nanmean(0).nanmean()
