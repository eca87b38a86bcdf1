# SPDX-License-Identifier: Apache-2.0
"""The twenty regions of the CT severity score, cut from the lobes: approximate.

Segments have no fissures between them: a radiologist names them by bronchi and vessels, or by where they usually lie.
These regions are that usual place: each lobe is cut by height, depth and laterality into parts of equal volume. The
weights that tilt the surfaces are ours, drawn by eye from where atlases put the segments.
"""

from __future__ import annotations

import numpy as np

from covid_monai.severity.anatomy import LOBES, REGIONS, RIGHT_LUNG
from covid_monai.severity.cuts import Cut, Place, Plane, Sectors, divide

__all__ = ["divide_regions", "sides_of_regions"]

TOP = Plane(height=1.0, lateral=-0.2)
"""The apical region is the top of an upper lobe, and reaches lower near the mediastinum."""
BACK = Plane(depth=1.0, lateral=0.3)
"""The posterior region of an upper lobe lies behind the anterior one, and reaches further forward at the side."""
MIDDLE = Plane(lateral=1.0, depth=0.5)
"""The lateral region of the middle lobe lies outward of the medial one and behind it."""
LINGULA = Plane(height=1.0, depth=-0.2, lateral=0.15)
"""The lingula is the lower front of the left upper lobe, what the middle lobe is on the right."""
SUPERIOR = Plane(height=1.0, depth=0.15)
"""The superior region is the top of a lower lobe, and reaches lower at the back."""
BASAL = Sectors(border=-40.0)
"""The basal regions lie round the axis of the lobe below it; between medial and posterior the border is at its back and
inside."""


def _basal(side: str) -> Cut:
    around = Cut(BASAL, tuple((1 / 4, _CODES[f"{side}_lower_{part}_basal"]) for part in _ROUND))
    return Cut(SUPERIOR, ((4 / 5, around), (1 / 5, _CODES[f"{side}_lower_superior"])))


def _upper(side: str) -> Cut:
    """Three thirds: the upper lobe, on the left without the lingula."""
    lower = Cut(BACK, ((1 / 2, _CODES[f"{side}_upper_anterior"]), (1 / 2, _CODES[f"{side}_upper_posterior"])))
    return Cut(TOP, ((2 / 3, lower), (1 / 3, _CODES[f"{side}_upper_apical"])))


_ROUND = ("medial", "anterior", "lateral", "posterior")
_CODES = {region.key: region.code for region in REGIONS}
_CUTS = {
    "right_upper_lobe": _upper("right"),
    "right_middle_lobe": Cut(MIDDLE, ((1 / 2, _CODES["right_middle_medial"]), (1 / 2, _CODES["right_middle_lateral"]))),
    "right_lower_lobe": _basal("right"),
    "left_upper_lobe": Cut(
        LINGULA,
        (
            (1 / 5, _CODES["left_upper_inferior_lingular"]),
            (1 / 5, _CODES["left_upper_superior_lingular"]),
            (3 / 5, _upper("left")),
        ),
    ),
    "left_lower_lobe": _basal("left"),
}
_LAST_RIGHT = max(region.code for region in REGIONS if region.side == RIGHT_LUNG.key)
_LOBES = {lobe.code: Place(lobe.side, _CUTS[lobe.key]) for lobe in LOBES}


def divide_regions(lobes: np.ndarray, spacing: tuple[float, float, float], out: np.ndarray | None = None) -> np.ndarray:
    """The twenty regions from the lobes: approximate.

    Each lobe is cut in its own coordinates into parts of equal volume (three, two or five), so that scaling, moving or
    resampling it changes nothing but voxels at the borders. The regions of a lobe that is not there are not there. A
    lobe of a few voxels may have fewer regions than it should.

    Args:
        lobes: (Z, H, W) integers, upright: 0 outside, or a code of `anatomy.LOBES`.
        spacing: (dz, dy, dx) in mm; as scaling an axis changes nothing, a guess serves where it is not known.
        out: (Z, H, W) uint8, where to put the codes: zero where ``lobes`` is, or ``lobes`` itself, to save memory.

    Returns:
        (Z, H, W) uint8 codes of `anatomy.REGIONS`, zero exactly where ``lobes`` is.

    Raises:
        ValueError: when ``lobes`` is not three-dimensional or no such mask, or a spacing is not positive.
    """
    return divide(lobes, _LOBES, spacing, out)


def sides_of_regions(regions: np.ndarray) -> np.ndarray:
    """Lungs, uint8 codes of `anatomy.SIDES`, of codes of `anatomy.REGIONS` in an array of any shape."""
    return (regions > 0).view(np.uint8) + (regions > _LAST_RIGHT).view(np.uint8)  # those of the right lung come first
