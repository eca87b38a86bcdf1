# SPDX-License-Identifier: Apache-2.0
"""Right from left: a line from front to back between the lungs, in every slice."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["midline", "right_half", "split_sides"]

BONE_HU = 150.0
SPINE_MM = 40.0
"""Width of the window in which the most bone stands around the midline: spine before, sternum behind."""
ALONG_MM = 40.0
"""Standard deviation of the smoothing of the midline along the body."""
SWAY_MM = 30.0
"""The midline of a slice lies at most this far from that of the scan."""
LEAST_BONE_CM2 = 2.0
"""Of a slice, on average; with less the midline is that of the body."""
BAND_MM = 60.0
"""The line between the lungs stays this close to the midline."""
SIDEWAYS = 0.002
"""Cost, per row and mm from the midline, of the line between the lungs; a row through the lung costs about 0.9."""
LUNG_HU = -850
FAT_HU = -150
"""Fat between the lungs costs as little as other tissue."""
BEND = 0.01
"""Cost of a step of one column to the side."""
FRAGMENT = 0.05
"""A side with less than this share of the other's volume that touches it is a part of it that the line cut off."""


def midline(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Column of the body's midline in each slice, from its bones, else from its outline.

    Args:
        hu: (Z, H, W) upright.
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z,) columns, float.
    """
    bone = np.count_nonzero(hu > BONE_HU, axis=1).astype(np.float32)  # (Z, W)
    if bone.sum() * spacing[1] * spacing[2] / 100 < LEAST_BONE_CM2 * len(bone):
        tissue = np.count_nonzero(hu > -400, axis=(0, 1)).cumsum()
        return np.full(len(hu), np.searchsorted(tissue, tissue[-1] / 2), dtype=float)
    width = max(1, round(SPINE_MM / spacing[2]))
    bone = ndimage.uniform_filter1d(bone, width, axis=1, mode="constant")
    bone = ndimage.gaussian_filter1d(bone, width / 4, axis=1, mode="constant")
    whole = int(bone.sum(axis=0).argmax())
    local = ndimage.gaussian_filter1d(bone, ALONG_MM / spacing[0], axis=0)
    first = max(0, whole - round(SWAY_MM / spacing[2]))
    return first + local[:, first : whole + round(SWAY_MM / spacing[2]) + 1].argmax(axis=1).astype(float)


def right_half(hu: np.ndarray, lesions: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """What lies to the patient's right of a line between the lungs.

    In each slice the line of least lung runs from the front to the back near the midline: through the mediastinum, and
    where the lungs touch along the pleura between them (dynamic programming as in Brown et al. 1997, IEEE Trans Med
    Imaging 16:828).

    Args:
        hu: (Z, H, W) upright: the patient's right on the left.
        lesions: (Z, H, W) bool; they count as lung, however dense.
        spacing: (dz, dy, dx) in mm.

    Returns:
        (Z, H, W) bool.
    """
    line = _line(np.where(lesions, LUNG_HU, hu), midline(hu, spacing), spacing)
    return np.arange(hu.shape[2]) <= line[..., None]


def split_sides(lungs: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Codes of right and left lung; a piece that the line between them cuts from its lung goes back to it.

    Args:
        lungs: (Z, H, W) bool.
        right: (Z, H, W) bool, see `right_half`.

    Returns:
        (Z, H, W) uint8: 0 outside, 1 right, 2 left.
    """
    codes = np.where(right, np.uint8(1), np.uint8(2)) * lungs
    _give_back(codes)
    return codes


def _line(hu: np.ndarray, middle: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Column (Z, H) of the cheapest line from the first row to the last, steps of at most two columns a row."""
    reach = max(1, round(BAND_MM / spacing[2]))
    offsets = np.arange(-reach, reach + 1)
    columns = np.clip(np.rint(middle)[:, None].astype(int) + offsets, 0, hu.shape[2] - 1)  # (Z, band)
    away = SIDEWAYS * np.abs(offsets) * spacing[2] * spacing[1] / 1.5
    steps = np.array([0, -1, 1, -2, 2])
    cost = np.zeros(columns.shape, dtype=np.float32)
    choices = np.zeros((hu.shape[1], *columns.shape), dtype=np.int8)
    for row in range(hu.shape[1]):
        padded = np.pad(cost, ((0, 0), (2, 2)), constant_values=np.inf)
        before = np.stack([padded[:, 2 + step : 2 + step + len(offsets)] + BEND * abs(step) for step in steps])
        choice = before.argmin(axis=0)
        choices[row] = steps[choice]
        plane = np.take_along_axis(hu[:, row], columns, axis=1)
        cost = np.take_along_axis(before, choice[None], axis=0)[0] + away
        cost += (FAT_HU - np.clip(plane, -1000, FAT_HU)) * (spacing[1] / 1.5 / (FAT_HU + 1000))
    place = cost.argmin(axis=1)
    slices = np.arange(len(hu))
    line = np.empty(hu.shape[:2], dtype=np.int32)
    for row in range(hu.shape[1] - 1, -1, -1):
        line[:, row] = columns[slices, place]
        place = np.clip(place + choices[row, slices, place], 0, len(offsets) - 1)
    return line


def _give_back(codes: np.ndarray) -> None:
    """Give pieces beyond the line back to the lung that they touch, in place."""
    for code in (1, 2):
        parts, count = ndimage.label(codes == code)
        if not count:
            continue
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        other = codes == 3 - code
        main = int(sizes.argmax())
        touching = np.zeros(count + 1, dtype=bool)
        for axis in range(3):
            low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
            high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
            touching[np.unique(parts[low][other[high]])] = True
            touching[np.unique(parts[high][other[low]])] = True
        touching[0] = False
        if sizes[main] >= FRAGMENT * np.count_nonzero(other):
            touching[main] = False
        codes[touching[parts]] = 3 - code
