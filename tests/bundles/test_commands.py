# SPDX-License-Identifier: Apache-2.0
"""Every stage of both bundles by its command, as a user runs them: to the end, resumed, killed, failing, exported."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch

from covid_monai.datasets.phantom import make_phantom
from covid_monai.networks import load_weights
from tests.bundles.bundle import CASCADE, SINGLE, TINY, Bundle

pytestmark = pytest.mark.slow


class TestStages:
    """Pretrain, finetune, resume, evaluate, infer and export, in this order, in one bundle."""

    def test_pretraining(self, bundle: Bundle):
        output = bundle.run("pretraining", **TINY)
        assert "pretraining [1/2]" in output  # the progress bar
        assert (bundle.folder / "models" / "pretraining" / "checkpoint.pt").is_file()
        bundle.weights("pretraining")

    def test_finetuning(self, bundle: Bundle):
        bundle.run("finetuning", **TINY, label_fraction=0.5)
        bundle.weights()
        _, finetuning = bundle.runs()
        assert finetuning.info.status == "FINISHED"
        assert finetuning.data.params["seed"] == "2020"
        assert finetuning.data.params["training_slices"] == str(len(bundle.items("training")) // 2)
        assert {"data_hash", "git_commit", "stage", "covid_monai", "mlflow.parentRunId"} <= finetuning.data.tags.keys()
        assert {"train_loss", "val_mean_dice", "learning_rate"} <= finetuning.data.metrics.keys()

    def test_a_longer_finetuning_continues(self, bundle: Bundle):
        tag = {"tracked#tags#study": "coach"}
        output = bundle.run("finetuning", **{**TINY, "max_epochs": 3}, label_fraction=0.5, **tag)
        assert "resuming after epoch 2" in output
        _, finetuning = bundle.runs()
        assert finetuning.info.status == "FINISHED"
        assert finetuning.data.tags["study"] == "coach"
        history = bundle.client.get_metric_history(finetuning.info.run_id, "train_loss")
        assert [metric.step for metric in history] == [1, 2, 3]

    def test_another_training_does_not_continue_it(self, bundle: Bundle):
        finished = bundle.command(*bundle.words("finetuning", **TINY, label_fraction=0.4))
        assert finished.returncode != 0
        assert "is of another training (label_fraction differ)" in finished.stderr

    def test_evaluation(self, bundle: Bundle):
        bundle.run("evaluating")
        evaluation = bundle.runs()[-1]
        assert (evaluation.info.run_name, evaluation.info.status) == ("evaluating", "FINISHED")
        assert 0 <= evaluation.data.metrics["val_mean_dice"] <= 1
        assert "cases.json" in bundle.artifacts(evaluation)

    def test_inference(self, bundle: Bundle, tmp_path: Path):
        make_phantom(6, (64, 64, 4)).write_nifti(tmp_path / "made")
        (tmp_path / "scans").mkdir()
        scan = (tmp_path / "made" / "image.nii.gz").rename(tmp_path / "scans" / "scan.nii.gz")
        bundle.run("inferring", dataset_dir=scan.parent, weights="models/training/model.pt")
        mask = nibabel.load(bundle.folder / "eval" / "scan_lesions.nii.gz")
        assert mask.shape == nibabel.load(scan).shape

    def test_torchscript_export(self, bundle: Bundle, tmp_path: Path):
        export(bundle, "ckpt_export", tmp_path / "model.ts")
        image = torch.rand(1, 1, 64, 96)
        found = torch.jit.load(tmp_path / "model.ts")(image)
        torch.testing.assert_close(found, reference(bundle)(image), atol=1e-4, rtol=1e-4)

    def test_onnx_export(self, bundle: Bundle, tmp_path: Path):
        export(bundle, "onnx_export", tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        image = torch.rand(*(size if isinstance(size, int) else 64 for size in taken.shape))
        (given,) = session.run(None, {taken.name: image.numpy()})
        np.testing.assert_allclose(given, reference(bundle)(image).numpy(), atol=1e-3)


def export(bundle: Bundle, kind: str, file: Path) -> None:
    words = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.yaml")
    weights = "models/training/model.pt"
    finished = bundle.command(kind, "network_def", "--filepath", file, "--ckpt_file", weights, *words)
    assert finished.returncode == 0, finished.stderr[-3000:]


def reference(bundle: Bundle) -> torch.nn.Module:
    """The trained network, without gradients."""
    network = bundle.workflow("inferring").parser.get_parsed_content("network_def")
    network.load_state_dict(bundle.weights())
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "KILLED"), (signal.SIGTERM, "KILLED"), (signal.SIGKILL, "RUNNING")]
)
def test_a_killed_training_is_closed_and_resumes(make_bundle: Callable[[str], Bundle], number: int, status: str):
    own = make_bundle(SINGLE)
    long = {**TINY, "max_epochs": 200, "patience": 200}
    checkpoint = own.folder / "models" / "training" / "checkpoint.pt"
    with own.begin(*own.words("training", **long)) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(120) != 0
    (stopped,) = own.runs()
    assert stopped.info.status == status
    epoch = own.checkpoint()["epoch"]
    output = own.run("training", **{**long, "max_epochs": epoch + 1})
    assert f"resuming after epoch {epoch}" in output
    (resumed,) = own.runs()
    assert resumed.info.run_id == stopped.info.run_id
    assert resumed.info.status == "FINISHED"


def test_a_failing_training_is_closed_as_failed(make_bundle: Callable[[str], Bundle]):
    own = make_bundle(SINGLE)
    words = own.words("training", **TINY, **{"train#trainer#loss_function": "$lambda maps, target: 1 / 0"})
    assert own.command(*words).returncode != 0
    (failed,) = own.runs()
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "ZeroDivisionError"


@pytest.mark.parametrize(("accumulation_steps", "optimiser_steps"), [(1, 6), (2, 4)])
def test_gradients_of_several_batches_make_a_step(
    make_bundle: Callable[[str], Bundle], accumulation_steps: int, optimiser_steps: int
):
    own = make_bundle(SINGLE)
    own.perform("training", **{**TINY, "samples_per_epoch": 12}, accumulation_steps=accumulation_steps)
    steps = {float(state["step"]) for state in own.checkpoint()["state"]["optimizer"]["state"].values()}
    assert steps == {optimiser_steps}  # of two epochs of three batches, the last of which stands alone
    (run,) = own.runs()
    assert run.data.params["accumulation_steps"] == str(accumulation_steps)


def test_two_processes_train_as_one(own_bundle: Bundle):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    line += own_bundle.words("training", "multi_gpu_train", **TINY)
    finished = subprocess.run(
        line, cwd=own_bundle.folder, check=False, capture_output=True, text=True, env=own_bundle.environment
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert [run.info.status for run in own_bundle.runs()] == ["FINISHED"]
    # the state was saved without DistributedDataParallel's prefix
    network = own_bundle.workflow("training").parser.get_parsed_content("network")
    network.load_state_dict(own_bundle.checkpoint()["state"]["network"])
    network.load_state_dict(own_bundle.weights())
    if own_bundle.name == CASCADE:
        single = load_weights(own_bundle.single_weights)
        assert all(torch.equal(network.single.state_dict()[key], value) for key, value in single.items())
