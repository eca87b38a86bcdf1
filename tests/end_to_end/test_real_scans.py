# SPDX-License-Identifier: Apache-2.0
"""Real scans through `covid-monai analyse`: geometry, lungs and files; random weights, so the lesions mean nothing."""

import json

import nibabel
import numpy as np

from covid_monai.cli import main
from covid_monai.datasets import load_datalist, prepare
from covid_monai.severity import dice, lung_mask
from covid_monai.transforms import GreyToHU


def test_a_real_dicom_series(shared_data, tiny_bundle, tmp_path):
    series = shared_data("ricord1a_000082_hu15") / "dicom"
    assert main(["analyse", str(series), "--output", str(tmp_path / "out"), "--bundle", str(tiny_bundle)]) == 0
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    mask = nibabel.load(tmp_path / "out" / "lesions.nii.gz")
    assert mask.shape == (512, 512, 15)
    np.testing.assert_allclose(mask.header.get_zooms()[2], 1.25, atol=0.01)
    assert analysis["scan"]["units"] == "HU"
    assert any("not plausible for whole adult lungs" in warning for warning in analysis["warnings"])  # 15 slices
    assert "000082" not in json.dumps(analysis)


def test_lungs_of_real_volumes_agree_with_their_reference(shared_data, tmp_path):
    """Threshold lungs, lesions of the reference united, against MedSeg's lung masks on the validation volumes."""
    prepare("medseg_radiopaedia9", shared_data("medseg_radiopaedia9"), tmp_path / "list.json")
    from covid_monai.datasets.slices import read_slice

    for volume in ("5", "8"):
        items = [i for i in load_datalist(tmp_path / "list.json")["validation"] if i["id"].split("/")[1] == volume][::3]
        line = items[0]["hu_line"]
        hu = np.stack([GreyToHU(line)(read_slice(tmp_path / i["image"]).astype(np.float32)[None])[0] for i in items])
        lungs, lesion = (np.stack([read_slice(tmp_path / item[key]) for item in items]) for key in ("lung", "label"))
        found = lung_mask(hu, (15.0, 0.7, 0.7)) | (lesion > 0)
        assert dice(found, lungs) > 0.93
