# SPDX-License-Identifier: Apache-2.0
"""Datalists: MONAI's decathlon-style JSON of slices, checked so that no patient and no file stands on two sides.

An item is a dictionary::

    {"image": path, "label": path, "patient": str | None, "id": str, "dataset": str, "lesion": bool,
     "hu_line": [slope, intercept],     # HU = slope * stored + intercept; left out when unknown
     "lung": path, ...}                 # lung mask, lesions included, where the data set has one

Items of the side ``unlabelled``, which self-supervised training reads, have none of :data:`LABEL_KEYS`; all others have
a label. A datalist of earlier versions, without that side, is read as one where it is empty.

Each file is one upright slice ``(H, W)``. Label codes are those of :data:`LABELS`; training maps code 3 to 0
(``MapLabelValued(orig_labels=[3], target_labels=[0])``). Paths are relative to the folder of the datalist where the
file lies below it, absolute elsewhere; patients are named ``<data set>/<patient>``, so that sets can be joined.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covid_monai.datasets.faults import DatasetError, SplitError
from covid_monai.datasets.slices import decode_slice
from covid_monai.whole_files import write_whole

LABELLED_SIDES = ("training", "validation", "testing")
UNLABELLED = "unlabelled"
SIDES = (*LABELLED_SIDES, UNLABELLED)
FILE_KEYS = ("image", "label", "lung")
LABEL_KEYS = ("label", "lesion", "class_source")
"""What an item says of its lesions."""
LABELS = {0: "background", 1: "ground-glass opacity", 2: "consolidation", 3: "pleural effusion (trained as background)"}
LESION_CODES = (1, 2)

Item = dict[str, Any]
Sides = dict[str, list[Item]]


class Fingerprint(NamedTuple):
    """SHA-256 of each file of an item ("" where it has none), and whether its label holds a lesion."""

    image: str
    label: str
    lung: str
    lesion: bool


def _sha256_and_slice(path: Path, role: str) -> tuple[str, np.ndarray]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{role} {path} cannot be read ({error.strerror}): restore it or prepare the datalist anew"
        ) from error
    return hashlib.sha256(content).hexdigest(), decode_slice(content, path)


def fingerprint(item: Item, side: str = "training") -> Fingerprint:
    """Read the files of an item once: hash them and check that they fit together.

    Args:
        item: an item with absolute paths.
        side: where it stands; an item has a label everywhere but on the side ``unlabelled``.

    Raises:
        DatasetError: if a file is missing or unreadable, image and mask differ in shape, the label has unknown codes,
        is missing, or stands on the unlabelled side.
    """
    if side == UNLABELLED and "label" in item:
        raise DatasetError(f"image {item['image']} has a label but stands on the unlabelled side: leave one of them")
    if side != UNLABELLED and "label" not in item:
        raise DatasetError(f"image {item['image']} has no label: every item needs one but those of the unlabelled side")
    image_sha, image = _sha256_and_slice(Path(item["image"]), "image")
    masks: dict[str, tuple[str, np.ndarray]] = {}
    for key in ("label", "lung"):
        if key in item:
            masks[key] = _sha256_and_slice(Path(item[key]), key)
            if masks[key][1].shape != image.shape:
                raise DatasetError(
                    f"{key} {item[key]} is {masks[key][1].shape} (H, W) but image {item['image']} is {image.shape}: "
                    "they must be the same slice"
                )
    codes = np.unique(masks["label"][1]) if "label" in masks else np.empty(0)
    if unknown := [code for code in codes.tolist() if code not in LABELS]:
        raise DatasetError(
            f"label {item['label']} holds unknown codes {unknown[:5]}: known are "
            + ", ".join(f"{code} {meaning}" for code, meaning in LABELS.items())
        )
    return Fingerprint(
        image_sha,
        masks["label"][0] if "label" in masks else "",
        masks["lung"][0] if "lung" in masks else "",
        bool(np.isin(codes, LESION_CODES).any()),
    )


def fingerprints(sides: Sides) -> dict[str, list[Fingerprint]]:
    """`fingerprint` of every item of every side."""
    return {side: [fingerprint(item, side) for item in items] for side, items in sides.items()}


def without_label(item: Item) -> Item:
    """Copy of an item that tells nothing of its lesions; a lung mask stays."""
    return {key: value for key, value in item.items() if key not in LABEL_KEYS}


def _identities(item: Item, print_: Fingerprint) -> Iterator[tuple[str, str]]:
    """What must not stand on two sides: (kind, value). Equal label contents are no fault: empty masks look alike."""
    if item.get("patient") is not None:
        yield "patient", item["patient"]
    yield "slice", item["id"]
    for key in FILE_KEYS:
        if key in item:
            yield "file", os.path.realpath(item[key])
    yield "image content", print_.image


def check_split(sides: Sides, prints: dict[str, list[Fingerprint]]) -> None:
    """Refuse a split in which a patient, a slice, a file or the content of an image stands on two sides.

    Raises:
        SplitError: naming the first one found, both sides and both files.
    """
    seen: dict[tuple[str, str], tuple[str, Item]] = {}
    for side, items in sides.items():
        for item, print_ in zip(items, prints[side], strict=True):
            for identity in _identities(item, print_):
                other_side, other = seen.setdefault(identity, (side, item))
                if other_side != side:
                    kind, value = identity
                    raise SplitError(
                        f"{kind} {value if kind != 'image content' else value[:12]} stands on two sides: {other_side} "
                        f"({other['image']}) and {side} ({item['image']}): keep it on one"
                    )


def drop_duplicates(items: Sequence[Item], prints: Sequence[Fingerprint]) -> tuple[list[Item], list[Fingerprint]]:
    """Keep the first of items with the same image and label content; such repeats would only weigh a slice double.

    Raises:
        DatasetError: if two items have the same image and different labels: one of the two must be wrong.
    """
    first: dict[str, tuple[Item, Fingerprint]] = {}
    for item, print_ in zip(items, prints, strict=True):
        kept, kept_print = first.setdefault(print_.image, (item, print_))
        if kept_print.label != print_.label:
            raise DatasetError(
                f"{kept['image']} and {item['image']} are the same image with different labels "
                f"({kept['label']}, {item['label']}): remove the wrong one"
            )
    return [item for item, _ in first.values()], [print_ for _, print_ in first.values()]


def hash_of(prints: dict[str, list[Fingerprint]]) -> str:
    """SHA-256 over the contents of a split: which slices stand on which side; names, paths and order do not count."""
    lines = sorted(f"{side} {p.image} {p.label} {p.lung}\n" for side, them in prints.items() for p in them)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def data_hash(path: Path) -> str:
    """Compute the hash of the split from the files of a datalist as they are now.

    It equals the ``data_hash`` written in the datalist unless a file has changed since.

    Raises:
        DatasetError: if the datalist or one of its files is missing, unreadable or malformed.
    """
    return hash_of(fingerprints(absolute_sides(load_datalist(path), path)))


def load_datalist(path: Path) -> dict[str, Any]:
    """Read a datalist as it stands in the file; one without the side ``unlabelled`` is given an empty one.

    Raises:
        DatasetError: if it is missing, not JSON, or not a datalist of this package.
    """
    try:
        datalist = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"datalist {path} cannot be read ({error.strerror}): make it with `covid-monai data prepare`"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): not a datalist") from error
    if isinstance(datalist, dict):
        datalist.setdefault(UNLABELLED, [])
    if not (
        isinstance(datalist, dict)
        and isinstance(datalist.get("sources"), list)
        and all(isinstance(datalist.get(side), list) for side in SIDES)
        and all(
            isinstance(item, dict) and {"image", "id"} <= item.keys() and ("label" in item) == (side != UNLABELLED)
            for side in SIDES
            for item in datalist[side]
        )
    ):
        raise DatasetError(f"{path} is not a datalist made by `covid-monai data prepare`: choose another file")
    return datalist


def absolute_sides(datalist: dict[str, Any], path: Path) -> Sides:
    """Return the sides of a datalist that was read from ``path``, every file path made absolute."""
    folder = path.resolve().parent
    return {
        side: [{k: str(folder / v) if k in FILE_KEYS else v for k, v in item.items()} for item in datalist[side]]
        for side in SIDES
    }


def load_side(path: str | os.PathLike, *sides: str) -> list[Item]:
    """Items of one side of a datalist, or of several in turn, every file path made absolute.

    Args:
        path: the datalist.
        sides: ``"training"``, ``"validation"``, ``"testing"`` or ``"unlabelled"``.

    Raises:
        DatasetError: if the datalist cannot be used, or a side is unknown, or all of them are empty.
    """
    for side in sides:
        if side not in SIDES:
            raise DatasetError(f"a datalist has no side {side!r}: choose one of {', '.join(SIDES)}")
    known = absolute_sides(load_datalist(Path(path)), Path(path))
    items = [item for side in sides for item in known[side]]
    if not items:
        how = "add a set with `--unlabelled`" if UNLABELLED in sides else f"prepare it with `--option {sides[0]}=SHARE`"
        raise DatasetError(f"{path} has no {' or '.join(sides)} slices: {how}, or add a set that has")
    return items


def portable_item(item: Item, folder: Path) -> Item:
    """Return the item with paths below ``folder`` made relative to it (POSIX form)."""
    portable = dict(item)
    for key in FILE_KEYS:
        if key in item:
            file = Path(item[key])
            portable[key] = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
    return portable


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def counts_of_shares(count: int, shares: dict[str, float], what: str) -> dict[str, int]:
    """How many go to each side but the training: the nearest number, at least one where a share is asked for.

    Args:
        count: how many there are.
        shares: of each side, 0..1.
        what: they are, for the message.

    Raises:
        DatasetError: if nothing is left for training.
    """
    if any(not 0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise DatasetError(f"shares {shares} leave nothing for training: each must be 0..1 and their sum below 1")
    counts = {side: max(1, round(share * count)) if share else 0 for side, share in shares.items()}
    if sum(counts.values()) >= count:
        raise DatasetError(
            f"{count} {what} are too few for shares {shares}: none is left for training, give more or smaller shares"
        )
    return counts


def split_by_patient(items: Iterable[Item], shares: dict[str, float], seed: int) -> Sides:
    """Deal items to sides at random, all slices of a patient together; a slice without a patient is dealt alone.

    Args:
        items: the items to deal.
        shares: share of the patients for each other side (0..1, together below 1); training takes the rest. A side with
            a share above 0 gets at least one patient.
        seed: of the draw; the same seed and items give the same split, in whatever order the items come.

    Raises:
        DatasetError: if a share is outside 0..1, or training would get no patient.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(
            f"slice {item['id']}" if item["patient"] is None else f"patient {item['patient']}", []
        ).append(item)
    names = sorted(groups)
    np.random.default_rng(seed).shuffle(names)
    sides: Sides = {side: [] for side in SIDES}
    taken = 0
    for side, count in counts_of_shares(len(names), shares, "patients (or single slices)").items():
        sides[side] = [item for name in sorted(names[taken : taken + count]) for item in groups[name]]
        taken += count
    sides["training"] = [item for name in sorted(names[taken:]) for item in groups[name]]
    return sides
