# SPDX-License-Identifier: Apache-2.0
"""The values of a scan while it is read, slice by slice."""

from __future__ import annotations

import numpy as np

from covid_monai.ct.checks import ValueRange


class Voxels:
    """Checks the slices of a scan and gathers them in one array, without loss in as few bytes as they need.

    HU are whole numbers in nearly every scan, and two bytes hold them: half of what float32 takes.

    Args:
        where: begins the messages, e.g. the file's name.
        shape: number of slices, and rows and columns in memory.

    Attributes:
        array: (slices, rows, columns), int16 as long as all values are whole, else float32.
        range: of the values that were put in.
    """

    def __init__(self, where: str, shape: tuple[int, int, int]) -> None:
        self.array: np.ndarray = np.empty(shape, dtype=np.int16)
        self.range = ValueRange(where)

    def put(self, number: int, plane: np.ndarray, place: str) -> None:
        """Take a slice, its padding raised as :py:meth:`ValueRange.take` does.

        Slices come in order from 0 on.

        Args:
            number: its place in the array.
            plane: (rows, columns), integers or real numbers.
            place: which slice, for messages.

        Raises:
            ImplausibleValues: a value is NaN or infinite.
        """
        kind = next((each for each in (np.int16, np.int32) if np.can_cast(plane.dtype, each)), np.float32)
        plane = plane.astype(kind)
        self.range.take(plane, place)
        if self.array.dtype == np.int16 and not _whole(plane):
            whole, self.array = self.array, np.empty(self.array.shape, dtype=np.float32)
            self.array[:number] = whole[:number]
        self.array[number] = plane


def _whole(plane: np.ndarray) -> bool:
    """Whether int16 holds these values, none of which lies below -1024."""
    if plane.max() > np.iinfo(np.int16).max:
        return False
    return plane.dtype.kind == "i" or bool(np.array_equal(plane, plane.astype(np.int16)))
