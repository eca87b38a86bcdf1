# SPDX-License-Identifier: Apache-2.0
"""Where lesion is new, persists or has resolved, once the earlier lesions lie on the later scan's grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = [
    "CHANGES",
    "EDGE_MM",
    "UNSEEN",
    "LesionChange",
    "at_edge",
    "change_map",
    "lesion_change",
    "transitions",
    "volumes",
]

CHANGES = {1: "persisting lesion", 2: "new lesion", 3: "resolved lesion", 4: "lesion, not seen before"}
"""Codes of a change map. The last is lesion in a part of the lungs that the earlier scan does not show."""
UNSEEN = 3
"""In place of an earlier lesion code: the earlier scan does not show this place."""
EDGE_MM = 3.0
"""New or resolved lesion this near to lesion of the other scan may be error of the registration; a choice of ours."""
_CHANGE_OF = np.array([[0, 2, 2], [3, 1, 1], [3, 1, 1], [0, 4, 4]], dtype=np.uint8)  # by earlier and later code


@dataclass(frozen=True)
class LesionChange:
    """Volumes of a change map in mL, on the later scan's grid.

    ``persisting_ml + new_ml + unseen_ml`` is the later scan's lesion volume. ``persisting_ml + resolved_ml`` is the
    earlier lesion as large as the deformation makes it, which is not what the earlier scan measures when the lungs are
    filled otherwise.

    Attributes:
        persisting_ml: lesion in both scans.
        new_ml: lesion where the earlier scan has none.
        resolved_ml: lung without lesion where the earlier scan has some.
        unseen_ml: lesion where the earlier scan shows nothing.
        new_at_edge_ml: of the new, what lies within EDGE_MM of earlier lesion: growth, or error of the registration.
        resolved_at_edge_ml: of the resolved, what lies within EDGE_MM of later lesion.
        denser_ml: ground glass that became consolidation; None when the model does not tell them apart.
        thinner_ml: consolidation that became ground glass; None likewise.
        displaced_ml: earlier lesion that falls outside the later lungs: error of registration or of the lung masks.
    """

    persisting_ml: float
    new_ml: float
    resolved_ml: float
    unseen_ml: float
    new_at_edge_ml: float
    resolved_at_edge_ml: float
    denser_ml: float | None
    thinner_ml: float | None
    displaced_ml: float


def transitions(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Earlier and later lesion code of each voxel in one number.

    Args:
        earlier: (Z, H, W) lesion codes 0..2 on the later scan's grid, and UNSEEN (3) where the earlier scan shows
            nothing.
        later: (Z, H, W) lesion codes 0..2.

    Returns:
        (Z, H, W) uint8: ``3 * earlier + later``, 0..11.

    Raises:
        ValueError: when the two are not on one grid.
    """
    if earlier.shape != later.shape:
        raise ValueError(f"the earlier lesions have shape {earlier.shape}, the later {later.shape}: warp them first.")
    return earlier.astype(np.uint8) * np.uint8(3) + later.astype(np.uint8)


def change_map(transition: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Codes of :data:`CHANGES` inside the later lungs, 0 elsewhere.

    Args:
        transition: (Z, H, W) from :func:`transitions`.
        lungs: (Z, H, W) of the later scan, non-zero for lung.
    """
    change = _CHANGE_OF.ravel()[transition]
    change[lungs == 0] = 0
    return change


def lesion_change(
    counts: np.ndarray, voxel_ml: float, told_apart: bool, edge: tuple[int, int] = (0, 0)
) -> LesionChange:
    """Volumes from counts of transitions.

    Args:
        counts: (21, 12) voxels by region code of the later scan, 0 outside its lungs, and by transition.
        voxel_ml: volume of the later scan's voxels in mL.
        told_apart: whether code 1 is ground glass and 2 consolidation.
        edge: voxels of new and of resolved lesion near to lesion of the other scan.
    """
    table = counts[1:].sum(axis=0).reshape(4, 3)
    outside = counts[0].reshape(4, 3)
    return LesionChange(
        **volumes(table, voxel_ml),
        new_at_edge_ml=edge[0] * voxel_ml,
        resolved_at_edge_ml=edge[1] * voxel_ml,
        denser_ml=int(table[1, 2]) * voxel_ml if told_apart else None,
        thinner_ml=int(table[2, 1]) * voxel_ml if told_apart else None,
        displaced_ml=int(outside[1:UNSEEN].sum()) * voxel_ml,
    )


def volumes(table: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Volumes of a place's change map in mL, by the names they have in :class:`LesionChange`.

    Args:
        table: (4, 3) voxels of the place by earlier lesion code (UNSEEN last) and by later lesion code.
        voxel_ml: volume of the later scan's voxels in mL.
    """
    voxels = {
        "persisting_ml": table[1:UNSEEN, 1:],
        "new_ml": table[0, 1:],
        "resolved_ml": table[1:UNSEEN, 0],
        "unseen_ml": table[UNSEEN, 1:],
    }
    return {name: int(part.sum()) * voxel_ml for name, part in voxels.items()}


def at_edge(
    earlier: np.ndarray, later: np.ndarray, change: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[int, int]:
    """Voxels of new lesion near to earlier lesion, and of resolved lesion near to later lesion.

    Near is within EDGE_MM along each axis, and in the same slice where slices lie further apart.

    Args:
        earlier: (Z, H, W) lesion codes on the later scan's grid, UNSEEN where the earlier scan shows nothing.
        later: (Z, H, W) lesion codes.
        change: (Z, H, W) from :func:`change_map`.
        spacing: (dz, dy, dx) of the grid in mm.
    """
    size = tuple(1 + 2 * int(EDGE_MM / step) for step in spacing)
    found = []
    for code, lesion in ((2, (earlier != 0) & (earlier != UNSEEN)), (3, later != 0)):
        near = ndimage.maximum_filter(lesion.view(np.uint8), size=size, mode="constant")
        found.append(int(np.count_nonzero((change == code) & (near != 0))))
    return found[0], found[1]
