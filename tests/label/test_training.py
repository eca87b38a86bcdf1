# SPDX-License-Identifier: Apache-2.0
"""Corrected labels become a model that the next inference uses."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from covid_monai.networks import load_weights, weights_sha256
from tests.conftest import BUNDLES
from tests.label.server import LabelServer, running_server

pytestmark = pytest.mark.slow

SHORT = {"max_epochs": 2, "samples_per_epoch": 8}


@pytest.fixture
def bundle(tiny_cascade_bundle: Path, tmp_path: Path) -> Path:
    """A small bundle with the papers that the registry asks for."""
    folder = shutil.copytree(tiny_cascade_bundle, tmp_path / "bundle")
    shutil.copytree(BUNDLES / "lung_ct_ggo_consolidation_segmentation" / "docs", folder / "docs")
    shutil.copy(BUNDLES / "lung_ct_ggo_consolidation_segmentation" / "LICENSE", folder)
    return folder


@pytest.fixture
def studies(patients: list[Path], tmp_path: Path) -> Path:
    """Two scans of which both are labelled, as far as files go."""
    folder = tmp_path / "scans"
    (folder / "labels" / "final").mkdir(parents=True)
    for number, patient in enumerate(patients, start=1):
        shutil.copy(patient / "image.nii.gz", folder / f"scan{number}.nii.gz")
        shutil.copy(patient / "lesions.nii.gz", folder / "labels" / "final" / f"scan{number}.nii.gz")
    return folder


@pytest.fixture
def server(studies: Path, bundle: Path, tmp_path: Path) -> Iterator[LabelServer]:
    with running_server(studies, tmp_path / "work", "--bundle", bundle) as server:
        yield server


def test_a_training_is_tracked_and_its_weights_are_used(server: LabelServer, bundle: Path) -> None:
    before = weights_sha256(bundle / "models" / "model.pt")
    figures, _ = server.mask("lesions", "scan1")
    assert figures["method"]["model"]["weights_sha256"] == before
    for settings, told in (({"max_epochs": 0}, "max_epochs is 0"), ({"samples_per_epoch": "many"}, "'many'")):
        refused = server.ask("POST", "/train/lesions?run_sync=true", json=settings)
        assert refused.status_code == 400
        assert told in refused.json()["detail"]

    assert server.ask("POST", "/train/lesions", json=SHORT).ok
    task = server.wait("train")
    assert task["status"] == "DONE", "\n".join(task["details"])
    after = weights_sha256(server.work / "model.pt")
    assert after != before
    assert load_weights(server.work / "model.pt")  # with its record
    figures, _ = server.mask("lesions", "scan1")
    assert figures["method"]["model"]["weights_sha256"] == after

    client = MlflowClient(f"sqlite:///{server.work / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [each for each in runs if each.data.tags.get("stage") == "finetuning"]
    assert run.info.status == "FINISHED"
    assert "scan1" not in str(run.to_dictionary())  # names of files may be those of patients
    (version,) = client.search_model_versions()
    assert client.get_model_version_by_alias(version.name, "challenger").version == version.version


def test_a_training_that_was_killed_goes_on(server: LabelServer, bundle: Path, studies: Path) -> None:
    """The server is killed in the middle; labels and the model in use stay, and a new server continues."""
    long = {"max_epochs": 200, "samples_per_epoch": 8}
    before = sorted(studies.rglob("*.nii.gz"))
    assert server.ask("POST", "/train/lesions", json=long).ok
    end = time.monotonic() + 300
    while not (checkpoints := list(server.work.rglob("checkpoints/checkpoint.pt"))):
        assert time.monotonic() < end
        time.sleep(0.2)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]  # they end with it
    assert sorted(studies.rglob("*.nii.gz")) == before
    assert not (server.work / "model.pt").exists()
    (checkpoint,) = checkpoints
    with running_server(studies, server.work, "--bundle", bundle) as again:
        assert again.infer("lungs", "scan1").ok
        assert again.ask("GET", "/datastore/").json()["completed"] == 2
        assert again.ask("POST", "/train/lesions", json=long).ok
        end = time.monotonic() + 300
        while "resum" not in str(status := again.ask("GET", "/train/").json()).lower() and "epoch" not in str(status):
            assert time.monotonic() < end
            time.sleep(0.5)
        assert list(again.work.rglob("checkpoints/checkpoint.pt")) == [checkpoint]
        assert again.ask("DELETE", "/train/").ok


def test_one_label_is_too_few(patients: list[Path], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(patients[0] / "image.nii.gz", tmp_path / "scans" / "scan1.nii.gz")
    with running_server(tmp_path / "scans", tmp_path / "work", "--bundle", bundle) as server:
        assert server.save("scan1", patients[0] / "lesions.nii.gz").ok
        refused = server.ask("POST", "/train/lesions?run_sync=true", json=SHORT)
        assert refused.status_code == 400
        assert "labels of two scans at the least" in refused.json()["detail"]
        assert not (tmp_path / "work" / "model.pt").exists()
