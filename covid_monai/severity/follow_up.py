# SPDX-License-Identifier: Apache-2.0
"""What changed between scans of one patient: every figure, and where lesion is new, persists or has resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.lesion_change import (
    UNSEEN,
    LesionChange,
    at_edge,
    change_map,
    lesion_change,
    transitions,
    volumes,
)
from covid_monai.severity.registration import Registration, RegistrationError, elastix, register
from covid_monai.severity.registration_grid import LungScan
from covid_monai.severity.scores import Involvement, Score, Severity, count
from covid_monai.severity.uncertainty import Spread

__all__ = [
    "FIGURES",
    "Difference",
    "Examination",
    "FollowUp",
    "Interval",
    "PlaceChange",
    "Trend",
    "check_days",
    "check_scans",
    "difference",
    "follow_up",
    "trend",
]

OTHER_BREATH = 0.2
"""Relative change of the lung volume from which volumes in mL of two scans compare badly."""
FIGURES = {
    "lesion_share": "lung involved",
    "ground_glass_share": "ground glass",
    "consolidation_share": "consolidation",
    "ct_ss": "CT severity score",
    "lobar": "lobar score",
    "lesion_ml": "lesion volume",
    "lung_ml": "lung volume",
}
"""Key figures of a scan and their names; shares are 0..1, volumes in mL."""


class Examination(LungScan, Protocol):
    """An analysed scan; an ``Analysis`` is one."""

    @property
    def scan_id(self) -> str:
        """Name of the scan by its content."""

    @property
    def severity(self) -> Severity:
        """Its figures."""

    @property
    def spread(self) -> Spread | None:
        """Their ranges, or None."""

    @property
    def regions(self) -> np.ndarray:
        """(Z, H, W) region codes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the lesion codes from 1 on."""


@dataclass(frozen=True)
class Difference:
    """One figure in two scans; what cannot be had is None.

    Attributes:
        earlier: in the earlier scan.
        later: in the later scan.
        absolute: later less earlier, in the figure's own unit.
        relative: the absolute change as a share of the earlier figure; None when that is 0.
        per_day: the absolute change for each day between the scans; None when the days are not known.
        lowest: the least the change can be within the ranges of both scans; None when a scan has no range.
        highest: the most it can be.
        beyond_ranges: whether the ranges of both scans do not touch, so that more than the choice of threshold and
            mirroring lies behind the change; None when a scan has no range.
    """

    earlier: float | None
    later: float | None
    absolute: float | None
    relative: float | None
    per_day: float | None
    lowest: float | None
    highest: float | None
    beyond_ranges: bool | None


@dataclass(frozen=True)
class PlaceChange:
    """Change of one place: the whole, a lung, a lobe or a region.

    Attributes:
        key: as in :class:`covid_monai.severity.Involvement`, like the figures below.
        name: of the place.
        assessable: whether both scans show all of it; else its figures are of the parts that were seen.
        lung_ml: in mL.
        lesion_ml: in mL.
        ground_glass_ml: in mL.
        consolidation_ml: in mL.
        lesion_share: 0..1 of the place's lung.
        ground_glass_share: likewise.
        consolidation_share: likewise.
        score: of a lobe or region.
        persisting_ml: of the change map, in the later scan's place; so are the next three.
        new_ml: in mL.
        resolved_ml: in mL.
        unseen_ml: in mL.
    """

    key: str
    name: str
    assessable: bool
    lung_ml: Difference
    lesion_ml: Difference
    ground_glass_ml: Difference
    consolidation_ml: Difference
    lesion_share: Difference
    ground_glass_share: Difference
    consolidation_share: Difference
    score: Difference
    persisting_ml: float
    new_ml: float
    resolved_ml: float
    unseen_ml: float


@dataclass(frozen=True, eq=False)
class Interval:
    """What changed from one scan to the next.

    Attributes:
        earlier: number of the earlier scan, from 1.
        later: number of the later scan.
        days: between them, or None.
        whole: both lungs.
        lungs: right, left.
        lobes: the 5 lobes in the order of :data:`covid_monai.severity.LOBES`.
        regions: the 20 regions in the order of :data:`covid_monai.severity.REGIONS`.
        ct_ss: CT severity score, 0..40.
        lobar: lobar score, 0..25.
        grades: severe, mild or None, earlier and later.
        lesions: volumes of the change map.
        change: (Z, H, W) uint8 on the later scan's grid: the codes of :data:`CHANGES`.
        registration: where each place of the later scan lies in the earlier one.
        warnings: what a reader of the change must know.
    """

    earlier: int
    later: int
    days: float | None
    whole: PlaceChange
    lungs: tuple[PlaceChange, ...]
    lobes: tuple[PlaceChange, ...]
    regions: tuple[PlaceChange, ...]
    ct_ss: Difference
    lobar: Difference
    grades: tuple[str | None, str | None]
    lesions: LesionChange
    change: np.ndarray
    registration: Registration
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Trend:
    """One key figure over all scans.

    Attributes:
        key: of :data:`FIGURES`.
        name: of the figure.
        values: of each scan; None where it cannot be had.
        ranges: lowest and highest of each scan over thresholds and mirrored slices, or None.
        per_day: slope of the least-squares line; None without days or with fewer than two values.
    """

    key: str
    name: str
    values: tuple[float | None, ...]
    ranges: tuple[tuple[float, float] | None, ...]
    per_day: float | None


@dataclass(frozen=True, eq=False)
class FollowUp:
    """What changed over two or more scans of one patient.

    Attributes:
        scan_ids: of the scans, in order of time.
        days: of the scans, or None.
        intervals: each scan against the one before it.
        trends: the key figures, in the order of :data:`FIGURES`.
    """

    scan_ids: tuple[str, ...]
    days: tuple[float, ...] | None
    intervals: tuple[Interval, ...]
    trends: tuple[Trend, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all intervals, with the scans they are of."""
        return tuple(
            f"Scan {each.earlier} to {each.later}: {warning}" for each in self.intervals for warning in each.warnings
        )


def follow_up(examinations: Sequence[Examination], days: Sequence[float] | None = None) -> FollowUp:
    """Compare each scan of a patient with the one before it.

    Takes about half a minute an interval on two cores.

    Args:
        examinations: two or more, earliest first, made with the same model.
        days: of each scan, in any count that grows, or None.

    Raises:
        ValueError: for fewer than two scans, one given twice, other classes of lesion, or days that do not fit.
        RegistrationError: when a scan has no lung or gives no lengths, or itk-elastix is missing.
    """
    _check(examinations)
    given = check_days(days, len(examinations))
    elastix()
    intervals = tuple(
        _interval(number, earlier, later, None if given is None else given[number] - given[number - 1])
        for number, (earlier, later) in enumerate(pairwise(examinations), start=1)
    )
    scan_ids = tuple(examination.scan_id for examination in examinations)
    return FollowUp(scan_ids, given, intervals, tuple(trend(key, examinations, given) for key in FIGURES))


def check_days(days: Sequence[float] | None, scans: int) -> tuple[float, ...] | None:
    """The days as numbers, or None when there are none.

    Args:
        days: one for each scan, growing.
        scans: how many there are.

    Raises:
        ValueError: when the days are not as many as the scans, not finite, or do not grow.
    """
    if days is None:
        return None
    given = tuple(float(day) for day in days)
    shown = " ".join(f"{day:g}" for day in given)
    if len(given) != scans:
        raise ValueError(f"{len(given)} days ({shown}) were given for {scans} scans: give one for each scan.")
    if not all(math.isfinite(day) for day in given) or any(b <= a for a, b in pairwise(given)):
        raise ValueError(f"the days {shown} do not grow: give the scans, and their days, from the earliest on.")
    return given


def check_scans(scan_ids: Sequence[str], lengths_known: Sequence[bool]) -> None:
    """Refuse scans that cannot be followed, as far as that is known before they are analysed.

    Args:
        scan_ids: names by content, of two or more scans.
        lengths_known: whether the source of each gives lengths.

    Raises:
        ValueError: when there are fewer than two, or one stands twice.
        RegistrationError: when one gives no lengths.
    """
    if len(scan_ids) < 2:
        raise ValueError(f"follow-up compares scans, and {len(scan_ids)} was given: give two or more.")
    seen: dict[str, int] = {}
    for number, (scan_id, known) in enumerate(zip(scan_ids, lengths_known, strict=True), start=1):
        if not known:
            raise RegistrationError(f"scan {number} gives no lengths (slice images?), so it cannot be registered.")
        first = seen.setdefault(scan_id, number)
        if first != number:
            raise ValueError(f"scans {first} and {number} are the same: give each examination once.")


def difference(
    earlier: float | None,
    later: float | None,
    days: float | None = None,
    ranges: tuple[Sequence[float] | None, Sequence[float] | None] = (None, None),
) -> Difference:
    """Change of a figure.

    Args:
        earlier: in the earlier scan, or None.
        later: in the later scan, or None.
        days: between the scans, or None.
        ranges: lowest and highest figure of the earlier and of the later scan, or None.
    """
    known = earlier is not None and later is not None
    absolute = later - earlier if known else None  # type: ignore[operator]
    relative = absolute / earlier if absolute is not None and earlier else None
    per_day = None if absolute is None or days is None else absolute / days
    before, after = ranges
    if before is None or after is None:
        return Difference(earlier, later, absolute, relative, per_day, None, None, None)
    lowest, highest = after[0] - before[1], after[1] - before[0]
    return Difference(earlier, later, absolute, relative, per_day, lowest, highest, not lowest <= 0 <= highest)


def trend(key: str, examinations: Sequence[Examination], days: Sequence[float] | None) -> Trend:
    """A key figure over all scans.

    Args:
        key: of :data:`FIGURES`.
        examinations: in order of time.
        days: one for each of them, or None.
    """
    values = tuple(_figure(each.severity, key) for each in examinations)
    ranges = tuple(_range(each, key) for each in examinations)
    slope = None
    if days is not None:
        points = [(day, value) for day, value in zip(days, values, strict=True) if value is not None]
        if len(points) > 1:
            x, y = np.array(points, dtype=float).T
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return Trend(key, FIGURES[key], values, ranges, slope)


def _check(examinations: Sequence[Examination]) -> None:
    check_scans(
        [each.scan_id for each in examinations], [each.severity.whole.lung_ml is not None for each in examinations]
    )
    classes = {examination.classes for examination in examinations}
    if len(classes) > 1:
        found = " and ".join(sorted(" + ".join(names) for names in classes))
        raise ValueError(f"the scans' lesions have different classes ({found}): analyse all with one model.")
    for number, examination in enumerate(examinations, start=1):
        if not examination.regions.any():
            raise RegistrationError(f"no lung was found in scan {number}: scans are registered by their lungs.")


def _interval(number: int, earlier: Examination, later: Examination, days: float | None) -> Interval:
    registration = register(earlier, later)
    before = registration.warp(earlier.lesions.astype(np.uint8, copy=False), outside=UNSEEN)
    transition = transitions(before, later.lesions)
    counts = count(transition, later.regions, values=12)
    change = change_map(transition, later.lungs)
    told_apart = len(later.classes) > 1
    voxel_ml = math.prod(later.spacing) / 1000
    box = registration.box
    edge = at_edge(before[box], later.lesions[box], change[box], later.spacing)
    by_region = counts.reshape(len(counts), 4, 3)

    def place(earlier_place: Involvement, later_place: Involvement, codes: Sequence[int]) -> PlaceChange:
        return _place(earlier_place, later_place, days, by_region[list(codes)].sum(axis=0), voxel_ml)

    old, new = earlier.severity, later.severity
    ranges = {key: (_range(earlier, key), _range(later, key)) for key in FIGURES}
    whole = _place(old.whole, new.whole, days, by_region[1:].sum(axis=0), voxel_ml, ranges)
    return Interval(
        earlier=number,
        later=number + 1,
        days=days,
        whole=whole,
        lungs=tuple(
            place(a, b, [region.code for region in REGIONS if region.side == side.key])
            for a, b, side in zip(old.lungs, new.lungs, SIDES, strict=True)
        ),
        lobes=tuple(
            place(a, b, [region.code for region in REGIONS if region.lobe == lobe.key])
            for a, b, lobe in zip(old.lobes, new.lobes, LOBES, strict=True)
        ),
        regions=tuple(
            place(a, b, [region.code]) for a, b, region in zip(old.regions, new.regions, REGIONS, strict=True)
        ),
        ct_ss=difference(old.ct_ss.score, new.ct_ss.score, days, ranges["ct_ss"]),
        lobar=difference(old.lobar.score, new.lobar.score, days, ranges["lobar"]),
        grades=(old.grade, new.grade),
        lesions=lesion_change(counts, voxel_ml, told_apart, edge),
        change=change,
        registration=registration,
        warnings=(*registration.warnings, *_warnings(whole)),
    )


def _place(
    earlier: Involvement,
    later: Involvement,
    days: float | None,
    table: np.ndarray,
    voxel_ml: float,
    ranges: Mapping[str, tuple[Sequence[float] | None, Sequence[float] | None]] | None = None,
) -> PlaceChange:
    """Changes of a place whose transitions are (4, 3) voxels by earlier and later code."""

    def of(name: str) -> Difference:
        return difference(getattr(earlier, name), getattr(later, name), days, (ranges or {}).get(name, (None, None)))

    return PlaceChange(
        key=later.key,
        name=later.name,
        assessable=earlier.assessable and later.assessable,
        lung_ml=of("lung_ml"),
        lesion_ml=of("lesion_ml"),
        ground_glass_ml=of("ground_glass_ml"),
        consolidation_ml=of("consolidation_ml"),
        lesion_share=of("lesion_share"),
        ground_glass_share=of("ground_glass_share"),
        consolidation_share=of("consolidation_share"),
        score=of("score"),
        **volumes(table, voxel_ml),
    )


def _warnings(whole: PlaceChange) -> list[str]:
    found = []
    if not whole.assessable:
        found.append(
            "One of the scans does not show all of both lungs: changes of places that it cuts are of what was seen."
        )
    relative = whole.lung_ml.relative
    if relative is not None and abs(relative) > OTHER_BREATH:
        size = "larger" if relative > 0 else "smaller"
        found.append(
            f"The lungs are {100 * abs(relative):.0f} % {size} in the later scan (another depth of breath, or a lung "
            "mask that fails): compare shares rather than mL."
        )
    return found


def _figure(severity: Severity, key: str) -> float | None:
    """A key figure of a scan."""
    if key in ("ct_ss", "lobar"):
        score: Score = getattr(severity, key)
        return score.score
    return getattr(severity.whole, key)


def _range(examination: Examination, key: str) -> tuple[float, float] | None:
    """Its lowest and highest value over thresholds and mirrored slices, where these were tried."""
    return getattr(examination.spread, key, None)
