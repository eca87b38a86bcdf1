# SPDX-License-Identifier: Apache-2.0
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from covid_monai import cli
from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom
from tests.label.server import LabelServer, running_server


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two phantoms, each with ``dicom/``, ``image.nii.gz`` and its truth; only to read."""
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"patient{seed}")
        phantom: Phantom = make_phantom(seed, (96, 96, 16), lesions=Lesions(0.3, 0.3))
        phantom.write_dicom(folder / "dicom")
        phantom.write_nifti(folder)
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Folder with what ``covid-monai analyse`` writes of a scan."""
    done: dict[Path, Path] = {}

    def analyse(scan: Path) -> Path:
        if scan not in done:
            done[scan] = tmp_path_factory.mktemp("results")
            assert cli.main(["analyse", str(scan), "--output", str(done[scan])]) == 0
        return done[scan]

    return analyse


@pytest.fixture(scope="module")
def folder_server(patients: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """A server on a folder of two NIfTI files, ``scan1`` and ``scan2``."""
    folder = tmp_path_factory.mktemp("scans")
    for number, patient in enumerate(patients, start=1):
        shutil.copy(patient / "image.nii.gz", folder / f"scan{number}.nii.gz")
    with running_server(folder, tmp_path_factory.mktemp("work")) as server:
        yield server


def voxels(path: Path) -> np.ndarray:
    """Voxels (X, Y, Z) of a NIfTI file."""
    return np.asarray(nib.load(path).dataobj)
