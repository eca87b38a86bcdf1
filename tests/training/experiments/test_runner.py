# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from covid_monai.training.experiments import Runner, Stage, Study, StudyError, runner
from covid_monai.training.experiments.results import finished_runs
from tests.training.experiments.studies import FakeStages, finish, rows


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
    everything = (*cell.stages, cell.evaluations["testing"])
    pretraining, finetuning, evaluating = (out / stage.kind / stage.digest for stage in everything)
    given = {command["run_name"]: command for command in stages.commands}
    first, second, third = (given[stage.name] for stage in everything)
    assert first["ckpt_dir"] == first["pretrain_dir"] == str(pretraining)
    assert (second["pretrain_dir"], second["ckpt_dir"]) == (str(pretraining), str(finetuning))
    assert (third["ckpt_dir"], third["output_dir"]) == (str(finetuning), str(evaluating))
    configs = study.networks[0].bundle / "configs"
    assert second["config_file"] == [str(configs / name) for name in ("train.yaml", "finetune.yaml")]
    assert third["side"] == "testing"
    assert not any("single_weights" in command for command in stages.commands)
    log = (evaluating / "log.txt").read_text()
    assert log.startswith("$ OMP_NUM_THREADS=")
    assert "monai.bundle run evaluating --bundle_root" in log


def test_a_cascade_is_given_the_weights_of_its_single_network(
    both: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(both, tmp_path / "out", tracking_uri)
    assert own.run() == {}
    cell = own.cells[-1]
    pretraining, finetuning = cell.own_stages
    given = {command["run_name"]: command for command in stages.commands}
    single = str(own.folder(cell.stages[1]) / "model.pt")
    for stage in (pretraining, finetuning):
        assert given[stage.name]["bundle_root"] == str(tmp_path / "cascade_bundle")
        assert given[stage.name]["single_weights"] == single
    assert given[finetuning.name]["pretrain_dir"] == str(own.folder(pretraining))
    for side, evaluation in cell.evaluations.items():
        command = given[evaluation.name]
        assert (command["side"], command["ckpt_dir"]) == (side, str(own.folder(finetuning)))
        assert "single_weights" not in command
    assert len(stages.started) == len(set(stages.started)) == 1 + 6 + 2 * 6 + (1 + 2) + 2 * 2
    assert own.describe() == "study tiny: 8 cells, 8 of them finished, 0 stages to run"


def test_a_network_alone_is_run_and_the_rest_later(both: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    own = Runner(both, tmp_path / "out", tracking_uri, network="cascade")
    assert [stage.kind for stage in own.plan()[:2]] == ["training", "training"]  # its single network comes first
    assert own.run() == {}
    assert [row["state"] for row in rows(own.output)] == ["missing"] * 6 + ["finished"] * 2
    before = len(stages.started)
    assert Runner(both, tmp_path / "out", tracking_uri).run() == {}
    assert len(stages.started) - before == 4 + 2 * 6  # without the pre-training and two single networks


def test_single_weights_that_are_gone_are_made_again(
    both: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(both, tmp_path / "out", tracking_uri)
    own.run()
    pretraining, single, multi_pretraining, finetuning = own.cells[-1].stages
    evaluating = own.cells[-1].evaluations["testing"]
    forget(tracking_uri, evaluating)
    for stage in (single, finetuning):
        (own.folder(stage) / "model.pt").unlink()
    assert own.plan() == [single, finetuning, evaluating]
    (own.folder(pretraining) / "model.pt").unlink()
    (own.folder(multi_pretraining) / "model.pt").unlink()
    assert own.plan() == [pretraining, single, multi_pretraining, finetuning, evaluating]


def test_a_single_network_that_fails_stops_its_cascade(
    both: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    own = Runner(both, tmp_path / "out", tracking_uri)
    single = own.cells[-1].stages[1]
    stages.failing = {single.name}
    failed = own.run()
    assert failed.keys() == {
        single.name,
        *(stage.name for stage in own.cells[-1].own_stages),
        *(stage.name for cell in own.cells if single in cell.stages for stage in cell.evaluations.values()),
    }
    assert failed[own.cells[-1].own_stages[0].name] == f"finetuning [{single.digest}], which it starts from, failed"


def test_cells_that_the_report_holds_are_not_run_again(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages
):
    report = tmp_path / "report"
    assert Runner(study, tmp_path / "out", tracking_uri, report=report).run() == {}
    assert not (tmp_path / "out" / "results.csv").exists()
    before = rows(report)
    assert [row["state"] for row in before] == ["finished"] * 6
    elsewhere = Runner(study, tmp_path / "elsewhere", report=report)
    assert (elsewhere.plan(), elsewhere.finished_cells()) == ([], 6)
    assert len(Runner(study, tmp_path / "elsewhere").plan()) == 13
    lines = (report / "results.csv").read_text().splitlines(keepends=True)
    (report / "results.csv").write_text("".join(lines[:2] + lines[3:]))  # without the coach at 50 %
    elsewhere = Runner(study, tmp_path / "elsewhere", report=report)
    assert [stage.kind for stage in elsewhere.plan()] == ["pretraining", "finetuning", "evaluating"]
    assert elsewhere.run() == {}
    after = rows(report)
    assert [row["cell"] for row in after] == [row["cell"] for row in before]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True, True, True, True]
    assert after[1]["testing_run_id"] != before[1]["testing_run_id"]


def test_a_report_that_is_none_is_refused_before_anything_runs(study: Study, tmp_path: Path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StudyError, match=r"results.csv is not of a study, it lacks network, arm, .*: move it away.$"):
        Runner(study, tmp_path / "out", report=tmp_path)


def test_jobs_run_at_once_and_share_the_cores(
    study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 7)
    assert Runner(study, tmp_path / "out", tracking_uri, jobs=3).run() == {}
    assert stages.most_at_once == 3
    assert stages.threads == {"2"}
    order = {name: number for number, name in enumerate(stages.started)}
    for cell in study.cells("first"):
        at = [order[stage.name] for stage in (*cell.stages, *cell.evaluations.values())]
        assert at == sorted(at)


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
        stage.name for cell in own.cells if cell.arm.pretraining for stage in (*cell.stages, *cell.evaluations.values())
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
        finish(tracking_uri, "tiny", "evaluating", own.cells[0].evaluations["testing"].tags, status=status)
    assert len(own.plan()) == 13
    finish(tracking_uri, "tiny", "evaluating", own.cells[0].evaluations["testing"].tags)
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
    pretraining, finetuning = own.cells[1].stages
    evaluating = own.cells[1].evaluations["testing"]
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
    (training,) = own.cells[0].stages
    evaluating = own.cells[0].evaluations["testing"]
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


def test_a_stage_that_records_no_run_has_failed(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    stages.recording = False
    failed = Runner(study, tmp_path / "out", tracking_uri).run()
    assert len(failed) == 13
    assert next(iter(failed.values())).startswith("it ended well, but MLflow holds no finished run of it (see ")


def forget(uri: str, stage: Stage) -> None:
    """Delete the runs of a stage from MLflow."""
    for run in finished_runs(uri, "tiny")[stage.digest]:
        MlflowClient(uri).delete_run(run.info.run_id)


def test_of_more_runs_than_a_page_all_are_read(tracking_uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("covid_monai.training.experiments.results.PAGE", 2)
    ids = [finish(tracking_uri, "tiny", "a", {"cell": "x" if number % 2 else "y"}) for number in range(5)]
    found = finished_runs(tracking_uri, "tiny")
    assert {key: [run.info.run_id for run in runs] for key, runs in found.items()} == {
        "x": [ids[3], ids[1]],
        "y": [ids[4], ids[2], ids[0]],
    }
