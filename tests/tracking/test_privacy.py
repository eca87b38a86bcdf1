# SPDX-License-Identifier: Apache-2.0
"""Whatever a whole study leaves in its tracking store, no patient, path, user or host is in it."""

import json
import platform
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from torch import nn

from covid_monai.tracking import (
    TrackCases,
    TrackedRun,
    TrackEvaluation,
    TrackSamples,
    TrackTraining,
    hashed_id,
    lineage,
)

PATIENT, USER, HOST = "SecretPatient", "SecretUser", "SecretHost"
SECRETS = (PATIENT, USER, HOST)

Make = Callable[..., TrackedRun]


@pytest.fixture(autouse=True)
def user_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the user and the host names that can be searched for."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOSTNAME", HOST)
    for owner, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
        monkeypatch.setattr(owner, name, lambda *_: HOST)


def items(count: int, side: str) -> list[dict[str, Any]]:
    """A datalist's items with the images loaded beside their paths, all named after a patient."""
    folder = f"/home/{USER}/{PATIENT}"
    return [
        {
            "image": f"{folder}/{side}{k}.png",
            "label": f"{folder}/{side}{k}_label.png",
            "patient": f"medseg/{PATIENT}",
            "id": f"{PATIENT}/{side}{k}",
            "dataset": "medseg",
            "lesion": True,
        }
        for k in range(count)
    ]


def loaded(of: list[dict[str, Any]]) -> DataLoader:
    image = torch.linspace(0, 1, 48).reshape(1, 6, 8)
    return DataLoader(Dataset([{**item, "image": image, "label": (image > 0.5).float()} for item in of]), batch_size=1)


def study(tracked: Make, folder: Path) -> list[TrackedRun]:
    """Train, be interrupted, resume, break, and evaluate, everything recorded."""
    sides = {"training": items(4, "t"), "validation": items(3, "v")}
    network = nn.Conv2d(1, 1, 1)
    record = folder / "models" / "tracking.json"
    runs = []

    def evaluator(run: TrackedRun) -> SupervisedEvaluator:
        dice = IgniteMetricHandler(DiceMetric(), output_transform=from_engine(["pred", "label"]))
        return SupervisedEvaluator(
            torch.device("cpu"),
            loaded(sides["validation"]),
            network,
            key_val_metric={"val_mean_dice": dice},
            val_handlers=[TrackEvaluation(run), TrackSamples(run, every=1), TrackCases(run)],
        )

    def train(error: BaseException | None, resume: bool) -> None:
        run = tracked("training", tags={"data_hash": "5" * 64}, record=record, resume=resume, data=sides)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        handlers = [TrackTraining(run, optimizer), ValidationHandler(1, evaluator(run))]
        trainer = SupervisedTrainer(
            torch.device("cpu"),
            2,
            loaded(sides["training"]),
            network,
            optimizer,
            nn.MSELoss(),
            train_handlers=handlers,
        )

        def stage() -> None:
            trainer.run()
            (folder / "models" / f"{PATIENT}.pt").write_bytes(b"weights")
            if error is not None:
                raise error

        runs.append(run)
        run.execute(stage)

    with pytest.raises(KeyboardInterrupt):
        train(KeyboardInterrupt(f"at {PATIENT}"), resume=False)
    with pytest.raises(ValueError, match="damaged"):
        train(ValueError(f"/home/{USER}/{PATIENT}.png is damaged"), resume=True)
    tags = {"data_hash": "5" * 64, **lineage(folder / "models" / f"{PATIENT}.pt")}
    evaluation = tracked("evaluating", tags=tags, data={"testing": sides["validation"]})
    evaluation.execute(evaluator(evaluation).run)
    return [*runs, evaluation]


def leaks(store: Path, words: tuple[str, ...]) -> list[tuple[str, str]]:
    """(file, word) of every file below a folder whose path or content has a word, in whatever case."""
    return [
        (path.name, word)
        for path in store.rglob("*")
        for word in words
        if word.lower().encode() in str(path.relative_to(store)).lower().encode()
        or (path.is_file() and word.lower().encode() in path.read_bytes().lower())
    ]


def test_nothing_of_patient_user_or_host_is_in_the_store(
    tracked: Make, client: MlflowClient, tmp_path: Path, id_key: str
):
    first, resumed, evaluation = study(tracked, tmp_path / PATIENT)
    assert first.run_id == resumed.run_id
    statuses = [client.get_run(run.run_id or "").info.status for run in (resumed, evaluation)]
    assert statuses == ["FAILED", "FINISHED"]
    store = tmp_path / "store"
    # what is searched is where the study was recorded
    expected = hashed_id(items(3, "v")[0]["id"])
    assert {name for name, _ in leaks(store, (expected,))} == {"data.json", "cases.json"}
    assert {name for name, _ in leaks(store, ("medseg/validation",))} == {"mlflow.db"}
    assert leaks(store, (*SECRETS, id_key)) == []


def test_no_parameter_tag_or_data_set_holds_a_path(tracked: Make, client: MlflowClient, tmp_path: Path):
    for run in study(tracked, tmp_path / "study"):
        found = client.get_run(run.run_id or "")
        assert found.inputs is not None
        assert "mlflow.user" not in found.data.tags
        assert "mlflow.source.name" not in found.data.tags
        text = json.dumps([found.data.params, found.data.tags, found.inputs.to_dictionary()])
        assert str(tmp_path) not in text
        assert str(Path.cwd()) not in text
        assert "/home" not in text
