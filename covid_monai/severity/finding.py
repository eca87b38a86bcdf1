# SPDX-License-Identifier: Apache-2.0
"""Opacities consistent with viral pneumonia: found, not found, or indeterminate; by a rule that is written out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np
from scipy import ndimage

from covid_monai.severity.anatomy import SIDES
from covid_monai.severity.scores import NoiseFloor, Severity
from covid_monai.severity.uncertainty import Spread

__all__ = ["LEAST", "Finding", "find_opacities", "peripheral_share"]

Result = Literal["found", "not found", "indeterminate"]

LEAST = NoiseFloor(ml=5.0, share=0.001)
"""Lesion of both lungs from which opacities are called found: a choice of this program, fitted to no data. 5 mL are a
ball of 21 mm, and about a thousandth of an adult's lungs."""
OUTER = 1 / 2
"""The part of the lungs' area on each slice that is called peripheral: in a half-disc, its outer 29 % in depth."""
GRID_MM = 3.0
"""Depth below the outer surface is measured on a grid of about this spacing."""
MAINLY = 2 / 3
"""Share of the lesions from which they lie mainly in the periphery, or mainly in the lower lobes; evenly spread, about
half of them would lie in each."""
LOWER_LOBES = ("right_lower_lobe", "left_lower_lobe")


@dataclass(frozen=True)
class Finding:
    """Whether opacities consistent with viral pneumonia were found.

    Attributes:
        result: ``"found"``, ``"not found"`` or ``"indeterminate"``; None when there is no lung.
        rule: the rule with its limits and where it comes from.
        reason: why the rule gives this result here.
        bilateral: whether both lungs are involved by the noise floor; None when one of them is missing.
        peripheral_share: share of the lesions in the outer half of the lungs, 0..1; None without lesion.
        lower_lobe_share: share of the lesions in the lower lobes, 0..1; None without lesion, where a lower lobe is
            missing, and where the source gives no lengths.
    """

    result: Result | None
    rule: str
    reason: str
    bilateral: bool | None
    peripheral_share: float | None
    lower_lobe_share: float | None


def find_opacities(
    severity: Severity, spread: Spread | None, peripheral_share: float | None, least: NoiseFloor = LEAST
) -> Finding:
    """Call opacities consistent with viral pneumonia found, not found or indeterminate.

    *Not found*: the lesions reach ``least`` in no run. *Found*: they reach it in every run, and lie in both lungs or
    else mainly in the periphery and mainly in the lower lobes. *Indeterminate*: all else. The distribution is that of
    the RSNA consensus (Simpson et al. 2020, Radiol Cardiothorac Imaging 2(2):e200152: typical are peripheral, bilateral
    ground-glass opacities) and of the review of Salehi et al. 2020 (AJR 215:87-93: bilateral, peripheral, posterior,
    several lobes). No image tells COVID-19 from other viral pneumonia, or viral pneumonia from all else.

    Args:
        severity: figures of the reported lesion mask.
        spread: range of the figures over several runs; None when there was one run only.
        peripheral_share: see :func:`peripheral_share`.
        least: lesion volume and share of both lungs that count; the share alone where no mL is known.
    """
    whole = severity.whole
    bilateral = _bilateral(severity)
    lower = _lower_lobe_share(severity)
    mainly = [share is not None and share >= MAINLY for share in (peripheral_share, lower)]
    runs = [(whole.lesion_ml, whole.lesion_share)]
    if spread is not None and spread.lesion_share is not None:
        runs += [
            (None if spread.lesion_ml is None else spread.lesion_ml[end], spread.lesion_share[end]) for end in (0, 1)
        ]
    reached = [least.reached(*run) for run in runs]
    result: Result | None
    if whole.lesion_share is None:
        result, reason = None, "No lung was found."
    elif not any(reached):
        result, reason = "not found", "The lesions reach the limit in no run."
    elif not all(reached):
        result, reason = "indeterminate", "The lesions reach the limit in some runs and not in others."
    elif bilateral:
        result, reason = "found", "The lesions reach the limit in every run and lie in both lungs."
    elif all(mainly):
        result, reason = (
            "found",
            "The lesions reach the limit in every run and lie mainly in the periphery and the lower lobes.",
        )
    else:
        result, reason = "indeterminate", "The lesions reach the limit, but their distribution is not a typical one."
    return Finding(result, _rule(severity.floor, least), reason, bilateral, peripheral_share, lower)


def peripheral_share(
    lesions: np.ndarray, lungs: Iterable[np.ndarray], spacing: tuple[float, float, float], outer: float = OUTER
) -> float | None:
    """Share of the lesions in the outer part of the lungs.

    On each slice and for each lung, the outer part is what lies nearest to the lung's lateral, anterior and posterior
    surface and makes up ``outer`` of its area, so that lesions spread evenly give ``outer`` whatever the lung's shape
    and size. The medial surface, towards heart and spine, counts as deep. Nearness is measured within the slice.

    Args:
        lesions: (Z, H, W) upright, non-zero for lesion; what lies outside the lungs is not counted.
        lungs: slices, Z of them, (H, W) with 1 in the right and 2 in the left lung.
        spacing: (dz, dy, dx) in mm; only the ratio of dy to dx matters, apart from rounding to a grid of 3 mm.
        outer: share of the lung's area on each slice, between 0 and 1.

    Returns:
        0..1, or None when there is no lesion in the lungs.

    Raises:
        ValueError: when the two are not on one grid, or the spacing or ``outer`` is out of range.
    """
    if lesions.ndim != 3 or min(spacing) <= 0 or not 0 < outer < 1:
        raise ValueError(
            f"got lesions of shape {lesions.shape}, a spacing of {tuple(spacing)} mm and an outer part of {outer}: "
            "give (Z, H, W), positive lengths and a share between 0 and 1."
        )
    step = max(1, int(GRID_MM / max(spacing[1:])))
    cell = (spacing[1] * step, spacing[2] * step)
    total = peripheral = 0
    for lesion, lung in zip_longest(lesions, lungs, fillvalue=np.empty(())):
        if lesion.shape != lung.shape:
            raise ValueError(
                f"a slice of the lesions has shape {lesion.shape} and one of the lungs {lung.shape}: give both as "
                "(Z, H, W) on one grid."
            )
        if not lesion.any():
            continue
        for side, towards_medial in zip(SIDES, (slice(None), slice(None, None, -1)), strict=True):
            part = lung[:, towards_medial] == side.code
            inside = (lesion[:, towards_medial] != 0) & part
            rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
            if not len(rows):
                continue
            coarse = _coarse(part, step)
            near = _outer_part(coarse, cell, outer).repeat(step, axis=0).repeat(step, axis=1)
            inside = inside[: rows[-1] + 1, : columns[-1] + 1]
            total += int(np.count_nonzero(inside))
            peripheral += int(np.count_nonzero(inside & near[: inside.shape[0], : inside.shape[1]]))
    return peripheral / total if total else None


def _coarse(mask: np.ndarray, step: int) -> np.ndarray:
    """Cells of ``step`` pixels a side that hold something of a mask (H, W)."""
    height, width = mask.shape
    coarse = np.zeros((-(-height // step), -(-width // step)), dtype=bool)
    for row in range(min(step, height)):
        for column in range(min(step, width)):
            pixels = mask[row::step, column::step]
            coarse[: pixels.shape[0], : pixels.shape[1]] |= pixels
    return coarse


def _outer_part(lung: np.ndarray, cell: tuple[float, float], outer: float) -> np.ndarray:
    """The outermost part of one lung on one slice, whose columns run from lateral to medial; bool (H, W)."""
    rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Everything medial of the lung's lateral edge counts as inside, hence only the other surfaces are near to outside.
    inside = np.logical_or.accumulate(lung[box], axis=1)
    depth = ndimage.distance_transform_edt(np.pad(inside, ((1, 1), (1, 0))), sampling=cell)[1:-1, 1:]
    depths = depth[lung[box]]
    rank = max(1, round(outer * len(depths))) - 1
    near = np.zeros_like(lung)
    near[box] = lung[box] & (depth <= np.partition(depths, rank)[rank])
    return near


def _bilateral(severity: Severity) -> bool | None:
    if any(lung.lesion_share is None for lung in severity.lungs):
        return None
    return all(severity.floor.reached(lung.lesion_ml, lung.lesion_share) for lung in severity.lungs)


def _lower_lobe_share(severity: Severity) -> float | None:
    lower = [lobe for lobe in severity.lobes if lobe.key in LOWER_LOBES]
    if not severity.whole.lesion_ml or not all(lobe.assessable for lobe in lower):
        return None
    return sum(lobe.lesion_ml or 0.0 for lobe in lower) / severity.whole.lesion_ml


def _rule(floor: NoiseFloor, least: NoiseFloor) -> str:
    mainly = f"{100 * MAINLY:.0f} %"
    return (
        f"Not found: in no run do the lesions reach {least.ml:g} mL and {100 * least.share:g} % of the lungs (the "
        "share alone where no mL is known). Found: in every run they do, and they lie in both lungs (each with at "
        f"least {floor.ml:g} mL and {100 * floor.share:g} % of it), or else at least {mainly} of them in the outer "
        f"half of the lungs and at least {mainly} in the lower lobes. Indeterminate: all else. Distribution after "
        "Simpson et al. 2020 (RSNA consensus, Radiol Cardiothorac Imaging 2(2):e200152) and Salehi et al. 2020 (AJR "
        "215:87-93); the limits are a choice of this program and fitted to no data."
    )
