# SPDX-License-Identifier: Apache-2.0
"""The model zoo's own checks, offline, and every stage of the bundle on synthetic data, run as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow

from covid_monai.datasets import prepare
from covid_monai.datasets.phantom import Lesions, make_phantom
from covid_monai.networks import InfNet, load_weights, save_weights
from tests.conftest import DATA

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "lung_ct_infection_segmentation"
TINY = ("--max_epochs", "2", "--samples_per_epoch", "16", "--batch_size", "4", "--size", "[64,64]")
TRAIN = ("training", "--config_file", "configs/train.yaml", *TINY)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle in a folder of its own, with phantom slices to train on."""
    folder = tmp_path_factory.mktemp("bundle") / BUNDLE.name
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("*.pt", "*.sha256", "eval", "data"))
    options = {"patients": 6, "slices": 4, "size": 96, "healthy": 0.0}
    prepare("phantom", None, folder / "data" / "datalist.json", seed=1, **options)
    return folder


def command(bundle, *words):
    """`python -m monai.bundle …` in the bundle's folder, as its README says; returns the finished process."""
    line = [sys.executable, "-m", "monai.bundle", *map(str, words)]
    return subprocess.run(line, cwd=bundle, check=False, capture_output=True, text=True, env=environment(), timeout=500)


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def run(bundle, *words):
    finished = command(bundle, "run", *words)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout + finished.stderr


def tracked_runs(bundle):
    client = MlflowClient(f"sqlite:///{bundle / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lung_ct_infection_segmentation")
    return client, client.search_runs([experiment.experiment_id], order_by=["start_time"])


def test_metadata_follows_the_schema(bundle, tmp_path):
    schema = shutil.copy(DATA / "meta_schema_20240725.json", tmp_path / "schema.json")
    finished = command(bundle, "verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", schema)
    assert finished.returncode == 0, finished.stderr
    assert "metadata is verified with no error" in finished.stdout + finished.stderr


def test_metadata_without_a_required_key_is_refused(bundle, tmp_path):
    schema = shutil.copy(DATA / "meta_schema_20240725.json", tmp_path / "schema.json")
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    del metadata["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    finished = command(bundle, "verify_metadata", "--meta_file", tmp_path / "metadata.json", "--filepath", schema)
    assert finished.returncode != 0
    assert "Failed validating" in finished.stderr


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    words = (
        "--net_id",
        "network_def",
        "--meta_file",
        "configs/metadata.json",
        "--config_file",
        "configs/inference.yaml",
    )
    finished = command(bundle, "verify_net_in_out", *words, "--n", "3")
    assert finished.returncode == 0, finished.stderr
    assert "data shape of network is verified with no error" in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("kind", "configs"),
    [
        ("train", ["train.yaml"]),
        ("train", ["train.yaml", "evaluate.yaml"]),
        ("infer", ["inference.yaml"]),
    ],
)
def test_properties(bundle, kind, configs):
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(bundle),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_config_and_training_config_describe_one_network():
    train, inference = (
        ConfigWorkflow(
            config_file=str(BUNDLE / "configs" / name),
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            workflow_type=kind,
            logging_file=False,
        ).parser
        for name, kind in (("train.yaml", "train"), ("inference.yaml", "infer"))
    )
    for key in ("network_def", "size", "batch_size", "device"):
        assert train[key] == inference[key], key


class TestStages:
    """Train, resume, evaluate, infer and export, in this order, in one bundle."""

    def test_training(self, bundle):
        output = run(bundle, *TRAIN)
        assert "training [1/2]" in output  # the progress bar
        assert (bundle / "models" / "checkpoint.pt").is_file()
        load_weights(bundle / "models" / "model.pt")
        client, (training,) = tracked_runs(bundle)
        assert training.info.status == "FINISHED"
        assert training.data.params["seed"] == "2020"
        assert {"data_hash", "git_commit", "stage", "covid_monai"} <= training.data.tags.keys()
        assert {"train_loss", "val_mean_dice", "learning_rate"} <= training.data.metrics.keys()
        assert len(client.get_metric_history(training.info.run_id, "train_loss")) == 2
        everything = json.dumps([training.data.params, training.data.tags])
        assert str(bundle) not in everything

    def test_a_longer_training_continues(self, bundle):
        output = run(bundle, *TRAIN, "--max_epochs", "3")
        assert "resuming after epoch 2" in output
        client, (training,) = tracked_runs(bundle)
        assert training.info.status == "FINISHED"
        assert [m.step for m in client.get_metric_history(training.info.run_id, "train_loss")] == [1, 2, 3]

    def test_evaluation(self, bundle):
        run(
            bundle, "evaluating", "--config_file", "['configs/train.yaml','configs/evaluate.yaml']", "--size", "[64,64]"
        )
        _, (_, evaluation) = tracked_runs(bundle)
        assert evaluation.info.status == "FINISHED"
        metrics = evaluation.data.metrics
        for key in ("val_mean_dice", "val_dice_over_thresholds", "val_sensitivity_over_thresholds"):
            assert 0 <= metrics[key] <= 1
        rows = (bundle / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()
        testing = json.loads((bundle / "data" / "datalist.json").read_text())["testing"]
        assert len(rows) == len(testing) + 1

    def test_inference_writes_masks_on_the_scans_grid(self, bundle, tmp_path):
        phantom = make_phantom(5, (96, 96, 10), lesions=Lesions(0.2))
        phantom.write_nifti(tmp_path / "made")
        scans = tmp_path / "scans"
        scans.mkdir()
        upright = nibabel.load(tmp_path / "made" / "image.nii.gz")
        nibabel.save(upright, scans / "upright.nii.gz")
        flipped = upright.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
        nibabel.save(flipped, scans / "turned.nii.gz")
        run(bundle, "inferring", "--config_file", "configs/inference.yaml", "--dataset_dir", scans, "--size", "[64,64]")
        masks = {name: nibabel.load(bundle / "eval" / f"{name}_lesions.nii.gz") for name in ("upright", "turned")}
        for name, mask in masks.items():
            scan = nibabel.load(scans / f"{name}.nii.gz")
            assert mask.shape == scan.shape
            np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
            assert set(np.unique(mask.dataobj)) <= {0, 1}
        back = nibabel.as_closest_canonical(masks["turned"])
        np.testing.assert_array_equal(
            np.asarray(back.dataobj), np.asarray(nibabel.as_closest_canonical(masks["upright"]).dataobj)
        )

    def test_inference_equals_analyse(self, bundle, tmp_path):
        from covid_monai.ct import read_ct
        from covid_monai.inference import LesionSegmenter

        make_phantom(6, (96, 96, 10)).write_nifti(tmp_path)
        scans = tmp_path / "scans"
        scans.mkdir()
        (tmp_path / "image.nii.gz").rename(scans / "scan.nii.gz")
        run(bundle, "inferring", "--config_file", "configs/inference.yaml", "--dataset_dir", scans)
        scan = read_ct(scans / "scan.nii.gz")
        mask = scan.from_upright(LesionSegmenter.from_bundle(bundle, "cpu")(scan))
        np.testing.assert_array_equal(mask, np.asarray(nibabel.load(bundle / "eval" / "scan_lesions.nii.gz").dataobj))

    def test_torchscript_export(self, bundle, tmp_path):
        words = (
            "--filepath",
            tmp_path / "model.ts",
            "--ckpt_file",
            "models/model.pt",
            "--meta_file",
            "configs/metadata.json",
        )
        finished = command(bundle, "ckpt_export", "network_def", *words, "--config_file", "configs/inference.yaml")
        assert finished.returncode == 0, finished.stderr[-3000:]
        image = torch.rand(1, 1, 64, 96)
        network = reference(bundle)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-4, rtol=1e-4)

    def test_onnx_export(self, bundle, tmp_path):
        words = (
            "--filepath",
            tmp_path / "model.onnx",
            "--ckpt_file",
            "models/model.pt",
            "--meta_file",
            "configs/metadata.json",
        )
        finished = command(bundle, "onnx_export", "network_def", *words, "--config_file", "configs/inference.yaml")
        assert finished.returncode == 0, finished.stderr[-3000:]
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        image = torch.rand(*(size if isinstance(size, int) else 64 for size in taken.shape))
        (given,) = session.run(None, {taken.name: image.numpy()})
        np.testing.assert_allclose(given, reference(bundle)(image).numpy(), atol=1e-3)


def reference(bundle):
    """The trained network, without gradients."""
    network = InfNet().eval().requires_grad_(False)
    network.load_state_dict(load_weights(bundle / "models" / "model.pt"))
    return network


def test_wrong_weights_are_refused_in_one_line(bundle, tmp_path):
    weights = tmp_path / "model.pt"
    save_weights(InfNet().state_dict(), weights)
    with weights.open("r+b") as file:
        file.seek(2000)
        file.write(b"\x00\x01\x02")
    finished = command(
        bundle, "run", "inferring", "--config_file", "configs/inference.yaml", "--weights", weights, "--datalist", "[]"
    )
    assert finished.returncode != 0
    assert "was changed: its SHA-256" in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "KILLED"), (signal.SIGTERM, "KILLED"), (signal.SIGKILL, None)]
)
def test_a_killed_training_is_closed_and_resumes(bundle, tmp_path, number, status):
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own, ignore=shutil.ignore_patterns("models", "eval", "mlflow.db", "mlruns"))
    line = [sys.executable, "-m", "monai.bundle", "run", *TRAIN, "--max_epochs", "200", "--patience", "200"]
    with subprocess.Popen(
        line, cwd=own, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (own / "models" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(60) != 0
    _, (stopped,) = tracked_runs(own)
    assert stopped.info.status == (status or "RUNNING")
    epoch = torch.load(own / "models" / "checkpoint.pt", weights_only=True)["epoch"]
    output = run(own, *TRAIN, "--max_epochs", str(epoch + 1), "--patience", "200")
    assert f"resuming after epoch {epoch}" in output
    _, (resumed,) = tracked_runs(own)
    assert resumed.info.run_id == stopped.info.run_id
    assert resumed.info.status == "FINISHED"


@pytest.mark.slow
def test_a_failing_training_is_closed_as_failed(bundle, tmp_path):
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own, ignore=shutil.ignore_patterns("models", "eval", "mlflow.db", "mlruns"))
    finished = command(own, "run", *TRAIN, "--train#trainer#loss_function", "$lambda maps, target: 1 / 0")
    assert finished.returncode != 0
    _, (failed,) = tracked_runs(own)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "ZeroDivisionError"


@pytest.mark.slow
def test_two_processes_train_as_one(bundle, tmp_path):
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own, ignore=shutil.ignore_patterns("models", "eval", "mlflow.db", "mlruns"))
    configs = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "monai.bundle",
        "run",
    ]
    line += ["training", "--config_file", configs, *TINY]
    finished = subprocess.run(
        line, cwd=own, check=False, capture_output=True, text=True, env=environment(), timeout=500
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    load_weights(own / "models" / "model.pt")
    _, runs = tracked_runs(own)
    assert [r.info.status for r in runs] == ["FINISHED"]
    # both processes hold the same network: the state was saved without DistributedDataParallel's prefix
    InfNet().load_state_dict(torch.load(own / "models" / "checkpoint.pt", weights_only=True)["state"]["network"])
