# SPDX-License-Identifier: Apache-2.0
"""62 CT slices in HU of 41 patients with lung cancer, none with COVID-19 (TCGA-LUAD, TCGA-LUSC).

From The Cancer Imaging Archive (doi 10.7937/K9/TCIA.2016.JGNIHEP5 and 10.7937/K9/TCIA.2016.TYGKKFMQ) by way of Kaggle's
"CT Medical Images". Slices lie as they were scanned: two patients are prone (ID_0092, ID_0093) and two lie oddly
(ID_0052, ID_0056); they stay. Several have large tumours, two air in the chest wall.
"""

from pathlib import Path

from covid_monai.datasets.datalist import UNLABELLED, Item, Sides
from covid_monai.datasets.faults import LayoutError
from covid_monai.datasets.slices import read_index
from covid_monai.datasets.volumes import HU_OFFSET

TITLE = "TCGA-LUAD/LUSC: 62 CT slices in HU of 41 patients with lung cancer, unlabelled"
LICENCE = "CC BY 3.0 (TCGA-LUAD and TCGA-LUSC on TCIA, with its data usage policy)"
LAYOUT = "images/ID_NNNN.png (16-bit, HU + 1024) and index.csv"


def read(source: Path, unpack: Path, seed: int) -> Sides:
    """Take every slice that shows lung and is no duplicate, as index.csv tells, in place.

    Args:
        source: see `LAYOUT`.
        unpack: not needed.
        seed: not needed.

    Raises:
        LayoutError: if a file is missing, or the index lacks a column or the patient of a slice.
    """
    items: list[Item] = []
    for row in read_index(source / "index.csv", ("name", "patient", "has_lung", "duplicate_of"), LAYOUT):
        if row["has_lung"] != "1" or row["duplicate_of"]:
            continue
        image = source / "images" / f"{row['name']}.png"
        if not image.is_file():
            raise LayoutError(f"{image}, which index.csv names, is missing: expected {LAYOUT}")
        if not row["patient"]:
            raise LayoutError(f"{source / 'index.csv'} names no patient of {row['name']}: every slice must have one")
        items.append(
            {
                "image": str(image),
                "patient": f"tcga_lung62_hu/{row['patient']}",
                "id": f"tcga_lung62_hu/{row['name']}",
                "hu_line": [1.0, -HU_OFFSET],
            }
        )
    return {UNLABELLED: items}
