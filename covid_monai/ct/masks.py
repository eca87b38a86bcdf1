# SPDX-License-Identifier: Apache-2.0
"""Masks in NIfTI: one that another tool made for a scan, or a mask and its reference."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from covid_monai.ct.checks import check_affine
from covid_monai.ct.faults import ImplausibleValues, UnreadableFile, UnsupportedImage
from covid_monai.ct.nifti import NIFTI_FAULTS
from covid_monai.ct.scan import CTScan, upright_view

__all__ = ["names_of_codes", "read_mask", "read_mask_pair"]

COMMENT = 6
"""Code of NIfTI header extensions that hold plain text."""
GRID_TOLERANCE = 0.1
"""How far corners of two grids may lie apart, in voxels: files of one grid differ by the rounding of their affine."""


def names_of_codes(path: str | Path) -> dict[int, str]:
    """Names that `write_mask` put into the header of a mask, by code; none in a mask of another origin."""
    extensions = getattr(nib.load(path).header, "extensions", ())
    texts = [extension.get_content() for extension in extensions if extension.get_code() == COMMENT]
    found = (re.fullmatch(r"(\d+) = (.+)", part) for text in texts for part in _text(text).split("; "))
    return {int(match[1]): match[2] for match in found if match}


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode("utf-8", "replace")


def read_mask(path: str | Path, scan: CTScan) -> np.ndarray:
    """Read a mask that lies on the grid of a scan; the file may store its axes in another order or turned round.

    Args:
        path: ``.nii`` or ``.nii.gz`` of three dimensions with whole numbers 0..255.
        scan: the scan.

    Returns:
        (Z, H, W) uint8, upright, in the order of `CTScan.upright`.

    Raises:
        UnreadableFile: missing, truncated or damaged.
        UnsupportedImage: no three-dimensional NIfTI.
        ImplausibleValues: values that are no whole numbers 0..255.
        MissingGeometry, TiltedGantry: the affine is unusable or sheared.
        ValueError: it lies on another grid than the scan.
    """
    path = Path(path)
    codes, affine = _read(path)  # axes closest to RAS+
    orientation = io_orientation(scan.affine)
    expected = scan.affine @ inv_ornt_aff(orientation, scan.shape)
    shape = tuple(np.array(scan.shape)[np.argsort(orientation[:, 0])])
    if how := _other_grid(codes.shape, affine, shape, expected):
        raise ValueError(
            f"{path.name} lies on another grid than the scan ({how}): resample it onto the scan's grid, with nearest "
            "neighbours."
        )
    return upright_view(codes, io_orientation(affine))


def read_mask_pair(
    mask: str | Path, reference: str | Path
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Read a mask and its reference, which may store one grid with other axes first or turned round.

    Args:
        mask: ``.nii`` or ``.nii.gz`` of three dimensions with whole numbers 0..255.
        reference: the same.

    Returns:
        Both as (X, Y, Z) uint8 in the orientation closest to RAS+, and the spacing along these axes in mm.

    Raises:
        UnreadableFile: missing, truncated or damaged.
        UnsupportedImage: no three-dimensional NIfTI.
        ImplausibleValues: values that are no whole numbers 0..255.
        MissingGeometry, TiltedGantry: the affine is unusable or sheared.
        ValueError: the two lie on different grids.
    """
    mask, reference = Path(mask), Path(reference)
    (found, affine), (true, other) = _read(mask), _read(reference)
    if how := _other_grid(found.shape, affine, true.shape, other):
        raise ValueError(
            f"{mask.name} lies on another grid than {reference.name} ({how}): resample one onto the other's grid, with "
            "nearest neighbours."
        )
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return found, true, (x, y, z)


def _other_grid(shape: tuple[int, ...], affine: np.ndarray, other: tuple[int, ...], its_affine: np.ndarray) -> str:
    """How a grid differs from another one whose axes point the same way; empty when it does not."""
    if shape != other:
        return f"{' x '.join(map(str, shape))} and {' x '.join(map(str, other))} voxels"
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in shape], [1])).reshape(4, -1)
    apart = float(np.linalg.norm((affine - its_affine)[:3] @ corners, axis=0).max())
    smallest = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    return f"their corners lie {apart:.1f} mm apart" if apart > GRID_TOLERANCE * smallest else ""


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes (X, Y, Z) uint8 and affine, in the orientation closest to RAS+."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise UnsupportedImage(f"{path.name} is no NIfTI: give the mask as .nii.gz or .nii.")
        values = np.asanyarray(image.dataobj)
    except UnsupportedImage:
        raise
    except NIFTI_FAULTS as error:
        raise UnreadableFile(
            f"{path.name} cannot be read as NIfTI (missing, truncated or damaged): copy or export it again."
        ) from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or values.dtype.kind not in "buif":
        raise UnsupportedImage(f"{path.name} is {values.ndim}-D of {values.dtype} values: give one 3-D mask of codes.")
    if not values.size or not (values.min() >= 0 and values.max() <= 255):  # NaN fails both
        raise ImplausibleValues(f"{path.name} holds values outside 0..255: give a mask of codes.")
    codes = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(codes, values):
        raise ImplausibleValues(
            f"{path.name} holds values between whole numbers, as a probability map or an interpolated mask does: "
            "give a mask of codes."
        )
    check_affine(image.affine, path.name)
    upright = nib.as_closest_canonical(nib.Nifti1Image(codes, image.affine, dtype=np.uint8))
    return np.asanyarray(upright.dataobj), upright.affine
