# SPDX-License-Identifier: Apache-2.0
"""Volumes, shares and scores of lungs, lobes and the twenty regions; every rule is in ``docs/concepts/scores.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES, Region

__all__ = [
    "CUT_OFF",
    "CUT_OFF_SOURCE",
    "Involvement",
    "NoiseFloor",
    "Score",
    "Severity",
    "count",
    "severity",
    "slice_shares",
]

CUT_OFF = 19.5
"""CT severity score that separates severe (above) from mild (below)."""
CUT_OFF_SOURCE = (
    "Yang et al. 2020, Radiol Cardiothorac Imaging 2(2):e200047: 19.5 separated severe from mild COVID-19 with a "
    "sensitivity of 83.3 % and a specificity of 94 %; found in 102 patients by readers' eyes, not by this program."
)
REGION_MAXIMUM, LOBE_MAXIMUM = 2, 5


@dataclass(frozen=True)
class NoiseFloor:
    """How much lesion a place must hold to be called involved.

    Both must be reached; the share alone counts where no mL is known. Without lesion a place is never involved.

    Args:
        ml: lesion volume in mL, 0 or more.
        share: share of the place's lung that is lesion, 0 or more and under 0.5 (where the score of a region is 2).

    Raises:
        ValueError: when one of them is out of its range or no number.
    """

    ml: float = 0.5
    share: float = 0.005

    def __post_init__(self) -> None:
        for name, value, limit in (("ml", self.ml, math.inf), ("share", self.share, 0.5)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < limit:
                span = "0 or more" if limit == math.inf else f"0 or more and under {limit:g}"
                raise ValueError(f"the noise floor's {name} is {value!r}: give a number, {span}.")

    def reached(self, lesion_ml: float | None, lesion_share: float | None) -> bool:
        """Whether a place with this lesion is involved; without lung (a share of None) it is not."""
        if not lesion_share:
            return False
        return lesion_share >= self.share and (lesion_ml is None or lesion_ml >= self.ml)


@dataclass(frozen=True)
class Involvement:
    """Lung and lesion of one place: the whole, a lung, a lobe or a region.

    Volumes are None where the source gives no lengths, and those of lesions where the place has no lung; ground glass
    and consolidation are None where the model does not tell them apart, and add up to the lesion where it does.

    Attributes:
        key: key of :mod:`covid_monai.severity.anatomy`, or ``"whole"``.
        name: its name.
        lung_ml: volume of the place's lung in mL, lesions included.
        lesion_ml: lesion volume in mL.
        ground_glass_ml: volume of ground-glass opacity in mL.
        consolidation_ml: volume of consolidation in mL.
        lesion_share: share of the place's lung that is lesion, 0..1; None when it has no lung.
        ground_glass_share: share that is ground-glass opacity, 0..1.
        consolidation_share: share that is consolidation, 0..1.
        score: 0..2 of a region, 0..5 of a lobe; None when not assessable, and for the whole and the lungs.
        assessable: whether all of the place was seen: it has lung, and none of its regions is missing or cut.
    """

    key: str
    name: str
    lung_ml: float | None
    lesion_ml: float | None
    ground_glass_ml: float | None
    consolidation_ml: float | None
    lesion_share: float | None
    ground_glass_share: float | None
    consolidation_share: float | None
    score: int | None
    assessable: bool


@dataclass(frozen=True)
class Score:
    """A sum over parts, some of which may not be assessable.

    Attributes:
        score: the sum; None when a part is not assessable.
        lowest: the sum if every part that is not assessable had 0.
        highest: the sum if every such part had the most it can have.
        maximum: the most that the sum can be.
        assessable: how many parts are assessable.
        parts: how many parts there are.
    """

    score: int | None
    lowest: int
    highest: int
    maximum: int
    assessable: int
    parts: int


@dataclass(frozen=True)
class Severity:
    """All figures of one lesion mask over one set of regions.

    Attributes:
        whole: both lungs.
        lungs: right, left.
        lobes: the 5 lobes in the order of :data:`covid_monai.severity.anatomy.LOBES`.
        regions: the 20 regions in the order of :data:`covid_monai.severity.anatomy.REGIONS`.
        ct_ss: CT severity score, 0..40 (Yang et al. 2020).
        lobar: lobar score, 0..25 (Pan et al. 2020).
        grade: ``"severe"`` or ``"mild"`` by :data:`CUT_OFF`; None when the possible scores lie on both sides of it.
        floor: the noise floor that the scores were given with.
        approximate: True: regions are drawn by geometry, not by the bronchi.
    """

    whole: Involvement
    lungs: tuple[Involvement, ...]
    lobes: tuple[Involvement, ...]
    regions: tuple[Involvement, ...]
    ct_ss: Score
    lobar: Score
    grade: str | None
    floor: NoiseFloor
    approximate: bool = True


def count(lesions: Iterable[np.ndarray], regions: np.ndarray, values: int = 3) -> np.ndarray:
    """Voxels by region and by value, slice by slice.

    Args:
        lesions: slices, Z of them, (H, W) of bools or non-negative integers under ``values``.
        regions: (Z, H, W) of region codes 0..20, 0 outside the lungs.
        values: how many values ``lesions`` may have: 3 for background, ground glass and consolidation.

    Returns:
        (21, values) int64: voxels of region code and value.

    Raises:
        ValueError: when the two are not on one grid, or hold anything else.
    """
    rows = len(REGIONS) + 1
    joint = np.zeros(rows * values, dtype=np.int64)
    kind = np.min_scalar_type(rows * values - 1)
    for part, region in zip_longest(lesions, regions, fillvalue=np.empty(())):
        if part.ndim != 2 or part.shape != region.shape:
            raise ValueError(
                f"a slice of the lesions has shape {part.shape} and one of the regions {region.shape}: give both as "
                "(Z, H, W) on one grid."
            )
        _check_codes(part, values, "lesions")
        _check_codes(region, rows, "regions")
        joint += np.bincount(
            (region.astype(kind) * kind.type(values) + part.astype(kind)).ravel(), minlength=len(joint)
        )
    return joint.reshape(rows, values)


def severity(
    counts: np.ndarray,
    voxel_ml: float | None,
    told_apart: bool,
    floor: NoiseFloor | None = None,
    assessable: Collection[int] = range(1, len(REGIONS) + 1),
) -> Severity:
    """Every figure of a scan from its voxel counts.

    A region without voxels, or not among ``assessable``, has no score; nor have its lobe and the sums, which then give
    the lowest and the highest they can be. Lesion outside the regions is not counted.

    Args:
        counts: (21, 3) voxels by region code and lesion code, as :func:`count` gives them.
        voxel_ml: volume of a voxel in mL, or None where the source gives no lengths.
        told_apart: whether code 1 is ground glass and 2 consolidation; False where all lesion has code 1.
        floor: what a place must hold to be called involved; the default :class:`NoiseFloor` when None.
        assessable: codes of the regions that the scan shows whole.

    Raises:
        ValueError: when the counts have another shape or are negative, the volume is not positive, a code is no
            region's, or consolidation was counted although the classes are not told apart.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(REGIONS) + 1, 3) or counts.dtype.kind not in "ui" or counts.min() < 0:
        raise ValueError(
            f"the counts are {counts.dtype} of shape {counts.shape}: give voxels by region and lesion code, "
            f"integers from 0 of shape ({len(REGIONS) + 1}, 3)."
        )
    if voxel_ml is not None and not 0 < voxel_ml < math.inf:
        raise ValueError(
            f"the volume of a voxel is {voxel_ml} mL: give a positive number, or None where it is unknown."
        )
    if unknown := sorted(set(assessable) - {region.code for region in REGIONS}):
        raise ValueError(f"there is no region {unknown[0]}: assessable regions have the codes 1..{len(REGIONS)}.")
    if not told_apart and counts[:, 2].any():
        raise ValueError("the counts hold lesion code 2, which a model of one class does not give: set told_apart.")
    measure = _Measure(counts, voxel_ml, told_apart, floor or NoiseFloor(), frozenset(assessable))
    regions = tuple(measure.place(r.key, r.name, [r], _region_score) for r in REGIONS)
    lobes = tuple(
        measure.place(lobe.key, lobe.name, [r for r in REGIONS if r.lobe == lobe.key], _lobe_score) for lobe in LOBES
    )
    lungs = tuple(measure.place(side.key, side.name, [r for r in REGIONS if r.side == side.key]) for side in SIDES)
    ct_ss = _sum(regions, REGION_MAXIMUM)
    return Severity(
        whole=measure.place("whole", "both lungs", REGIONS),
        lungs=lungs,
        lobes=lobes,
        regions=regions,
        ct_ss=ct_ss,
        lobar=_sum(lobes, LOBE_MAXIMUM),
        grade="severe" if ct_ss.lowest > CUT_OFF else "mild" if ct_ss.highest < CUT_OFF else None,
        floor=measure.floor,
    )


def slice_shares(lesions: np.ndarray, lungs: np.ndarray) -> tuple[float | None, ...]:
    """Share of the lungs that is lesion on each slice, the ratio of the paper for single slices.

    Args:
        lesions: (Z, H, W), non-zero for lesion; what lies outside the lungs is not counted.
        lungs: (Z, H, W), non-zero for lung.

    Returns:
        0..1 for each slice from inferior to superior; None where a slice has no lung.

    Raises:
        ValueError: when the two are not on one grid.
    """
    if lesions.ndim != 3 or lesions.shape != lungs.shape:
        raise ValueError(
            f"the lesions have shape {lesions.shape} and the lungs {lungs.shape}: give both as (Z, H, W) on one grid."
        )
    shares: list[float | None] = []
    for part, lung in zip(lesions, lungs, strict=True):
        inside = lung != 0
        area = int(np.count_nonzero(inside))
        shares.append(int(np.count_nonzero(part[inside])) / area if area else None)
    return tuple(shares)


@dataclass(frozen=True)
class _Measure:
    """What turns counts into the figures of a place."""

    counts: np.ndarray
    voxel_ml: float | None
    told_apart: bool
    floor: NoiseFloor
    assessable: frozenset[int]

    def place(
        self, key: str, name: str, regions: Sequence[Region], rate: Callable[[int, int], int] | None = None
    ) -> Involvement:
        """Figures of the place that these regions make up; ``rate`` scores its lesion and lung voxels if involved."""
        codes = [region.code for region in regions]
        background, ground_glass, consolidation = (int(voxels) for voxels in self.counts[codes].sum(axis=0))
        lesion = ground_glass + consolidation
        lung = background + lesion
        complete = all(code in self.assessable and self.counts[code].any() for code in codes)

        def ml(voxels: int, known: bool = True) -> float | None:
            return voxels * self.voxel_ml if known and self.voxel_ml is not None else None

        def share(voxels: int, known: bool = True) -> float | None:
            return voxels / lung if known and lung else None

        score = None
        if rate is not None and complete:
            score = rate(lesion, lung) if self.floor.reached(ml(lesion), share(lesion)) else 0
        return Involvement(
            key=key,
            name=name,
            lung_ml=ml(lung),
            lesion_ml=ml(lesion, lung > 0),
            ground_glass_ml=ml(ground_glass, self.told_apart and lung > 0),
            consolidation_ml=ml(consolidation, self.told_apart and lung > 0),
            lesion_share=share(lesion),
            ground_glass_share=share(ground_glass, self.told_apart),
            consolidation_share=share(consolidation, self.told_apart),
            score=score,
            assessable=complete,
        )


def _region_score(lesion: int, lung: int) -> int:
    """Yang et al. 2020, of a region that is involved: 1 under 50 %, 2 from 50 % on."""
    return 2 if 2 * lesion >= lung else 1


def _lobe_score(lesion: int, lung: int) -> int:
    """Pan et al. 2020, of a lobe that is involved: 1 under 5 %, 2 to 25 %, 3 under 50 %, 4 to 75 %, 5 above."""
    return 1 + (20 * lesion >= lung) + (4 * lesion > lung) + (2 * lesion >= lung) + (4 * lesion > 3 * lung)


def _sum(places: Sequence[Involvement], maximum: int) -> Score:
    """Sum of scores, each 0..maximum, with what it can be at the least and at the most."""
    known = [place.score for place in places if place.score is not None]
    lowest, missing = sum(known), len(places) - len(known)
    return Score(
        score=None if missing else lowest,
        lowest=lowest,
        highest=lowest + maximum * missing,
        maximum=maximum * len(places),
        assessable=len(known),
        parts=len(places),
    )


def _check_codes(array: np.ndarray, values: int, name: str) -> None:
    """Refuse what is no code under ``values``."""
    if array.dtype.kind not in "bui":
        raise ValueError(f"the {name} hold {array.dtype} values: give integers under {values}.")
    if array.size and (array.min() < 0 or array.max() >= values):
        raise ValueError(
            f"the {name} hold values from {array.min()} to {array.max()}: give integers from 0 to {values - 1}."
        )
