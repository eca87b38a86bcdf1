# SPDX-License-Identifier: Apache-2.0
"""How far the figures move with the threshold and with mirrored input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from covid_monai.severity.scores import Score, Severity

__all__ = ["THRESHOLDS", "Spread", "at_thresholds", "spread"]

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Probabilities from which a voxel is lesion, in ascending order."""


@dataclass(frozen=True)
class Spread:
    """Lowest and highest figure over several lesion masks of one scan, all over the same lungs and regions.

    Attributes:
        thresholds: probabilities from which a voxel was lesion.
        mirrored: whether mirrored input was tried too.
        runs: number of lesion masks.
        lesion_ml: lesion volume in mL; None where the source gives no lengths.
        lesion_share: share of the lungs that is lesion, 0..1; None when there is no lung.
        consolidation_share: share that is consolidation, 0..1; None too where the model does not tell it apart.
        ct_ss: CT severity score, what parts that are not assessable may have included.
        lobar: lobar score, likewise.
    """

    thresholds: tuple[float, ...]
    mirrored: bool
    runs: int
    lesion_ml: tuple[float, float] | None
    lesion_share: tuple[float, float] | None
    consolidation_share: tuple[float, float] | None
    ct_ss: tuple[int, int]
    lobar: tuple[int, int]


def at_thresholds(joint: np.ndarray, thresholds: int) -> list[np.ndarray]:
    """Counts at each threshold from one count of all of them.

    Args:
        joint: (21, 2 * (thresholds + 1)) voxels by region and by ``2 * reached + dense``: how many of the thresholds
            the probability of lesion reaches, and whether consolidation is more probable than ground glass (of voxels
            that reach none it does not matter), as
            ``count(levels, regions, values=2 * (thresholds + 1))`` gives them.
        thresholds: how many thresholds there are.

    Returns:
        For each threshold in ascending order (21, 3) voxels by region and lesion code.

    Raises:
        ValueError: when the counts have another number of columns.
    """
    if thresholds < 1 or joint.ndim != 2 or joint.shape[1] != 2 * (thresholds + 1):
        raise ValueError(
            f"the joint counts have shape {joint.shape}: give (regions, {2 * (thresholds + 1)}) for {thresholds} "
            "thresholds."
        )
    by_level = joint.reshape(len(joint), thresholds + 1, 2)
    lesions = [by_level[:, reached:].sum(axis=1) for reached in range(1, thresholds + 1)]
    voxels = joint.sum(axis=1, keepdims=True)
    return [np.hstack([voxels - lesion.sum(axis=1, keepdims=True), lesion]) for lesion in lesions]


def spread(variants: Sequence[Severity], thresholds: Sequence[float], mirrored: bool) -> Spread:
    """Lowest and highest figures over variants of one scan.

    The lungs and regions stay those of the reported result, and the reported result is one of the variants, so each
    range contains what is reported. It tells how far the threshold and mirrored input move the figures, not how far
    they are from the truth: what every variant misses is not in it.

    Args:
        variants: figures of each lesion mask, the reported one among them.
        thresholds: probabilities from which a voxel was lesion.
        mirrored: whether mirrored input is among the variants.

    Raises:
        ValueError: when there is no variant, or they are of different lungs.
    """
    if not variants:
        raise ValueError("there is no variant to take a range over: give the reported figures at least.")
    if len({tuple((place.key, place.lung_ml, place.assessable) for place in v.regions) for v in variants}) > 1:
        raise ValueError("the variants are of different lungs: give figures of one scan over the same regions.")

    def over(figures: Iterable[float | None]) -> tuple[float, float] | None:
        known = [figure for figure in figures if figure is not None]
        return (min(known), max(known)) if known else None

    def sums(scores: Sequence[Score]) -> tuple[int, int]:
        return min(score.lowest for score in scores), max(score.highest for score in scores)

    return Spread(
        thresholds=tuple(thresholds),
        mirrored=mirrored,
        runs=len(variants),
        lesion_ml=over(v.whole.lesion_ml for v in variants),
        lesion_share=over(v.whole.lesion_share for v in variants),
        consolidation_share=over(v.whole.consolidation_share for v in variants),
        ct_ss=sums([v.ct_ss for v in variants]),
        lobar=sums([v.lobar for v in variants]),
    )
