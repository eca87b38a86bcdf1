# SPDX-License-Identifier: Apache-2.0
"""The lungs of a scan: what every way to find them gives, and lungs that the user gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from covid_monai.severity.anatomy import LOBES, SIDES
from covid_monai.severity.blocks import any_in_blocks, block_means, block_steps, repeat_blocks
from covid_monai.severity.filling import REACH_ALONG_MM, with_lesions
from covid_monai.severity.lobes import lobes_from_codes
from covid_monai.severity.lung_checks import check_lungs, cut_ends
from covid_monai.severity.mask_slices import MaskSlices
from covid_monai.severity.sides import right_half, split_sides

__all__ = [
    "FoundLungs",
    "GivenLungs",
    "LungFinder",
    "LungSearch",
    "Lungs",
    "check_sides",
    "sides_of_lobes",
    "unite_lesions",
]

LOOKED_ALONG_MM = 2 * REACH_ALONG_MM
"""How far from the lungs' air lesions are looked for. They belong to the lungs up to half as far; what is found beyond
is warned of, for a lung may be consolidated further down."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a scan, right and left, with the lesions that belong to them.

    Attributes:
        mask: (Z, H, W) uint8, upright: 0 outside, 1 right lung, 2 left lung (`anatomy.SIDES`), trachea and main bronchi
            out; all 0 when no lung was found. It is the caller's: an analysis cuts the regions in its memory.
        method: "threshold", "lungmask R231", "lungmask LTRCLobes", "given lungs" or "given lobes".
        lobes: (Z, H, W) uint8 codes of `anatomy.LOBES`, non-zero where ``mask`` is; None without lobes in the source.
        warnings: what scan and lesions say about the mask, one sentence each; `lung_warnings` adds the rest.
        cut: lungs that an end of the scan or the frame of its slices cuts, as (key of `anatomy.SIDES`, "lower", "upper"
            or "frame"), see :func:`covid_monai.severity.lung_checks.cut_ends`.
    """

    mask: np.ndarray
    method: str
    lobes: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    cut: tuple[tuple[str, str], ...] = ()

    @classmethod
    def checked(
        cls,
        mask: np.ndarray,
        method: str,
        hu: np.ndarray,
        lesions: MaskSlices,
        lobes: np.ndarray | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Lungs:
        """Lungs with cut ends and, after ``warnings``, those that follow from mask, scan and lesions, all (Z, H, W)."""
        return cls(mask, method, lobes, (*warnings, *check_lungs(mask, hu, lesions)), cut_ends(mask))


class LungSearch(ABC):
    """The lungs of a scan, found in steps: its lesions are looked for beside the second and needed for the third.

    Attributes:
        slices: from the first to the last slice worth looking at for lesions: with lung, or near it.
    """

    slices: slice

    def search(self) -> slice:
        """Find what can be found without lesions.

        Returns:
            The slices whose lesions may belong to the lungs: among ``slices``, but where those are from a first look
            that missed something.
        """
        return self.slices

    @abstractmethod
    def finish(self, lesions: MaskSlices) -> Lungs:
        """The lungs, a mask of the caller's own, for the scan's lesions (Z, H, W); once, after :meth:`search`."""


class FoundLungs(LungSearch):
    """Lungs for which the first step was all it takes without lesions.

    Args:
        slices: those worth looking at.
        finish: gives the lungs for lesions (Z, H, W).
    """

    def __init__(self, slices: slice, finish: Callable[[MaskSlices], Lungs]) -> None:
        self.slices = slices
        self._finish = finish

    def finish(self, lesions: MaskSlices) -> Lungs:
        """See `LungSearch`."""
        return self._finish(lesions)


class LungFinder(ABC):
    """Finds the lungs of a scan, the greater part of it before its lesions are known."""

    @abstractmethod
    def begin(self, hu: np.ndarray, spacing: Spacing) -> LungSearch:
        """Begin to search a scan.

        Args:
            hu: (Z, H, W) in Hounsfield units, upright.
            spacing: (dz, dy, dx) in mm.

        Raises:
            ValueError: ``hu`` is not (Z, H, W), or a spacing is not positive.
        """

    def __call__(self, hu: np.ndarray, spacing: Spacing, lesions: MaskSlices) -> Lungs:
        """Find the lungs.

        Args:
            hu: (Z, H, W) in Hounsfield units, upright.
            spacing: (dz, dy, dx) in mm.
            lesions: (Z, H, W), non-zero for lesion.

        Raises:
            ValueError: as :meth:`begin`, or ``lesions`` has another shape.
        """
        search = self.begin(hu, spacing)
        search.search()
        return search.finish(lesions)


def slices_around(there: np.ndarray, spacing: Spacing, reach_mm: float = LOOKED_ALONG_MM) -> slice:
    """Slices where lung is, ``there`` (Z,) bool, and those up to ``reach_mm`` from it; all where there is none."""
    if not there.any():
        return slice(0, len(there))
    reach = int(np.ceil(reach_mm / spacing[0]))
    first, last = np.flatnonzero(there)[[0, -1]]
    return slice(max(0, int(first) - reach), min(len(there), int(last) + 1 + reach))


class GivenLungs(LungFinder):
    """Lungs that the user gives, as they are: nothing is added, and lesions outside are not theirs.

    Args:
        lungs: (Z, H, W) integers or booleans, upright: 1 right and 2 left lung, or one code, whichever, for both, which
            are then told apart by the scan.
        lobes: instead, the five lobes in the numbering of lungmask's LTRCLobes (1..5) or TotalSegmentator (10..14).

    Raises:
        ValueError: both are given or neither, nothing is set, there are other codes, or the lobes are the two lungs.
    """

    def __init__(self, lungs: np.ndarray | None = None, lobes: np.ndarray | None = None) -> None:
        if (lungs is None) == (lobes is None):
            raise ValueError("give the lungs either as a lung mask or as a lobe mask, one of the two.")
        given = np.asarray(lungs if lobes is None else lobes)
        if given.dtype.kind not in "bui":
            raise ValueError(f"the given mask holds {given.dtype} values: give integers.")
        if lobes is not None and _are_lungs(given):
            raise ValueError(
                "the lobe mask holds the codes 1 and 2 side by side, as a mask of the two lungs does: give it as a "
                "lung mask, or number the lobes of the left lung 10 and 11."
            )
        self.lobes = None if lobes is None else lobes_from_codes(given)
        self.mask = given if self.lobes is None else sides_of_lobes(self.lobes)
        codes = sorted(set().union(*(np.unique(plane).tolist() for plane in self.mask)) - {0})
        if not codes:
            raise ValueError("the lung mask is empty: give one with the lungs in it, or leave it out.")
        if len(codes) > 1 and codes != [side.code for side in SIDES]:
            raise ValueError(
                f"the lung mask holds the codes {', '.join(map(str, codes[:8]))}: expected 1 (right) and 2 (left), or "
                "one code for both lungs."
            )
        self.told_apart = len(codes) > 1

    def begin(self, hu: np.ndarray, spacing: Spacing) -> LungSearch:
        """See `LungFinder`.

        Raises:
            ValueError: the given mask has another shape than the scan, or right and left are exchanged in it; or as in
                `LungFinder`.
        """
        check_scan(hu, spacing)
        if self.mask.shape != hu.shape:
            raise ValueError(f"the lung mask has shape {self.mask.shape}, the scan {hu.shape}: give it on its grid.")
        if self.lobes is not None:
            mask, method = self.mask.copy(), "given lobes"
        elif not self.told_apart:
            mask, method = _split(self.mask != 0, hu, spacing), "given lungs"
        else:
            mask, method = self.mask.astype(np.uint8), "given lungs"
        check_sides(mask, "the lung mask")

        def finish(lesions: MaskSlices) -> Lungs:
            check_lesions(lesions, hu)
            return Lungs.checked(mask, method, hu, lesions, self.lobes)

        return FoundLungs(slices_around(np.any(mask, axis=(1, 2)), spacing), finish)


def _split(mask: np.ndarray, hu: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Codes of the lungs of a mask (Z, H, W) bool that does not tell them apart."""
    steps, grid = block_steps(spacing)
    found = any_in_blocks(mask, steps)
    codes = split_sides(found, right_half(block_means(hu, steps), found, grid))
    return np.stack(
        [np.where(plane, repeat_blocks(codes[z // steps[0]], steps, hu.shape), 0) for z, plane in enumerate(mask)]
    ).astype(np.uint8)


def _are_lungs(codes: np.ndarray) -> bool:
    """Whether a mask (Z, H, W) has the codes 1 and 2 alone, one beside the other: lungs, not lobes of the left lung."""
    if set().union(*(np.unique(plane).tolist() for plane in codes)) - {0} != {1, 2}:
        return False
    shares = [np.cumsum(np.count_nonzero(codes == code, axis=(0, 1))) for code in (1, 2)]
    (low, middle, high), (other_low, other_middle, other_high) = (
        np.searchsorted(share, np.array([0.05, 0.5, 0.95]) * share[-1]) for share in shares
    )
    return bool((middle < other_low and high < other_middle) or (other_middle < low and other_high < middle))


def check_sides(mask: np.ndarray, name: str) -> None:
    """Refuse a mask (Z, H, W) whose right lung (1) lies to the patient's left of the left one (2).

    Raises:
        ValueError: right and left are exchanged; ``name`` begins the message.
    """
    columns = [np.count_nonzero(mask == side.code, axis=(0, 1)) for side in SIDES]
    if all(count.any() for count in columns):
        right, left = (float(np.average(np.arange(len(count)), weights=count)) for count in columns)
        if right > left:
            raise ValueError(
                f"{name} has the right lung on the patient's left: it is mirrored, or its codes are exchanged; number "
                "the right lung 1 and the left one 2."
            )


def sides_of_lobes(lobes: np.ndarray) -> np.ndarray:
    """Lung codes (Z, H, W) uint8 of codes of `anatomy.LOBES`."""
    codes = {side.key: side.code for side in SIDES}
    table = np.zeros(max(lobe.code for lobe in LOBES) + 1, dtype=np.uint8)
    for lobe in LOBES:
        table[lobe.code] = codes[lobe.side]
    return table[lobes]


def unite_lesions(codes: np.ndarray, lesions: MaskSlices, hu: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Lungs or lobes with the lesions that belong to them, see `with_lesions`.

    Args:
        codes: (Z, H, W) uint8, of lungs or lobes.
        lesions: (Z, H, W), non-zero for lesion.
        hu: (Z, H, W).
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z, H, W) uint8, a copy.
    """
    steps, grid = block_steps(spacing)
    found, means = any_in_blocks(lesions, steps), block_means(hu, steps)
    blocks = np.ascontiguousarray(codes[:: steps[0], :: steps[1], :: steps[2]])
    right = right_half(means, found | (blocks > 0), grid)
    united = with_lesions(blocks, found, np.zeros_like(found), right, means, grid)
    whole = codes.copy()
    take_lesions(whole, lesions, united, steps)
    return whole


def take_lesions(mask: np.ndarray, lesions: MaskSlices, blocks: np.ndarray, steps: tuple[int, int, int]) -> None:
    """Give lesion voxels outside ``mask`` the code of their block, in place."""
    for z, (plane, lesion) in enumerate(zip(mask, lesions, strict=True)):
        missed = (lesion != 0) & (plane == 0)
        if missed.any():
            plane[missed] = repeat_blocks(blocks[z // steps[0]], steps, mask.shape)[missed]


def check_scan(hu: np.ndarray, spacing: Spacing) -> None:
    """Refuse what is no scan with lengths.

    Raises:
        ValueError: ``hu`` is not (Z, H, W), or a spacing is not positive.
    """
    if hu.ndim != 3 or min(spacing) <= 0:
        raise ValueError(f"expected (Z, H, W) and positive spacing in mm, got shape {hu.shape} and spacing {spacing}.")


def check_lesions(lesions: MaskSlices, hu: np.ndarray) -> None:
    """Refuse lesions of another shape than their scan.

    Raises:
        ValueError: the shapes differ.
    """
    if lesions.shape != hu.shape:
        raise ValueError(f"the lesions have shape {lesions.shape}, the scan {hu.shape}: they must lie on one grid.")
