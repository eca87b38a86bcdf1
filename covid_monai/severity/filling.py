# SPDX-License-Identifier: Apache-2.0
"""What lung air leaves out and still is lung: vessels, the pleura's rim, and the lesions that a network found."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from covid_monai.severity.in_plane import bounding_box, boxes, closed, dilated, in_slices

__all__ = ["fill_sides", "islands_in_lesions", "with_lesions"]

CLOSING_MM = 10.0
"""Vessels, and what is dense along the pleura or the mediastinum up to about twice this width, count as lung."""
HOLE_CM2 = 4.0
"""A hole of this area in a slice is a vessel or a nodule; a larger one may be the top of the diaphragm, and is filled
where lung encloses it in space."""
REACH_MM, REACH_ALONG_MM = 40.0, 30.0
"""How far lesions may lead from the closed lung, in a slice and across slices. In each COVID-19 scan of MedSeg's 9,
99 % of the reference lesions lie within 22 mm of aerated lung, all within 42 mm; widely consolidated bases reach on."""
STEP_MM = 3.0
NEAR_MM = 6.0
"""Lesions this close belong to the lungs without a bridge."""
SURROUNDED = 0.4
BONE_HU = 180.0
RIBS_MM = 12.0
"""Ribs, seen from their neighbours this far up and down, close the chest wall to lesions."""


def fill_sides(codes: np.ndarray, spacing: tuple[float, float, float], slices: np.ndarray | None = None) -> np.ndarray:
    """Close and fill each lung on its own, so that what stands between the lungs stays out.

    Args:
        codes: (Z, H, W) uint8, 1 right and 2 left lung.
        spacing: (dz, dy, dx) in mm.
        slices: (Z,) bool, the slices to close; None for all.

    Returns:
        (Z, H, W) uint8.
    """
    filled = codes.copy()
    for code in (1, 2):
        lung = codes == code
        other = codes == 3 - code
        for z, plane in in_slices(lung):
            if slices is None or slices[z]:
                for _, around in boxes(plane.astype(np.uint8), CLOSING_MM, spacing[1:]):
                    whole = closed(plane[around], CLOSING_MM, spacing[1:])
                    plane[around] = whole | _small_holes(whole, spacing[1:])
        cavities, _ = ndimage.label(~np.pad(lung, ((0, 0), (1, 1), (1, 1))))
        open_ = np.zeros(int(cavities.max()) + 1, dtype=bool)
        for end in (cavities[0], cavities[-1], cavities[:, 0]):
            open_[np.unique(end)] = True
        lung |= ~open_[cavities][:, 1:-1, 1:-1]
        filled[lung & ~other & (filled == 0)] = code
    return filled


def _small_holes(plane: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
    if not count:
        return np.zeros_like(plane)
    small = np.bincount(holes.ravel()) * spacing[0] * spacing[1] / 100 <= HOLE_CM2
    small[0] = False
    return small[holes]


def islands_in_lesions(islands: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Islands of air that lesions surround: what is left of the air in a consolidated lung.

    Args:
        islands: (Z, H, W) bool.
        lesions: (Z, H, W) bool.

    Returns:
        (Z, H, W) bool, the islands with at least `SURROUNDED` of their edge in lesion.
    """
    parts, count = ndimage.label(islands)
    edge = ndimage.maximum_filter(parts, (1, 3, 3))
    edge[islands] = 0
    surrounded = np.bincount(edge[lesions], minlength=count + 1) >= SURROUNDED * np.bincount(
        edge.ravel(), minlength=count + 1
    )
    surrounded[0] = False
    return surrounded[parts]


def with_lesions(
    codes: np.ndarray,
    lesions: np.ndarray,
    islands: np.ndarray,
    right: np.ndarray,
    hu: np.ndarray,
    spacing: tuple[float, float, float],
) -> np.ndarray:
    """Lungs with the lesions that belong to them: at their edge, or led to from there through lesion.

    Growing stops after `REACH_MM` in a slice and `REACH_ALONG_MM` across slices, at the ribs, and at the line between
    the lungs, so that a false lesion that runs on into the liver or the chest wall does not take all of it along.

    Args:
        codes: (Z, H, W) uint8 of lungs or lobes, closed.
        lesions: (Z, H, W) bool.
        islands: (Z, H, W) bool, air that is lung where lesions lead to it.
        right: (Z, H, W) bool, what lies right of the line between the lungs, see `sides.right_half`.
        hu: (Z, H, W).
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z, H, W) uint8, a copy with the lesions; each goes to the lung or lobe from which it was reached first.
    """
    grown = codes.copy()
    outside = np.flatnonzero((lesions & (codes == 0)).any(axis=(1, 2)))
    if outside.size:
        margin = int(REACH_ALONG_MM / spacing[0]) + 1
        span = slice(max(0, outside[0] - margin), outside[-1] + margin + 1)
        free = (lesions[span] & ~_ribs(hu[span], spacing)) | islands[span]
        for half in (right[span], ~right[span]):
            part = codes[span] * half
            _grow(part, lesions[span] & half, free & half, spacing)
            np.copyto(grown[span], part, where=half)
    return grown


def _grow(codes: np.ndarray, lesions: np.ndarray, free: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Grow ``codes`` in place: a little into ``lesions``, then step by step into what is ``free``."""
    _spread(codes, lesions, NEAR_MM, spacing[1:])
    flat = codes.reshape(-1)  # a view
    layer = codes[0].size
    reachable = np.flatnonzero(free & (codes == 0))
    hops = 0
    for step in range(1, round(REACH_MM / STEP_MM) + 1):
        _spread(codes, free, STEP_MM, spacing[1:])
        while hops < min(step * STEP_MM, REACH_ALONG_MM) // spacing[0]:
            hops += 1
            reachable = reachable[flat[reachable] == 0]
            below, above = reachable - layer, reachable + layer
            from_below = np.where(below >= 0, flat[below], 0)
            from_above = np.where(above < flat.size, flat[above % flat.size], 0)
            flat[reachable] = np.where(from_below > 0, from_below, from_above)
    _spread(codes, lesions, NEAR_MM, spacing[1:])


def _spread(codes: np.ndarray, free: np.ndarray, radius: float, spacing: tuple[float, float]) -> None:
    """Grow each lung by ``radius`` mm into what is free, in place, slice by slice."""
    for z, plane in in_slices(free & (codes == 0)):
        around = bounding_box(plane, radius, spacing)
        there = codes[z][around]
        for code in np.unique(there[there > 0]):
            there[dilated(there == code, radius, spacing) & plane[around] & (there == 0)] = code


def _ribs(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Bone, and what has bone a little above or below it."""
    size = 2 * int(RIBS_MM / spacing[0]) + 1
    return ndimage.maximum_filter1d((hu > BONE_HU).view(np.uint8), size, axis=0).view(bool)
