# SPDX-License-Identifier: Apache-2.0
"""Each pretext of the bundles' pretraining, its resume, and what it learns on phantoms."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from covid_monai.datasets import prepare
from tests.bundles.bundle import TINY, Bundle, same


@pytest.fixture
def pretrain(bundle: Bundle, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], dict[str, list[float]]]]:
    """Pretrain in a folder of its own: the last state, and every metric's values, epoch by epoch."""

    def run(**overrides: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
        overrides = {**TINY, "val_interval": 1, "schedule#warm_up": 0, "run_name": tmp_path.name, **overrides}
        bundle.perform("pretraining", **overrides, pretrain_dir=str(tmp_path))
        (run,) = [each for each in bundle.runs() if each.info.run_name == tmp_path.name]
        history = {
            name: [each.value for each in bundle.client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        return torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"], history

    return run


def test_random_masks_leave_the_coach_alone(pretrain: Callable):
    state, history = pretrain(masks="random")
    assert not state["coach_optimizer"]["state"]
    assert state["optimizer"]["state"]
    assert len(history["train_network_loss"]) == len(history["val_error_random"]) == 2
    assert not {"train_coach_loss", "val_error_coach", "val_mask_overlap"} & history.keys()


def test_rotation_trains_the_encoder_and_rebuilds_nothing(bundle: Bundle, pretrain: Callable):
    state, history = pretrain(pretext="rotation")
    assert state["rotation_optimizer"]["state"]
    assert not state["optimizer"]["state"]
    assert not state["coach_optimizer"]["state"]
    assert all(0 <= value <= 1 for value in history["train_accuracy"])
    assert not [name for name in history if name.startswith("val_")]
    # what it leaves is what finetuning starts from
    wanted = bundle.workflow("pretraining").parser.get_parsed_content("network").state_dict()
    assert state["result"].keys() == wanted.keys()


@pytest.mark.slow
def test_blocks_of_steps_train_both_in_every_epoch(pretrain: Callable):
    state, history = pretrain(**{"schedule#unit": "steps", "schedule#network": 1})
    assert len(history["train_coach_loss"]) == len(history["train_network_loss"]) == 2
    assert state["coach_optimizer"]["state"]
    assert state["optimizer"]["state"]


@pytest.mark.slow
def test_blocks_of_epochs_train_one_of_both(pretrain: Callable):
    _, history = pretrain(**{"schedule#unit": "epochs", "schedule#network": 1})
    assert len(history["train_coach_loss"]) == len(history["train_network_loss"]) == 1


def test_the_erased_share_grows(pretrain: Callable):
    _, history = pretrain(keep_fraction=0.75, keep_fraction_end=0.25, max_epochs=3)
    assert history["train_erased_share"] == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("masks", ["coach", "random"])
def test_masks_erase_where_they_are_told_to(bundle: Bundle, masks: str):
    workflow = bundle.workflow("pretraining", masks=masks, mask_within="body", cell=8)
    task = workflow.parser.get_parsed_content("task")
    assert (task.random_masks.within, task.random_masks.cell) == ("body", 8)
    assert masks == "random" or task.coach.cell == 8
    default = bundle.workflow("pretraining").parser.get_parsed_content("task")
    assert (default.random_masks.within, default.random_masks.cell, default.coach.cell) == ("lungs", 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"mask_within": "slice"}, {"cell": 8}], ids=lambda other: next(iter(other)))
def test_a_checkpoint_of_other_masks_is_refused(bundle: Bundle, tmp_path: Path, pretrain: Callable, other: dict):
    pretrain(max_epochs=1)
    workflow = bundle.workflow("pretraining", pretrain_dir=str(tmp_path), **{**TINY, **other})
    workflow.initialize()
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert next(iter(other)) in str(error.value.__cause__)


def test_an_unknown_region_is_refused(bundle: Bundle):
    with pytest.raises(RuntimeError) as error:
        bundle.workflow("pretraining", mask_within="heart").parser.get_parsed_content("random_masks")
    assert "within is 'heart'; choose one of lungs, body, slice" in str(error.value.__cause__)


@pytest.mark.slow
def test_a_killed_pretraining_resumes_to_what_an_unbroken_one_gives(own_bundle: Bundle):
    """Network, coach, their optimisers and the rest of the state, bitwise; one run in the store."""
    schedule = {"schedule#warm_up": 1, "schedule#network": 1, "keep_fraction_end": 0.6, "val_interval": 2}
    settings = {**TINY, "max_epochs": 5, "samples_per_epoch": 48, **schedule}
    own_bundle.run("pretraining", **settings, pretrain_dir="models/unbroken", run_name="unbroken")
    words = own_bundle.words("pretraining", **settings)
    checkpoint = own_bundle.folder / "models" / "pretraining" / "checkpoint.pt"
    with own_bundle.begin(*words) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
    stopped = own_bundle.checkpoint("pretraining")["epoch"]
    assert stopped < 5
    _, killed = own_bundle.runs()
    assert killed.info.status == "KILLED"
    output = own_bundle.run("pretraining", **settings)
    assert f"resuming after epoch {stopped}" in output
    _, resumed = own_bundle.runs()
    assert (resumed.info.run_id, resumed.info.status) == (killed.info.run_id, "FINISHED")
    there, here = (own_bundle.checkpoint(name) for name in ("unbroken", "pretraining"))
    assert {"result", "coach", "optimizer", "coach_optimizer", "scheduler"} <= here["state"].keys()
    for name, state in there["state"].items():
        assert same(here["state"][name], state), name
    assert (here["epoch"], here["iteration"]) == (there["epoch"], there["iteration"]) == (5, 60)
    assert same(own_bundle.weights("pretraining"), own_bundle.weights("unbroken"))


@pytest.mark.slow
def test_pretraining_learns_to_rebuild_and_the_coach_to_erase(own_bundle: Bundle, tmp_path: Path):
    """On slices of patients that were not trained on; four warm-up epochs, then three blocks of the coach."""
    shares = {"validation": 0.2, "testing": 0.1, "unlabelled_share": 0.5, "healthy": 0.0}
    prepare("phantom", None, tmp_path / "datalist.json", seed=3, patients=12, slices=10, size=128, **shares)
    settings = {"size": [128, 160], "max_epochs": 16, "samples_per_epoch": 96, "batch_size": 4, "val_interval": 16}
    own_bundle.perform("pretraining", dataset_dir=str(tmp_path), **settings, **{"schedule#warm_up": 4})
    (run,) = own_bundle.runs()
    metrics = run.data.metrics
    assert metrics["val_error_random"] < 0.5 * metrics["val_error_mean"]
    assert metrics["val_error_coach"] > metrics["val_error_random"]
    assert metrics["val_mask_overlap"] < 0.7
