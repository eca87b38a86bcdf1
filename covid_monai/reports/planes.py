# SPDX-License-Identifier: Apache-2.0
"""Which planes of a scan to show: those with most lesion, spread over the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Areas", "areas", "box_around", "largest_of_each_run", "slices_that_matter", "spread_over_lung"]


@dataclass(frozen=True, eq=False)
class Areas:
    """Voxels of a mask in each plane.

    Attributes:
        slices: (Z,) int, in each axial slice.
        rows: (H,) int, in each coronal plane.
        columns: (W,) int, in each sagittal plane.
    """

    slices: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def areas(mask: np.ndarray, where: Callable[[np.ndarray], np.ndarray] = lambda plane: plane != 0) -> Areas:
    """Count a mask (Z, H, W) plane by plane, without a copy of the whole.

    Args:
        mask: integers or bool.
        where: which pixels of a slice (H, W) to count, bool; by default all that are not 0.
    """
    slices = np.zeros(len(mask), dtype=np.int64)
    through = np.zeros(mask.shape[1:], dtype=np.uint32)
    for z, plane in enumerate(mask):
        marked = where(plane)
        slices[z] = np.count_nonzero(marked)
        if slices[z]:
            through += marked
    return Areas(slices, *(through.sum(axis=axis, dtype=np.int64) for axis in (1, 0)))


def slices_that_matter(lesion_area: np.ndarray, lung_area: np.ndarray, count: int) -> list[int]:
    """Indices of up to ``count`` slices, from superior to inferior.

    The slices with lesion are cut into ``count`` equal runs, and each run gives its slice with the largest area. What
    is left of ``count`` goes in the same way to the other slices with lung; all slices serve where there is neither.

    Args:
        lesion_area: (Z,) voxels of lesion in each slice, inferior to superior.
        lung_area: (Z,) voxels of lung.
        count: how many slices at the most.
    """
    chosen = largest_of_each_run(lesion_area, count)
    chosen += largest_of_each_run(np.where(lesion_area, 0, lung_area), count - len(chosen))
    return sorted(chosen or largest_of_each_run(np.ones(len(lesion_area)), count), reverse=True)


def spread_over_lung(lesion_area: np.ndarray, lung_area: np.ndarray, count: int) -> list[int]:
    """Up to ``count`` planes in ascending order: the lung cut into equal runs, of each the plane with most lesion.

    Runs without lesion give their plane with most lung.
    """
    most = float(lung_area.max(initial=0)) + 1
    return largest_of_each_run(np.where(lung_area, lung_area / most + lesion_area, 0), count)


def largest_of_each_run(area: np.ndarray, count: int) -> list[int]:
    """The planes with area, cut into up to ``count`` equal runs: the index of the largest of each."""
    candidates = np.flatnonzero(area)
    runs = np.array_split(candidates, min(count, len(candidates))) if count > 0 and len(candidates) else []
    return [int(run[np.argmax(area[run])]) for run in runs]


def box_around(lungs: Areas, margins: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Slices, rows and columns around the lungs with margins in voxels; everything where there is no lung."""
    return (
        _range(lungs.slices, margins[0]),
        _range(lungs.rows, margins[1]),
        _range(lungs.columns, margins[2]),
    )


def _range(area: np.ndarray, margin: int) -> slice:
    marked = np.flatnonzero(area)
    if not len(marked):
        return slice(0, len(area))
    return slice(max(0, int(marked[0]) - margin), min(len(area), int(marked[-1]) + margin + 1))
