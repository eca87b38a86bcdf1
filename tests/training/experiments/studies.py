# SPDX-License-Identifier: Apache-2.0
"""A tiny study, stages that end at once, and runs as stages record them."""

import csv
import json
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from mlflow import MlflowClient

from covid_monai.training.experiments import Cell

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "bundles" / "lung_ct_infection_segmentation"
STUDY: dict[str, Any] = {
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
CASCADE: dict[str, Any] = {
    "bundle": "cascade_bundle",
    "metrics": ["val_mean_dice", "val_dice_ggo"],
    "fractions": [1],
    "arms": ["supervised", "coach"],
    "budget": {"pretraining": {"max_epochs": 3}, "training": {"max_epochs": 5}},
}
TRAIN = {
    "max_epochs": 1, "patience": 30, "seed": 0, "label_fraction": 1.0, "augmentation": True, "dataset_dir": ".",
    "tracked": {"tags": {"stage": "training"}},
}  # fmt: skip
CONFIGS = {
    "train.yaml": TRAIN,
    "pretrain.yaml": {"masks": "random", "tracked#tags#stage": "pretraining"},
    "finetune.yaml": {"tracked#tags": "$dict(stage='finetuning')"},
    "evaluate.yaml": {"tracked#tags": "$dict(stage='evaluating')", "side": "testing"},
}


def arm(number: int, **changes: Any) -> list[dict[str, Any]]:
    """The arms of :data:`STUDY`, one of them changed."""
    return [{**content, **changes} if at == number else content for at, content in enumerate(STUDY["arms"])]


class FakeStages:
    """Takes the place of ``subprocess.Popen``: every stage ends at once, leaving what a stage of a bundle leaves."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.commands: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.failing: set[str] = set()
        self.resumed: list[str] = []
        self.forgetting = ""
        self.recording = True
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
        tags = tags_of(settings) if self.recording else {}
        run_id = finish(settings["tracking_uri"], settings["experiment"], name, tags)
        if kind != "evaluating":
            (cwd / "checkpoint.pt").touch()
            (cwd / "tracking.json").write_text(json.dumps({"run_id": run_id}))
            if self.forgetting != name:
                (cwd / "model.pt").touch()
        return FakeProcess(self, 0)


class FakeProcess:
    """A process that has ended."""

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


def finish_cell(uri: str, cell: Cell, dice: float = 0.5, cases: dict[str, Any] | None = None) -> None:
    """Record the evaluations of a cell on all its sides."""
    for evaluation in cell.evaluations.values():
        finish(uri, "tiny", evaluation.name, evaluation.tags, dice, cases)


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv``."""
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables in Markdown."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
