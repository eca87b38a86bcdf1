# SPDX-License-Identifier: Apache-2.0
"""Any labelled slices: a folder ``images/`` and a folder ``masks/`` with the same file names."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covid_monai.datasets.datalist import LABELS, Item, Sides, split_by_patient
from covid_monai.datasets.faults import DatasetError, LayoutError
from covid_monai.datasets.slices import pictures_by_stem, read_slice, save_slice

TITLE = "your own slices: images/ and masks/ with the same names"
LICENCE = "as the owner of the slices says"
LAYOUT = "a folder with images/ and masks/, upright slices of the same names (PNG or JPEG), masks lossless"


def read(
    source: Path,
    unpack: Path,
    seed: int,
    *,
    patient: str | None = None,
    validation: float = 0.2,
    testing: float = 0.0,
    codes: Mapping[int, int] | None = None,
    hu_line: Sequence[float] | None = None,
) -> Sides:
    """Read a folder of slices and split it at random, by patient where ``patient`` tells who that is.

    Args:
        source: see `LAYOUT`.
        unpack: where masks with translated codes go; everything else is used in place.
        seed: of the split.
        patient: regular expression searched in a file name without suffix; its first group, or the whole match, is the
            patient: ``^[^_]+`` takes what stands before the first "_". None: patients are unknown and every slice is
            dealt alone, so that neighbours of one patient may part.
        validation: share of the patients (or single slices) to validate on, 0..1.
        testing: share to test on, 0..1.
        codes: mask values and what they mean here, such as ``{255: 1}``; values that it does not name stay.
        hu_line: (slope, intercept) with HU = slope * stored + intercept, when known; ``(1, 0)`` for slices in HU.

    Raises:
        DatasetError: if an option, a file or the split is not as it must be.
    """
    _check_options(patient, codes, hu_line)
    images, masks = (pictures_by_stem(source / name) for name in ("images", "masks"))
    for these, others, name in ((images, masks, "masks"), (masks, images, "images")):
        if missing := [stem for stem in these if stem not in others]:
            raise LayoutError(
                f"{source / name} lacks {len(missing)} of the slices, first {missing[0]}: expected {LAYOUT}"
            )
    if lossy := [path for path in masks.values() if path.suffix.lower() in (".jpg", ".jpeg")]:
        raise DatasetError(f"{lossy[0]} is a JPEG mask: its codes are blurred; save masks as PNG")
    items: list[Item] = []
    for stem, image in images.items():
        label = masks[stem]
        if codes:
            label = save_slice(_translate(label, codes), unpack / f"{stem}.png")
        who = _patient(stem, patient)
        item: Item = {
            "image": str(image),
            "label": str(label),
            "patient": None if who is None else f"{source.name}/{who}",
            "id": f"{source.name}/{stem}",
        }
        if hu_line is not None:
            slope, intercept = map(float, hu_line)
            item["hu_line"] = [slope, intercept]
        items.append(item)
    return split_by_patient(items, {"validation": validation, "testing": testing}, seed)


def _check_options(patient: Any, codes: Any, hu_line: Any) -> None:
    """Refuse options that are given and are not of their kind, before any file is read."""
    if not isinstance(patient, str | None):
        raise DatasetError(f"folder: patient is {patient!r}, give a regular expression such as '^[^_]+'")
    if codes is not None and not (
        isinstance(codes, Mapping)
        and all(_is_number(found) for found in codes)
        and all(_is_number(meant) and meant in LABELS for meant in codes.values())
    ):
        raise DatasetError(
            f"folder: codes is {codes!r}, give mask values and what they mean, such as {{255: 1}}: "
            + ", ".join(f"{code} {meaning}" for code, meaning in LABELS.items())
        )
    if hu_line is not None and not (
        isinstance(hu_line, list | tuple) and len(hu_line) == 2 and all(map(_is_number, hu_line)) and hu_line[0] > 0
    ):
        raise DatasetError(
            f"folder: hu_line is {hu_line!r}, give [slope, intercept] with a slope above 0, such as [1, 0]"
        )


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _translate(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Mask ``(H, W)`` uint8 with its codes translated; every code in it must then be known."""
    mask = read_slice(path)
    translated = mask.astype(np.float64)  # holds every stored value and every code, which bool and uint8 do not
    for found, meant in codes.items():
        translated[mask == found] = meant
    if unknown := [f"{code:g}" for code in np.unique(translated) if code not in LABELS]:
        raise DatasetError(f"{path} holds values {', '.join(unknown[:5])} that codes {codes!r} does not name: add them")
    return translated.astype(np.uint8)


def _patient(stem: str, pattern: str | None) -> str | None:
    if pattern is None:
        return None
    try:
        match = re.search(pattern, stem)
    except re.error as error:
        raise DatasetError(f"patient pattern {pattern!r} is no regular expression ({error})") from error
    who = match and match[1 if match.re.groups else 0]
    if not who:
        raise DatasetError(
            f"patient pattern {pattern!r} does not match slice {stem}: every slice must name its patient"
        )
    return who
