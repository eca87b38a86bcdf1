# SPDX-License-Identifier: Apache-2.0
"""One door for every kind of scan."""

from __future__ import annotations

from pathlib import Path

from covid_monai.ct import dicom, nifti, slices
from covid_monai.ct.faults import NoScanFound, SeriesChoiceError, UnsupportedImage
from covid_monai.ct.scan import CTScan

_KINDS = "a DICOM folder, a NIfTI file (.nii, .nii.gz), or slice images (PNG, JPEG, TIFF, BMP)"


def read_ct(path: str | Path, series: str | int | None = None) -> CTScan:
    """Read a chest CT with its geometry, or refuse it with one clear line.

    Args:
        path: a folder with one DICOM CT series (any file names, nested folders; DICOMDIR and other files are left
            out with a warning), an enhanced multi-frame DICOM file, a NIfTI volume, a slice image, a multi-page TIFF,
            or a folder of slice images whose names in natural order go from the lowest slice to the highest.
        series: SeriesInstanceUID, or number in the list that is given when a folder holds several DICOM series.

    Returns:
        The scan on its own grid.

    Raises:
        CTReadError: the scan cannot be read faithfully; its subclasses in :py:mod:`covid_monai.ct.faults` say why.

    Example::

        scan = read_ct("patient/series")
        for plane in scan.upright():  # (H, W), HU, anterior up, the patient's right on the left
            ...
    """
    path = Path(path)
    files = list_files(path)
    if any(dicom.is_dicom(file) for file in files):
        return dicom.read_dicom(path, files, series)
    if series is not None:
        raise SeriesChoiceError(f"{path.name} is no DICOM, so there is no series {series} to choose: leave series out.")
    if path.is_file() and path.name.lower().endswith(nifti.SUFFIXES):
        return nifti.read_nifti(path)
    if any(file.suffix.lower() in slices.SUFFIXES for file in files):
        return slices.read_slices(path, files)
    if volumes := [file.relative_to(path) for file in files if file.name.lower().endswith(nifti.SUFFIXES)]:
        raise NoScanFound(f"{path} is a folder of NIfTI files ({len(volumes)}): give one of them, e.g. {volumes[0]}.")
    if path.is_dir():
        raise NoScanFound(f"{path} holds no CT among its files ({len(files)}): give {_KINDS}.")
    raise UnsupportedImage(f"{path.name} is of a kind that is not read: give {_KINDS}.")


def list_files(path: Path) -> list[Path]:
    """The files of a scan: the path itself, or all files below it by name, without those of the operating system.

    Raises:
        NoScanFound: there is none.
    """
    if not path.exists():
        raise NoScanFound(f"{path} does not exist: give {_KINDS}.")
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    if not files:
        raise NoScanFound(f"{path} is an empty folder: give {_KINDS}.")
    return files


def _hidden(path: Path) -> bool:
    """Files of the operating system (.DS_Store, __MACOSX)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
