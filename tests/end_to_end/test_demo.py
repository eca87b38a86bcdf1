# SPDX-License-Identifier: Apache-2.0
"""The shipped model on a scan that it has not seen, by the command that a new user types first."""

import json
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from covid_monai.inference import default_bundle
from covid_monai.networks import weights_sha256
from covid_monai.severity import dice


@pytest.mark.slow
def test_the_demo_finds_the_lesions_of_an_unseen_phantom(tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "covid_monai.cli", "demo", "--output", str(folder)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout[-3000:] + finished.stderr[-3000:]
    masks = [nibabel.load(folder / part / "lesions.nii.gz") for part in ("results", "patient")]
    found, truth = (np.asarray(nibabel.as_closest_canonical(mask).dataobj) for mask in masks)
    for name, codes, least in (("lesions", (1, 2), 0.55), ("ground glass", (1,), 0.4), ("consolidation", (2,), 0.1)):
        printed = float(re.search(rf"{name} \(mL\) +\d+ +\d+ +([0-9.]+)", finished.stdout)[1])
        assert printed == pytest.approx(dice(np.isin(found, codes), np.isin(truth, codes)), abs=5e-4)
        assert printed > least, name
    record = json.loads((folder / "results" / "analysis.json").read_text())
    assert record["method"]["classes"] == {"1": "ground glass", "2": "consolidation"}
    assert record["method"]["model"]["weights_sha256"] == weights_sha256(default_bundle() / "models" / "model.pt")
    figures = record["severity"]["whole"]
    known = json.loads((folder / "patient" / "truth.json").read_text())
    assert figures["lung_ml"] == pytest.approx(known["lung_ml"], rel=0.1)
    assert figures["lesion_share"] == pytest.approx(known["lesion_share"], abs=0.04)
    with Image.open(folder / "results" / "overview.png") as picture:
        assert picture.width > 1000
    assert "Research use only" in finished.stdout
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
