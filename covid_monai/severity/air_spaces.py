# SPDX-License-Identifier: Apache-2.0
"""Air of a chest CT told apart by where it is and how dark: outside the body, in airways and bowel, in the lungs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from covid_monai.severity.in_plane import boxes, dilated, eroded, in_slices

__all__ = ["air_spaces"]

AIR_BELOW_HU = -400.0
"""Lung and gas are darker, also where ground glass thickens the lung; soft tissue and dense consolidation are not."""
FREE_AIR_HU = -1000.0
OUTSIDE_SPREAD_HU = 45.0
"""Smoothed air around the body, and what a scanner writes outside its field of view, is darker than free air plus
this; lungs, even those with emphysema, hardly are."""
SMOOTHING_MM = 4.0
SKIN_MM = 5.0
"""The blurred edge of the air around the body, and covers that lie on it."""
GAS_CORE_MM = 3.0
"""Radius of the narrowest gas that is looked for: main bronchi are 5 to 8 mm wide."""
GAS_WALL_MM = 2.5
"""Blurred edge and wall of a gas space."""
WALLED = 0.55
"""Share of a gas space's edge that is soft tissue, from which it is an airway or bowel rather than part of a lung."""
LARGEST_GAS_CM2 = 80.0
"""Of a slice; a larger space is lung, however dark."""
HIGHEST_LUNG_HU = -840.0
HALF_WALLED = 0.25
BLURRED_HU = 70.0
LARGEST_BRONCHUS_CM2 = 5.0
"""A space of at most this area is an airway, a main bronchus at the hilum, where it leads on from gas: one of gas with
only `HALF_WALLED` of its edge walled, or a walled one that partial volume makes `BLURRED_HU` denser than gas."""
WALL_MM = 7.0
SMALLEST_BODY = 0.1
BETWEEN = 0.4
"""Lungs have chest wall, thicker than `WALL_MM` and part of the body, before and behind them over this share of their
volume; foam of the couch has not. Parts of the body have at least `SMALLEST_BODY` of its largest part's volume."""
SMALLEST_SHARE = 0.03
"""A space of the lungs has at least this share of the largest one's volume."""
SMALLEST_LUNG_ML = 60.0
SMALLEST_LUNG_CM2 = 5.0
"""Lungs have this volume, or in scans of few slices this mean area; smaller spaces are sinuses, bowel or noise."""


def air_spaces(hu: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Air of the lungs, and gas of airways, stomach and bowel.

    Air around the body is what hangs together with the frame of the slices through nothing but air; a lung that a
    tight field of view cuts is lung-like up to the frame and stays. Gas is darker than half way from the lungs to free
    air, wider than a small bronchus, and walled by soft tissue in its slice.

    Args:
        hu: (Z, H, W) upright, best of voxels of 1 to 3 mm in plane.
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z, H, W) bool, three times: lungs (no vessels, no dense lesions), islands of air that may be lung where dense
        lesions lead to them, gas with its walls. Without lungs the first two are all False.
    """
    air = hu < AIR_BELOW_HU
    smooth = ndimage.uniform_filter(hu, (0, *_widths(spacing[1:])), output=np.float32)
    air &= ~_outside(smooth, spacing)
    ceiling = _gas_ceiling(smooth, air)
    gas = _gas(smooth, air, ceiling, spacing)
    return *_lung_parts(air & ~gas, smooth, ceiling, spacing), gas


def _widths(spacing: tuple[float, float]) -> list[int]:
    """Odd numbers of pixels that are about `SMOOTHING_MM` wide."""
    return [2 * round((SMOOTHING_MM / length - 1) / 2) + 1 if length < SMOOTHING_MM else 1 for length in spacing]


def _outside(smooth: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Air around the body with its blurred edge."""
    parts, count = ndimage.label(smooth < _free_air(smooth) + OUTSIDE_SPREAD_HU)
    around = np.zeros(count + 1, dtype=bool)
    for side in _frame(parts):
        around[np.unique(side)] = True
    around[0] = False
    outside = around[parts]
    del parts
    sizes = [1, *(2 * max(1, round(SKIN_MM / length)) + 1 for length in spacing[1:])]
    return ndimage.maximum_filter(outside.view(np.uint8), sizes).view(bool)


def _frame(volume: np.ndarray) -> tuple[np.ndarray, ...]:
    """First and last row and column of the slices."""
    return volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1]


def _free_air(smooth: np.ndarray) -> float:
    """HU of the air along the frame of the slices; scans of approximate HU are off by some tens."""
    values = np.concatenate([side.ravel() for side in _frame(smooth)])
    bins = np.arange(FREE_AIR_HU - 20, FREE_AIR_HU + OUTSIDE_SPREAD_HU, 10)  # lower is padding, higher may be lung
    counts, edges = np.histogram(values, bins)
    return float(edges[counts.argmax()] + 5) if counts.sum() > 0.01 * values.size else FREE_AIR_HU


def _gas_ceiling(smooth: np.ndarray, air: np.ndarray) -> float:
    """HU half way between the lungs and free air, and lower where the lungs are dense."""
    values = smooth[air & (smooth > FREE_AIR_HU + 25)]
    lung = float(np.median(values)) if values.size else HIGHEST_LUNG_HU
    return (min(lung, HIGHEST_LUNG_HU) + FREE_AIR_HU) / 2


def _gas(smooth: np.ndarray, air: np.ndarray, ceiling: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Gas with its walls: spaces walled in their slice, and airways that lead on from them."""
    gas = np.zeros(air.shape, dtype=bool)
    walled = np.zeros(air.shape, dtype=bool)
    wall = max(GAS_WALL_MM, *spacing[1:])
    for z, plane in in_slices(air & (smooth < ceiling + BLURRED_HU)):
        dark = plane & (smooth[z] < ceiling)
        for part, around, area, share in _cores(dark, LARGEST_GAS_CM2, smooth[z], wall, spacing[1:]):
            if share >= WALLED:
                walled[z][around] |= part
            elif area <= LARGEST_BRONCHUS_CM2 and share >= HALF_WALLED:
                gas[z][around] |= part
        for part, around, _, share in _cores(plane, LARGEST_BRONCHUS_CM2, smooth[z], wall, spacing[1:]):
            if share >= WALLED:
                gas[z][around] |= part
    spaces, count = ndimage.label(gas | walled)
    leading = np.zeros(count + 1, dtype=bool)
    leading[np.unique(spaces[walled])] = True
    leading[0] = False
    gas = leading[spaces]
    for z, plane in in_slices(gas):
        gas[z] = dilated(plane, wall, spacing[1:])
    return gas


def _cores(
    plane: np.ndarray, largest: float, smooth: np.ndarray, wall: float, spacing: tuple[float, float]
) -> Iterator[tuple[np.ndarray, tuple[slice, slice], float, float]]:
    """Parts of a slice that are wider than a small bronchus, of at most ``largest`` cm2, and near tissue.

    Of each its mask, the place of that, its area in cm2, and the walled share of its edge.
    """
    cores, count = ndimage.label(eroded(plane, GAS_CORE_MM, spacing))
    pixel = spacing[0] * spacing[1] / 100
    sizes = np.bincount(cores.ravel(), minlength=count + 1)
    tissue = smooth > AIR_BELOW_HU
    inner, outer = GAS_CORE_MM + wall, GAS_CORE_MM + 2 * wall
    fewest = HALF_WALLED / 4 * np.pi * (outer**2 - inner**2) / 100 / pixel  # a quarter of what the smallest needs
    for label, around in boxes(cores, outer, spacing):
        if sizes[label] * pixel > largest or np.count_nonzero(tissue[around]) < fewest:
            continue
        core = cores[around] == label
        part = dilated(core, GAS_CORE_MM, spacing)
        if (area := np.count_nonzero(part) * pixel) <= largest:
            edge = dilated(core, outer, spacing) & ~dilated(core, inner, spacing)
            yield part, around, area, float(np.mean(tissue[around][edge]))


def _lung_parts(
    air: np.ndarray, smooth: np.ndarray, ceiling: float, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Spaces between chest walls that are no gas: those large enough for lungs, and the others."""
    parts, count = ndimage.label(air)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    between = np.bincount(parts[_between_walls(smooth, spacing)], minlength=count + 1)
    sizes[0] = 0
    sizes[between < BETWEEN * sizes] = 0
    lungs = np.zeros(count + 1, dtype=bool)
    places = ndimage.find_objects(parts)
    for label in np.argsort(sizes)[::-1]:
        if sizes[label] < max(1, SMALLEST_SHARE * sizes[lungs].max(initial=0)):
            break
        place = places[label - 1]
        if np.median(smooth[place][parts[place] == label]) > ceiling:
            lungs[label] = True
        else:
            sizes[label] = 0
    voxel_ml = float(np.prod(spacing)) / 1000
    least_ml = min(SMALLEST_LUNG_ML, SMALLEST_LUNG_CM2 * air.shape[0] * spacing[0] / 10)
    if sizes[lungs].sum() * voxel_ml < least_ml:
        lungs[:] = sizes[:] = 0
    return lungs[parts], ((sizes > 0) & ~lungs)[parts]


def _between_walls(smooth: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxels with chest wall before and behind them in their column of their slice.

    A lung that the frame cuts at the front needs none there; at the back, where the couch is, it does.
    """
    sizes = [1, *(max(1, round(WALL_MM / length)) for length in spacing[1:])]
    core, count = ndimage.label(ndimage.minimum_filter((smooth > AIR_BELOW_HU).view(np.uint8), sizes))
    volumes = np.bincount(core.ravel(), minlength=count + 1)
    volumes[0] = 0
    body = (volumes >= max(1, SMALLEST_BODY * volumes.max()))[core]
    cut = (smooth[:, 0] < AIR_BELOW_HU) & (smooth[:, 0] > FREE_AIR_HU + 2 * OUTSIDE_SPREAD_HU)
    before = np.logical_or.accumulate(body, axis=1) | cut[:, None]
    behind = np.logical_or.accumulate(body[:, ::-1], axis=1)[:, ::-1]
    return before & behind
