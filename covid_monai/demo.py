# SPDX-License-Identifier: Apache-2.0
"""The main job on synthetic data: train both networks on labelled slices, analyse a CT, compare with its truth."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from covid_monai.severity.compare import dice

__all__ = ["run"]

SINGLE, CASCADE = "lung_ct_infection_segmentation", "lung_ct_ggo_consolidation_segmentation"
# Synthetic slices are easy: few steps, and no augmentation, are enough to find the lesions of a phantom.
TRAINING = {
    "samples_per_epoch": 96,
    "batch_size": 4,
    "augmentation": False,
    "val_interval": 4,
    "ema_momentum": 0.1,
    "seed": 1,
}
PARTS = {"LICENSE", "configs", "docs"}
"""What is copied of the bundle: not what a training in place has left there."""
CLASSES = (
    ("lesions", "lesion_ml", None),
    ("ground glass", "ground_glass_ml", 1),
    ("consolidation", "consolidation_ml", 2),
)
"""Name, key of the volume, and code in the masks."""
UNSEEN_SEED = 2026
"""Seed of the phantom that is analysed; the training phantoms come from another stream."""


def run(bundles: Path, folder: Path) -> None:
    """Run the demo into an empty or new folder and print every command, where the results are, and how good they are.

    Single Inf-Net is trained first, then the cascade on it; pre-training is not part of the demo.

    Args:
        bundles: folder of the bundles to train; they are copied, their weights are not.
        folder: where everything goes.

    Raises:
        ValueError: when the folder is not empty, or a step fails.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: remove it, or choose another folder.")
    single, cascade = (folder / "bundles" / name for name in (SINGLE, CASCADE))
    data, patient, results = (folder / name for name in ("training", "patient", "results"))
    for own in (single, cascade):
        _copy(bundles / own.name, own)
    _step("synthetic labelled slices", "covid_monai.cli", "data", "prepare", "phantom", "--out", data / "datalist.json")
    _train("train Inf-Net on them: lesion or not", single, data, "--max_epochs", 12)
    _train(
        "train the cascade on them: ground glass or consolidation", cascade, data,
        "--single_weights", single / "models" / "model.pt", "--max_epochs", 20, "--learning_rate", 0.003,
    )  # fmt: skip
    _step(
        "a CT that it has not seen, as DICOM",
        "covid_monai.cli", "data", "phantom", "--output", patient, "--seed", UNSEEN_SEED,
    )  # fmt: skip
    _step("analyse it", "covid_monai.cli", "analyse", patient / "dicom", "--output", results, "--bundle", cascade)
    _compare(results, patient)


def _copy(bundle: Path, own: Path) -> None:
    shutil.copytree(bundle, own, ignore=lambda at, names: set(names) - PARTS if Path(at) == bundle else set())


def _train(title: str, bundle: Path, data: Path, *words: object) -> None:
    """Train a bundle in place."""
    _step(
        title,
        "monai.bundle", "run", "training",
        "--bundle_root", bundle, "--config_file", bundle / "configs" / "train.yaml", "--dataset_dir", data,
        *(word for key, value in TRAINING.items() for word in (f"--{key}", value)), *words,
        environment={"MLFLOW_TRACKING_URI": f"sqlite:///{bundle.parents[1] / 'mlflow.db'}"},
    )  # fmt: skip


def _step(title: str, module: str, *words: object, environment: dict[str, str] | None = None) -> None:
    """Run one command as a user would, showing it first."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, words)]
    print(f"\n== {title}\n$ {shlex.join(['python', '-m', module, *map(str, words)])}", flush=True)
    if subprocess.run(command, check=False, env={**os.environ, **(environment or {})}).returncode:
        raise ValueError(f"the step '{title}' failed: its message stands above.")


def _compare(results: Path, patient: Path) -> None:
    """Print the figures of the analysis beside the phantom's truth."""
    severity = json.loads((results / "analysis.json").read_text())["severity"]
    found = severity["whole"]
    truth = json.loads((patient / "truth.json").read_text())
    mask, reference = (
        np.asarray(nibabel.as_closest_canonical(nibabel.load(path / "lesions.nii.gz")).dataobj)
        for path in (results, patient)
    )
    print("\n== found, against the known truth of the phantom")
    print(f"{'':28}{'found':>10}{'truth':>10}{'Dice':>10}")
    for name, key, code in CLASSES:
        true, part = (volume != 0 if code is None else volume == code for volume in (reference, mask))
        print(f"{name + ' (mL)':28}{found[key]:10.0f}{truth[key]:10.0f}{dice(part, true):10.3f}")
    print(f"{'lungs (mL)':28}{found['lung_ml']:10.0f}{truth['lung_ml']:10.0f}")
    print(f"{'lesion share of the lungs':28}{100 * found['lesion_share']:9.1f}%{100 * truth['lesion_share']:9.1f}%")
    print(f"CT severity score: {severity['ct_ss']['score']} of {severity['ct_ss']['maximum']} (approximate regions)")
    print(f"\nreport:   {results / 'report.html'}\nresults:  {results}\ntraining: {results.parent / 'bundles'}")
