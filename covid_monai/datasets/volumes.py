# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes with masks, cut into the upright slices that a datalist points to."""

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation

from covid_monai.ct import CTReadError, read_ct
from covid_monai.ct.checks import ValueRange
from covid_monai.ct.nifti import NIFTI_FAULTS
from covid_monai.ct.scan import upright_view
from covid_monai.datasets.datalist import Item
from covid_monai.datasets.faults import DatasetError, LayoutError
from covid_monai.datasets.slices import save_slice


class UprightVolume(NamedTuple):
    """Upright slices ``(Z, H, W)`` from inferior to superior, and "HU" or "grey"."""

    slices: np.ndarray
    units: str


HU_OFFSET = 1024.0
"""Stored level of 0 HU in a 16-bit slice: air outside the body is then above 0."""


def find_nifti(folder: Path, stem: str, layout: str) -> Path:
    """Return ``folder/stem.nii.gz`` or ``.nii``.

    Raises:
        LayoutError: if neither is there.
    """
    for suffix in (".nii.gz", ".nii"):
        if (path := folder / f"{stem}{suffix}").is_file():
            return path
    raise LayoutError(f"{folder / stem}.nii.gz is missing: expected {layout}")


def load_nifti(path: Path) -> nib.Nifti1Image:
    """Open a 3-D NIfTI file.

    Raises:
        DatasetError: if it cannot be read or is not 3-D.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
    except NIFTI_FAULTS as error:
        raise DatasetError(f"{path} cannot be read as NIfTI ({error}): is the download complete?") from error
    if len(image.shape) != 3:
        raise DatasetError(f"{path} has shape {image.shape}: expected a volume (X, Y, Z)")
    return image


def _values(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    try:
        return np.asarray(image.dataobj)
    except NIFTI_FAULTS as error:
        raise DatasetError(f"{path} cannot be read to its end ({error}): is the download complete?") from error


def check_axes(axes: Any) -> None:
    """Refuse an option ``axes`` that is given and does not name the three directions once each.

    Raises:
        DatasetError: saying what fits.
    """
    if axes is not None and not (
        isinstance(axes, str) and sorted(axes.translate(str.maketrans("LPI", "RAS"))) == ["A", "R", "S"]
    ):
        raise DatasetError(f"axes is {axes!r}: expected one letter each of R/L, A/P and S/I, such as LPS")


def to_upright(array: np.ndarray, image: nib.Nifti1Image, axes: str | None = None) -> np.ndarray:
    """Turn an array ``(X, Y, Z)`` into upright slices ``(Z, H, W)``, a view.

    Args:
        array: on the grid of ``image``.
        image: whose affine tells where the axes point.
        axes: where they point, instead of the affine: three letters such as "LPS" (first axis towards the patient's
            left, second posterior, third superior).

    Raises:
        DatasetError: if ``axes`` does not name the three directions once each.
    """
    check_axes(axes)
    stored = io_orientation(image.affine) if axes is None else axcodes2ornt(tuple(axes))
    return upright_view(array, stored)


def read_upright(path: Path, axes: str | None = None) -> UprightVolume:
    """Read a CT in NIfTI as upright slices: through `covid_monai.ct.read_ct`, or with its affine overruled by ``axes``.

    Raises:
        DatasetError: if it is no readable CT; when its affine is the fault, the message names ``axes``.
    """
    try:
        if axes is None:
            scan = read_ct(path)
            return UprightVolume(scan.upright(), scan.units)
        image = load_nifti(path)
        array = _values(image, path).astype(np.float32)
        values = ValueRange(path.name)
        for k in range(array.shape[2]):
            values.take(array[..., k], f"slice {k + 1}")
        return UprightVolume(to_upright(array, image, axes), values.units()[0])
    except CTReadError as error:
        raise DatasetError(f"{path}: {error} Option axes overrules the stored orientation.") from error


def read_upright_mask(path: Path, like: Path, axes: str | None = None) -> np.ndarray:
    """Read a mask as upright slices ``(Z, H, W)`` uint8, turned as the CT ``like`` is.

    Raises:
        DatasetError: if it holds other values than 0..255 whole, or does not lie on the grid of the CT.
    """
    mask, image = load_nifti(path), load_nifti(like)
    if mask.shape != image.shape:
        raise DatasetError(f"mask {path} is {mask.shape} but its image {like} is {image.shape}: they must be one grid")
    if axes is None and not np.allclose(mask.affine, image.affine, atol=0.1):
        raise DatasetError(
            f"mask {path} and image {like} differ in affine: give option axes (such as LPS) if their voxels match"
        )
    values = _values(mask, path)
    codes = values.astype(np.uint8)
    if not np.array_equal(codes, values):
        raise DatasetError(f"mask {path} holds values that are no whole codes 0..255: it is not a label mask")
    return to_upright(codes, image, axes)


def save_item(stem: Path, image: np.ndarray, label: np.ndarray, units: str, lung: np.ndarray | None = None) -> Item:
    """Write one upright slice and its masks as ``<stem>_{image,label,lung}.png`` and return the paths as an item.

    The image becomes 16-bit: HU + 1024, so that its ``hu_line`` is (1, -1024), or grey levels above the lowest.

    Args:
        stem: path without suffix.
        image: ``(H, W)``; rounded.
        label: ``(H, W)`` codes.
        units: "HU" gives the item its ``hu_line``; "grey" leaves it out.
        lung: ``(H, W)``; anything but 0 is lung.
    """

    def file(role: str, array: np.ndarray) -> str:
        return str(save_slice(array, stem.with_name(f"{stem.name}_{role}.png")))

    zero = -HU_OFFSET if units == "HU" else float(image.min())
    item: Item = {
        "image": file("image", np.clip(np.rint(image - zero), 0, 65535).astype(np.uint16)),
        "label": file("label", label.astype(np.uint8)),
    }
    if lung is not None:
        item["lung"] = file("lung", (lung > 0).astype(np.uint8))
    if units == "HU":
        item["hu_line"] = [1.0, -HU_OFFSET]
    return item
