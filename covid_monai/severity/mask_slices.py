# SPDX-License-Identifier: Apache-2.0
"""Masks that are read slice by slice, so that they need no memory of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

__all__ = ["MaskSlices", "Reached"]


class MaskSlices(Protocol):
    """A mask (Z, H, W), non-zero where something is: an array, or what makes its slices as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, H, W)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, key: slice, /) -> Any: ...


class Reached:
    """Where values reach a limit, a :class:`MaskSlices` of bools.

    Args:
        values: (N, H, W).
        limit: the lowest of those that are in the mask.
        standing: (Z,) for each slice of the mask the number of the one in ``values``.
    """

    def __init__(self, values: np.ndarray, limit: int, standing: np.ndarray) -> None:
        self.values, self.limit, self.standing = values, limit, standing

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, H, W)."""
        return len(self.standing), *self.values.shape[1:]

    def __len__(self) -> int:
        return len(self.standing)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.values[number] >= self.limit for number in self.standing)

    def __getitem__(self, key: slice, /) -> np.ndarray:
        return self.values[self.standing[key]] >= self.limit
