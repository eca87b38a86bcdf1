# SPDX-License-Identifier: Apache-2.0
"""A chest of simple bodies, in HU, of which everything is known."""

import numpy as np

AIR, GAS, LUNG, TISSUE, BONE = -1000.0, -995.0, -850.0, 40.0, 400.0
SIZE_MM = np.array([240.0, 300.0, 400.0])  # of the scan, along Z, H and W
Spacing = tuple[float, float, float]


def grid(spacing: Spacing) -> np.ndarray:
    """Coordinates (3, Z, H, W) in mm from the middle of the scan."""
    axes = [
        (np.arange(round(size / step)) + 0.5) * step - size / 2 for size, step in zip(SIZE_MM, spacing, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def ellipsoid(mm: np.ndarray, centre: Spacing, radii: Spacing) -> np.ndarray:
    """(Z, H, W) bool."""
    return sum(((x - c) / r) ** 2 for x, c, r in zip(mm, centre, radii, strict=True)) <= 1


def chest(spacing: Spacing = (6.0, 3.0, 3.0)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU (Z, H, W) of an elliptic body with a spine and two ellipsoids of lung, their codes, and the coordinates."""
    mm = grid(spacing)
    lungs = ellipsoid(mm, (0, 0, -70), (100, 80, 55)) + 2 * ellipsoid(mm, (0, 0, 70), (90, 75, 50))
    hu = np.full(lungs.shape, AIR, dtype=np.float32)
    hu[(mm[1] / 110) ** 2 + (mm[2] / 150) ** 2 <= 1] = TISSUE
    hu[((mm[1] - 85) / 15) ** 2 + (mm[2] / 15) ** 2 <= 1] = BONE
    hu[lungs > 0] = LUNG
    return hu, lungs.astype(np.uint8), mm


def none(hu: np.ndarray) -> np.ndarray:
    """No lesions."""
    return np.zeros(hu.shape, dtype=np.uint8)
