# SPDX-License-Identifier: Apache-2.0
"""Pretraining, finetuning and evaluation of each bundle, one after the other, and what they leave behind."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.entities import Run

from covid_monai.networks import weights_sha256
from covid_monai.tracking import hashed_id
from tests.bundles.bundle import CASCADE, NAMES, TINY, Bundle, is_head, same

STAGES = ("pretraining", "finetuning", "evaluating")
SCORES = {"val_mean_dice", "val_dice_ggo", "val_dice_consolidation", "val_dice_infection"}


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[[str], Bundle]) -> Bundle:
    """Either bundle after the three stages; the single network's weights are not within the bundle."""
    bundle = make_bundle(request.param)
    bundle.perform("pretraining", **TINY, **{"schedule#warm_up": 0}, val_interval=1)
    bundle.perform("finetuning", **TINY, val_interval=1)
    bundle.perform("evaluating")
    return bundle


@pytest.fixture
def runs(bundle: Bundle) -> dict[str, Run]:
    return {run.info.run_name: run for run in bundle.runs()}


def test_each_stage_is_one_finished_run(bundle: Bundle):
    runs = bundle.runs()
    assert [run.info.run_name for run in runs] == list(STAGES)
    assert [run.data.tags["stage"] for run in runs] == list(STAGES)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["data_hash"] for run in runs}) == 1


def test_parents_are_the_runs_whose_weights_were_taken(bundle: Bundle, runs: dict[str, Run]):
    assert "mlflow.parentRunId" not in runs["pretraining"].data.tags
    models = bundle.folder / "models"
    for stage, parent, weights in (
        ("finetuning", "pretraining", models / "pretraining" / "model.pt"),
        ("evaluating", "finetuning", models / "training" / "model.pt"),
    ):
        tags = runs[stage].data.tags
        assert tags["mlflow.parentRunId"] == runs[parent].info.run_id
        assert tags["started_from_run"] == runs[parent].info.run_id
        assert tags["started_from_sha256"] == weights_sha256(weights)


def test_the_coach_and_the_network_have_learnt(bundle: Bundle, runs: dict[str, Run]):
    metrics = runs["pretraining"].data.metrics
    assert {"train_coach_loss", "train_network_loss", "train_loss", "learning_rate"} <= metrics.keys()
    assert metrics["train_erased_share"] == pytest.approx(0.25)
    for name in ("val_error_random", "val_error_mean", "val_error_coach", "val_mask_overlap"):
        assert np.isfinite(metrics[name]), name
    state = bundle.checkpoint("pretraining")["state"]
    assert state["coach_optimizer"]["state"]
    assert state["optimizer"]["state"]


def test_inpainting_pictures(bundle: Bundle, runs: dict[str, Run]):
    artifacts = bundle.artifacts(runs["pretraining"])
    for epoch in (1, 2):
        pictures = {f"inpainting/epoch_{epoch:04d}_{number}.png" for number in range(4)}
        assert {f"coach_masks/epoch_{epoch:04d}.png", *pictures} <= artifacts


def test_every_case_of_the_evaluation_is_recorded(bundle: Bundle, runs: dict[str, Run]):
    cases = bundle.artifact(runs["evaluating"], "cases.json")
    expected = {hashed_id(item["id"]) for item in bundle.items("testing")}
    scores = SCORES & runs["evaluating"].data.metrics.keys()
    assert scores & cases.keys()
    for name in scores & cases.keys():
        values = cases[name]
        assert values.keys() <= expected
        assert runs["evaluating"].data.metrics[name] == pytest.approx(np.mean(list(values.values())), abs=1e-6)
    over_all = "val_dice_infection" if bundle.name == CASCADE else "val_mean_dice"
    assert cases[over_all].keys() == expected


def test_evaluation_scores(bundle: Bundle, runs: dict[str, Run]):
    metrics = runs["evaluating"].data.metrics
    wide = {"val_loss", "val_share_error"}  # a loss, and percentage points
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.startswith("val_") and name not in wide)
    expected = {"val_calibration_error", "val_brier_score", "val_volume_dice", *wide}
    if bundle.name == CASCADE:
        expected |= {"val_dice_ggo", "val_dice_ggo_all_slices", "val_dice_consolidation_all_slices"}
        expected |= {"val_volume_dice_ggo", "val_volume_dice_consolidation"}
    else:
        expected |= {f"val_{each}_over_thresholds" for each in ("dice", "sensitivity", "specificity")}
        expected |= {"val_dice_best_threshold", "val_best_threshold"}
    assert expected <= metrics.keys()
    name = "val_dice_ggo" if bundle.name == CASCADE else "val_mean_dice"
    rows = (bundle.folder / "eval" / f"{name}_raw.csv").read_text().splitlines()
    assert len(rows) == len(bundle.items("testing")) + 1


def test_evaluation_scores_patients(bundle: Bundle, runs: dict[str, Run]):
    """Phantoms have lung masks, and as many volumes as patients."""
    cases = bundle.artifact(runs["evaluating"], "cases.json")
    patients = {item["patient"] for item in bundle.items("testing")}
    for name in ("val_volume_dice", "val_share_error"):
        assert cases[name].keys() == {hashed_id(patient) for patient in patients}
        assert runs["evaluating"].data.metrics[name] == pytest.approx(np.mean(list(cases[name].values())))
    rows = (bundle.folder / "eval" / "volumes.csv").read_text().splitlines()
    assert len(rows) == len(patients) + 1


def test_guessed_classes_are_not_scored(bundle: Bundle):
    """The same slices, half of their classes said to be guessed, on another side; lungs of one patient unknown."""
    if bundle.name != CASCADE:
        pytest.skip("a test of the cascade")
    path = bundle.folder / "data" / "datalist.json"
    kept = path.read_text()
    datalist = json.loads(kept)
    sure, *guessed = sorted({item["patient"] for item in datalist["validation"]})
    for item in datalist["validation"]:
        item["class_source"] = "stated" if item["patient"] == sure else "inferred"
        if item["patient"] == sure:
            del item["lung"]
    path.write_text(json.dumps(datalist))
    try:
        bundle.perform("evaluating", side="validation", output_dir=str(bundle.folder / "other"), run_name="other")
    finally:
        path.write_text(kept)
    (run,) = [run for run in bundle.runs() if run.info.run_name == "other"]
    bundle.client.delete_run(run.info.run_id)
    cases = bundle.artifact(run, "cases.json")
    of_sure = {hashed_id(item["id"]) for item in datalist["validation"] if item["patient"] == sure}
    assert guessed
    assert cases["val_dice_ggo"].keys() <= of_sure
    assert cases["val_dice_ggo_all_slices"].keys() == cases["val_dice_consolidation_all_slices"].keys() == of_sure
    assert cases["val_dice_infection"].keys() == {hashed_id(item["id"]) for item in datalist["validation"]}
    assert cases["val_volume_dice"].keys() == {hashed_id(patient) for patient in (sure, *guessed)}
    assert cases["val_volume_dice_ggo"].keys() == {hashed_id(sure)}
    assert cases["val_share_error"].keys() == {hashed_id(patient) for patient in guessed}


def test_data_of_each_run_are_named_by_hashes(bundle: Bundle, runs: dict[str, Run]):
    used = {
        "pretraining": {"pretraining": ("unlabelled", "training"), "validation": ("validation",)},
        "finetuning": {"training": ("training",), "validation": ("validation",)},
        "evaluating": {"testing": ("testing",)},
    }
    for stage, sides in used.items():
        expected = {
            name: [hashed_id(item["id"]) for side in them for item in bundle.items(side)]
            for name, them in sides.items()
        }
        assert bundle.artifact(runs[stage], "data.json") == expected


def test_no_path_and_no_patient_is_in_the_store(bundle: Bundle, runs: dict[str, Run]):
    for run in runs.values():
        text = json.dumps([run.data.params, run.data.tags, run.inputs.to_dictionary()])
        assert str(bundle.folder) not in text
        assert str(Path.home()) not in text
    items = [item for side in ("training", "validation", "testing", "unlabelled") for item in bundle.items(side)]
    words = {item[key].encode() for item in items for key in ("id", "patient", "image")}
    store = [bundle.folder / "mlflow.db", *(bundle.folder / "mlruns").rglob("*")]
    files = [path for path in store if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert not any(word in content for word in words), path


def test_finetuning_starts_from_the_pretrained_trunk(bundle: Bundle):
    """Network, validated moving average and optimiser alike, key by key, before the first step; also in several
    processes."""
    pretrained = bundle.weights("pretraining")
    prefix = "multi." if bundle.name == CASCADE else ""
    fresh = bundle.workflow("training").parser.get_parsed_content("network").state_dict()
    parser = bundle.workflow("finetuning", **TINY, resume=False).parser
    network, evaluator = (parser.get_parsed_content(name) for name in ("network", "validate#evaluator"))
    optimizer = parser.get_parsed_content("optimizer")
    parallel = bundle.workflow("finetuning", "multi_gpu_train", rank=0, world_size=2, device="cpu").parser
    started = [network, evaluator.network, parallel.get_parsed_content("network#module")]
    for state in (each.state_dict() for each in started):
        trunk = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        assert trunk.keys() >= {key for key in pretrained if not is_head(key)}
        for key, value in trunk.items():
            if is_head(key):
                assert key not in pretrained or not torch.equal(value, pretrained[key])
            else:
                assert torch.equal(value, pretrained[key]), key
    assert any(not torch.equal(fresh[prefix + key], pretrained[key]) for key in pretrained if not is_head(key))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained >= {id(p) for p in network.parameters() if p.requires_grad}


def test_a_finetuning_that_learns_nothing_keeps_the_pretrained_parameters(bundle: Bundle, tmp_path: Path):
    overrides = {**TINY, "max_epochs": 1, "learning_rate": 0.0, "ckpt_dir": str(tmp_path), "experiment": "still"}
    workflow = bundle.perform("finetuning", **overrides, val_interval=1)
    pretrained = bundle.weights("pretraining")
    network = workflow.parser.get_parsed_content("network")
    part = network.multi if bundle.name == CASCADE else network
    kept = {key: p for key, p in part.named_parameters() if not is_head(key)}
    assert len(kept) > 20
    for key, parameter in kept.items():
        assert torch.equal(parameter, pretrained[key]), key


class TestCascade:
    @pytest.fixture
    def cascade(self, bundle: Bundle) -> Bundle:
        if bundle.name != CASCADE:
            pytest.skip("a test of the cascade")
        return bundle

    def test_single_network_is_kept_bitwise(self, cascade: Bundle, single_weights: Path):
        single = torch.load(single_weights, weights_only=True)
        for state in (cascade.weights(), cascade.checkpoint()["state"]["network"]):
            kept = {key.removeprefix("single."): value for key, value in state.items() if key.startswith("single.")}
            assert same(kept, single)

    def test_evaluation_needs_no_single_weights(self, cascade: Bundle, runs: dict[str, Run]):
        assert not (cascade.folder / "models" / "single.pt").exists()
        assert runs["evaluating"].info.status == "FINISHED"

    def test_the_single_network_is_recorded(self, cascade: Bundle, runs: dict[str, Run], single_weights: Path):
        for stage in ("pretraining", "finetuning"):
            assert runs[stage].data.tags["single_sha256"] == weights_sha256(single_weights), cascade.name
