# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Run
from mlflow.exceptions import MlflowException
from PIL import Image

from covid_monai import __version__
from covid_monai.tracking import TrackedRun, git_commit, hashed_id, runs

PATIENT = "PID4711"


def tracked(uri: str, **options: Any) -> TrackedRun:
    return TrackedRun(uri, options.pop("experiment", "lungs"), options.pop("name", "training"), **options)


def all_runs(client: MlflowClient, experiment: str = "lungs") -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else client.search_runs([found.experiment_id])


def only_run(client: MlflowClient) -> Run:
    (run,) = all_runs(client)
    return run


# how a run ends ------------------------------------------------------------------------------------------------------


def test_a_stage_that_returns_ends_as_finished(tracking_uri: str, client: MlflowClient):
    run = tracked(tracking_uri, params={"seed": 7, "loss": "published"}, tags={"stage": "training", "data_hash": None})
    during: list[str] = []

    def stage() -> str:
        during.append(client.get_run(run.run_id or "").info.status)
        return "result"

    assert run.execute(stage) == "result"
    assert during == ["RUNNING"]
    found = only_run(client)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "training")
    assert found.info.end_time >= found.info.start_time
    assert found.data.params == {"seed": "7", "loss": "published"}
    assert found.data.tags["stage"] == "training"
    assert found.data.tags["covid_monai"] == __version__
    assert "data_hash" not in found.data.tags
    assert "error" not in found.data.tags


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (ZeroDivisionError, "FAILED"),
        (MemoryError, "FAILED"),
        (GeneratorExit, "FAILED"),
        (KeyboardInterrupt, "KILLED"),
        (SystemExit, "KILLED"),
    ],
)
def test_a_stage_that_raises_ends_the_run_and_raises_on(
    tracking_uri: str, client: MlflowClient, fault: type[BaseException], status: str
):
    def stage() -> None:
        raise fault(f"while reading {PATIENT}")

    with pytest.raises(fault, match=PATIENT):
        tracked(tracking_uri).execute(stage)
    found = only_run(client)
    assert found.info.status == status
    assert found.data.tags.get("error") == (fault.__name__ if status == "FAILED" else None)
    assert PATIENT not in str(found.to_dictionary())


def test_a_run_whose_parameters_are_refused_does_not_stay_running(tracking_uri: str, client: MlflowClient):
    with pytest.raises(MlflowException):
        tracked(tracking_uri, params={"a [wrong] name": 1}).execute(lambda: None)
    assert only_run(client).info.status == "FAILED"


@pytest.mark.slow
def test_sigterm_ends_the_run_as_killed_and_runs_what_closes_files(
    tracking_uri: str, client: MlflowClient, tmp_path: Path
):
    script = f"""
import time
from pathlib import Path
from covid_monai.tracking import TrackedRun

def stage():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path({str(tmp_path / "closed")!r}).touch()

TrackedRun({tracking_uri!r}, "lungs", "training").execute(stage)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert only_run(client).info.status == "RUNNING"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) != 0
        finally:
            process.kill()
    assert only_run(client).info.status == "KILLED"
    assert (tmp_path / "closed").exists()


def test_the_handler_of_sigterm_is_put_back(tracking_uri: str):
    before = signal.getsignal(signal.SIGTERM)
    during = tracked(tracking_uri).execute(lambda: signal.getsignal(signal.SIGTERM))
    assert during is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_that_the_process_ignores_stays_ignored(tracking_uri: str):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert tracked(tracking_uri).execute(lambda: signal.getsignal(signal.SIGINT)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_leaves_signals_alone(tracking_uri: str, client: MlflowClient):
    results: list[Any] = []
    run = tracked(tracking_uri)
    thread = threading.Thread(target=lambda: results.append(run.execute(lambda: signal.getsignal(signal.SIGTERM))))
    thread.start()
    thread.join()
    assert results == [signal.getsignal(signal.SIGTERM)]
    assert only_run(client).info.status == "FINISHED"


# resuming ------------------------------------------------------------------------------------------------------------


def interrupted(uri: str, record: Path, step: int = 1) -> str:
    """Begin a run, record a metric, and interrupt it; its id."""
    run = tracked(uri, record=record, params={"seed": 1}, tags={"try": "first"})

    def stage() -> None:
        run.log_metrics({"loss": 0.5}, step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.execute(stage)
    assert run.run_id is not None
    return run.run_id


def test_a_resumed_run_is_reopened(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    record = tmp_path / "models" / "tracking.json"
    first = interrupted(tracking_uri, record)
    resumed = tracked(tracking_uri, record=record, resume=True, params={"seed": 2}, tags={"try": "second"})

    def stage() -> str:
        resumed.log_metrics({"loss": 0.25}, 2)
        return client.get_run(first).info.status

    assert resumed.execute(stage) == "RUNNING"
    assert resumed.run_id == first
    found = only_run(client)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "1"}  # as it began
    assert (found.data.tags["try"], found.data.tags["resumed_try"]) == ("first", "second")
    history = client.get_metric_history(first, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]


def test_without_resume_a_run_begins_anew_and_is_recorded(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    record = tmp_path / "tracking.json"
    first = interrupted(tracking_uri, record)
    second = tracked(tracking_uri, record=record)
    second.execute(lambda: None)
    assert second.run_id != first
    assert json.loads(record.read_text()) == {"experiment": "lungs", "run_id": second.run_id}
    assert {run.info.run_id: run.info.status for run in all_runs(client)} == {
        first: "KILLED",
        second.run_id: "FINISHED",
    }


@pytest.mark.slow
def test_a_run_that_was_killed_by_force_before_a_checkpoint_does_not_stay_running(
    tracking_uri: str, client: MlflowClient, tmp_path: Path
):
    """Nothing is there to resume, so that the next run begins anew and ends it."""
    record = tmp_path / "tracking.json"
    script = f"""
import os, signal
from covid_monai.tracking import TrackedRun
run = TrackedRun({tracking_uri!r}, "lungs", "training", record={str(record)!r})
run.execute(lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    left = only_run(client).info
    assert (left.status, left.run_id) == ("RUNNING", json.loads(record.read_text())["run_id"])
    anew = tracked(tracking_uri, record=record, resume=False)
    anew.execute(lambda: None)
    assert {run.info.run_id: run.info.status for run in all_runs(client)} == {
        left.run_id: "KILLED",
        anew.run_id: "FINISHED",
    }
    assert client.get_run(left.run_id).info.end_time is not None


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_how_an_earlier_run_ended_stays(tracking_uri: str, client: MlflowClient, tmp_path: Path, status: str):
    first = interrupted(tracking_uri, tmp_path / "tracking.json")
    client.set_terminated(first, status)
    tracked(tracking_uri, record=tmp_path / "tracking.json").execute(lambda: None)
    assert client.get_run(first).info.status == status


def test_an_experiment_that_another_process_makes_meanwhile_is_used(
    tracking_uri: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    made = client.create_experiment("lungs")
    run = tracked(tracking_uri)
    asked: list[str] = []
    ask = run.client.get_experiment_by_name

    def late(name: str) -> Any:
        asked.append(name)
        return ask(name) if len(asked) > 1 else None

    monkeypatch.setattr(run.client, "get_experiment_by_name", late)
    assert run.experiment_id() == made


@pytest.mark.parametrize(
    "content", [None, '{"run_id": "0123456789abcdef0123456789abcdef"}', '{"run_id": "0123', "{}", "[]", ""]
)
def test_a_record_that_leads_nowhere_begins_a_new_run(
    tracking_uri: str, client: MlflowClient, tmp_path: Path, content: str | None
):
    record = tmp_path / "tracking.json"
    if content is not None:
        record.write_text(content)
    run = tracked(tracking_uri, record=record, resume=True)
    run.execute(lambda: None)
    assert only_run(client).info.run_id == run.run_id == json.loads(record.read_text())["run_id"]


def test_a_run_of_another_experiment_is_not_reopened(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    first = interrupted(tracking_uri, tmp_path / "tracking.json")
    run = tracked(tracking_uri, experiment="other", record=tmp_path / "tracking.json", resume=True)
    run.execute(lambda: None)
    assert run.run_id != first
    assert only_run(client).info.status == "KILLED"


# what is recorded ----------------------------------------------------------------------------------------------------


def test_metrics_that_are_not_finite_are_left_out(tracking_uri: str, client: MlflowClient):
    run = tracked(tracking_uri)
    values = {"a": 1.5, "b": float("nan"), "c": float("inf"), "d": np.float32(2)}
    run.execute(lambda: run.log_metrics(values, 4))
    metrics = only_run(client).data.metrics
    assert {name: value for name, value in metrics.items() if "/" not in name} == {"a": 1.5, "d": 2.0}
    assert [m.step for m in client.get_metric_history(run.run_id or "", "a")] == [4]


def test_artifacts_lie_beside_the_database_not_where_the_command_ran(
    tracking_uri: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tracked(tracking_uri)
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    def stage() -> None:
        run.log_image(picture, "samples/first.png")

    run.execute(stage)
    artifacts = tmp_path / "store" / "mlruns" / "lungs" / (run.run_id or "") / "artifacts"
    assert np.array_equal(np.asarray(Image.open(artifacts / "samples" / "first.png")), picture)
    assert [item.path for item in client.list_artifacts(run.run_id or "")] == ["samples"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_relative_database_has_its_artifacts_beside_it_too(
    empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    run = tracked("sqlite:///a folder/mlflow.db")
    run.execute(lambda: run.log_image(np.zeros((2, 2), np.uint8), "first.png"))
    assert (folder / "mlruns" / "lungs" / (run.run_id or "") / "artifacts" / "first.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]


def test_no_path_user_or_patient_stands_in_parameters_and_tags(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    run = tracked(tracking_uri, params={"seed": 1}, tags={"stage": "training"}, record=tmp_path / "tracking.json")

    def stage() -> None:
        raise ValueError(f"{tmp_path}/{PATIENT}.nii.gz is damaged")

    with pytest.raises(ValueError, match="damaged"):
        run.execute(stage)
    found = only_run(client)
    tags = set(found.data.tags) - {"git_commit"}
    assert tags == {"stage", "covid_monai", "error", "mlflow.runName"}
    text = str({**found.data.params, **found.data.tags})
    assert not any(
        secret in text for secret in (PATIENT, str(tmp_path), str(Path.cwd()), str(Path.home()) + os.sep, "/")
    )
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as database:
        assert database.execute("select user_id, source_name, entry_point_name from runs").fetchall() == [
            ("unknown", "", "")
        ]


# data ----------------------------------------------------------------------------------------------------------------

DATA_HASH = "0123456789abcdef" * 4


def slices(*ids: str, dataset: str = "medseg") -> list[dict[str, Any]]:
    return [{"image": f"/data/{each}.png", "id": f"{dataset}/{each}", "dataset": dataset} for each in ids]


def dataset_inputs(run: Run) -> list[DatasetInput]:
    assert run.inputs is not None
    return run.inputs.dataset_inputs


def test_data_are_recorded_by_hash_with_hashed_ids(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    sides = {"training": slices("a", "b") + slices("a", dataset="phantom"), "validation": slices("c")}
    run = tracked(tracking_uri, tags={"data_hash": DATA_HASH}, data=sides)
    run.execute(lambda: None)
    inputs = {i.dataset.name: i for i in dataset_inputs(only_run(client))}
    assert inputs.keys() == {"medseg+phantom/training", "medseg/validation"}
    for name, side, count in (("medseg+phantom/training", "training", "3"), ("medseg/validation", "validation", "1")):
        dataset, marks = inputs[name].dataset, {tag.key: tag.value for tag in inputs[name].tags}
        assert dataset.digest == DATA_HASH[:36]
        assert (dataset.source_type, json.loads(dataset.source)) == ("datalist", {"data_hash": DATA_HASH})
        assert marks == {"mlflow.data.context": side, "slices": count}
    written = tmp_path / "store" / "mlruns" / "lungs" / (run.run_id or "") / "artifacts" / "data.json"
    assert json.loads(written.read_text()) == {
        "training": [hashed_id(each) for each in ("medseg/a", "medseg/b", "phantom/a")],
        "validation": [hashed_id("medseg/c")],
    }


def test_runs_on_a_share_of_the_same_data_have_their_own_counts(tracking_uri: str, client: MlflowClient):
    for share in (2, 1):
        tags = {"data_hash": DATA_HASH}
        tracked(tracking_uri, tags=tags, data={"training": slices("a", "b")[:share]}).execute(lambda: None)
    found = [dataset_inputs(run)[0] for run in all_runs(client)]
    assert found[0].dataset == found[1].dataset
    assert sorted(tag.value for i in found for tag in i.tags if tag.key == "slices") == ["1", "2"]


def test_a_resumed_run_keeps_its_data(tracking_uri: str, client: MlflowClient, tmp_path: Path):
    options: dict[str, Any] = {"record": tmp_path / "tracking.json", "tags": {"data_hash": DATA_HASH}}
    for resume in (False, True):
        tracked(tracking_uri, data={"training": slices("a")}, resume=resume, **options).execute(lambda: None)
    assert len(dataset_inputs(only_run(client))) == 1


@pytest.mark.parametrize("tags", [{}, {"data_hash": None}])
def test_data_without_their_hash_are_refused(tracking_uri: str, tags: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^data is given without the tag data_hash: add it"):
        tracked(tracking_uri, tags=tags, data={"training": slices("a")})


def test_a_disabled_run_writes_nothing(tmp_path: Path):
    run = TrackedRun(
        f"sqlite:///{tmp_path}/mlflow.db",
        "lungs",
        "training",
        tags={"data_hash": DATA_HASH},
        record=tmp_path / "tracking.json",
        enabled=False,
        data={"training": slices("a")},
    )

    def stage() -> int:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_image(np.zeros((2, 2), np.uint8), "first.png")
        run.log_json({"a": 1}, "a.json")
        run.log_tags({"a": 1})
        return 3

    assert run.execute(stage) == 3
    with pytest.raises(ZeroDivisionError):
        run.execute(lambda: 1 // 0)
    assert not list(tmp_path.iterdir())


# the commit ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, from which the package seems to run."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    identity = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for kind in ("AUTHOR", "COMMITTER"):
        identity |= {f"GIT_{kind}_NAME": "a", f"GIT_{kind}_EMAIL": "a@example.org"}
    for key, value in identity.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "module.py").write_text("1\n")
    for words in (["init", "-q"], ["add", "module.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "module.py"))
    return tmp_path


def test_the_commit_is_that_of_the_package(checkout: Path):
    words = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    assert git_commit() == subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_changed_files_are_told_and_new_ones_are_not(checkout: Path):
    (checkout / "new.py").touch()
    assert not str(git_commit()).endswith("-dirty")
    (checkout / "module.py").write_text("2\n")
    assert str(git_commit()).endswith("-dirty")


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "module.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
