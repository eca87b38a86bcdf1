# SPDX-License-Identifier: Apache-2.0
"""From labelled slices to the masks of an unseen scan, by the commands that a user types."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from covid_monai.severity import dice
from tests.conftest import BUNDLES

# Synthetic slices are easy: few steps at a low resolution, and no augmentation, are enough to find most lesions.
SIZE = "[96, 128]"
SETTINGS = {
    "max_epochs": 8,
    "samples_per_epoch": 64,
    "batch_size": 4,
    "val_interval": 4,
    "augmentation": False,
    "ema_momentum": 0.1,
    "learning_rate": 0.003,
    "seed": 1,
    "num_workers": 0,
}


def run(folder: Path, module: str, *words: object) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    line = [sys.executable, "-m", module, *map(str, words)]
    finished = subprocess.run(
        line, cwd=folder, check=False, capture_output=True, text=True, env=environment, timeout=500
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]


@pytest.mark.slow
def test_a_network_trained_on_synthetic_slices_finds_the_lesions_of_an_unseen_scan(tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "lung_ct_infection_segmentation" / "configs", bundle / "configs")
    inference = bundle / "configs" / "inference.yaml"
    inference.write_text(re.sub(r"(?m)^size: .*?(?=\s+#|$)", f"size: {SIZE}", inference.read_text()))
    words = ["--bundle_root", bundle, "--config_file", bundle / "configs" / "train.yaml", "--size", SIZE]
    words += ["--dataset_dir", tmp_path / "data", "--ckpt_dir", tmp_path / "training"]
    run(tmp_path, "covid_monai.cli", "data", "prepare", "phantom", "--out", "data/datalist.json")
    run(
        tmp_path, "monai.bundle", "run", "training", *words,
        *(word for key, value in SETTINGS.items() for word in (f"--{key}", value)),
    )  # fmt: skip
    run(tmp_path, "covid_monai.cli", "data", "phantom", "--output", "patient", "--seed", 2026)
    run(
        tmp_path, "covid_monai.cli", "analyse", "patient/dicom", "--output", "results", "--no-ranges",
        "--bundle", bundle, "--weights", "training/model.pt",
    )  # fmt: skip
    found, truth = (
        np.asarray(nibabel.as_closest_canonical(nibabel.load(tmp_path / part / "lesions.nii.gz")).dataobj) > 0
        for part in ("results", "patient")
    )
    assert dice(found, truth) > 0.4
