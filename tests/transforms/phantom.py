# SPDX-License-Identifier: Apache-2.0
"""A small thorax in HU for the tests of this folder."""

import numpy as np


def ellipse(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


def thorax(size: int = 192, noise: float = 20.0, diseased: bool = False, seed: int = 0) -> np.ndarray:
    """Slice (H, W) in HU: air, fat, soft tissue, two lungs with vessels, trachea, spine; no table.

    In 192 pixels the trunk takes rows 40..152 and columns 16..176, the lungs rows 58..130 and columns 36..156.
    """
    shape, s = (size, size), size / 192
    hu = np.full(shape, -1000.0)
    hu[ellipse(shape, (96 * s, 96 * s), (56 * s, 80 * s))] = -100
    hu[ellipse(shape, (96 * s, 96 * s), (48 * s, 70 * s))] = 45
    lungs = ellipse(shape, (94 * s, 62 * s), (36 * s, 26 * s)) | ellipse(shape, (94 * s, 130 * s), (36 * s, 26 * s))
    hu[lungs] = -860
    rng = np.random.default_rng(seed)
    hu[lungs & (rng.random(shape) < 0.05)] = -200
    if diseased:
        hu[lungs & (np.arange(size)[:, None] > 92 * s)] = 20
        hu[lungs & (np.arange(size)[:, None] > 82 * s) & (hu < -500)] = -500
    hu[ellipse(shape, (62 * s, 96 * s), (10 * s, 14 * s))] = -100
    hu[ellipse(shape, (80 * s, 96 * s), (5 * s, 5 * s))] = -990
    hu[ellipse(shape, (132 * s, 96 * s), (9 * s, 9 * s))] = 300
    return hu + rng.normal(0, noise, shape)
