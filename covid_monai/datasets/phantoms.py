# SPDX-License-Identifier: Apache-2.0
"""The synthetic thorax as a data set: several patients, some of them healthy, as labelled slices."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from covid_monai.datasets.datalist import SIDES, UNLABELLED, Item, Sides, counts_of_shares, split_by_patient
from covid_monai.datasets.faults import DatasetError
from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom, upright
from covid_monai.datasets.volumes import save_item

TITLE = "synthetic thorax phantoms in HU with lesions of known volume, made here"
LICENCE = "CC0 1.0 (synthetic)"
HEIGHT = 224.0  # mm of the thorax that the slices span
THICKNESS = 6.0  # mm
LESION_FREE_SEED = 9000
LESION_FREE = ((1.5, 40.0), (3.0, 25.0), (6.0, 12.0))  # slice thickness in mm, noise in HU


def lesion_free_phantoms(count: int = len(LESION_FREE), size: int = 256) -> Iterator[Phantom]:
    """Patients without lesions, always the same ones, to count false positives in.

    Args:
        count: how many; three slice thicknesses with their noise take turns.
        size: of a slice, pixels on either side of 360 mm; there are 24, 10 mm apart.
    """
    for number in range(count):
        thickness, noise = LESION_FREE[number % len(LESION_FREE)]
        spacing = (360 / size, 360 / size, 10.0)
        yield make_phantom(LESION_FREE_SEED + number, (size, size, 24), spacing, None, noise=noise, thickness=thickness)


def read(
    source: None,
    unpack: Path,
    seed: int,
    *,
    patients: int = 12,
    slices: int = 16,
    size: int = 224,
    healthy: float = 0.25,
    validation: float = 0.2,
    testing: float = 0.2,
    unlabelled_share: float = 0.0,
) -> Sides:
    """Make phantoms and split them by patient, diseased and healthy ones each in the same shares.

    Args:
        source: none.
        unpack: where the slices go.
        seed: of everything.
        patients: how many.
        slices: of each, evenly over the height of the lungs, 6 mm thick.
        size: of a slice, pixels on either side.
        healthy: share of the patients without lesions, 0..1.
        validation: share of the patients to validate on, 0..1.
        testing: share to test on, 0..1.
        unlabelled_share: share whose slices go to the unlabelled side, 0..1, to try self-supervised training on.

    Raises:
        DatasetError: if a number is out of its range or the patients are too few for the split.
    """
    if patients < 1 or slices < 2 or size < 32 or not 0 <= healthy <= 1:
        raise DatasetError(
            f"{patients} patients, {slices} slices, size {size}, healthy {healthy}: expected at least 1, 2, 32 and 0..1"
        )
    shares = {"validation": validation, "testing": testing, UNLABELLED: unlabelled_share}
    healthy_patients = round(healthy * patients)
    for count, what in ((healthy_patients, "healthy"), (patients - healthy_patients, "diseased")):
        if count:
            counts_of_shares(count, shares, f"{what} patients (of {patients}, with healthy={healthy:g})")
    diseased: list[Item] = []
    well: list[Item] = []
    spacing = (360 / size, 360 / size, HEIGHT / slices)
    for number in range(patients):
        rng = np.random.default_rng([seed, number])
        lesions = Lesions(share=rng.uniform(0.03, 0.35), consolidation=rng.uniform(0.0, 0.5))
        is_well = number < healthy_patients
        own_seed = int(rng.integers(2**31))
        phantom = make_phantom(
            own_seed, (size, size, slices), spacing, None if is_well else lesions, thickness=THICKNESS
        )
        (well if is_well else diseased).extend(_items(phantom, f"{seed}-{number:03d}", unpack))
    parts = [split_by_patient(items, shares, seed) for items in (diseased, well) if items]
    return {side: [item for part in parts for item in part[side]] for side in SIDES}


def _items(phantom: Phantom, name: str, unpack: Path) -> list[Item]:
    """Items of one phantom."""
    planes = (upright(array) for array in (phantom.hu, phantom.lesions, phantom.lungs))
    return [
        {
            **save_item(unpack / name / f"{k + 1:03d}", image, label, "HU", lung),
            "patient": f"phantom/{name}",
            "id": f"phantom/{name}/{k + 1:03d}",
        }
        for k, (image, label, lung) in enumerate(zip(*planes, strict=True))
    ]
