# SPDX-License-Identifier: Apache-2.0
"""Agreement of a mask with a reference: overlap, distance and volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

__all__ = ["LESION_CODES", "Agreement", "MaskComparison", "compare_masks", "dice"]

LESION_CODES = {1: "ground glass", 2: "consolidation"}


@dataclass(frozen=True)
class Agreement:
    """How far two masks of one thing agree.

    Attributes:
        name: what the masks are of.
        dice: 0..1; 1 when both are empty, 0 when one is.
        hausdorff_mm: largest distance from the surface of one to the other's; 0 when both are empty, None when one is.
        hausdorff_95_mm: the same with the 95th percentile of each direction in place of its maximum.
        mask_ml: volume of the mask in mL.
        reference_ml: volume of the reference in mL.
        difference_ml: volume of the mask less that of the reference.
        difference_share: the difference as a share of the reference's volume; None when the reference is empty.
    """

    name: str
    dice: float
    hausdorff_mm: float | None
    hausdorff_95_mm: float | None
    mask_ml: float
    reference_ml: float
    difference_ml: float
    difference_share: float | None


@dataclass(frozen=True)
class MaskComparison:
    """Agreement of two masks, as one and class by class.

    Attributes:
        whole: all codes but 0 as one.
        classes: each code in ascending order; none where both masks together hold one code at the most.
    """

    whole: Agreement
    classes: tuple[Agreement, ...]


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity coefficient ``2 |R and S| / (|R| + |S|)`` (the paper's Eq. 6).

    Args:
        mask: array of any shape, non-zero for foreground.
        reference: array of the same shape.

    Returns:
        0..1, and 1.0 when both are empty.

    Raises:
        ValueError: when the shapes differ.
    """
    _check_shapes(mask, reference)
    found, true = mask != 0, reference != 0
    total = int(np.count_nonzero(found)) + int(np.count_nonzero(true))
    return 2 * int(np.count_nonzero(found & true)) / total if total else 1.0


def compare_masks(
    mask: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    codes: Mapping[int, str] = LESION_CODES,
) -> MaskComparison:
    """Compare a mask with a reference on the same grid.

    Surfaces are the voxels of a mask that have a face on its outside; distances are between centres of voxels, in mm,
    which makes both Hausdorff distances those of :func:`monai.metrics.compute_hausdorff_distance`.

    Args:
        mask: three-dimensional, 0 for background and the codes of ``codes``.
        reference: of the same shape.
        spacing: distance of neighbouring voxels along each axis, in mm.
        codes: name of each code. Where neither mask holds more than one of them, there are no classes to compare.

    Raises:
        ValueError: when the shapes differ or are not three-dimensional, a spacing is not positive, or a mask holds
            values that are no whole numbers or that ``codes`` does not name.
    """
    _check_shapes(mask, reference)
    if mask.ndim != 3 or len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(
            f"got masks of shape {mask.shape} and a spacing of {tuple(spacing)} mm: give three axes and positive "
            "lengths."
        )
    held = _codes(mask, codes, "mask") | _codes(reference, codes, "reference")
    whole = _agreement("lesion", mask != 0, reference != 0, spacing)
    if len(held) <= 1:
        return MaskComparison(whole, ())
    classes = [_agreement(codes[code], mask == code, reference == code, spacing) for code in sorted(codes)]
    return MaskComparison(whole, tuple(classes))


def _agreement(name: str, mask: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]) -> Agreement:
    voxel_ml = float(np.prod(spacing)) / 1000
    mask_ml, reference_ml = (int(np.count_nonzero(array)) * voxel_ml for array in (mask, reference))
    hausdorff, hausdorff_95 = _hausdorff(mask, reference, spacing)
    return Agreement(
        name=name,
        dice=dice(mask, reference),
        hausdorff_mm=hausdorff,
        hausdorff_95_mm=hausdorff_95,
        mask_ml=mask_ml,
        reference_ml=reference_ml,
        difference_ml=mask_ml - reference_ml,
        difference_share=(mask_ml - reference_ml) / reference_ml if reference_ml else None,
    )


def _hausdorff(
    mask: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[float | None, float | None]:
    """Hausdorff distance and its 95th percentile, in mm."""
    surfaces = [_surface(array) * np.asarray(spacing) for array in (mask, reference)]
    if not len(surfaces[0]) and not len(surfaces[1]):
        return 0.0, 0.0
    if not len(surfaces[0]) or not len(surfaces[1]):
        return None, None
    there, back = (_nearest(*pair) for pair in (surfaces, surfaces[::-1]))
    return float(max(there.max(), back.max())), float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each point (N, 3) to the nearest of the others (M, 3)."""
    tree = KDTree(others, leafsize=32, compact_nodes=False, balanced_tree=False)  # a third faster on dense surfaces
    return tree.query(points, workers=-1)[0]


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices (N, 3) of the voxels of a mask that have a face on its outside, or on the end of the grid."""
    (box,) = ndimage.find_objects(mask.view(np.uint8), max_label=1)
    if box is None:
        return np.empty((0, 3))
    part = mask[box]
    return np.argwhere(part & ~ndimage.binary_erosion(part)) + [side.start for side in box]


def _check_shapes(mask: np.ndarray, reference: np.ndarray) -> None:
    if mask.shape != reference.shape:
        raise ValueError(
            f"the mask has shape {mask.shape} and the reference {reference.shape}: they must lie on one grid."
        )


def _codes(array: np.ndarray, codes: Mapping[int, str], name: str) -> set[int]:
    """Codes that a mask holds besides 0; slice by slice, so that no large array is sorted as a whole."""
    held = {float(value) for plane in array for value in np.unique(plane)} - {0}
    if unknown := held - set(codes):
        listed = ", ".join(f"{code} ({codes[code]})" for code in sorted(codes))
        raise ValueError(f"the {name} holds the value {min(unknown):g}: give a mask of 0 and the codes {listed}.")
    return {int(value) for value in held}
