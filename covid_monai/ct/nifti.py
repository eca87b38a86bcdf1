# SPDX-License-Identifier: Apache-2.0
"""NIfTI: reading a scan, writing a mask on a scan's grid."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError

from covid_monai.ct.checks import check_affine, check_depth, check_extent, geometry_warnings
from covid_monai.ct.faults import CTReadError, MissingGeometry, UnreadableFile, UnsupportedImage
from covid_monai.ct.scan import CTScan, SourceFacts
from covid_monai.ct.voxels import Voxels
from covid_monai.whole_files import replacing

SUFFIXES = (".nii", ".nii.gz")
NIFTI_FAULTS: tuple[type[Exception], ...] = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError),
    *(zlib.error, isal_zlib.error),  # type: ignore[assignment]
)
"""What nibabel, which unpacks by zlib, and ISA-L raise for damaged files."""


def read_nifti(path: Path) -> CTScan:
    """Read a NIfTI volume slice by slice into one array.

    Values below -1024 HU (padding) become -1024. A volume whose values all lie within -50..300 is taken for 8-bit
    grey levels (``units="grey"``, with a warning). Where sform and qform are both there, sform counts.

    Args:
        path: ``.nii`` or ``.nii.gz`` of three dimensions (further ones of size 1 are dropped), with an orientation.

    Raises:
        UnreadableFile: truncated, encrypted or damaged, also when only the checksum of a gzip file tells.
        UnsupportedImage: 4-D, RGB or complex values.
        TooFewSlices: fewer than three voxels along an axis.
        MissingGeometry: neither sform nor qform is set, so left and right cannot be told, or the affine is unusable.
        TiltedGantry: the affine is sheared.
        ImplausibleValues: NaN, infinite, or all values within 0..1.
    """
    try:
        image_class: Any = type(nib.load(path))
        with igzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            image = image_class.from_stream(stream)
            shape = _check_header(image, path.name)
            rest = (0,) * (len(image.shape) - 3)
            voxels = Voxels(path.name, (shape[2], shape[1], shape[0]))
            for k in range(shape[2]):
                voxels.put(k, image.dataobj[(slice(None), slice(None), k) + rest].T, f"slice {k + 1}")
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    except CTReadError:
        raise
    except NIFTI_FAULTS as error:
        raise UnreadableFile(
            f"{path.name} cannot be read as NIfTI (truncated, encrypted or damaged): copy or export it again."
        ) from error
    units, doubts = voxels.range.units()
    warnings = [
        *_orientation_warnings(image),
        *geometry_warnings(image.affine, _slice_axis(image.affine), None),
        *doubts,
    ]
    return CTScan(voxels.array.T, image.affine, SourceFacts("NIfTI", files=1), units=units, warnings=warnings)


def _check_header(image: nib.Nifti1Image, name: str) -> tuple[int, ...]:
    """Refuse what is no single volume of scalars with an orientation; return its (X, Y, Z)."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise UnsupportedImage(f"{name} holds {'RGB' if dtype.fields else 'complex'} values: give the CT in HU.")
    if len(shape) > 3:
        size = " x ".join(map(str, shape))
        raise UnsupportedImage(f"{name} is {len(shape)}-D ({size}): save the one volume wanted as a 3-D file.")
    check_depth(min(shape) if len(shape) == 3 else 1, name)
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise MissingGeometry(
            f"{name} stores no orientation (sform and qform codes are 0), so left and right cannot be told: "
            "convert the original DICOM series again or set the sform."
        )
    check_affine(image.affine, name)
    check_extent(image.affine, shape, name)
    return tuple(shape)


def _orientation_warnings(image: nib.Nifti1Image) -> list[str]:
    """Warn where the two orientations a NIfTI may hold disagree."""
    sform, qform = image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]
    if sform is None or qform is None or np.allclose(sform, qform, rtol=0.001, atol=0.1):
        return []
    return ["The file holds two orientations (sform and qform) that disagree; sform was used: check left and right."]


def _slice_axis(affine: np.ndarray) -> int:
    """The own axis along which slices were stacked: NIfTI does not say, so the one coarse axis, else the vertical one.

    Pixels are square: two coarse axes are those of thin slices.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    vertical = int(np.argmax(np.abs(affine[2, :3]) / spacing))
    *_, second, coarsest = np.argsort(spacing, kind="stable")
    return int(coarsest) if spacing[coarsest] > 1.5 * spacing[second] else vertical


def write_mask(mask: np.ndarray, scan: CTScan, path: str | Path, labels: Mapping[int, str] | None = None) -> None:
    """Write a mask as NIfTI on the grid of its scan.

    The file appears only when it is complete. sform and qform are the scan's affine with code 1 (scanner), or code 2
    (aligned) and a note in the header where the scan's lengths are unknown.

    Args:
        mask: (X, Y, Z) integers 0..255 or booleans on the scan's own grid.
        scan: the scan the mask lies on.
        path: ``.nii.gz`` or ``.nii`` file; an existing one is replaced.
        labels: names of the values; written into the file as a comment.

    Raises:
        ValueError: shape, type or values do not fit, a value is missing in ``labels``, or ``path`` has another suffix.
    """
    path = Path(path)
    mask = np.asarray(mask)
    if mask.shape != scan.shape:
        raise ValueError(f"The mask has shape {mask.shape}, the scan {scan.shape}: give it on the scan's own grid.")
    if mask.dtype.kind not in "bui":
        raise ValueError(f"The mask holds {mask.dtype} values: give integers 0..255.")
    if mask.dtype != np.uint8 and (mask.min() < 0 or mask.max() > 255):
        raise ValueError(f"The mask holds values from {mask.min()} to {mask.max()}: give integers 0..255.")
    suffix = next((suffix for suffix in reversed(SUFFIXES) if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"A mask cannot be written as {path.name}: give a name that ends in .nii.gz or .nii.")
    mask = mask.astype(np.uint8, copy=False)
    if labels is not None:
        named = np.isin(np.arange(256), [0, *labels])
        unnamed = []
        if not named[: mask.max(initial=0) + 1].all():  # which costs little, and rarely leaves anything to look for
            planes = np.moveaxis(mask, np.argmax(np.abs(mask.strides)), 0)  # each lies together in memory
            unnamed = sorted({int(value) for plane in planes for value in np.unique(plane[~named[plane]])})
        if unnamed:
            raise ValueError(
                f"The mask holds the values {unnamed}, which labels does not name: name them or drop them."
            )

    image = nib.Nifti1Image(mask, scan.affine, dtype=np.uint8)
    code = "scanner" if scan.spacing_known else "aligned"
    image.set_sform(scan.affine, code)
    image.set_qform(scan.affine, code)
    image.header.set_xyzt_units("mm")
    note = "" if scan.spacing_known else "voxel size unknown, 1 mm is nominal; "
    image.header["descrip"] = f"mask; {note}research use only"
    if labels is not None:
        text = "; ".join(f"{value} = {name}" for value, name in sorted(labels.items()))
        image.header.extensions.append(Nifti1Extension("comment", text.encode()))
    with (
        replacing(path) as unfinished,
        unfinished.open("wb") as file,
        nullcontext(file) if suffix == ".nii" else _gzip(file) as stream,
    ):
        image.to_stream(stream)


def _gzip(file: BinaryIO) -> igzip.IGzipFile:
    """What packs into a file: neither its name nor the time, so that equal masks are equal files."""
    return igzip.IGzipFile("", "wb", 1, file, mtime=0)
