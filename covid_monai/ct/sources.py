# SPDX-License-Identifier: Apache-2.0
"""The DICOM images that a scan was read from: what a segmentation or a report in DICOM refers to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from pydicom import Dataset, dcmread

from covid_monai.ct import dicom
from covid_monai.ct.faults import CTReadError, UnsupportedImage
from covid_monai.ct.reader import list_files

__all__ = ["SourceError", "on_sources", "read_sources"]

_UPRIGHT = axcodes2ornt(("S", "P", "L"))
#: Lengths in mm may differ by this share: positions are rounded.
_SPACING_RTOL = 0.02
# Without these an object in DICOM cannot say what it refers to.
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# The standard wants these to be there, empty where unknown; de-identified series often lack them.
_PERHAPS_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


class SourceError(CTReadError):
    """Source images that an object in DICOM cannot refer to."""


def read_sources(path: str | Path, series: str | int | None = None) -> list[Dataset]:
    """Headers of the images that :py:func:`covid_monai.ct.read_ct` reads with the same arguments.

    Args:
        path: a DICOM folder or file.
        series: SeriesInstanceUID or number in the list of series, as given to ``read_ct``.

    Returns:
        Datasets without pixel data, in the order of the scan's slices; one for an enhanced multi-frame image.
        **They hold the patient's identity.** Patient and study attributes that are missing are there, but empty.

    Raises:
        CTReadError: ``read_ct`` refuses the scan too, or it is no DICOM (:py:class:`UnsupportedImage`), or its images
            lack what one refers to them by, or lie in several multi-frame files (:py:class:`SourceError`).
    """
    path = Path(path)
    files = list_files(path)
    if not any(dicom.is_dicom(file) for file in files):
        raise UnsupportedImage(
            f"{path.name} is no DICOM, so a segmentation or report in DICOM has no series to refer to: "
            "give the DICOM series itself, or leave the DICOM output out."
        )
    stack = dicom.find_stack(path, files, series)
    chosen = dict.fromkeys(part.file for part in stack.slices)
    if len(chosen) > 1 and any(part.frame is not None for part in stack.slices):
        raise SourceError(
            f"{path.name} holds a scan in {len(chosen)} multi-frame files, to which one segmentation in DICOM cannot "
            "refer: give it as one multi-frame file or as single slices, or leave the DICOM output out."
        )
    return [_read(file) for file in chosen]


def on_sources(array: np.ndarray, spacing: Sequence[float], sources: Sequence[Dataset]) -> np.ndarray:
    """Put upright slices, e.g. a mask, pixel for pixel on the source images.

    Args:
        array: (Z, H, W) of any type, in the order of :py:meth:`covid_monai.ct.CTScan.upright`.
        spacing: (dz, dy, dx) in mm.
        sources: images of one series in any order, or one enhanced multi-frame image.

    Returns:
        (slices, rows, columns): plane ``k`` lies on ``sources[k]``, or on frame ``k + 1`` of the multi-frame image.

    Raises:
        SourceError: the array has another shape or spacing than the upright sources.
    """
    stack = dicom.stack_of(sources)
    orientation = io_orientation(stack.affine)
    to_own = ornt_transform(_UPRIGHT, orientation)
    first = stack.slices[0].header
    grid = (int(first.Columns), int(first.Rows), len(stack.slices))
    own = apply_orientation(array, to_own)
    lengths = np.asarray(spacing)[[int(axis) for axis in ornt_transform(orientation, _UPRIGHT)[:, 0]]]
    true_lengths = np.linalg.norm(stack.affine[:3, :3], axis=0)
    if own.shape != grid or not np.allclose(lengths, true_lengths, rtol=_SPACING_RTOL):
        raise SourceError(
            f"The masks have (columns, rows, slices) {own.shape} of {np.round(lengths, 3).tolist()} mm, the source "
            f"images {grid} of {np.round(true_lengths, 3).tolist()} mm: give the series that was analysed."
        )
    if stack.slices[0].frame is None:
        place = {id(image): number for number, image in enumerate(sources)}
        order = [place[id(part.header)] for part in stack.slices]
    else:
        order = [part.frame for part in stack.slices if part.frame is not None]
    planes = np.empty(own.shape[::-1], dtype=own.dtype)
    planes[order] = own.T
    return planes


def _read(file: Path) -> Dataset:
    """A file's header, decoded, with what an object that refers to it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's complaints about odd values print them
        image = dcmread(file, stop_before_pixels=True)
        image.decode()
    if missing := [keyword for keyword in _NEEDED if not image.get(keyword)]:
        raise SourceError(
            f"{file.name} has no {', '.join(missing)}, so a segmentation or report in DICOM cannot refer to it: "
            "give the original series, or leave the DICOM output out."
        )
    for keyword in _PERHAPS_EMPTY:
        if keyword not in image:
            setattr(image, keyword, "")
    return image
