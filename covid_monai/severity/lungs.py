# SPDX-License-Identifier: Apache-2.0
"""A first lung mask, from Hounsfield units alone."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["lung_mask", "lung_sides", "touching_lung"]

AIR_BELOW_HU = -400.0
GRID_MM = 1.5
"""The mask is made on a grid of about this in-plane spacing."""
CLOSING_MM = 9.0
"""Vessels, and lesions along the pleura up to about this width, count as lung."""
SMALLEST_SHARE = 0.1
"""A part of the lungs has at least this share of the largest part's volume."""
GAS_BELOW_HU = -955.0
"""An air space whose median is lower is gas (stomach, bowel, air outside), not lung."""


def lung_mask(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Lungs, with what lies inside them, by threshold and connected components.

    Air inside the body that is no large bubble of gas, closed in each slice so that vessels, and lesions that do not
    reach far along the pleura, are inside. Trachea and main bronchi are *included*; dense consolidation at the pleura
    may be missed: unite the mask with the lesions.

    Args:
        hu: (Z, H, W) in Hounsfield units, upright.
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z, H, W) bool; all False when there is no air inside a body.

    Raises:
        ValueError: when ``hu`` is not three-dimensional or a spacing is not positive.
    """
    if hu.ndim != 3 or min(spacing) <= 0:
        raise ValueError(f"expected (Z, H, W) and positive spacing in mm, got shape {hu.shape} and spacing {spacing}.")
    step = max(1, int(GRID_MM / max(spacing[1:])))
    grid = np.ascontiguousarray(hu[:, ::step, ::step])
    lungs = _air_in_body(grid)
    if not lungs.any():
        return np.zeros(hu.shape, dtype=bool)
    radius = max(1, round(CLOSING_MM / (step * max(spacing[1:]))))
    for z in np.flatnonzero(lungs.any(axis=(1, 2))):
        lungs[z] = _closed(lungs[z], radius)
    return lungs.repeat(step, axis=1).repeat(step, axis=2)[:, : hu.shape[1], : hu.shape[2]]


def lung_sides(lungs: np.ndarray, hu: np.ndarray) -> tuple[int, int]:
    """Voxels of the lungs right and left of the body's midline, the patient's right first.

    Args:
        lungs: (Z, H, W) bool, upright: the patient's right is on the left.
        hu: (Z, H, W) in Hounsfield units; the midline is where half of its tissue lies on either side.
    """
    tissue = np.count_nonzero(hu[:, ::4] > AIR_BELOW_HU, axis=(0, 1)).cumsum()
    middle = int(np.searchsorted(tissue, tissue[-1] / 2))
    return int(np.count_nonzero(lungs[..., :middle])), int(np.count_nonzero(lungs[..., middle:]))


def touching_lung(lesion: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Lesion without those of its connected parts that lie wholly outside the lungs.

    Args:
        lesion: (Z, H, W), non-zero for lesion.
        lungs: (Z, H, W) bool.

    Returns:
        (Z, H, W) of the lesion's type.
    """
    box = _bounding_box(lesion != 0)
    if box is None:
        return lesion
    kept = np.zeros_like(lesion)
    parts, count = ndimage.label(lesion[box], structure=np.ones((3, 3, 3), dtype=bool))
    touching = np.zeros(count + 1, dtype=bool)
    touching[np.unique(parts[lungs[box]])] = True
    touching[0] = False
    kept[box] = np.where(touching[parts], lesion[box], 0)
    return kept


def _air_in_body(hu: np.ndarray) -> np.ndarray:
    """Lung-like air spaces that do not reach the frame of the slices."""
    parts, count = ndimage.label(hu < AIR_BELOW_HU)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    candidate = np.ones(count + 1, dtype=bool)
    candidate[0] = False
    for side in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        candidate[np.unique(side)] = False
    inside = np.flatnonzero(candidate)
    if not len(inside):
        return np.zeros(hu.shape, dtype=bool)
    large = inside[sizes[inside] >= SMALLEST_SHARE * sizes[inside].max()]
    lungs = [label for label in large if np.median(hu[parts == label]) > GAS_BELOW_HU]
    return np.isin(parts, lungs)


def _closed(plane: np.ndarray, radius: int) -> np.ndarray:
    """Each part of a slice's lung closed on its own, so that the space between the lungs stays out, and filled."""
    padded = np.pad(plane, radius + 1)
    closed = np.zeros_like(padded)
    parts, _ = ndimage.label(padded)
    for label, box in enumerate(ndimage.find_objects(parts), start=1):
        around = tuple(slice(side.start - radius - 1, side.stop + radius + 1) for side in box)
        part = parts[around] == label
        outer = ndimage.distance_transform_edt(~part) <= radius
        inner = ndimage.distance_transform_edt(np.pad(outer, 1))[1:-1, 1:-1] > radius
        closed[around] |= ndimage.binary_fill_holes(inner | part)
    return closed[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Slices that enclose what is set, or None when nothing is."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)
