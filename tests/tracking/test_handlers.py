# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, LrScheduleHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted
from PIL import Image
from torch import nn

from covid_monai.tracking import TrackedRun, TrackEvaluation, TrackSamples, TrackTraining

LABELS = (0, 1, 0, 1, 1)  # which of the validation slices have a lesion


@pytest.fixture
def run(tracking_uri: str) -> TrackedRun:
    return TrackedRun(tracking_uri, "lungs", "training")


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri)


def items(labels: tuple[int, ...] = LABELS) -> list[dict[str, torch.Tensor]]:
    """Slices (1, 6, 8) whose lesion, if any, is the upper left quarter; item k has the intensity k / 10."""
    found = []
    for k, has_lesion in enumerate(labels):
        label = torch.zeros(1, 6, 8)
        label[:, :3, :4] = has_lesion
        found.append({"image": torch.full((1, 6, 8), k / 10), "label": label})
    return found


def build_evaluator(*handlers: Any, network: nn.Module | None = None) -> SupervisedEvaluator:
    dice = IgniteMetricHandler(DiceMetric(ignore_empty=False), output_transform=from_engine(["pred", "label"]))
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items()), batch_size=2),
        network or nn.Identity(),
        postprocessing=AsDiscreted("pred", threshold=0.25),
        key_val_metric={"val_mean_dice": dice},
        val_handlers=handlers,
    )


def build_trainer(
    epochs: int, *handlers: Any, decollate: bool = False
) -> tuple[SupervisedTrainer, torch.optim.Optimizer]:
    network = nn.Conv2d(1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(Dataset(items()), batch_size=2),
        network,
        optimizer,
        nn.MSELoss(),
        train_handlers=[LrScheduleHandler(scheduler, print_lr=False), *handlers],
        decollate=decollate,
    )
    return trainer, optimizer


def history(client: MlflowClient, run: TrackedRun, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.run_id or "", name)]


@pytest.mark.parametrize("decollate", [False, True])
def test_every_epoch_of_a_training_is_recorded(run: TrackedRun, client: MlflowClient, decollate: bool):
    losses: dict[int, list[float]] = {}
    trainer, optimizer = build_trainer(3, decollate=decollate)
    TrackTraining(run, optimizer).attach(trainer)
    loss_function = trainer.loss_function

    def listening(*args: torch.Tensor) -> torch.Tensor:
        loss = loss_function(*args)
        losses.setdefault(trainer.state.epoch, []).append(loss.item())
        return loss

    trainer.loss_function = listening
    run.execute(trainer.run)
    assert [len(each) for each in losses.values()] == [3, 3, 3]
    assert history(client, run, "train_loss") == [(e, pytest.approx(np.mean(each))) for e, each in losses.items()]
    # the rate that the epoch was trained with, although the schedule steps before it is recorded
    assert history(client, run, "learning_rate") == [(1, 0.4), (2, pytest.approx(0.2)), (3, pytest.approx(0.1))]
    seconds = history(client, run, "epoch_seconds")
    assert [step for step, _ in seconds] == [1, 2, 3]
    assert all(0 < value < 60 for _, value in seconds)


def test_validations_are_recorded_at_the_epoch_of_the_trainer(run: TrackedRun, client: MlflowClient):
    evaluator = build_evaluator(TrackEvaluation(run))
    trainer, _ = build_trainer(4, ValidationHandler(2, evaluator))
    run.execute(trainer.run)
    # slices at .3 and .4 are all predicted: 2 * 12 / (48 + 12) = .4; the one at .1 is missed; two have none and none
    expected = (0.4 + 0.4 + 0 + 1 + 1) / 5
    assert history(client, run, "val_mean_dice") == [(2, pytest.approx(expected)), (4, pytest.approx(expected))]


def test_scalars_alone_are_metrics(run: TrackedRun, client: MlflowClient):
    evaluator = Engine(lambda engine, batch: None)
    TrackEvaluation(run).attach(evaluator)
    values = {"one": torch.tensor(0.5), "two": 2, "three": np.float64(0.25), "many": torch.ones(2), "not": float("nan")}
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(values))
    run.execute(lambda: evaluator.run([0]))
    assert client.get_run(run.run_id or "").data.metrics == {"one": 0.5, "two": 2.0, "three": 0.25}


def samples(store: Path) -> list[Path]:
    return sorted(store.glob("mlruns/lungs/*/artifacts/samples/*"))


def test_pictures_are_of_the_first_slices_with_lesion(run: TrackedRun, tmp_path: Path):
    trainer, _ = build_trainer(5, ValidationHandler(1, build_evaluator(TrackSamples(run, every=2, count=2))))
    run.execute(trainer.run)
    assert [path.name for path in samples(tmp_path / "store")] == [
        f"epoch_{epoch:04d}_{number}.png" for epoch in (2, 4) for number in (0, 1)
    ]


def test_a_picture_shows_image_reference_and_prediction(run: TrackedRun, tmp_path: Path):
    evaluator = build_evaluator(TrackSamples(run, every=1, count=8))
    run.execute(evaluator.run)
    pictures = [np.asarray(Image.open(path)).astype(int) for path in samples(tmp_path / "store")]
    assert [picture.shape for picture in pictures] == [(6, 3 * 8, 3)] * 3  # the slices at .1, .3 and .4
    for picture, grey, predicted in zip(pictures, (25, 76, 102), (False, True, True), strict=True):
        image, reference, prediction = np.split(picture, 3, axis=1)
        assert (image == grey).all()
        coloured = np.ptp(reference, axis=2) > 50
        assert coloured[:3, :4].all()
        assert coloured.sum() == 12
        assert (reference[~coloured] == grey).all()
        assert ((np.ptp(prediction, axis=2) > 50) == predicted).all()


def test_slices_without_lesion_give_no_picture(run: TrackedRun, tmp_path: Path):
    evaluator = build_evaluator(TrackSamples(run, every=1))
    evaluator.data_loader = DataLoader(Dataset(items((0, 0))), batch_size=2)
    run.execute(evaluator.run)
    assert samples(tmp_path / "store") == []


def test_a_disabled_run_is_left_alone(tmp_path: Path):
    run = TrackedRun(f"sqlite:///{tmp_path}/mlflow.db", "lungs", "training", enabled=False)
    evaluator = build_evaluator(TrackEvaluation(run), TrackSamples(run, every=1))
    trainer, optimizer = build_trainer(1, ValidationHandler(1, evaluator))
    TrackTraining(run, optimizer).attach(trainer)
    run.execute(trainer.run)
    assert trainer.state.epoch == 1
    assert not list(tmp_path.iterdir())
