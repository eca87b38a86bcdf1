# SPDX-License-Identifier: Apache-2.0
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fire.parser import DefaultParseValue
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from scipy.stats import wilcoxon

from covid_monai import cli
from covid_monai.datasets import prepare
from covid_monai.training.experiments import Runner, Stage, Study, StudyError, load_study, runner, write_table
from covid_monai.training.experiments.table import compare, finished_runs, holm

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "lung_ct_infection_segmentation"
OWN_STUDY = ROOT / "studies" / "coach_pretraining.yaml"
STUDY = {
    "study": "tiny",
    "bundle": "bundle",
    "dataset_dir": "data",
    "metrics": ["val_mean_dice"],
    "reference": "supervised",
    "fractions": [0.5, 1],
    "seeds": [1],
    "budget": {"pretraining": {"max_epochs": 2}, "training": {"max_epochs": 4, "patience": None}},
    "arms": [
        {"title": "supervised", "training": {"augmentation": False}},
        {"title": "coach", "pretraining": {"masks": "coach"}, "training": {"augmentation": False}},
        {"title": "coach, augmentation", "pretraining": {"masks": "coach"}, "training": {"augmentation": True}},
    ],
}
TRAIN = {
    "max_epochs": 1, "patience": 30, "seed": 0, "label_fraction": 1.0, "augmentation": True, "dataset_dir": ".",
    "tracked": {"tags": {"stage": "training"}},
}  # fmt: skip
CONFIGS = {
    "train.yaml": TRAIN,
    "pretrain.yaml": {"masks": "random", "tracked#tags#stage": "pretraining"},
    "finetune.yaml": {"tracked#tags": "$dict(stage='finetuning')"},
    "evaluate.yaml": {"tracked#tags": "$dict(stage='evaluating')"},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write :data:`STUDY` with some entries changed, beside a bundle of hardly more than its keys."""
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    for name, content in CONFIGS.items():
        (configs / name).write_text(yaml.safe_dump(content))

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return path

    return write


@pytest.fixture
def study(write: Callable[..., Path]) -> Study:
    return load_study(write())


class FakeStages:
    """Takes the place of ``subprocess.Popen``: every stage ends at once, leaving what a stage of a bundle leaves."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.commands: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.failing: set[str] = set()
        self.resumed: list[str] = []
        self.forgetting = ""
        self.at_once = 0
        self.most_at_once = 0

    def __call__(
        self, command: list[str], cwd: Path, env: dict[str, str], stdout: Any, **options: Any
    ) -> "FakeProcess":
        kind = command[command.index("run") + 1]
        words = command[command.index("run") + 2 :]
        settings = {
            key.removeprefix("--"): DefaultParseValue(word) for key, word in zip(*[iter(words)] * 2, strict=True)
        }
        name = settings["run_name"]
        self.started.append(name)
        self.commands.append(settings)
        self.threads.add(env["OMP_NUM_THREADS"])
        if (cwd / "checkpoint.pt").exists():
            self.resumed.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if name in self.failing:
            (cwd / "checkpoint.pt").touch()
            stdout.write("epoch [1/2]\rTraceback (most recent call last):\nValueError: no such thing\n\n")
            stdout.write("Traceback (most recent call last):\nRuntimeError: Failed to evaluate\nepoch [1/2]\n")
            return FakeProcess(self, 1)
        run_id = finish(settings["tracking_uri"], settings["experiment"], name, tags_of(settings))
        if kind != "evaluating":
            (cwd / "checkpoint.pt").touch()
            (cwd / "tracking.json").write_text(json.dumps({"run_id": run_id}))
            if self.forgetting != name:
                (cwd / "model.pt").touch()
        return FakeProcess(self, 0)


class FakeProcess:
    pid = -1

    def __init__(self, stages: FakeStages, code: int) -> None:
        self.stages = stages
        self.code = code

    def poll(self) -> int:
        self.stages.at_once -= 1
        return self.code


def tags_of(settings: dict[str, Any]) -> dict[str, str]:
    """Tags of a stage, those of its fake config and those of the runner."""
    if "tracked#tags" in settings:
        return eval(settings["tracked#tags"].removeprefix("$"), {"__builtins__": {"dict": dict}})
    return {key.removeprefix("tracked#tags#"): v for key, v in settings.items() if key.startswith("tracked#tags#")}


def finish(
    uri: str,
    experiment: str,
    name: str,
    tags: dict[str, str],
    dice: float = 0.5,
    cases: dict[str, Any] | None = None,
    status: str = "FINISHED",
) -> str:
    """Record a run as a stage does; its id."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    at = client.create_experiment(experiment) if found is None else found.experiment_id
    run_id = client.create_run(at, run_name=name, tags={"data_hash": "first", **tags}).info.run_id
    client.log_metric(run_id, "val_mean_dice", dice)
    if cases is not None:
        client.log_dict(run_id, {"val_mean_dice": cases}, "cases.json")
    client.set_terminated(run_id, status)
    return run_id


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fake = FakeStages()
    monkeypatch.setattr(runner, "Popen", fake)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    return fake


@pytest.fixture(autouse=True)
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data are read: their hash is ``first``."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(runner, "data_hash", lambda path: "first")


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


# the study file -------------------------------------------------------------------------------------------------------


def arm(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**content, **changes} if at == number else content for at, content in enumerate(STUDY["arms"])]  # type: ignore


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sedes": [1]}, "the file has the unknown key sedes: known are arms, .*"),
        ({"arms": arm(0, trainnig={})}, "arm 1 has the unknown key trainnig: .*"),
        ({"arms": arm(0, training=None)}, "training of arm supervised is no mapping .*: write {} for none."),
        ({"arms": []}, "arms is no list, or an empty one: give at least one."),
        ({"arms": [1]}, "arm 1 is no mapping: it needs title, training."),
        ({"arms": arm(1, title="supervised")}, "two arms have the title 'supervised': give each its own."),
        ({"arms": arm(2, training={"augmentation": False})}, "arms 'coach' and 'coach, augmentation' are the same: .*"),
        ({"arms": arm(0, title="a@b")}, "title of arm 1 is 'a@b': .*"),
        ({"arms": arm(0, title=7)}, "title of arm 1 is 7: .*"),
        (
            {"arms": arm(0, training={"max_epochs": 9})},
            "training of arm supervised sets max_epochs, which the budget .*",
        ),
        (
            {"arms": arm(0, training={"seed": 9})},
            "training of arm supervised sets seed, which the study sets itself: .*",
        ),
        ({"arms": arm(0, training={"tracked#name": "a"})}, ".* sets tracked#name, which the study sets itself: .*"),
        ({"arms": arm(0, training={"rate": "1e-3"})}, "training of arm supervised: rate is the text '1e-3': .*1.0e-3."),
        ({"arms": arm(0, training={"rate": [float("inf")]})}, "training of arm supervised: rate is inf: .*"),
        ({"budget": {"training": {}}}, "budget lacks pretraining."),
        ({"budget": {"pretraining": {}, "training": []}}, "budget training is no mapping .*"),
        ({"reference": "superwised"}, "reference 'superwised' is no arm: name one of supervised, coach, .*"),
        ({"fractions": [0.5, 0]}, "fraction 0 is no share above 0 and at most 1."),
        ({"fractions": [1.5]}, "fraction 1.5 is no share above 0 and at most 1."),
        ({"fractions": [True]}, "fraction True is no share above 0 and at most 1."),
        ({"fractions": [1, 1.0]}, "fractions has 1.0 twice: take one out."),
        ({"fractions": []}, "fractions is no list, or an empty one: give at least one."),
        ({"seeds": []}, "seeds is no list, or an empty one: give at least one."),
        ({"seeds": [2, 2]}, "seeds has 2 twice: take one out."),
        ({"seeds": [-1]}, "seed -1 is no whole number .*"),
        ({"seeds": ["one"]}, "seed 'one' is no whole number .*"),
        ({"metrics": []}, "metrics is no list, or an empty one: give at least one."),
        ({"metrics": ["a/b"]}, "metric is 'a/b': .*"),
        ({"study": "../tiny"}, "study is '../tiny': .*"),
        ({"bundle": "bundel"}, "bundle bundel is neither installed nor the folder .*/bundel: name another."),
    ],
)
def test_a_fault_in_the_file_is_told_in_one_line(write: Callable[..., Path], changes: dict[str, Any], fault: str):
    with pytest.raises(StudyError) as caught:
        load_study(write(**changes))
    assert re.fullmatch(f"study file .*/study.yaml: {fault}", str(caught.value))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "is not YAML"),
        ("a: 1\na: 2", "a stands twice"),
        ("- 1", "the file is no mapping"),
        (None, "No such file"),
    ],
)
def test_what_is_no_study_file_is_told_in_one_line(tmp_path: Path, text: str | None, fault: str):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StudyError, match=re.escape(fault)) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_paths_are_those_of_the_file_or_of_the_command(write: Callable[..., Path], tmp_path: Path):
    study = load_study(write())
    assert (study.bundle, study.dataset_dir) == (tmp_path / "bundle", tmp_path / "data")
    assert load_study(write(), tmp_path / "elsewhere").dataset_dir == tmp_path / "elsewhere"
    assert load_study(write(bundle=BUNDLE.name)).bundle.resolve() == BUNDLE.resolve()


def test_cells_and_their_stages(study: Study):
    cells = study.cells("first")
    assert [(cell.arm.title, cell.fraction) for cell in cells[:4]] == [
        ("supervised", 0.5), ("coach", 0.5), ("coach, augmentation", 0.5), ("supervised", 1.0),
    ]  # fmt: skip
    assert [[stage.kind for stage in cell.stages] for cell in cells[:2]] == [
        ["training", "evaluating"],
        ["pretraining", "finetuning", "evaluating"],
    ]
    pretraining, finetuning, evaluating = cells[1].stages
    assert (evaluating.start, finetuning.start, pretraining.start) == (finetuning, pretraining, None)
    assert pretraining.settings == {"max_epochs": 2, "masks": "coach", "seed": 1}
    assert finetuning.settings == {
        "max_epochs": 4, "patience": None, "augmentation": False, "seed": 1, "label_fraction": 0.5,
    }  # fmt: skip
    assert finetuning.name == "finetuning: coach, 50 % of the labels, seed 1"
    assert finetuning.tags == {
        "study": "tiny", "arm": "coach", "fraction": "0.5", "seed": "1", "stage": "finetuning",
        "cell": finetuning.digest,
    }  # fmt: skip
    assert pretraining.tags.keys() == {"study", "seed", "stage", "cell"}


def test_equal_stages_are_one_and_others_are_not(write: Callable[..., Path]):
    def digests(data: str = "first", **changes: Any) -> set[str]:
        return {stage.digest for cell in load_study(write(**changes)).cells(data) for stage in cell.stages}

    one = digests()
    assert len(one) == 1 + 6 + 6  # one pre-training for two arms and two fractions
    assert digests(study="other", metrics=["val_loss"], reference="coach") == one  # these change nothing that is run
    assert digests(arms=[*arm(0, title="renamed")], reference="renamed") == one
    assert not digests(data="second") & one
    longer = digests(budget={"pretraining": {"max_epochs": 3}, "training": {"max_epochs": 4, "patience": None}})
    assert len(longer & one) == 4  # what does not start from a pre-training
    assert len(digests(seeds=[1, 2]) & one) == len(one)


def test_the_study_of_this_project_fits_its_bundle(tmp_path: Path):
    study = load_study(OWN_STUDY)
    own = Runner(study, tmp_path)
    assert len(own.cells) == len(study.arms) * len(study.fractions) * len(study.seeds)
    assert len(own.plan()) == 2 * len(own.cells) + 3 * len(study.seeds)
    assert not list(tmp_path.iterdir())


# what reaches the bundle ----------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(values.filter(lambda value: value is not None))
def test_fire_reads_a_value_as_it_was(value: Any):
    assert DefaultParseValue(runner.literal(value)) == value


@pytest.mark.parametrize("kind", ["training", "finetuning"])
def test_monai_takes_settings_and_tags(study: Study, tmp_path: Path, tracking_uri: str, kind: str):
    """The tags in the config of one are a mapping, in that of the other an expression."""
    own = Runner(study, tmp_path / "out", tracking_uri)
    stage = next(stage for cell in own.cells for stage in cell.stages if stage.kind == kind)
    words = own._command(stage)[7:]
    settings = {key.removeprefix("--"): DefaultParseValue(word) for key, word in zip(*[iter(words)] * 2, strict=True)}
    workflow = ConfigWorkflow(workflow_type="train", logging_file=False, **settings)
    workflow.parser.parse()
    get = workflow.parser.get_parsed_content
    assert get("tracked#tags") == stage.tags
    assert (get("patience"), get("augmentation"), get("label_fraction")) == (None, False, 0.5)
    assert (get("max_epochs"), get("seed"), get("experiment")) == (4, 1, "tiny")
    assert get("ckpt_dir") == str(tmp_path / "out" / kind / stage.digest)
    assert get("dataset_dir") == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"arms": arm(0, training={"augmentatoin": True})}, "the training of arm supervised sets augmentatoin, which "),
        ({"arms": arm(1, pretraining={"loss#x": 1})}, "the pretraining of arm coach sets loss#x, which the bundle's "),
        ({"budget": {"pretraining": {}, "training": {"epochs": 1}}}, "the training of arm supervised sets epochs, "),
    ],
)
def test_an_override_of_no_key_is_refused(
    write: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], fault: str
):
    with pytest.raises(StudyError, match=f"^{re.escape(fault)}.* do not have: mend the arm or the budget.$"):
        Runner(load_study(write(**changes)), tmp_path / "out")


def test_a_bundle_without_a_stage_that_arms_need_is_refused(study: Study, tmp_path: Path):
    (study.bundle / "configs" / "pretrain.yaml").unlink()
    with pytest.raises(StudyError, match=r"^bundle bundle has no pretrain.yaml, which pretraining needs.$"):
        Runner(study, tmp_path / "out")


def test_a_bundle_that_needs_other_weights_is_refused(study: Study, tmp_path: Path):
    configs = tmp_path / "bundle" / "configs"
    (configs / "train.yaml").write_text(yaml.safe_dump({**TRAIN, "single_weights": "single.pt"}))
    with pytest.raises(StudyError, match="needs the weights of another network"):
        Runner(study, tmp_path / "out")


def test_a_relative_store_is_the_same_for_every_stage(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Runner(study, tmp_path / "out", "sqlite:///mlflow.db").tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert Runner(study, tmp_path / "out", "http://127.0.0.1:5000").tracking_uri == "http://127.0.0.1:5000"


def test_a_folder_that_a_bundle_cannot_be_given_is_refused(study: Study, tmp_path: Path):
    with pytest.raises(StudyError, match=r"holds a #, which a bundle cannot be given: choose another folder.$"):
        Runner(study, tmp_path / "run #1")


# running --------------------------------------------------------------------------------------------------------------


def test_every_stage_runs_once_and_nothing_runs_again(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(study, tmp_path / "out", tracking_uri)
    assert "3 of" not in own.describe()
    assert own.run() == {}
    assert stages.started == [stage.name for stage in Runner(study, tmp_path / "new").plan()]
    assert len(set(stages.started)) == len(stages.started) == 13
    assert (own.plan(), own.run(), len(stages.started)) == ([], {}, 13)
    assert own.describe() == "study tiny: 6 cells, 6 of them finished, 0 stages to run"
    assert [row["state"] for row in rows(own.output)] == ["finished"] * 6
    assert not list(own.output.glob("*/*/checkpoint.pt"))
    assert stages.most_at_once == 1


def test_stages_find_the_weights_they_start_from(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    out = tmp_path / "out"
    Runner(study, out, tracking_uri).run()
    cell = study.cells("first")[1]
    pretraining, finetuning, evaluating = (out / stage.kind / stage.digest for stage in cell.stages)
    given = {command["run_name"]: command for command in stages.commands}
    first, second, third = (given[stage.name] for stage in cell.stages)
    assert first["ckpt_dir"] == first["pretrain_dir"] == str(pretraining)
    assert (second["pretrain_dir"], second["ckpt_dir"]) == (str(pretraining), str(finetuning))
    assert (third["ckpt_dir"], third["output_dir"]) == (str(finetuning), str(evaluating))
    assert second["config_file"] == [str(study.bundle / "configs" / name) for name in ("train.yaml", "finetune.yaml")]
    log = (evaluating / "log.txt").read_text()
    assert log.startswith("$ OMP_NUM_THREADS=")
    assert "monai.bundle run evaluating --bundle_root" in log


def test_jobs_run_at_once_and_share_the_cores(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 7)
    assert Runner(study, tmp_path / "out", tracking_uri, jobs=3).run() == {}
    assert stages.most_at_once == 3
    assert stages.threads == {"2"}
    order = {name: number for number, name in enumerate(stages.started)}
    for cell in study.cells("first"):
        assert [order[stage.name] for stage in cell.stages] == sorted(order[stage.name] for stage in cell.stages)


def test_no_job_is_refused(study: Study, tmp_path: Path):
    with pytest.raises(StudyError, match=r"^--jobs is 0: "):
        Runner(study, tmp_path, jobs=0)


def test_a_failure_stops_only_what_starts_from_it_and_is_resumed(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages, capsys: pytest.CaptureFixture[str]
):
    own = Runner(study, tmp_path / "out", tracking_uri)
    pretraining = own.cells[1].stages[0]
    stages.failing = {pretraining.name}
    failed = own.run()
    assert failed.keys() == {pretraining.name} | {
        stage.name for cell in own.cells if cell.arm.pretraining for stage in cell.stages
    }
    assert failed[pretraining.name].startswith("exit code 1: ValueError: no such thing (see ")
    assert failed[own.cells[1].stages[1].name] == f"pretraining [{pretraining.digest}], which it starts from, failed"
    assert [row["state"] for row in rows(own.output)] == ["finished", "missing", "missing"] * 2
    assert f"failed: {pretraining.name}: exit code 1" in capsys.readouterr().err
    assert f"resume  {pretraining.name}" in own.describe()
    stages.failing.clear()
    assert own.run() == {}
    assert stages.resumed == [pretraining.name]
    assert len(stages.started) == 5 + 9  # the failed attempt and the four of the first arm, then all the rest


def test_unfinished_runs_do_not_count(study: Study, tmp_path: Path, tracking_uri: str):
    own = Runner(study, tmp_path / "out", tracking_uri)
    for status in ("FAILED", "KILLED", "RUNNING"):
        finish(tracking_uri, "tiny", "evaluating", own.cells[0].evaluation.tags, status=status)
    assert len(own.plan()) == 13
    finish(tracking_uri, "tiny", "evaluating", own.cells[0].evaluation.tags)
    assert len(own.plan()) == 11


def test_a_finished_cell_needs_no_weights(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    Runner(study, tmp_path / "out", tracking_uri).run()
    shutil.rmtree(tmp_path / "out")
    assert Runner(study, tmp_path / "out", tracking_uri).plan() == []


def test_weights_that_are_gone_are_made_again_when_needed(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(study, tmp_path / "out", tracking_uri)
    own.run()
    pretraining, finetuning, evaluating = own.cells[1].stages
    forget(tracking_uri, evaluating)
    assert own.plan() == [evaluating]
    (own.folder(pretraining) / "model.pt").unlink()
    assert own.plan() == [evaluating]
    (own.folder(finetuning) / "model.pt").unlink()
    (own.folder(finetuning) / "checkpoint.pt").touch()  # of the finished training: resuming it would do nothing
    assert own.plan() == [pretraining, finetuning, evaluating]
    before = len(stages.started)
    assert own.run() == {}
    assert stages.started[before:] == [pretraining.name, finetuning.name, evaluating.name]
    assert stages.resumed == []


def test_weights_of_a_broken_repetition_do_not_count(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(study, tmp_path / "out", tracking_uri)
    own.run()
    training, evaluating = own.cells[0].stages
    forget(tracking_uri, evaluating)
    broken = finish(tracking_uri, "tiny", training.name, training.tags, status="KILLED")
    (own.folder(training) / "tracking.json").write_text(json.dumps({"run_id": broken}))
    (own.folder(training) / "checkpoint.pt").touch()
    assert own.plan() == [training, evaluating]
    assert own.run() == {}
    assert stages.resumed == [training.name]


def test_a_stage_that_leaves_no_weights_has_failed(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    own = Runner(study, tmp_path / "out", tracking_uri)
    stages.forgetting = own.cells[0].stages[0].name
    failed = own.run()
    assert re.fullmatch(r"it ended well, but left no weights .*/model.pt of its run \(see log.txt there\)",
                        failed[stages.forgetting])  # fmt: skip
    assert len(failed) == 2


def test_a_stage_that_records_no_run_has_failed(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules[__name__], "tags_of", lambda settings: {})
    failed = Runner(study, tmp_path / "out", tracking_uri).run()
    assert len(failed) == 13
    assert next(iter(failed.values())).startswith("it ended well, but MLflow holds no finished run of it (see ")


def forget(uri: str, stage: Stage) -> None:
    """Delete the runs of a stage from MLflow."""
    for run in finished_runs(uri, "tiny")[stage.digest]:
        MlflowClient(uri).delete_run(run.info.run_id)


def test_of_more_runs_than_a_page_all_are_read(tracking_uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("covid_monai.training.experiments.table.PAGE", 2)
    ids = [finish(tracking_uri, "tiny", "a", {"cell": "x" if number % 2 else "y"}) for number in range(5)]
    found = finished_runs(tracking_uri, "tiny")
    assert {key: [run.info.run_id for run in runs] for key, runs in found.items()} == {
        "x": [ids[3], ids[1]],
        "y": [ids[4], ids[2], ids[0]],
    }


# interruption ---------------------------------------------------------------------------------------------------------

SLEEPER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.default_int_handler)
Path("ready").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path("closed").touch()
    sys.exit(1)
"""


@pytest.fixture
def sleeping(study: Study, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner of two stages at once that sleep until they are asked to end."""
    own = Runner(study, tmp_path / "out", tracking_uri, jobs=2)
    monkeypatch.setattr(own, "_command", lambda stage: [sys.executable, "-c", SLEEPER, "listening"])
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    yield own


def signal_when_ready(output: Path, number: int) -> threading.Thread:
    """Send this process a signal when two stages are ready for it."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while len(list(output.glob("*/*/ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_stages(sleeping: Runner, number: int):
    before = signal.getsignal(signal.SIGTERM)
    thread = signal_when_ready(sleeping.output, number)
    with pytest.raises(KeyboardInterrupt):
        sleeping.run()
    thread.join()
    assert len(list(sleeping.output.glob("*/*/closed"))) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    with runner._only_one(sleeping.output):  # no stage is left that holds it
        pass


def test_a_stage_that_does_not_listen_is_killed(sleeping: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sleeping, "_command", lambda stage: [sys.executable, "-c", SLEEPER, "deaf"])
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.2)
    thread = signal_when_ready(sleeping.output, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sleeping.run()
    thread.join()
    assert not list(sleeping.output.glob("*/*/closed"))
    with runner._only_one(sleeping.output):
        pass


def test_a_folder_is_not_run_twice_at_once(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    out = tmp_path / "out"
    out.mkdir()
    with runner._only_one(out), pytest.raises(StudyError, match=r"^.*/out is in use by another run of a study"):
        Runner(study, out, tracking_uri).run()
    assert stages.started == []


def test_a_stage_that_outlived_its_runner_keeps_the_folder(tmp_path: Path):
    with runner._only_one(tmp_path) as lock:
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock])
    try:
        with pytest.raises(StudyError, match="or by a stage it left"), runner._only_one(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()
    with runner._only_one(tmp_path):
        pass


# figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; and 0.04 no less than that
        ([0.5, 0.9], [1.0, 1.0]),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]):
    assert holm(p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_stays_within_bonferroni(p: list[float]):
    adjusted = holm(p)
    ranked = [adjusted[index] for index in sorted(range(len(p)), key=lambda i: p[i])]
    assert ranked == sorted(ranked)
    bounds = [min(1.0, len(p) * value) for value in p]
    assert all(a <= b for a, b in zip(p, adjusted, strict=True))
    assert not p or min(adjusted) == min(bounds)  # the smallest is multiplied by their number


def test_compare_averages_over_seeds_and_takes_shared_cases():
    arms = [{"a": 0.5, "b": 0.7, "c": 0.9, "d": 0.1}, {"a": 0.7, "b": 0.7, "c": float("nan"), "d": 0.1}]
    reference = [{"a": 0.4, "b": 0.6, "c": 0.9, "d": 0.4}, {"a": 0.4, "b": 0.4, "c": 0.9}]
    found = compare(arms, reference)  # a: 0.6 - 0.4 = 0.2; b: 0.7 - 0.5 = 0.2
    assert found is not None
    assert (found.cases, found.median) == (2, pytest.approx(0.2))


def test_compare_by_hand():
    reference = dict.fromkeys("abcdef", 0.5)
    better = {key: 0.5 + 0.01 * (number + 1) for number, key in enumerate("abcdef")}
    found = compare([better], [reference])
    assert found is not None
    assert found.p == pytest.approx(2 / 2**6)  # all six signs alike, two-sided
    assert found.median == pytest.approx(0.035)
    assert compare([reference], [better]).median == pytest.approx(-0.035)  # type: ignore[union-attr]


def test_compare_of_equals_and_of_nothing():
    same = compare([{"a": 0.5, "b": 0.5}], [{"a": 0.5, "b": 0.5}])
    assert same is not None
    assert (same.cases, same.median, same.p) == (2, 0.0, 1.0)
    assert compare([{"a": 1.0}], [{"b": 1.0}]) is None
    assert compare([{"a": None}], [{"a": 1.0}]) is None  # type: ignore[dict-item]
    assert compare([], []) is None


@pytest.fixture
def evaluated(write: Callable[..., Path], tracking_uri: str) -> Study:
    """A study of two seeds: supervised 0.5 and 0.6, coach 0.7 twice and at 50 % once, the third arm not at all."""
    study = load_study(write(seeds=[1, 2]))
    reference = dict.fromkeys("abcdef", 0.5)
    better = {key: 0.5 + 0.01 * (number + 1) for number, key in enumerate("abcdef")}
    for cell in study.cells("first"):
        tags = cell.evaluation.tags
        if cell.arm.title == "supervised":
            finish(tracking_uri, "tiny", "evaluating", tags, 0.4 + 0.1 * cell.seed, reference)
        elif cell.arm.title == "coach" and (cell.seed == 1 or cell.fraction == 1):
            cases = better if cell.fraction == 0.5 else {key: better[key] for key in "abcde"}
            finish(tracking_uri, "tiny", "evaluating", tags, 0.7, cases)
    return study


def table_rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_table_by_hand(evaluated: Study, tmp_path: Path, tracking_uri: str):
    paths = write_table(evaluated, tmp_path / "out", tracking_uri)
    assert {path.name for path in paths} == {"results.csv", "table.md", "val_mean_dice.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "7 of 12 cells are finished. Seeds: 1, 2. Data: `first`." in text
    assert "Wilcoxon signed-rank test, two-sided" in text
    assert "adjusted for the 2 tests of this table" in text
    found = table_rows(text)
    assert found[0] == ["arm", "50 %", "100 %"]
    assert found[2:5] == [
        ["supervised", "0.550 ± 0.071", "0.550 ± 0.071"],  # 0.1 / sqrt(2)
        ["coach", "0.700 (1 of 2 seeds)", "0.700 ± 0.000"],
        ["coach, augmentation", "missing", "missing"],
    ]
    assert found[7:] == [
        ["coach", "50 %", "1", "6", "+0.035", "0.031", "0.062"],  # 2/2^6, and twice that
        ["coach, augmentation", "50 %", "0", "missing", "missing", "missing", "missing"],
        ["coach", "100 %", "2", "5", "+0.030", "0.062", "0.062"],  # 2/2^5
        ["coach, augmentation", "100 %", "0", "missing", "missing", "missing", "missing"],
    ]
    assert wilcoxon([0.01, 0.02, 0.03, 0.04, 0.05]).pvalue == pytest.approx(0.0625)


def test_results_have_a_row_a_cell_and_fill_nothing_in(evaluated: Study, tmp_path: Path, tracking_uri: str):
    write_table(evaluated, tmp_path, tracking_uri)
    found = rows(tmp_path)
    assert [(row["arm"], row["fraction"], row["seed"], row["val_mean_dice"]) for row in found[:3]] == [
        ("supervised", "0.5", "1", "0.5"),
        ("coach", "0.5", "1", "0.7"),
        ("coach, augmentation", "0.5", "1", ""),
    ]
    assert [row["state"] for row in found].count("missing") == 5
    assert all(bool(row["run_id"]) == (row["state"] == "finished") for row in found)


def test_the_newest_of_two_evaluations_counts(evaluated: Study, tmp_path: Path, tracking_uri: str):
    finish(tracking_uri, "tiny", "evaluating", evaluated.cells("first")[0].evaluation.tags, 0.25)
    write_table(evaluated, tmp_path, tracking_uri)
    assert rows(tmp_path)[0]["val_mean_dice"] == "0.25"


def test_the_data_of_the_newest_evaluation_count(evaluated: Study, tmp_path: Path, tracking_uri: str):
    tags = evaluated.cells("second")[0].evaluation.tags
    finish(tracking_uri, "tiny", "evaluating", {**tags, "data_hash": "second"}, 0.25)
    write_table(evaluated, tmp_path, tracking_uri)
    assert [row["state"] for row in rows(tmp_path)].count("finished") == 1
    assert "1 of 12 cells are finished. Seeds: 1, 2. Data: `second`." in (tmp_path / "table.md").read_text()


def test_runs_without_cases_are_tabulated_but_not_tested(write: Callable[..., Path], tmp_path: Path, tracking_uri: str):
    study = load_study(write())
    for cell in study.cells("first"):
        finish(tracking_uri, "tiny", "evaluating", cell.evaluation.tags)
    write_table(study, tmp_path, tracking_uri)
    text = (tmp_path / "table.md").read_text()
    assert ["coach", "0.500", "0.500"] in table_rows(text)
    assert ["coach", "50 %", "0", *["missing"] * 4] in table_rows(text)
    assert "the 0 tests" in text


# the command line -----------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["study", "run", str(write()), "--output", str(tmp_path / "out"), "--dry-run"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study tiny: 6 cells, 0 of them finished, 13 stages to run"
    assert lines[1].startswith("run     training: supervised, 50 % of the labels, seed 1  [")
    assert re.fullmatch(r"run     finetuning: coach, 50 % of the labels, seed 1  \[\w{16}\] from \[\w{16}\]", lines[4])
    assert len(lines) == 14
    assert not (tmp_path / "out").exists()


def test_run_and_table(
    write: Callable[..., Path],
    tmp_path: Path,
    tracking_uri: str,
    stages: FakeStages,
    capsys: pytest.CaptureFixture[str],
):
    words = [str(write()), "--output", str(tmp_path / "out"), "--tracking_uri", tracking_uri]
    stages.failing = {"training: supervised, 100 % of the labels, seed 1"}
    assert cli.main(["study", "run", *words]) == cli.SOME_FAILED
    output = capsys.readouterr()
    assert f"5 of 6 cells are finished: {tmp_path / 'out' / 'results.csv'}" in output.out
    assert "covid-monai: 2 stages failed; the same command runs them again:" in output.err
    stages.failing.clear()
    assert cli.main(["study", "run", *words]) == cli.OK
    capsys.readouterr()
    assert cli.main(["study", "table", *words]) == cli.OK
    assert "| supervised | 0.500 | 0.500 |" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "table"])
def test_a_fault_is_one_line(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    assert cli.main(["study", command, str(write(seeds=[])), "--output", str(tmp_path / "out")]) == cli.UNUSABLE
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_table_of_nothing_is_refused(write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["study", "table", str(write()), "--output", str(tmp_path / "out")]) == cli.UNUSABLE
    assert "holds no finished evaluation of study tiny: run the study first." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_of_the_bundle_killed_and_run_again(tmp_path: Path):
    """The bundle itself on phantoms, two arms: the first try is interrupted while its first stages run."""
    options: dict[str, Any] = {"patients": 6, "slices": 3, "size": 64, "healthy": 0.0}
    prepare("phantom", None, tmp_path / "data" / "datalist.json", seed=1, **options)
    prepare("phantom", None, tmp_path / "data" / "datalist.json", seed=2, append=True, unlabelled=True, **options)
    budget = {"max_epochs": 3, "samples_per_epoch": 8, "batch_size": 4, "size": [64, 64], "num_workers": 0}
    content = {
        **STUDY, "bundle": BUNDLE.name, "fractions": [0.5], "budget": {"pretraining": budget, "training": budget},
        "arms": STUDY["arms"][:2],  # type: ignore[index]
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    words = ["study.yaml", "--output", "out"]
    command = [sys.executable, "-W", "ignore", "-m", "covid_monai.cli", "study"]
    database = tmp_path / "out" / "mlflow.db"
    with subprocess.Popen([*command, "run", *words, "--jobs", "2"], cwd=tmp_path) as process:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and not list(tmp_path.glob("out/*/*/checkpoint.pt")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == cli.INTERRUPTED
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} <= {"KILLED", "FINISHED"}
    broken = list(tmp_path.glob("out/*/*/checkpoint.pt"))
    for _ in range(2):  # the second finds nothing to do
        finished = subprocess.run([*command, "run", *words], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert finished.returncode == cli.OK, finished.stderr
    assert "2 of 2 cells are finished" in finished.stdout
    assert "[1/" not in finished.stdout
    runs = [run for runs in finished_runs(f"sqlite:///{database}", "tiny").values() for run in runs]
    assert len(runs) == 5
    assert all("resuming after epoch" in (path.parent / "log.txt").read_text() for path in broken)
    by_stage = {run.data.tags["stage"]: run for run in runs if run.data.tags.get("arm") != "supervised"}
    for child, parent in (("finetuning", "pretraining"), ("evaluating", "finetuning")):
        assert by_stage[child].data.tags["mlflow.parentRunId"] == by_stage[parent].info.run_id
    finished = subprocess.run([*command, "table", *words], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tests,) = [row for row in table_rows(finished.stdout) if row[:2] == ["coach", "50 %"]]
    assert int(tests[3]) > 0
    assert str(tmp_path) not in (tmp_path / "out" / "table.md").read_text()
