# SPDX-License-Identifier: Apache-2.0
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature

from covid_monai.analysis import analyse
from covid_monai.ct import read_ct
from covid_monai.datasets.phantom import Phantom, upright
from covid_monai.registry import SeverityModel, scan_row
from covid_monai.registry.served import COLUMNS, SIGNATURE, scan_of_array


@pytest.fixture(scope="module")
def model(tiny_cascade_bundle: Path) -> SeverityModel:
    found = SeverityModel()
    found.load_context(SimpleNamespace(artifacts={"bundle": str(tiny_cascade_bundle)}))
    return found


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_figures_are_those_of_analyse(model: SeverityModel, phantom_folder: Path):
    path = phantom_folder / "image.nii.gz"
    (row,) = model.predict(None, pd.DataFrame({"path": [str(path)]})).to_dict("records")
    analysis = analyse(read_ct(path), model.segmenter)
    whole = analysis.severity.whole
    assert list(row) == list(COLUMNS)
    assert row["scan_id"] == analysis.scan_id
    assert (row["lung_ml"], row["lesion_ml"]) == (whole.lung_ml, whole.lesion_ml)
    assert (row["ground_glass_ml"], row["consolidation_ml"]) == (whole.ground_glass_ml, whole.consolidation_ml)
    assert row["lesion_percent"] == pytest.approx(100 * whole.lesion_ml / whole.lung_ml)
    assert (row["ct_ss"], row["finding"]) == (analysis.severity.ct_ss.score, analysis.finding.result)
    assert row["weights_sha256"] == model.segmenter.facts.weights_sha256
    assert row["notice"] == "Research use only, not a medical device."


def test_an_array_gives_what_its_file_gives(model: SeverityModel, phantom: Phantom, phantom_folder: Path):
    dx, dy, dz = (float(length) for length in np.abs(np.diag(phantom.affine))[:3])
    rows = pd.DataFrame([{"path": str(phantom_folder / "image.nii.gz")}, scan_row(upright(phantom.hu), (dz, dy, dx))])
    of_file, of_array = model.predict(None, rows).to_dict("records")
    assert of_array["finding"] == of_file["finding"]
    for figure in ("lung_ml", "lesion_ml", "ct_ss", "ground_glass_ml"):
        known = of_file[figure]
        assert of_array[figure] == (None if known is None else pytest.approx(known, rel=1e-6)), figure


def test_slices_of_an_array_stand_upright():
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scan = scan_of_array(npy(hu), (5.0, 0.8, 0.7))
    np.testing.assert_array_equal(scan.upright(), hu)
    assert scan.upright_spacing == pytest.approx((5.0, 0.8, 0.7))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"path": "nothing"}, "nothing does not exist"),
        ({}, "a row is one scan: give either path, or array"),
        ({"path": "a", "array": b"b"}, "a row is one scan: give either path, or array"),
        ({"array": b"text", "dz": 1.0, "dy": 1.0, "dx": 1.0}, "array is no NumPy file"),
        ({"array": npy(np.zeros((2, 3))), "dz": 1.0, "dy": 1.0, "dx": 1.0}, r"array is float64 of shape \(2, 3\)"),
        ({"array": npy(np.full((2, 3, 4), np.nan)), "dz": 1.0, "dy": 1.0, "dx": 1.0}, "give finite HU"),
        ({"array": npy(np.zeros((2, 3, 4)))}, r"the spacing is \[0.0, 0.0, 0.0\]: give dz, dy and dx"),
        ({"array": npy(np.zeros((2, 3, 4))), "dz": -1.0, "dy": 1.0, "dx": 1.0}, "the spacing is"),
    ],
)
def test_a_bad_scan_has_its_fault_and_the_others_their_figures(
    model: SeverityModel, phantom_folder: Path, row: dict[str, Any], fault: str
):
    table = pd.DataFrame([row, {"path": str(phantom_folder / "image.nii.gz")}])
    bad, good = model.predict(None, table).to_dict("records")
    assert pd.Series([bad["error"]]).str.contains(fault).all(), bad["error"]
    assert (bad["scan_id"], bad["lesion_ml"], bad["warnings"]) == (None, None, [])
    assert good["error"] is None
    assert good["lung_ml"] > 0


def test_an_array_that_is_a_pickle_is_refused():
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="array is no NumPy file"):
        scan_of_array(file.getvalue(), (1, 1, 1))


def test_a_table_without_a_known_column_is_refused(model: SeverityModel):
    with pytest.raises(ValueError, match="no column that is known: give path, or array"):
        model.predict(None, pd.DataFrame(index=[0]))


def test_the_signature_is_typed_and_survives_json():
    assert ModelSignature.from_dict(json.loads(json.dumps(SIGNATURE.to_dict()))) == SIGNATURE
    assert SIGNATURE.inputs.input_names() == ["path", "array", "dz", "dy", "dx"]
    assert SIGNATURE.outputs.input_names() == list(COLUMNS)
