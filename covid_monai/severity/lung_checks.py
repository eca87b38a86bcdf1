# SPDX-License-Identifier: Apache-2.0
"""What a reader of the figures must know about the lungs that were found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from covid_monai.severity.anatomy import SIDES
from covid_monai.severity.mask_slices import MaskSlices

if TYPE_CHECKING:
    from covid_monai.severity.lungs import Lungs

__all__ = ["NO_LUNG", "SHIFTED_UP", "TOO_DARK", "added_by_lesions", "check_lungs", "cut_ends", "lung_warnings"]

PLAUSIBLE_LUNG_ML = (1000.0, 10000.0)
PLAUSIBLE_SIDES = 0.5
"""Volume of the smaller lung as a share of the larger; healthy ones differ by about a tenth."""
CUT_SHARE = 0.1
"""An end of the scan cuts a lung that has this share of its largest area there."""
ON_FRAME = 0.001
"""The frame cuts a lung that has more than this share of its voxels on it."""
LESION_OUTSIDE = 0.25
"""Share of the lesion volume outside the lungs from which the picture must be looked at."""
ADDED = 0.1
"""Share of the lungs that only the lesion mask shows to be lung, from which the picture must be looked at; it is at
most 0.02 in the 9 COVID-19 scans of MedSeg."""
DENSE_LUNG_HU = -300.0
CONTRAST_HU = 150.0
ENHANCED = 0.4
"""Contrast agent is seen where this share of the heart's region is denser than `CONTRAST_HU`; blood has 30 to 60 HU."""

NO_LUNG = "No lung was found: the lesion share cannot be given and the lesion mask is not to be trusted."
SHIFTED_UP = (
    "The HU are shifted by about +1024 (the rescale intercept was not applied): export the scan again, lesions and "
    "figures are wrong as they are."
)
TOO_DARK = (
    "Nearly everything in the scan is as dark as air: the HU are shifted by about -1024 or this is no chest CT, and no "
    "figure is to be trusted."
)
CONTRAST = (
    "The heart is brighter than unenhanced blood, so contrast agent was given or the HU are off: vessels and enhanced "
    "tissue may be taken for lesions."
)


def cut_ends(mask: np.ndarray) -> tuple[tuple[str, str], ...]:
    """Lungs that an end of the scan cuts.

    Args:
        mask: (Z, H, W) uint8, 1 right and 2 left lung, slices from inferior to superior.

    Returns:
        (key of `anatomy.SIDES`, "lower" or "upper") for each lung whose area on the first or last slice is at least a
        tenth of its largest, and (key, "frame") for each that the frame of the slices cuts.
    """
    found = []
    for side in SIDES:
        areas = np.array([np.count_nonzero(plane == side.code) for plane in mask])
        for end, area in (("lower", areas[0]), ("upper", areas[-1])):
            if areas.any() and area >= CUT_SHARE * areas.max():
                found.append((side.key, end))
        on_frame = sum(
            int(np.count_nonzero(edge == side.code))
            for edge in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1])
        )
        if on_frame > ON_FRAME * areas.sum():
            found.append((side.key, "frame"))
    return tuple(found)


def check_lungs(mask: np.ndarray, hu: np.ndarray, lesions: MaskSlices) -> tuple[str, ...]:
    """What the scan and the lesions say about a lung mask, one sentence each.

    Args:
        mask: (Z, H, W) uint8, 1 right and 2 left lung.
        hu: (Z, H, W).
        lesions: (Z, H, W), non-zero for lesion.
    """
    if not mask.any():
        return (NO_LUNG,)
    return (*_lesions_outside(mask, lesions), *_density(mask, hu), *_contrast(mask, hu))


def added_by_lesions(before: np.ndarray, after: np.ndarray) -> tuple[str, ...]:
    """What must be known of lungs (non-zero in ``before``) that were united with lesions (``after``), of one shape."""
    added = 1 - int(np.count_nonzero(before)) / max(1, int(np.count_nonzero(after)))
    if added <= ADDED:
        return ()
    return (
        f"{100 * added:.0f} % of the lungs are lesion without air that only the lesion mask shows to be lung: widely "
        "consolidated lung, or lesion drawn into liver or chest wall; look at the picture.",
    )


def _lesions_outside(mask: np.ndarray, lesions: MaskSlices) -> Iterator[str]:
    total = outside = 0
    for plane, lung in zip(lesions, mask, strict=True):
        total += int(np.count_nonzero(plane))
        outside += int(np.count_nonzero(plane[lung == 0]))
    if outside > LESION_OUTSIDE * total:
        yield (
            f"{100 * outside / total:.0f} % of the lesion volume lies outside the lungs and is left out: lesion drawn "
            "into the chest wall or below the diaphragm, or consolidated lung that was not found; look at the picture."
        )


def _density(mask: np.ndarray, hu: np.ndarray) -> Iterator[str]:
    values = [plane[::2, ::2][lung[::2, ::2] != 0] for plane, lung in zip(hu, mask, strict=True)]
    median = float(np.median(np.concatenate(values)))
    if median > DENSE_LUNG_HU:
        yield (
            f"The lungs have a median of {median:.0f} HU where aerated lung has -900 to -600: most of the lung is "
            "dense, or the HU are shifted and no figure is to be trusted."
        )


def _contrast(mask: np.ndarray, hu: np.ndarray) -> Iterator[str]:
    """Looks between the lungs, in front of the spine, where the heart lies: at 20 to 55 % of the lungs' height."""
    with_lung = np.flatnonzero(mask.any(axis=(1, 2)))
    low, high = (int(with_lung[0] + share * (with_lung[-1] - with_lung[0])) for share in (0.2, 0.55))
    values = []
    for z in range(low, high + 1):
        right, left = (np.flatnonzero((mask[z] == side.code).any(axis=0)) for side in SIDES)
        rows = np.flatnonzero(mask[z].any(axis=1))
        if not (right.size and left.size):
            continue
        middle, reach = (right[0] + left[-1]) / 2, (left[-1] - right[0]) / 6
        box = (
            slice(rows[0], rows[0] + int(0.65 * (rows[-1] - rows[0]))),
            slice(max(0, int(middle - reach)), int(middle + reach)),
        )
        tissue = ndimage.uniform_filter(hu[z][box].astype(np.float32), 3)[mask[z][box] == 0]
        values.append(tissue[tissue > -20])
    tissue = np.concatenate(values) if values else np.empty(0)
    if tissue.size and np.mean(tissue > CONTRAST_HU) >= ENHANCED:
        yield CONTRAST


def lung_warnings(
    lungs: Lungs, spacing: tuple[float, float, float], spacing_known: bool, contrast: bool | None
) -> tuple[str, ...]:
    """Everything that a reader of the figures must know about the lungs, one sentence each.

    What the reader of the scan warns of by itself (contrast agent recorded in its header, thick slices, gaps between
    them) is not repeated.

    Args:
        lungs: the lungs.
        spacing: (dz, dy, dx) in mm.
        spacing_known: False when the spacing is nominal; nothing is said about volumes then.
        contrast: whether the scan's header says that contrast agent was given; None when it says nothing.
    """
    told = tuple(warning for warning in lungs.warnings if not (contrast and warning == CONTRAST))
    if not lungs.mask.any():
        return told
    voxels = [sum(int(np.count_nonzero(plane == side.code)) for plane in lungs.mask) for side in SIDES]
    volumes = [count * float(np.prod(spacing)) / 1000 for count in voxels]
    return (*told, *_cut(lungs), *_implausible(volumes, spacing_known, bool(lungs.cut)))


def _cut(lungs: Lungs) -> Iterator[str]:
    for end in ("lower", "upper"):
        names = [side.name for side in SIDES if (side.key, end) in lungs.cut]
        if names:
            yield (
                f"The {end} end of the scan cuts the {' and the '.join(names)}: figures are of the part in view, and "
                "regions beyond it cannot be assessed."
            )
    if any(end == "frame" for _, end in lungs.cut):
        yield "The frame of the slices cuts a lung: figures are of the part in view."


def _implausible(volumes: list[float], spacing_known: bool, cut: bool) -> Iterator[str]:
    whole = sum(volumes)
    low, high = PLAUSIBLE_LUNG_ML
    if spacing_known and (whole > high or (whole < low and not cut)):
        yield (
            f"The lungs measure {whole:.0f} mL, which is not plausible for whole adult lungs: the scan may be cropped, "
            "or the lung mask wrong."
        )
    smaller = min(range(2), key=volumes.__getitem__)
    if volumes[smaller] == 0:
        yield (
            f"No {SIDES[smaller].name} was found: it is out of view, absent, collapsed or consolidated, and the "
            "figures are those of the other one."
        )
    elif volumes[smaller] < PLAUSIBLE_SIDES * max(volumes):
        yield (
            f"The {SIDES[smaller].name} has {100 * volumes[smaller] / max(volumes):.0f} % of the other's volume: "
            "consolidated lung, effusion or collapse may be missing from the lung mask, and the lesion share be wrong."
        )
