# SPDX-License-Identifier: Apache-2.0
"""What viewers get, against what ``covid-monai analyse`` writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.label.conftest import voxels
from tests.label.server import LabelServer, array_of

pytestmark = pytest.mark.slow


def test_a_viewers_masks_are_those_of_analyse(
    folder_server: LabelServer, patients: list[Path], analysed: Callable[[Path], Path]
) -> None:
    results = analysed(patients[0] / "image.nii.gz")
    truth = json.loads((results / "analysis.json").read_text())

    figures, file = folder_server.mask("lesions", "scan1")
    lesions = voxels(results / "lesions.nii.gz")
    assert lesions.any()
    np.testing.assert_array_equal(array_of(file), lesions)
    assert figures["label_names"] == {"ground glass": 1, "consolidation": 2}
    for key in ("scan_id", "severity", "spread", "finding", "warnings", "notice"):
        assert figures[key] == truth[key]
    assert figures["method"]["model"]["weights_sha256"] == truth["method"]["model"]["weights_sha256"]
    low, high = truth["spread"]["lesion_share"]
    assert figures["uncertainty"] == pytest.approx(high - low)

    _, lungs = folder_server.mask("lungs", "scan1")
    np.testing.assert_array_equal(array_of(lungs), voxels(results / "lungs.nii.gz"))
    _, lesion = folder_server.mask("lesion", "scan1")
    np.testing.assert_array_equal(array_of(lesion), lesions > 0)


def test_ohif_gets_the_same_voxels_as_nrrd(
    folder_server: LabelServer, patients: list[Path], analysed: Callable[[Path], Path]
) -> None:
    wanted = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    response = folder_server.infer("lesions", "scan1", wanted, output="image")
    assert response.ok
    lesions = voxels(analysed(patients[0] / "image.nii.gz") / "lesions.nii.gz")
    np.testing.assert_array_equal(array_of(response.content, ".nrrd"), lesions)


def test_the_app_says_what_it_offers(folder_server: LabelServer) -> None:
    info = folder_server.ask("GET", "/info/").json()
    assert list(info["models"]) == ["lesions", "lesion", "lungs"]
    assert {model["dimension"] for model in info["models"].values()} == {3}
    assert info["models"]["lesions"]["labels"] == {"ground glass": 1, "consolidation": 2}
    assert "not a medical device" in info["description"]


@pytest.mark.parametrize(
    ("model", "image", "params", "told"),
    [
        ("spleen", "scan1", {}, "there is no model 'spleen': give one of lesions, lesion, lungs"),
        ("lesions", "scan9", {}, "there is no such image"),
        ("lesions", "broken", {}, "broken.nii.gz cannot be read as NIfTI"),
        ("lesions", "scan1", {"result_extension": ".exe"}, "a mask is not written as '.exe'"),
        ("lesions", "scan1", [1, 2], "give params and info as objects of JSON"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_the_server_goes_on(
    folder_server: LabelServer, model: str, image: str, params: dict[str, str] | list[int], told: str
) -> None:
    folder = Path(folder_server.ask("GET", "/datastore/image/info", params={"image": "scan1"}).json()["path"]).parent
    (folder / "broken.nii.gz").write_bytes(b"no NIfTI")
    try:
        if image == "broken":
            while "broken" not in folder_server.ask("GET", "/datastore/?output=all").json()["objects"]:
                pass
        response = folder_server.infer(model, image, params)
        assert response.status_code == 400
        assert told in response.json()["detail"]
    finally:
        (folder / "broken.nii.gz").unlink()
    assert folder_server.infer("lungs", "scan2").ok
