# SPDX-License-Identifier: Apache-2.0
"""A copy of a bundle in a folder of its own, and its stages, run as a user runs them or in this process."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from monai.bundle import ConfigWorkflow

from covid_monai.networks import load_weights
from tests.conftest import BUNDLES

SINGLE = "lung_ct_infection_segmentation"
CASCADE = "lung_ct_ggo_consolidation_segmentation"
NAMES = (SINGLE, CASCADE)
CONFIGS = {
    "pretraining": ("train", "pretrain"),
    "training": ("train",),
    "finetuning": ("train", "finetune"),
    "evaluating": ("train", "evaluate"),
    "inferring": ("inference",),
}
TINY: dict[str, Any] = {"max_epochs": 2, "samples_per_epoch": 8, "batch_size": 4}
"""Overrides of a training of seconds, beside the small ``size`` that `copy_bundle` writes."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder with phantom slices in ``data``, and weights of a single network that the cascade takes."""

    folder: Path
    single_weights: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def configs(self, *names: str) -> list[str]:
        return [str(self.folder / "configs" / f"{name}.yaml") for name in names]

    def overrides(self, stage: str, more: dict[str, Any]) -> dict[str, Any]:
        """What this stage needs told: the cascade's trainings where their single network is."""
        needed = self.name == CASCADE and stage in ("pretraining", "training", "finetuning")
        return {**({"single_weights": str(self.single_weights)} if needed else {}), **more}

    def command(self, *words: Any) -> subprocess.CompletedProcess:
        """Run ``python -m monai.bundle …`` in the bundle's folder, as its README says."""
        return subprocess.run(
            self.line(*words), cwd=self.folder, check=False, capture_output=True, text=True, env=self.environment
        )

    def begin(self, *words: Any) -> subprocess.Popen:
        """The same in the background, without its output."""
        return subprocess.Popen(
            self.line(*words),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @staticmethod
    def line(*words: Any) -> list[str]:
        return [sys.executable, "-m", "monai.bundle", *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def words(self, stage: str, *more_configs: str, **overrides: Any) -> list[str]:
        """Words of the command that runs a stage."""
        configs = [f"configs/{name}.yaml" for name in (*CONFIGS[stage], *more_configs)]
        pairs = self.overrides(stage, overrides).items()
        return [
            *("run", stage, "--config_file", str(configs)),
            *(word for key, value in pairs for word in (f"--{key}", str(value))),
        ]

    def run(self, stage: str, **overrides: Any) -> str:
        """Run a stage by its command, which must end well; returns all it printed."""
        finished = self.command(*self.words(stage, **overrides))
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
        return finished.stdout + finished.stderr

    def workflow(self, stage: str, *more_configs: str, **overrides: Any) -> ConfigWorkflow:
        """The stage's workflow in this process, not yet begun; ``run()`` does what the command does."""
        here = {} if stage == "inferring" else {"tracking_uri": self.tracking_uri, "num_workers": 0}
        workflow = ConfigWorkflow(
            config_file=self.configs(*CONFIGS[stage], *more_configs),
            workflow_type="infer" if stage == "inferring" else "train",
            run_id=stage,
            logging_file=False,
            **{"bundle_root": str(self.folder), **here, **self.overrides(stage, overrides)},
        )
        workflow.parser.parse(reset=True)
        return workflow

    def perform(self, stage: str, **overrides: Any) -> ConfigWorkflow:
        """Run a stage in this process."""
        workflow = self.workflow(stage, **overrides)
        workflow.initialize()
        workflow.run()
        return workflow

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def runs(self) -> list[Run]:
        """All tracked runs, oldest first."""
        experiment = self.client.get_experiment_by_name(self.name)
        return self.client.search_runs([experiment.experiment_id], order_by=["start_time"])

    def artifacts(self, run: Run) -> set[str]:
        """Paths of a run's artifacts, one folder deep."""
        top = self.client.list_artifacts(run.info.run_id)
        return {
            file.path for each in top for file in (self.client.list_artifacts(run.info.run_id, each.path) or [each])
        }

    def artifact(self, run: Run, name: str) -> Any:
        return json.loads(Path(self.client.download_artifacts(run.info.run_id, name)).read_text())

    def items(self, side: str) -> list[dict[str, Any]]:
        return json.loads((self.folder / "data" / "datalist.json").read_text())[side]

    def weights(self, *folders: str) -> dict[str, torch.Tensor]:
        """Weights that a training left below ``models``, in ``training`` unless told otherwise."""
        return load_weights(self.folder.joinpath("models", *(folders or ("training",)), "model.pt"))

    def checkpoint(self, *folders: str) -> dict[str, Any]:
        """The last state that a training left below ``models``, in ``training`` unless told otherwise."""
        path = self.folder.joinpath("models", *(folders or ("training",)), "checkpoint.pt")
        return torch.load(path, weights_only=True)


def copy_bundle(name: str, folder: Path, data: Path, database: Path, single_weights: Path) -> Bundle:
    """Copy a bundle's files, shrink its slices, and give it phantom slices and an empty tracking store."""
    bundle = Bundle(folder / name, single_weights)
    shutil.copytree(
        BUNDLES / name, bundle.folder, ignore=shutil.ignore_patterns("models", "eval", "data", "mlflow.db", "mlruns")
    )
    for config in (bundle.folder / "configs").glob("*.yaml"):
        config.write_text(re.sub(r"(?m)^size: .*?(?=\s+#|$)", "size: [48, 64]", config.read_text()))
    shutil.copytree(data, bundle.folder / "data")
    shutil.copy(database, bundle.folder / "mlflow.db")
    return bundle


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal, every tensor bitwise."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def is_head(key: str) -> bool:
    """Whether a weight is of an output head, which pre-training has of its own."""
    return ".head." in key
