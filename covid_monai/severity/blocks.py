# SPDX-License-Identifier: Apache-2.0
"""A scan on a grid of blocks of its voxels, and masks brought back from there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from covid_monai.severity.mask_slices import MaskSlices

__all__ = ["any_in_blocks", "block_means", "block_steps", "interpolate_codes", "repeat_blocks"]

GRID_MM = 1.5
ALONG_MM = 2.0
"""Across slices, which are mostly thicker than their pixels are wide: half as many blocks of slices of 1 mm, and lungs
that differ from those of finer blocks by about a hundredth of their volume, see docs/measured.md."""

Steps = tuple[int, int, int]
Spacing = tuple[float, float, float]


def block_steps(spacing: Spacing, lengths: Spacing = (ALONG_MM, GRID_MM, GRID_MM)) -> tuple[Steps, Spacing]:
    """Voxels (Z, H, W) in a block of about these lengths in mm, and the spacing of the blocks in mm."""
    z, y, x = (max(1, int(most / length + 0.05)) for most, length in zip(lengths, spacing, strict=True))
    return (z, y, x), (spacing[0] * z, spacing[1] * y, spacing[2] * x)


def block_means(hu: np.ndarray, steps: Steps) -> np.ndarray:
    """Means of the blocks.

    Args:
        hu: (Z, H, W); values are clipped to -1024..3071, so that padding counts as air.
        steps: voxels in a block along each axis.

    Returns:
        int16, (ceil(Z / steps[0]), ceil(H / steps[1]), ceil(W / steps[2])); blocks at the far ends are made whole with
        the last voxels.
    """
    means = np.empty(_counts(hu.shape, steps), dtype=np.int16)
    for blocks, slab in zip(means, _slabs(hu, steps[0]), strict=True):
        total = np.zeros(blocks.shape, dtype=np.float32)
        for plane in slab:
            for member in _members(plane, steps[1:]):
                total += np.clip(member, -1024, 3071)
        blocks[:] = total / (len(slab) * steps[1] * steps[2])
    return means


def any_in_blocks(mask: MaskSlices, steps: Steps) -> np.ndarray:
    """Blocks with something set in them, bool, on the grid of `block_means`."""
    found = np.zeros(_counts(mask.shape, steps), dtype=bool)
    for k, slab in enumerate(_slabs(mask, steps[0])):
        if slab.any():
            for member in _members((slab != 0).any(axis=0), steps[1:]):
                found[k] |= member
    return found


def _counts(shape: tuple[int, ...], steps: Steps) -> list[int]:
    return [-(-length // step) for length, step in zip(shape, steps, strict=True)]


def _slabs(volume: MaskSlices, step: int) -> Iterator[np.ndarray]:
    """Slices of one layer of blocks after the other."""
    return (volume[k : k + step] for k in range(0, len(volume), step))


def _members(plane: np.ndarray, steps: tuple[int, int]) -> Iterator[np.ndarray]:
    """First pixels of all blocks of a slice, second pixels, and so on to the last."""
    pad = [(0, -length % step) for length, step in zip(plane.shape, steps, strict=True)]
    plane = np.pad(plane, pad, mode="edge")
    return (plane[i :: steps[0], j :: steps[1]] for i in range(steps[0]) for j in range(steps[1]))


def repeat_blocks(plane: np.ndarray, steps: Steps, shape: tuple[int, ...]) -> np.ndarray:
    """A slice of blocks on the voxels' grid of ``shape`` (Z, H, W)."""
    return plane.repeat(steps[1], axis=0).repeat(steps[2], axis=1)[: shape[1], : shape[2]]


def interpolate_codes(codes: np.ndarray, steps: Steps, shape: tuple[int, ...]) -> np.ndarray:
    """Codes 1 and 2 of the blocks on the voxels' grid, with linearly interpolated edges.

    Args:
        codes: uint8 on the grid of `block_means`.
        steps: voxels in a block along each axis.
        shape: (Z, H, W) of the voxels.

    Returns:
        (Z, H, W) uint8.
    """
    fine = np.zeros(shape, dtype=np.uint8)
    slices, rows, columns = (_neighbours(*lengths) for lengths in zip(codes.shape, steps, shape, strict=True))
    for code in (1, 2):
        place = codes == code
        across, (low, high, weight) = _where(place.any(axis=(0, 2)), rows)
        along, (left, right, share) = _where(place.any(axis=(0, 1)), columns)
        for z, (below, above, part) in enumerate(zip(*slices, strict=True)):
            if place[below].any() or place[above].any():
                plane = (1 - part) * place[below] + part * place[above]
                plane = plane[low] * (1 - weight)[:, None] + plane[high] * weight[:, None]
                plane = plane[:, left] * (1 - share) + plane[:, right] * share
                fine[z, across, along][plane > 0.5] = code
    return fine


Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


def _where(there: np.ndarray, neighbours: Neighbours) -> tuple[slice, Neighbours]:
    """The range of voxels with a neighbour among the blocks that are ``there``, and what `_neighbours` has for them."""
    before, after, _ = neighbours
    near = np.flatnonzero(there[before] | there[after])
    span = slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0)
    return span, (before[span], after[span], neighbours[2][span])


def _neighbours(blocks: int, step: int, length: int) -> Neighbours:
    """For each of ``length`` voxels the blocks whose middles lie before and after it, and the latter's weight."""
    place = np.clip((np.arange(length) - (step - 1) / 2) / step, 0, blocks - 1)
    before = place.astype(int)
    return before, np.minimum(before + 1, blocks - 1), (place - before).astype(np.float32)
