# SPDX-License-Identifier: Apache-2.0
"""How numbers are written for people: percent, mL, scores, ranges; and never a number for what is not known."""

from __future__ import annotations

import re
from collections.abc import Sequence

from covid_monai.severity.scores import Involvement, Score
from covid_monai.severity.uncertainty import Spread

__all__ = ["UNKNOWN", "ml", "over", "percent", "percent_range", "score_of", "total", "unbroken", "whole_range"]

UNKNOWN = "n/a"


def percent(share: float | None, digits: int = 1) -> str:
    """A share (0..1) in percent; "< 0.1 %" for what rounding would make nothing."""
    if share is None:
        return UNKNOWN
    smallest = 10.0**-digits
    if 0 < 100 * share < smallest / 2:
        return f"< {smallest:g} %"
    return f"{100 * share:.{digits}f} %"


def ml(volume: float | None) -> str:
    """A volume in mL: whole ones, or tenths below 10 mL; "< 0.1 mL" for what rounding would make nothing."""
    if volume is None:
        return UNKNOWN
    if 0 < volume < 0.05:
        return "< 0.1 mL"
    return f"{volume:.1f} mL" if 0 < volume < 9.95 else f"{volume:.0f} mL"


def score_of(place: Involvement) -> str:
    """The score of a region or lobe in words."""
    return "not assessable" if place.score is None else f"score {place.score}"


def total(score: Score) -> str:
    """A sum, or between what it must lie: "14 / 40", "6-24 / 40"."""
    value = f"{score.lowest}-{score.highest}" if score.score is None else f"{score.score}"
    return f"{value} / {score.maximum}"


def percent_range(ends: Sequence[float] | None) -> str | None:
    """Two shares (0..1) as "10.2 to 14.3 %"."""
    return None if ends is None else f"{percent(ends[0]).removesuffix(' %')} to {percent(ends[1])}"


def whole_range(ends: Sequence[float] | None) -> str | None:
    """Two whole numbers as "12 to 15"."""
    return None if ends is None else f"{ends[0]:.0f} to {ends[1]:.0f}"


def ml_range(ends: Sequence[float] | None) -> str | None:
    """Two volumes, each as :func:`ml` writes it, as "0.3 to 12 mL"."""
    return None if ends is None else f"{ml(ends[0]).removesuffix(' mL')} to {ml(ends[1])}"


def unbroken(text: str) -> str:
    """The text with its numbers held to their units, and fractions together, by spaces that do not break."""
    return re.sub(r"(?<=[\d<]) (?=[%/\d]|mL)|(?<=/) (?=\d)", "\u00a0", text)


def over(spread: Spread) -> str:
    """Over what a range was taken: "thresholds 0.3 to 0.7, mirrored slices"."""
    thresholds = f"thresholds {min(spread.thresholds):g} to {max(spread.thresholds):g}"
    return f"{thresholds}, mirrored slices" if spread.mirrored else thresholds
