# SPDX-License-Identifier: Apache-2.0
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from covid_monai import cli
from covid_monai.datasets import prepare
from covid_monai.training.experiments.results import finished_runs
from tests.training.experiments.studies import BUNDLE, STUDY, FakeStages, table_rows


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
    """The bundles themselves on phantoms, two arms and a cascade: the first try is interrupted in its first stages."""
    options: dict[str, Any] = {"patients": 6, "slices": 3, "size": 64, "healthy": 0.0}
    prepare("phantom", None, tmp_path / "data" / "datalist.json", seed=1, **options)
    prepare("phantom", None, tmp_path / "data" / "datalist.json", seed=2, append=True, unlabelled=True, **options)
    budget = {"max_epochs": 3, "samples_per_epoch": 8, "batch_size": 4, "size": [64, 64], "num_workers": 0}
    budgets = {"pretraining": {**budget, "val_interval": 1}, "training": budget}
    content = {
        **STUDY, "bundle": BUNDLE.name, "fractions": [0.5], "budget": budgets, "arms": STUDY["arms"][:2],
        "cascade": {
            "bundle": "lung_ct_ggo_consolidation_segmentation", "metrics": ["val_dice_ggo"], "fractions": [0.5],
            "arms": ["supervised"], "budget": budgets,
        },
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
    assert "3 of 3 cells are finished" in finished.stdout
    assert "[1/" not in finished.stdout
    runs = [run for runs in finished_runs(f"sqlite:///{database}", "tiny").values() for run in runs]
    assert len(runs) == 5 + 2
    (single,) = [run for run in runs if (run.data.tags["stage"], run.data.tags["network"]) == ("training", "single")]
    (cascade,) = [run for run in runs if (run.data.tags["stage"], run.data.tags["network"]) == ("training", "cascade")]
    assert cascade.data.tags["single_run"] == single.info.run_id
    assert all("resuming after epoch" in (path.parent / "log.txt").read_text() for path in broken)
    by_stage = {run.data.tags["stage"]: run for run in runs if run.data.tags.get("arm") != "supervised"}
    for child, parent in (("finetuning", "pretraining"), ("evaluating", "finetuning")):
        assert by_stage[child].data.tags["mlflow.parentRunId"] == by_stage[parent].info.run_id
    finished = subprocess.run([*command, "table", *words], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tests,) = [row for row in table_rows(finished.stdout) if row[:2] == ["coach", "50 %"]]
    assert int(tests[3]) > 0
    assert (tmp_path / "out" / "coach_masks_coach.png").exists()
    assert (tmp_path / "out" / "cascade_testing.png").exists()
    assert str(tmp_path) not in (tmp_path / "out" / "table.md").read_text()
