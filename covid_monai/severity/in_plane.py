# SPDX-License-Identifier: Apache-2.0
"""Shapes in the plane of the slices: grown, shrunk and closed by a disc of so many mm, and their places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

__all__ = ["bounding_box", "boxes", "closed", "dilated", "eroded", "in_slices"]

Pair = tuple[float, float]


def dilated(plane: np.ndarray, radius: float, spacing: Pair) -> np.ndarray:
    """What lies within ``radius`` mm of a shape, row after row of the disc: faster than a distance transform.

    Args:
        plane: (H, W) bool.
        radius: in mm, 0 or more.
        spacing: (dy, dx) in mm.

    Returns:
        (H, W) bool, a copy.
    """
    grown, run, width = plane.copy(), plane.copy(), 0
    for away in range(min(int(radius / spacing[0]), len(plane) - 1), -1, -1):  # rows of the disc, from its ends
        while ((width + 1) * spacing[1]) ** 2 + (away * spacing[0]) ** 2 <= radius**2:
            width += 1
            run[:, width:] |= plane[:, :-width]
            run[:, :-width] |= plane[:, width:]
        grown[away:] |= run[: len(plane) - away]
        grown[: len(plane) - away] |= run[away:]
    return grown


def eroded(plane: np.ndarray, radius: float, spacing: Pair) -> np.ndarray:
    """What lies further than ``radius`` mm from all that is not set, which goes on beyond the frame; as `dilated`."""
    pad, inside = _framed(plane, radius, spacing)
    return ~dilated(np.pad(~plane, pad, constant_values=True), radius, spacing)[inside]


def closed(plane: np.ndarray, radius: float, spacing: Pair) -> np.ndarray:
    """Closing by a disc; what lies beyond the frame counts as empty. As `dilated`."""
    pad, inside = _framed(plane, radius, spacing)
    return eroded(dilated(np.pad(plane, pad), radius, spacing), radius, spacing)[inside]


def _framed(plane: np.ndarray, radius: float, spacing: Pair) -> tuple[list[tuple[int, int]], tuple[slice, slice]]:
    """Padding wider than ``radius`` for `numpy.pad`, and where the plane then lies."""
    rows, columns = (_pixels(radius, length) for length in spacing)
    inside = slice(rows, rows + plane.shape[0]), slice(columns, columns + plane.shape[1])
    return [(rows, rows), (columns, columns)], inside


def in_slices(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Number and slice of the slices of a mask (Z, H, W) in which something is set."""
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        yield int(z), mask[z]


def bounding_box(plane: np.ndarray, margin: float, spacing: Pair) -> tuple[slice, slice]:
    """Bounding box, ``margin`` mm wider, of what is set in a plane (H, W) bool; of size 0 where nothing is."""
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return _wider(rows[0], rows[-1] + 1, margin, spacing[0]), _wider(columns[0], columns[-1] + 1, margin, spacing[1])


def boxes(parts: np.ndarray, margin: float, spacing: Pair) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Label and bounding box, ``margin`` mm wider, of every part of a labelled slice (H, W)."""
    for label, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        yield (
            label,
            (
                _wider(rows.start, rows.stop, margin, spacing[0]),
                _wider(columns.start, columns.stop, margin, spacing[1]),
            ),
        )


def _wider(start: int, stop: int, margin: float, length: float) -> slice:
    """A side of a box with ``margin`` mm, and a pixel of ``length`` mm, on both ends."""
    more = _pixels(margin, length)
    return slice(max(0, int(start) - more), int(stop) + more)


def _pixels(mm: float, length: float) -> int:
    """Pixels of this length that are more than so many mm."""
    return int(mm / length) + 1
