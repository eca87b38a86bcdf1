# SPDX-License-Identifier: Apache-2.0
"""Every fourth CT slice of 3 patients of LUNA16 (from LIDC-IDRI) without nodules, 8-bit in a known lung window.

Window centre -600, width 1500: HU = -1350 + grey * 1500 / 255, in steps of 5.9 HU. Patients are known by their folder;
``source_patients.csv`` tells which of LUNA16 they are.
"""

import re
from pathlib import Path

from covid_monai.datasets.datalist import UNLABELLED, Item, Sides
from covid_monai.datasets.faults import LayoutError
from covid_monai.datasets.slices import pictures_by_stem

TITLE = "LUNA16 (LIDC-IDRI): 196 CT slices of 3 patients without nodules, known lung window, unlabelled"
LICENCE = "CC BY 4.0 (LUNA16) and CC BY 3.0 (LIDC-IDRI)"
LAYOUT = "patient1/, patient2/ and patient3/ with slices z_NNN.png (8-bit, HU = -1350 + grey * 1500 / 255)"
PATIENTS = ("patient1", "patient2", "patient3")
HU_LINE = (1500 / 255, -1350.0)


def read(source: Path, unpack: Path, seed: int) -> Sides:
    """Take every slice, in place.

    Args:
        source: see `LAYOUT`.
        unpack: not needed.
        seed: not needed.

    Raises:
        LayoutError: if the folder of a patient is missing or empty, or a slice is not named by its number.
    """
    items: list[Item] = []
    for patient in PATIENTS:
        if not (source / patient).is_dir():
            raise LayoutError(f"{source / patient} is missing: expected {LAYOUT}")
        for stem, image in pictures_by_stem(source / patient).items():
            if not re.fullmatch(r"z_\d+", stem):
                raise LayoutError(f"{image} is not named by its slice number: expected {LAYOUT}")
            items.append(
                {
                    "image": str(image),
                    "patient": f"luna16_3pat_lungwin/{patient}",
                    "id": f"luna16_3pat_lungwin/{patient}/{stem.removeprefix('z_')}",
                    "hu_line": list(HU_LINE),
                }
            )
    return {UNLABELLED: items}
