# SPDX-License-Identifier: Apache-2.0
"""The five lobes: from another tool's codes, or approximated from the lungs alone.

Without a lobe mask the fissures are not looked for. Smooth surfaces stand for them, with the orientation that
anatomists and radiologists describe, each put where it leaves the lobes the share of the lung that they have on
average. They are approximate in every scan, and wrong where a lobe has collapsed, was removed, or is cut by the end of
the scan.
"""

from __future__ import annotations

import numpy as np

from covid_monai.severity.anatomy import LEFT_LUNG, LOBES, RIGHT_LUNG
from covid_monai.severity.cuts import Cut, Place, Plane, divide

__all__ = ["LOBE_SHARES", "approximate_lobes", "lobes_from_codes"]

LOBE_SHARES = {
    "right_upper_lobe": 0.179,
    "right_middle_lobe": 0.093,
    "right_lower_lobe": 0.265,
    "left_upper_lobe": 0.231,
    "left_lower_lobe": 0.232,
}
"""Mean share of both lungs of 32 healthy volunteers, supine, in deep inspiration (standard deviations 0.016 to 0.026):
Yamada et al. 2020, Respiration 99:598, Table 3."""

RIGHT_OBLIQUE = Plane(height=1.0, depth=-0.8, lateral=0.1, twist=0.12)
LEFT_OBLIQUE = Plane(height=1.0, depth=-0.9, lateral=0.07, twist=0.14)
"""Oblique fissures: from the back and above to the front and below, the left one steeper. Above, the lower lobe's face
looks outward (the fissure lies further back at the side than near the hilum); below, less so, or inward (Raasch et al.
1982, AJR 138:1043; Aziz et al. 2004, J Thorac Imaging 19:186). The weights are ours, set by eye and compared with
fissures seen in three normal scans: see the page "Lobes and regions" of the documentation."""
HORIZONTAL = Plane(height=1.0, depth=-0.2, lateral=0.15)
"""Horizontal fissure: lower in front than behind, lower at the side than near the hilum (Raasch et al. 1982)."""

_CODES = {lobe.key: lobe.code for lobe in LOBES}
_NUMBERINGS = {
    "lungmask LTRCLobes (1..5)": {
        1: "left_upper_lobe",
        2: "left_lower_lobe",
        3: "right_upper_lobe",
        4: "right_middle_lobe",
        5: "right_lower_lobe",
    },
    "TotalSegmentator (10..14)": {
        10: "left_upper_lobe",
        11: "left_lower_lobe",
        12: "right_upper_lobe",
        13: "right_middle_lobe",
        14: "right_lower_lobe",
    },
}


def _share(lobe: str, *others: str) -> float:
    """Share of a lobe in itself and others."""
    return LOBE_SHARES[lobe] / (LOBE_SHARES[lobe] + sum(LOBE_SHARES[other] for other in others))


def _lungs() -> dict[int, Place]:
    lower = _share("right_lower_lobe", "right_middle_lobe", "right_upper_lobe")
    middle = _share("right_middle_lobe", "right_upper_lobe")
    upper_and_middle = Cut(
        HORIZONTAL, ((middle, _CODES["right_middle_lobe"]), (1 - middle, _CODES["right_upper_lobe"]))
    )
    right = Cut(RIGHT_OBLIQUE, ((lower, _CODES["right_lower_lobe"]), (1 - lower, upper_and_middle)))
    lower = _share("left_lower_lobe", "left_upper_lobe")
    left = Cut(LEFT_OBLIQUE, ((lower, _CODES["left_lower_lobe"]), (1 - lower, _CODES["left_upper_lobe"])))
    return {RIGHT_LUNG.code: Place(RIGHT_LUNG.key, right), LEFT_LUNG.code: Place(LEFT_LUNG.key, left)}


_LUNGS = _lungs()


def approximate_lobes(
    lungs: np.ndarray, spacing: tuple[float, float, float], out: np.ndarray | None = None
) -> np.ndarray:
    """Lobes from the lungs alone, by geometric fissures: approximate.

    Each lung is cut in its own coordinates, so that scaling, moving or resampling it changes nothing but voxels at the
    fissures. The lobes have the shares of their lung that follow from `LOBE_SHARES`. A lung that is cut by the end of
    the scan is cut as if it were whole.

    Args:
        lungs: (Z, H, W) integers, upright: 0 outside, 1 right lung, 2 left lung.
        spacing: (dz, dy, dx) in mm; as scaling an axis changes nothing, a guess serves where it is not known.
        out: (Z, H, W) uint8, where to put the codes: zero where ``lungs`` is, or ``lungs`` itself, to save memory.

    Returns:
        (Z, H, W) uint8 codes of `anatomy.LOBES`, zero exactly where ``lungs`` is.

    Raises:
        ValueError: when ``lungs`` is not three-dimensional or no such mask, or a spacing is not positive.
    """
    return divide(lungs, _LUNGS, spacing, out)


def lobes_from_codes(array: np.ndarray) -> np.ndarray:
    """Lobes of another tool, by our codes.

    lungmask's LTRCLobes are 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower;
    TotalSegmentator's are 10 left upper, 11 left lower, 12 right upper, 13 right middle, 14 right lower. A lobe may be
    absent. A mask of the two *lungs* has the codes 1 and 2 too, and cannot be told from lungmask's left lobes: the
    caller knows that these are lobes.

    Args:
        array: mask of any shape and orientation, whole numbers of any type.

    Returns:
        uint8 codes of `anatomy.LOBES`, of the same shape.

    Raises:
        ValueError: when the mask is empty, or its codes are of neither tool, or of both.
    """
    found = sorted(set().union(*(np.unique(part).tolist() for part in np.atleast_1d(array))) - {0})
    for numbering in _NUMBERINGS.values():
        if found and set(found) <= set(numbering):
            table = np.zeros(max(numbering) + 1, dtype=np.uint8)
            for code, lobe in numbering.items():
                table[code] = _CODES[lobe]
            return table[array.astype(np.uint8)]
    codes = ", ".join(str(code) for code in found[:8]) + (", ..." if len(found) > 8 else "")
    raise ValueError(
        f"the lobe mask holds {f'the codes {codes}' if found else 'no lobe'}: expected those of "
        f"{' or '.join(_NUMBERINGS)} and nothing else."
    )
