# SPDX-License-Identifier: Apache-2.0
"""Corrected labels as the slices and the datalist that the bundles train on."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from covid_monai.ct import read_ct, read_mask
from covid_monai.datasets.datalist import (
    SIDES,
    Item,
    check_split,
    fingerprints,
    hash_of,
    portable_item,
    write_json,
)
from covid_monai.datasets.volumes import save_item
from covid_monai.label.faults import LabelError
from covid_monai.label.names import FINAL
from covid_monai.label.sides import deal_sides
from covid_monai.whole_files import unfinished_folder

__all__ = ["export_slices"]

RECORD = "sides.json"
"""Which patient stands on which side, of all trainings of a server."""
NAME = "corrected"


def export_slices(datastore: Datastore, folder: Path) -> Path:
    """Write every slice of every labelled scan, and their datalist.

    Scans of one study stay on one side, and on the same one in every training. Names in the datalist are made of
    hashes, for trainings record them.

    Args:
        datastore: has the images and their final labels.
        folder: the slices go into a folder of it that is named by their content.

    Returns:
        That folder.

    Raises:
        LabelError: no two scans, or studies, with labels stand on different sides.
        ValueError: a scan or a label cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as within:
        unfinished = within / "data"
        items = [
            item for image in sorted(datastore.get_labeled_images()) for item in _items(image, datastore, unfinished)
        ]
        record = folder / RECORD
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        dealt = deal_sides((item["patient"] for item in items), before)
        if len(set(dealt.values())) < 2:
            raise LabelError(
                "a training needs corrected labels of two scans at the least, one to learn and one to validate, and no "
                "scan goes from one to the other: label another scan."
            )
        write_json({**before, **dealt}, record)
        sides: dict[str, list[Item]] = {
            side: [item for item in items if dealt[item["patient"]] == side] for side in SIDES
        }
        prints = fingerprints(sides)
        check_split(sides, prints)
        for side, found in prints.items():
            for item, print_ in zip(sides[side], found, strict=True):
                item["lesion"] = print_.lesion
        digest = hash_of(prints)
        content = {
            "name": NAME,
            "description": "slices corrected in MONAI Label. Research use only.",
            "data_hash": digest,
            "sources": [{"name": NAME}],
            **{side: [portable_item(item, unfinished) for item in found] for side, found in sides.items()},
        }
        write_json(content, unfinished / "datalist.json")
        target = folder / digest[:12]
        if target.exists():
            shutil.rmtree(target)
        return unfinished.rename(target)


def _items(image: str, datastore: Any, folder: Path) -> list[Item]:
    scan = read_ct(datastore.scan_path(image))
    try:
        label = read_mask(datastore.label_path(image, FINAL), scan)
    except ValueError as error:
        raise LabelError(
            f"the label of {image} is of an earlier state of its scan: save it again. ({error})"
        ) from error
    study = datastore.get_image_info(image).get("StudyInstanceUID", image)
    patient, series = (hashlib.sha256(name.encode()).hexdigest()[:12] for name in (study, image))
    items = []
    for number, (plane, codes) in enumerate(zip(scan.upright(), label, strict=True)):
        if plane.min() == plane.max():  # padding, equal in all scans
            continue
        item = save_item(folder / series / f"{number:04}", plane, codes, scan.units)
        items.append({**item, "patient": f"{NAME}/{patient}", "id": f"{NAME}/{series}/{number:04}", "dataset": NAME})
    return items
