# SPDX-License-Identifier: Apache-2.0
"""Real scans through `covid-monai analyse`: geometry, lungs and files; random weights, so the lesions mean nothing."""

import json

import nibabel
import numpy as np

from covid_monai.cli import main


def test_a_real_dicom_series(shared_data, tiny_bundle, tmp_path):
    series = shared_data("ricord1a_000082_hu15") / "dicom"
    assert main(["analyse", str(series), "--output", str(tmp_path / "out"), "--bundle", str(tiny_bundle)]) == 0
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    mask = nibabel.load(tmp_path / "out" / "lesions.nii.gz")
    assert mask.shape == (512, 512, 15)
    np.testing.assert_allclose(mask.header.get_zooms()[2], 1.25, atol=0.01)
    assert analysis["scan"]["units"] == "HU"
    assert any("end of the scan cuts" in warning for warning in analysis["warnings"])  # 15 slices
    assert analysis["severity"]["ct_ss"]["score"] is None
    assert "000082" not in json.dumps(analysis)
