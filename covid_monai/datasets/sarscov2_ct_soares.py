# SPDX-License-Identifier: Apache-2.0
"""SARS-CoV-2 CT-scan dataset: chest CT slices from hospitals of Sao Paulo (Soares et al., medRxiv 2020.04.24.20078584).

Upright 8-bit slices, cropped to the chest, mostly in a lung window that nobody published: they have no ``hu_line``, and
grey levels are harmonised instead. Nobody published patient numbers either, so every item has ``patient: None``; a
patient has several slices, which is no matter as long as all stand on the unlabelled side.
"""

from pathlib import Path

from covid_monai.datasets.datalist import UNLABELLED, Item, Sides
from covid_monai.datasets.faults import LayoutError
from covid_monai.datasets.slices import read_index

TITLE = "SARS-CoV-2 CT-scan dataset (Soares et al.): 2479 CT slices with and without COVID-19, unlabelled"
LICENCE = "CC BY-NC-SA 4.0 (non-commercial)"
LAYOUT = "covid/NNNN.jpg, noncovid/NNNN.jpg and index.csv"


def read(source: Path, unpack: Path, seed: int) -> Sides:
    """Take every slice that index.csv names and does not mark as a duplicate, in place.

    Args:
        source: see `LAYOUT`.
        unpack: not needed.
        seed: not needed.

    Raises:
        LayoutError: if a file is missing.
    """
    items: list[Item] = []
    for row in read_index(source / "index.csv", ("name", "note"), LAYOUT):
        if row["note"].startswith("dup_of:"):
            continue
        image = source / f"{row['name']}.jpg"
        if not image.is_file():
            raise LayoutError(f"{image}, which index.csv names, is missing: expected {LAYOUT}")
        items.append({"image": str(image), "patient": None, "id": f"sarscov2_ct_soares/{row['name']}"})
    return {UNLABELLED: items}
