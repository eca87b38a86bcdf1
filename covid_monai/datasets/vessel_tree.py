# SPDX-License-Identifier: Apache-2.0
"""Tubes of the synthetic thorax: smooth lines with a radius, branching vessel trees, and how a slice cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covid_monai.datasets.grid import Grid

STEP = 0.9  # mm between the spheres that make up a tube


@dataclass(frozen=True)
class Tubes:
    """Spheres close together: ``points`` (N, 3) in mm RAS+, ``radii`` (N,) in mm."""

    points: np.ndarray
    radii: np.ndarray

    @classmethod
    def join(cls, *parts: "Tubes") -> "Tubes":
        """All spheres of several tubes in one."""
        return cls(np.concatenate([p.points for p in parts]), np.concatenate([p.radii for p in parts]))

    def cover(self, grid: Grid, z: float, widen: float = 0.0) -> np.ndarray:
        """Share of each pixel of a slice inside the tubes, 0..1: ``(Y, X)`` float32.

        A slice is a slab as thick as the grid says; a tube thinner than the slab covers it only in part.
        """
        covered = np.zeros((grid.y.size, grid.x.size), dtype=np.float32)
        radii = self.radii + widen
        away = np.maximum(np.abs(self.points[:, 2] - z) - grid.thickness / 2, 0)
        hit = (away < radii) & (radii > 0)
        if not hit.any():
            return covered
        points, full = self.points[hit], radii[hit]
        radii = np.sqrt(full**2 - away[hit] ** 2)
        opacity = np.minimum(1, 0.35 + 2 * full / grid.thickness)
        step_x, step_y = grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]
        reach = np.ceil((radii + grid.pixel / 2) / grid.pixel).astype(int)
        for size in np.unique(reach):
            these = reach == size
            offsets = np.arange(-size, size + 1)
            column = np.rint((points[these, 0] - grid.x[0]) / step_x).astype(int)[:, None, None] + offsets[None, None]
            row = np.rint((points[these, 1] - grid.y[0]) / step_y).astype(int)[:, None, None] + offsets[None, :, None]
            distance = np.hypot(
                grid.x[0] + column * step_x - points[these, 0][:, None, None],
                grid.y[0] + row * step_y - points[these, 1][:, None, None],
            )
            share = np.clip((radii[these][:, None, None] - distance) / grid.pixel + 0.5, 0, 1)
            share = (share * opacity[these][:, None, None]).astype(np.float32)
            on_slice = (column >= 0) & (column < grid.x.size) & (row >= 0) & (row < grid.y.size) & (share > 0)
            np.maximum.at(covered.reshape(-1), (row * grid.x.size + column)[on_slice], share[on_slice])
        return covered


def tube(corners: Sequence[tuple[float, ...]], radius: float | Sequence[float]) -> Tubes:
    """Tube along a polyline ``corners`` (mm), rounded at its bends; ``radius`` in mm, one or one a corner."""
    line = np.asarray(corners, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(line))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0, length[-1], max(2, int(length[-1] / STEP) + 1))
    points = np.stack([np.interp(at, length, line[:, axis]) for axis in range(3)], axis=1)
    if len(line) > 2:  # running mean over a quarter of the line rounds the bends and keeps the ends
        half = max(1, len(at) // 8)
        padded = np.pad(points, ((half, half), (0, 0)), mode="reflect", reflect_type="odd")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
        points = (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)
    return Tubes(points, np.interp(at, length, radii))


def grow_tree(root: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Tubes:
    """Vessel tree from ``root`` (3,) to all ``targets`` (N, 3), mm: branching, thinner outwards, denser near the root.

    Each target, nearest to the root first, joins the node that makes its wire and its way to the root short together
    (the balanced minimum spanning tree of Cuntz et al., PLoS Comput Biol 2010); radii follow Murray's law.
    """
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    nodes = np.concatenate([root[None], targets[order]])
    parent = np.zeros(len(nodes), dtype=int)
    way = np.zeros(len(nodes))
    for i in range(1, len(nodes)):
        distance = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parent[i] = np.argmin(distance + 0.6 * way[:i])
        way[i] = way[parent[i]] + distance[parent[i]]
    flow = np.ones(len(nodes))
    for i in range(len(nodes) - 1, 0, -1):  # children come after their parents
        flow[parent[i]] += flow[i]
    radii = np.minimum(0.55 * flow ** (1 / 2.45), 6.0)
    branches = []
    for i in range(1, len(nodes)):
        start, end = nodes[parent[i]], nodes[i]
        bend = 0.5 * (start + end) + rng.normal(0, 0.06 * np.linalg.norm(end - start), 3)
        thick = min(radii[i] * 1.1, radii[parent[i]])
        branches.append(tube([tuple(start), tuple(bend), tuple(end)], [thick, radii[i], radii[i] * 0.9]))
    return Tubes.join(*branches)
