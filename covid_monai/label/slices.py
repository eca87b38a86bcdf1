# SPDX-License-Identifier: Apache-2.0
"""Corrected labels as the slices and the datalist that the bundles train on."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from covid_monai.ct import read_ct, read_mask
from covid_monai.datasets.datalist import (
    Item,
    check_split,
    fingerprints,
    hash_of,
    portable_item,
    split_by_patient,
    write_json,
)
from covid_monai.datasets.volumes import save_item
from covid_monai.label.faults import LabelError
from covid_monai.label.names import FINAL

__all__ = ["export_slices"]

HELD_OUT = 0.2
"""Share of the labelled scans, one at the least, that trainings are validated on."""
SEED = 0
NAME = "corrected"


def export_slices(datastore: Datastore, folder: Path) -> Path:
    """Write every slice of every labelled scan, and their datalist.

    Scans of one study stay on one side. Names in the datalist are made of hashes, for trainings record them.

    Args:
        datastore: has the images and their final labels.
        folder: the slices go into a folder of it that is named by their content.

    Returns:
        That folder.

    Raises:
        LabelError: fewer than two scans, or studies, have a label.
        ValueError: a scan or a label cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as name:
        unfinished = Path(name, "data")
        items = [
            item for image in sorted(datastore.get_labeled_images()) for item in _items(image, datastore, unfinished)
        ]
        if len({item["patient"] for item in items}) < 2:
            raise LabelError(
                "a training needs corrected labels of two scans at the least: one to learn, one to validate."
            )
        sides = split_by_patient(items, {"validation": HELD_OUT}, SEED)
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
    label = read_mask(datastore.label_path(image, FINAL), scan)
    study = datastore.get_image_info(image).get("StudyInstanceUID", image)
    patient, series = (hashlib.sha256(name.encode()).hexdigest()[:12] for name in (study, image))
    items = []
    for number, (plane, codes) in enumerate(zip(scan.upright(), label, strict=True)):
        if plane.min() == plane.max():  # padding, equal in all scans
            continue
        item = save_item(folder / series / f"{number:04}", plane, codes, scan.units)
        items.append({**item, "patient": f"{NAME}/{patient}", "id": f"{NAME}/{series}/{number:04}", "dataset": NAME})
    return items
