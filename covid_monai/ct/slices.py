# SPDX-License-Identifier: Apache-2.0
"""Slice images: one, a folder of them, or a multi-page TIFF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from covid_monai.ct.faults import (
    CTReadError,
    ImplausibleValues,
    InconsistentSlices,
    NoScanFound,
    UnreadableFile,
    UnsupportedImage,
)
from covid_monai.ct.scan import CTScan, SourceFacts
from covid_monai.ct.voxels import Voxels

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# Columns to the patient's left, rows to posterior, slices to superior, in RAS+; 1 mm is nominal.
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_GEOMETRY = (
    "Slice images carry no geometry: volumes in mL cannot be given, and it is assumed that anterior is up, "
    "the patient's right on the left, and the first slice the lowest."
)


def read_slices(path: Path, files: Sequence[Path]) -> CTScan:
    """Read slice images as a scan of unknown spacing.

    The images are taken as a radiologist looks at them (anterior up, the patient's right on the left) and, in the
    natural order of their names (``slice9`` before ``slice10``; pages in file order), from the lowest to the highest.
    8-bit images give ``units="grey"``; signed or floating-point images that hold air (below -500) are taken for HU.

    Args:
        path: an image, or the folder of the images.
        files: all files below the folder, or the image alone.

    Raises:
        NoScanFound: the images lie in subfolders.
        UnreadableFile: a file is truncated or damaged.
        UnsupportedImage: a coloured image.
        InconsistentSlices: sizes differ.
        ImplausibleValues: NaN, infinite, all values within 0..1, or 16-bit values whose relation to HU is unknown.
    """
    folder = path if path.is_dir() else path.parent
    images = [file for file in files if file.suffix.lower() in SUFFIXES and file.parent == folder]
    images.sort(key=lambda file: _natural(file.name))
    if not images:
        raise NoScanFound(f"{path} holds images in subfolders only: give the folder of one scan.")
    pages = [(file, page) for file in images for page in range(_page_count(file))]
    first = _grey(*pages[0])
    height, width = first.shape
    voxels = Voxels(str(path), (len(pages), height, width))
    for number, (file, page) in enumerate(pages):
        name = f"{file.name}, page {page + 1}" if len(pages) > len(images) else file.name
        grey = _grey(file, page)
        if grey.shape != first.shape:
            sizes = [f"{width} x {height}" for height, width in (first.shape, grey.shape)]
            raise InconsistentSlices(
                f"{path} holds images of {sizes[0]} ({images[0].name}) and {sizes[1]} pixels ({name}): "
                "give the slices of one scan."
            )
        voxels.put(number, grey, name)
    units, doubts = voxels.range.units()
    if units == "HU" and voxels.range.low > -500:
        raise ImplausibleValues(
            f"{path} holds values from {voxels.range.low:g} to {voxels.range.high:g}, of no known relation to HU: "
            "give 8-bit images, or a NIfTI or DICOM in HU."
        )
    warnings = [_NO_GEOMETRY, *doubts]
    if len(files) > len(images):
        warnings.append(f"Files left out: {len(files) - len(images)}.")
    source = SourceFacts("slice images", files=len(images))
    return CTScan(voxels.array.T, _AFFINE, source, units=units, spacing_known=False, warnings=warnings)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that counts: runs of digits by value, the rest by letters."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def _page_count(file: Path) -> int:
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow raises what the damaged bytes lead it to
        raise _unreadable(file) from error


def _grey(file: Path, page: int) -> np.ndarray:
    """Values of a page, (H, W)."""
    try:
        with Image.open(file) as image:
            image.seek(page)
            if image.mode in ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LA"):
                channels = np.asarray(image.convert("RGB"))
                if (channels.max(axis=2) - channels.min(axis=2)).max() > 4:  # JPEG may tint grey by a few levels
                    raise UnsupportedImage(f"{file.name} is a coloured image: give the slice in grey, without overlay.")
                return channels[..., 1]
            return np.asarray(image)
    except CTReadError:
        raise
    except Exception as error:
        raise _unreadable(file) from error


def _unreadable(file: Path) -> UnreadableFile:
    return UnreadableFile(f"{file.name} cannot be read as an image (truncated or damaged): copy or export it again.")
