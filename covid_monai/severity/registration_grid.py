# SPDX-License-Identifier: Apache-2.0
"""Lungs of two scans on one coarse grid, and how well they agree once the one is laid over the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

__all__ = ["GRID_MM", "Fit", "LungGrid", "LungScan", "best_shift", "fit", "folded_share", "hat", "in_bounds"]

GRID_MM = 3.0
MARGIN_MM = 30.0
"""What is registered reaches this far beyond the lungs, as far as the scan goes."""
TISSUE_HU, HEALTHY_HU = 0.0, -850.0
LESION_SHARE = 0.1
"""Of a voxel of the grid, from which it is called lesion."""
DEEP_VOXELS, VESSEL_VOXELS = 2, 7
"""Vessels are compared this far below the pleura, against the mean of a cube of this edge."""
FEWEST_VOXELS = 1000
"""Of lung without lesion in both scans, without which vessels are not compared: 27 mL."""


class LungScan(Protocol):
    """What is registered; an ``Analysis`` is one. Arrays are upright."""

    @property
    def hu(self) -> np.ndarray:
        """(Z, H, W) in Hounsfield units."""

    @property
    def lungs(self) -> np.ndarray:
        """(Z, H, W): 1 right, 2 left lung."""

    @property
    def lesions(self) -> np.ndarray:
        """(Z, H, W), non-zero for lesion."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(dz, dy, dx) in mm."""


@dataclass(frozen=True, eq=False)
class LungGrid:
    """Lungs and a margin on a grid of GRID_MM.

    Attributes:
        image: (z, y, x) float32 HU of the lungs; lesions have the value of healthy lung, all else that of tissue.
        lungs: (z, y, x) uint8: 1 right, 2 left lung.
        lesions: (z, y, x) bool: where there is some lesion.
        nodes: positions of the axes in mm from the first voxel of the scan.
    """

    image: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    nodes: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, scan: LungScan) -> LungGrid:
        """Average everything over about GRID_MM, slice by slice."""
        box, nodes, codes = [], [], scan.lungs
        for axis, (size, step) in enumerate(zip(scan.hu.shape, scan.spacing, strict=True)):
            where = np.flatnonzero(codes.any(axis=tuple(other for other in range(3) if other != axis)))
            margin = round(MARGIN_MM / step)
            low, high = max(0, int(where[0]) - margin), min(size - 1, int(where[-1]) + margin)
            box.append(slice(low, high + 1))
            nodes.append(low * step + GRID_MM * np.arange(np.ceil((high - low) * step / GRID_MM) + 1))
        fine = [np.arange(side.start, side.stop) * step for side, step in zip(box, scan.spacing, strict=True)]
        along, down, across = (
            hat(points, source, max(step, GRID_MM))
            for points, source, step in zip(nodes, fine, scan.spacing, strict=True)
        )
        healthy = _healthy(scan.hu, codes, scan.lesions)
        sums = np.zeros((4, *(len(points) for points in nodes)), dtype=np.float32)
        for k, z in enumerate(range(box[0].start, box[0].stop)):
            near = np.flatnonzero(along[:, k])
            if not len(near):
                continue
            place = (z, box[1], box[2])
            right, left = codes[place] == 1, codes[place] == 2
            lesion = scan.lesions[place] != 0
            plane = np.where(lesion, np.float32(healthy), np.clip(scan.hu[place], -1000, TISSUE_HU))
            plane = np.where(right | left, plane, np.float32(TISSUE_HU))
            coarse = down @ np.stack([plane, right, left, lesion]).astype(np.float32) @ across.T
            sums[:, near] += along[near, k][None, :, None, None] * coarse[:, None]
        image, right, left, lesion = sums
        lungs = np.where(right + left >= 0.5, np.where(right >= left, 1, 2), 0).astype(np.uint8)
        return cls(image, lungs, lesion >= LESION_SHARE, (nodes[0], nodes[1], nodes[2]))


def _healthy(hu: np.ndarray, lungs: np.ndarray, lesions: np.ndarray) -> float:
    """Median HU of the lung that is no lesion."""
    values = hu[::2, ::4, ::4][(lungs[::2, ::4, ::4] != 0) & (lesions[::2, ::4, ::4] == 0)]
    return float(np.median(values)) if values.size else HEALTHY_HU


def hat(points: np.ndarray, source: np.ndarray, width: float) -> np.ndarray:
    """Weights (points, source) of the triangle that interpolates linearly, or averages over ``width`` mm."""
    clamped = np.clip(points, source[0], source[-1])
    weights = np.maximum(0, 1 - np.abs(clamped[:, None] - source[None]) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def in_bounds(index: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Where indices (3, ...) point into an array of this shape."""
    return np.all([(line >= 0) & (line < size) for line, size in zip(index, shape, strict=True)], axis=0)


def _extent(lungs: LungGrid, axis: int) -> tuple[float, float, float]:
    """Centroid, lowest and highest position of the lungs along an axis."""
    area = np.count_nonzero(lungs.lungs, axis=tuple(other for other in range(3) if other != axis))
    points = lungs.nodes[axis]
    set_ = np.flatnonzero(area)
    return float((points * area).sum() / area.sum()), float(points[set_[0]]), float(points[set_[-1]])


def best_shift(moving: LungGrid, fixed: LungGrid) -> np.ndarray:
    """(3,) mm from the later scan's positions to the earlier's: the best of three shifts in height.

    Args:
        moving: lungs of the earlier scan.
        fixed: lungs of the later scan.
    """
    across = [_extent(moving, axis)[0] - _extent(fixed, axis)[0] for axis in (1, 2)]
    heights = [a - b for a, b in zip(_extent(moving, 0), _extent(fixed, 0), strict=True)]
    shifts = [np.array([height, *across]) for height in heights]
    dice = [_lungs_dice(*_laid_over(moving, fixed, shift[:, None, None, None])[1:], fixed.lungs) for shift in shifts]
    return shifts[int(np.argmax(dice))]


@dataclass(frozen=True)
class Fit:
    """How well two scans agree.

    Attributes:
        dice: of the lungs, right on right and left on left, where both scans see; 0..1.
        seen: share of the later lungs that the earlier scan sees, 0..1.
        vessels: correlation, -1..1, of what is finer than 2 cm in the lungs, lesions left out; None where there is
            too little lung without lesion.
    """

    dice: float
    seen: float
    vessels: float | None


def fit(moving: LungGrid, fixed: LungGrid, displacement: np.ndarray) -> Fit:
    """How well an earlier scan agrees with a later one over which it is laid.

    What the earlier scan sees ends where the scan does, or MARGIN_MM beyond its lungs.

    Args:
        moving: lungs of the earlier scan.
        fixed: lungs of the later scan.
        displacement: (3, z, y, x), or what broadcasts to it: from the later positions to the earlier ones, in mm.
    """
    index, earlier, seen = _laid_over(moving, fixed, displacement)
    later = np.where(seen, fixed.lungs, 0)
    lesions = fixed.lesions | ndimage.map_coordinates(moving.lesions, index, order=0)
    return Fit(
        dice=_lungs_dice(earlier, seen, fixed.lungs),
        seen=int(np.count_nonzero(later)) / int(np.count_nonzero(fixed.lungs)),
        vessels=_vessels(moving, fixed, index, (earlier != 0) & (later != 0), lesions),
    )


def _laid_over(
    moving: LungGrid, fixed: LungGrid, displacement: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (3, z, y, x) into the earlier grid; its lungs at the nearest of them; and where there are any."""
    grid = np.meshgrid(*fixed.nodes, indexing="ij")
    index = np.stack(
        [
            (place + moved - points[0]) / GRID_MM
            for place, moved, points in zip(grid, displacement, moving.nodes, strict=True)
        ]
    )
    nearest = np.rint(index).astype(np.int32)
    seen = in_bounds(nearest, moving.lungs.shape)
    return index, np.where(seen, moving.lungs[tuple(np.where(seen, nearest, 0))], 0), seen


def _lungs_dice(earlier: np.ndarray, seen: np.ndarray, later: np.ndarray) -> float:
    """Dice of two lung masks where both scans see; a voxel agrees when it is of the same lung."""
    later = np.where(seen, later, 0)
    both, *sizes = (int(np.count_nonzero(mask)) for mask in ((earlier == later) & (later != 0), earlier, later))
    return 2 * both / sum(sizes) if any(sizes) else 0.0


def _vessels(
    moving: LungGrid, fixed: LungGrid, index: np.ndarray, lungs: np.ndarray, lesions: np.ndarray
) -> float | None:
    """Correlation of both images less their local means, deep in the lungs of both and off the lesions."""
    deep = ndimage.binary_erosion(lungs, iterations=DEEP_VOXELS) & ~lesions
    if np.count_nonzero(deep) < FEWEST_VOXELS:
        return None
    earlier = ndimage.map_coordinates(moving.image, index, order=1, mode="nearest")
    weight = np.maximum(ndimage.uniform_filter(deep.astype(np.float32), VESSEL_VOXELS), 1e-3)
    fine = []
    for image in (earlier, fixed.image):
        mean = ndimage.uniform_filter(np.where(deep, image, 0), VESSEL_VOXELS) / weight
        fine.append((image - mean)[deep])
    spread = float(fine[0].std() * fine[1].std())
    return float(((fine[0] - fine[0].mean()) * (fine[1] - fine[1].mean())).mean()) / spread if spread else None


def folded_share(displacement: np.ndarray, lungs: np.ndarray) -> float:
    """Share of the lungs in which a deformation is not one-to-one: where its Jacobian is not positive.

    Args:
        displacement: (3, z, y, x) mm on GRID_MM.
        lungs: (z, y, x) bool, True for lung.
    """
    if min(lungs.shape) < 2:
        return 0.0
    jacobian = np.stack([np.stack(np.gradient(line, GRID_MM)) for line in displacement])  # (3, 3, z, y, x)
    jacobian[range(3), range(3)] += 1
    return float(np.mean(np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))[lungs]) <= 0))
