# SPDX-License-Identifier: Apache-2.0
"""What 3D Slicer asks, by MONAI Label's own client, of which Slicer's extension has a copy."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from covid_monai.networks import weights_sha256
from tests.label.conftest import voxels
from tests.label.server import LabelServer, running_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(patients: list[Path], tiny_cascade_bundle: Path, tmp_path: Path) -> Iterator[LabelServer]:
    (tmp_path / "scans").mkdir()
    for number, patient in enumerate(patients, start=1):
        shutil.copy(patient / "image.nii.gz", tmp_path / "scans" / f"scan{number}.nii.gz")
    with running_server(tmp_path / "scans", tmp_path / "work", "--bundle", tiny_cascade_bundle) as server:
        yield server


def test_slicers_client_gets_masks_saves_labels_and_trains(
    server: LabelServer, patients: list[Path], tiny_cascade_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cgi", reason="the client needs a module that Python 3.13 has no more")
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

    client = MONAILabelClient(f"{server.url}/", tmpdir=str(tmp_path), client_id="user-xyz")
    assert not client.auth_enabled()
    info = client.info()
    assert list(info["models"]) == ["lesions", "lesion", "lungs"]
    assert info["trainers"]["lesions"]["config"] == {"max_epochs": 20, "samples_per_epoch": 200}
    assert not client.train_status(check_if_running=True)

    sample = client.next_sample("first", {})
    image = sample["id"]
    assert Path(sample["path"]).name == f"{image}.nii.gz"

    mask, figures = client.infer("lesions", image, {"result_extension": ".nrrd"})
    assert mask.endswith(".nrrd")
    assert figures["label_names"] == {"ground glass": 1, "consolidation": 2}
    before = figures["method"]["model"]["weights_sha256"]
    assert before == weights_sha256(tiny_cascade_bundle / "models" / "model.pt")

    for number, patient in enumerate(patients, start=1):  # with the names of its segments, as Slicer does
        segments = [{"name": name, "idx": code} for name, code in figures["label_names"].items()]
        client.save_label(f"scan{number}", str(patient / "lesions.nii.gz"), params={"label_info": segments})
    for number, patient in enumerate(patients, start=1):
        assert set(client.datastore()["objects"][f"scan{number}"]["labels"]) >= {"final"}
        label = client.download_label(f"scan{number}", "final")
        np.testing.assert_array_equal(voxels(Path(label)), voxels(patient / "lesions.nii.gz"))
    assert client.info()["datastore"]["completed"] == 2

    client.train_start("lesions", {"max_epochs": 2, "samples_per_epoch": 8})
    while (task := client.train_status())["status"] == "SUBMITTED":  # a thread of the server starts it
        time.sleep(0.1)
    assert task["status"] == "RUNNING" and client.train_status(check_if_running=True)
    while (task := client.train_status())["status"] == "RUNNING":
        time.sleep(1)
    assert task["status"] == "DONE", "\n".join(task["details"])
    _, figures = client.infer("lesions", image, {})
    after = figures["method"]["model"]["weights_sha256"]
    assert after == weights_sha256(tmp_path / "work" / "model.pt") != before

    # what is closed is told with the server's words
    with pytest.raises(MONAILabelClientException) as refused:
        client.create_session(str(patients[0] / "image.nii.gz"))
    assert "uploading of images is not offered" in refused.value.msg
    with pytest.raises(MONAILabelClientException) as refused:
        client.next_sample("last", {})
    assert refused.value.status_code in (400, 500)
