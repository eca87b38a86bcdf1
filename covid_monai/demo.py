# SPDX-License-Identifier: Apache-2.0
"""The main job on a synthetic scan: analyse it with the model that is shipped, and compare with its known truth."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import nibabel
import numpy as np

from covid_monai.inference import LesionSegmenter, default_bundle
from covid_monai.severity.compare import dice

__all__ = ["run"]

CLASSES = (
    ("lesions", "lesion_ml", None),
    ("ground glass", "ground_glass_ml", 1),
    ("consolidation", "consolidation_ml", 2),
)
"""Name, key of the volume, and code in the masks."""
SEED = 2026
"""Of the phantom; those that the model may have been trained on come from another stream."""


def run(folder: Path) -> None:
    """Run the demo into an empty or new folder and print every command, where the results are, and how good they are.

    Args:
        folder: where everything goes.

    Raises:
        ValueError: when the folder is not empty, the shipped model cannot be used, or a step fails.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: remove it, or choose another folder.")
    LesionSegmenter.from_bundle(default_bundle())  # refused now rather than with half of the demo in the folder
    patient, results = folder / "patient", folder / "results"
    _step("a synthetic chest CT, as DICOM", "data", "phantom", "--output", patient, "--seed", SEED)
    _step("analyse it with the model that is shipped", "analyse", patient / "dicom", "--output", results)
    _compare(results, patient)
    print(f"\nopen the report: {results / 'report.html'}\nyour own scan:   covid-monai analyse SCAN --output DIR")


def _step(title: str, *words: object) -> None:
    """Run one command as a user would, showing it first."""
    from covid_monai.cli import main

    print(f"\n== {title}\n$ {shlex.join(['covid-monai', *map(str, words)])}", flush=True)
    if main([str(word) for word in words]):
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
