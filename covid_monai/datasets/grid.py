# SPDX-License-Identifier: Apache-2.0
"""The pixels of a slice of the synthetic thorax, and what is drawn on them: soft shapes and smooth random fields."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel centres of a slice: ``x`` (X,) and ``y`` (Y,) in mm, ascending; ``thickness`` of the slice in mm."""

    x: np.ndarray
    y: np.ndarray
    thickness: float

    @property
    def pixel(self) -> float:
        """Smaller side of a pixel in mm."""
        return float(min(self.x[1] - self.x[0], self.y[1] - self.y[0]))

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> np.ndarray:
        """Signed distance (mm, about right near the border) into an axis-parallel superellipse: ``(Y, X)``."""
        along_x = np.abs((self.x - centre[0]) / radii[0]) ** power
        along_y = np.abs((self.y - centre[1]) / radii[1]) ** power
        total = along_y[:, None] + along_x[None]
        return (1 - (np.sqrt(total) if power == 2.0 else total ** np.float32(1 / power))) * min(radii)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel inside a structure, 0..1, from its signed distance: soft over one pixel."""
        return np.clip(distance / self.pixel + 0.5, 0, 1)


class Field:
    """Smooth Gaussian random field of mean 0 and variance 1: random weights on a lattice times Gaussian bumps.

    Args:
        rng: source of the weights.
        length: lattice spacing in mm; structures are about that large.
    """

    def __init__(self, rng: np.random.Generator, length: float) -> None:
        self.length = length
        self.nodes = np.arange(-210.0, 211.0, length, dtype=np.float32)
        weights = rng.standard_normal((self.nodes.size,) * 3, dtype=np.float32)  # (z, y, x)
        width = 0.7 * length
        self.weights = weights / (width * math.sqrt(math.pi) / length) ** 1.5
        self._bound: tuple[Grid, np.ndarray, np.ndarray] | None = None

    def _bumps(self, at: np.ndarray | float) -> np.ndarray:
        away = (np.atleast_1d(np.asarray(at, dtype=np.float32))[:, None] - self.nodes) / (0.7 * self.length)
        return np.exp(-0.5 * away**2)

    def __call__(self, grid: Grid, z: float) -> np.ndarray:
        """Values on a slice: ``(Y, X)`` float32."""
        if self._bound is None or self._bound[0] is not grid:
            self._bound = (grid, self._bumps(grid.y), self._bumps(grid.x).T)
        _, rows, columns = self._bound
        return rows @ np.tensordot(self._bumps(z)[0], self.weights, axes=1) @ columns


def paint(hu: np.ndarray, value: float | np.ndarray, cover: np.ndarray) -> None:
    """Blend ``value`` over the slice in place with opacity ``cover`` (0..1)."""
    hu += cover * (value - hu)
