# SPDX-License-Identifier: Apache-2.0
"""Single slices on disk: what every item of a datalist points to."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from covid_monai.datasets.faults import DatasetError, LayoutError

SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")


def decode_slice(content: bytes, path: Path) -> np.ndarray:
    """Decode the bytes of one slice file.

    Args:
        content: the file's bytes.
        path: where they came from: the suffix tells the format, the name goes into messages.

    Returns:
        The slice ``(H, W)``; palette pictures give their codes, 1-bit pictures ``bool``.

    Raises:
        DatasetError: if the file is not a readable single-channel 2-D slice.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DatasetError(f"{path} is not a slice file: expected one of {', '.join(SUFFIXES)}")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.mode not in _GREY_MODES:
                raise DatasetError(f"{path} is a {picture.mode} picture, not a grey slice: convert it to one channel")
            array = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} cannot be read as a slice ({error}): is the file complete?") from error
    return array


def read_slice(path: Path) -> np.ndarray:
    """Read one slice file as an array ``(H, W)``; see :func:`decode_slice`."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing: restore the file or prepare the datalist anew")
    return decode_slice(path.read_bytes(), path)


def save_slice(array: np.ndarray, path: Path) -> Path:
    """Write one slice ``(H, W)`` in the format that the suffix of ``path`` names; makes the folders above it.

    Returns:
        ``path``, so that the call can stand in an item.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path)
    return path


def pictures_by_stem(folder: Path) -> dict[str, Path]:
    """Slice files directly inside ``folder``, by file name without suffix, in natural order (2 before 10).

    Raises:
        LayoutError: if the folder is missing or holds no slice file.
        DatasetError: if it holds two with the same stem.
    """
    if not folder.is_dir():
        raise LayoutError(f"{folder} is missing: the source has not the expected layout")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda p: (len(p.stem), p.name) if p.stem.isdigit() else (0, p.name)):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DatasetError(f"{folder} holds both {found[path.stem].name} and {path.name}: keep one of them")
        found[path.stem] = path
    if not found:
        raise LayoutError(f"{folder} holds no slice file ({', '.join(SUFFIXES)})")
    return found


def read_index(path: Path, columns: Iterable[str], layout: str) -> list[dict[str, str]]:
    """Rows of a CSV file that says what the slices beside it are.

    Args:
        path: the file, with a header.
        columns: that it must have.
        layout: of the data set, for the message.

    Raises:
        LayoutError: if the file is missing or lacks a column.
    """
    if not path.is_file():
        raise LayoutError(f"{path} is missing: expected {layout}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise LayoutError(f"{path} has no column {', '.join(lacking)}: expected the index that belongs to the set")
        return list(reader)
