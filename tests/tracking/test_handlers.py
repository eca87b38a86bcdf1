# SPDX-License-Identifier: Apache-2.0
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, LrScheduleHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscrete, AsDiscreted
from PIL import Image
from torch import nn

from covid_monai.tracking import (
    TrackCases,
    TrackedRun,
    TrackEvaluation,
    TrackInpainting,
    TrackSamples,
    TrackTraining,
    hashed_id,
)

LABELS = (0, 1, 0, 1, 1)  # which of the validation slices have a lesion


@pytest.fixture
def run(tracking_uri: str) -> TrackedRun:
    return TrackedRun(tracking_uri, "lungs", "training")


def items(labels: tuple[int, ...] = LABELS) -> list[dict[str, Any]]:
    """Slices (1, 6, 8) whose lesion, if any, is the upper left quarter; item k has the intensity k / 10."""
    found = []
    for k, has_lesion in enumerate(labels):
        label = torch.zeros(1, 6, 8)
        label[:, :3, :4] = has_lesion
        found.append({"image": torch.full((1, 6, 8), k / 10), "label": label, "id": f"slice {k}"})
    return found


def build_evaluator(*handlers: Any, network: nn.Module | None = None, decollate: bool = True) -> SupervisedEvaluator:
    dice = IgniteMetricHandler(DiceMetric(ignore_empty=False), output_transform=from_engine(["pred", "label"]))
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items()), batch_size=2),
        network or nn.Identity(),
        postprocessing=AsDiscreted("pred", threshold=0.25),
        key_val_metric={"val_mean_dice": dice},
        val_handlers=handlers,
        decollate=decollate,
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


def recorded(client: MlflowClient, run: TrackedRun) -> dict[str, float]:
    """The metrics of a run but for the load of the machine."""
    metrics = client.get_run(run.run_id or "").data.metrics
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_fork_dropped_ends_the_training(run: TrackedRun, client: MlflowClient, number: int):
    """Python drops what a signal raises while it forks; here that is done by hand."""
    trainer, optimizer = build_trainer(1)
    TrackTraining(run, optimizer).attach(trainer)

    def drop(engine: Engine) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), drop)
    with pytest.raises(KeyboardInterrupt):
        run.execute(trainer.run)
    assert trainer.state.iteration == 2
    assert client.get_run(run.run_id or "").info.status == "KILLED"


def test_each_scalar_of_a_trainer_is_a_mean_over_the_steps_that_have_it(run: TrackedRun, client: MlflowClient):
    outputs: list[dict[str, Any]] = [
        {"loss": torch.tensor(4.0, requires_grad=True), "network_loss": 4.0, "erased_share": 0.25},
        {"loss": torch.tensor(1.0), "coach_loss": torch.tensor([0.5]).sum(), "erased_share": 0.25},
        {
            "loss": torch.tensor(2.0),
            "network_loss": 2.0,
            "erased_share": 0.25,
            "label": None,
            "name": "a",
            "many": torch.ones(2),
        },
    ]
    trainer = Engine(lambda engine, batch: {**outputs[batch], "epochs": engine.state.epoch})
    TrackTraining(run, torch.optim.SGD([torch.ones(1)], lr=0.4)).attach(trainer)
    run.execute(lambda: trainer.run([0, 1, 2], max_epochs=2))
    metrics = recorded(client, run)
    assert metrics.pop("epoch_seconds") > 0
    assert metrics == {
        "train_loss": pytest.approx(7 / 3),
        "train_network_loss": 3.0,
        "train_coach_loss": 0.5,
        "train_erased_share": 0.25,
        "train_epochs": 2.0,
        "learning_rate": 0.4,
    }
    assert history(client, run, "train_coach_loss") == [(1, 0.5), (2, 0.5)]


def test_an_epoch_without_a_loss_does_not_have_it(run: TrackedRun, client: MlflowClient):
    def step(engine: Engine, batch: int) -> dict[str, float]:
        return {"loss": 1.0, "coach_loss" if engine.state.epoch % 2 else "network_loss": float(engine.state.epoch)}

    trainer = Engine(step)
    TrackTraining(run, torch.optim.SGD([torch.ones(1)], lr=0.4)).attach(trainer)
    run.execute(lambda: trainer.run([0, 1], max_epochs=4))
    assert history(client, run, "train_coach_loss") == [(1, 1.0), (3, 3.0)]
    assert history(client, run, "train_network_loss") == [(2, 2.0), (4, 4.0)]


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
    assert recorded(client, run) == {"one": 0.5, "two": 2.0, "three": 0.25}


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


def test_classes_get_their_own_colours(run: TrackedRun, tmp_path: Path):
    codes = torch.zeros(1, 6, 8)
    codes[:, :2], codes[:, 4:] = 1, 2
    one_hot = AsDiscrete(to_onehot=3)
    healthy = {"image": torch.zeros(1, 6, 8), "label": one_hot(torch.zeros(1, 6, 8)), "pred": one_hot(codes)}
    evaluator = Engine(lambda engine, batch: [healthy, {**healthy, "label": one_hot(codes)}])
    TrackSamples(run, every=1).attach(evaluator)
    run.execute(lambda: evaluator.run([0]))
    (path,) = samples(tmp_path / "store")  # background is no lesion
    _, reference, prediction = np.split(np.asarray(Image.open(path)).astype(int), 3, axis=1)
    assert (reference == prediction).all()
    bands = reference[::2, 0]
    assert [band.any() for band in bands] == [True, False, True]
    assert (bands[0] != bands[2]).any()
    assert (reference == np.repeat(bands, 2, axis=0)[:, None]).all()


# cases ---------------------------------------------------------------------------------------------------------------


def cases(client: MlflowClient, run: TrackedRun) -> dict[str, dict[str, float]]:
    """``cases.json`` with the ids of :func:`items` in place of their hashes."""
    slices = {hashed_id(item["id"]): item["id"] for item in items()}
    root = urlparse(client.get_run(run.run_id or "").info.artifact_uri or "").path
    found = json.loads((Path(root) / "cases.json").read_text())
    return {metric: {slices[id_]: value for id_, value in values.items()} for metric, values in found.items()}


@pytest.mark.parametrize("decollate", [False, True])
def test_every_case_is_recorded_by_its_hashed_id(run: TrackedRun, client: MlflowClient, decollate: bool):
    evaluator = build_evaluator(TrackCases(run), decollate=decollate)
    run.execute(evaluator.run)
    assert cases(client, run) == {
        "val_mean_dice": {
            "slice 0": 1.0,
            "slice 1": 0.0,
            "slice 2": 1.0,
            "slice 3": pytest.approx(0.4),
            "slice 4": pytest.approx(0.4),
        }
    }


def test_a_second_evaluation_takes_the_place_of_the_first(run: TrackedRun, client: MlflowClient):
    evaluator = build_evaluator(TrackCases(run))

    def twice() -> None:
        evaluator.run()
        evaluator.data_loader = DataLoader(Dataset(items((0, 1))), batch_size=2)
        evaluator.run()

    run.execute(twice)
    assert cases(client, run) == {"val_mean_dice": {"slice 0": 1.0, "slice 1": 0.0}}


def build_engine(handler: Any, details: dict[str, torch.Tensor], ids: Sequence[str]) -> Engine:
    """An evaluator of one slice a batch that ends with such details."""
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metric_details = details  # type: ignore[attr-defined]
    handler.attach(evaluator)
    evaluator.run([{"id": [each]} for each in ids])
    return evaluator


def test_metrics_of_classes_are_named_by_them_and_absent_classes_left_out(run: TrackedRun, client: MlflowClient):
    details = {
        "val_mean_dice": torch.tensor([[0.5, float("nan")], [0.25, 0.75]]),
        "val_surface": torch.tensor([[float("inf"), 2.0], [3.0, float("nan")]]),
        "val_mean_iou": torch.tensor([0.125, float("nan")]),
    }
    handler = TrackCases(run, classes=["ggo", "consolidation"])
    run.execute(lambda: build_engine(handler, details, ["slice 0", "slice 1"]))
    assert cases(client, run) == {
        "val_dice_ggo": {"slice 0": 0.5, "slice 1": 0.25},
        "val_dice_consolidation": {"slice 1": 0.75},
        "val_surface_ggo": {"slice 1": 3.0},
        "val_surface_consolidation": {"slice 0": 2.0},
        "val_mean_iou": {"slice 0": 0.125},
    }


def test_cases_of_other_handlers_are_recorded_by_their_hashed_ids(run: TrackedRun, client: MlflowClient):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metric_details = {"val_mean_dice": torch.ones(2, 1)}  # type: ignore[attr-defined]
    evaluator.state.case_details = {  # type: ignore[attr-defined]
        "val_volume_dice": {"slice 3": 0.5, "slice 4": float("nan")}
    }
    TrackCases(run).attach(evaluator)
    run.execute(lambda: evaluator.run([{"id": ["slice 0"]}, {"id": ["slice 1"]}]))
    assert cases(client, run) == {
        "val_mean_dice": {"slice 0": 1.0, "slice 1": 1.0},
        "val_volume_dice": {"slice 3": 0.5},
    }


def test_classes_without_names_are_left_out(run: TrackedRun, client: MlflowClient):
    details = {"val_mean_dice": torch.ones(1, 2), "val_dice_ggo": torch.ones(1, 1)}
    run.execute(lambda: build_engine(TrackCases(run), details, ["slice 0"]))
    assert cases(client, run) == {"val_dice_ggo": {"slice 0": 1.0}}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3), r"^val_mean_dice has 3 values a case, but classes are \('ggo', 'consolidation'\): name each\.$"),
        ((2, 2), r"^val_mean_dice has 2 cases, but the batches 1 ids: give each case one\.$"),
    ],
)
def test_cases_and_classes_that_cannot_be_named_are_refused(run: TrackedRun, shape: tuple[int, ...], message: str):
    handler = TrackCases(run, classes=["ggo", "consolidation"])
    with pytest.raises(ValueError, match=message):
        run.execute(lambda: build_engine(handler, {"val_mean_dice": torch.ones(shape)}, ["slice 0"]))


# inpainting ----------------------------------------------------------------------------------------------------------


def pretext_output(first: int, count: int, coach: bool) -> dict[str, torch.Tensor]:
    """Slices (1, 4, 6) of intensity 1/2; random masks erase the left half, the coach's the slice's own row."""
    random_mask = torch.ones(count, 1, 4, 6)
    random_mask[..., :3] = 0
    image = torch.full((count, 1, 4, 6), 0.5)
    output = {"image": image, "random_mask": random_mask, "random_pred": torch.full_like(image, 0.75)}
    if coach:
        coach_mask = torch.ones_like(image)
        for k in range(count):
            coach_mask[k, 0, (first + k) % 4] = 0
        output |= {"coach_mask": coach_mask, "coach_pred": torch.full_like(image, -1.0)}
    return output


def build_pretext(handler: TrackInpainting, coach: bool = True, size: int = 3) -> Engine:
    evaluator = Engine(lambda engine, batch: pretext_output(batch, size, coach))
    handler.attach(evaluator)
    return evaluator


def pictures(store: Path) -> dict[str, np.ndarray]:
    """The pictures of a run by their names below the artifacts."""
    return {
        str(path.relative_to(path.parents[1])): np.asarray(Image.open(path)).astype(int)
        for path in sorted(store.glob("mlruns/lungs/*/artifacts/*/*.png"))
    }


def test_rebuilding_is_shown_under_both_masks(run: TrackedRun, tmp_path: Path):
    evaluator = build_pretext(TrackInpainting(run, every=1, count=5))
    run.execute(lambda: evaluator.run([0, 3, 6]))
    found = pictures(tmp_path / "store")
    names = [f"inpainting/epoch_0001_{k}.png" for k in range(5)]
    assert sorted(found) == ["coach_masks/epoch_0001.png", *names]
    for k, name in enumerate(names):
        assert found[name].shape == (2 * 4, 4 * 6)
        (image, erased, rebuilt, error), below = (np.split(row, 4, axis=1) for row in np.split(found[name], 2))
        assert (image == 127).all()
        assert (erased == np.repeat([[0, 127]], 3, axis=1)).all()
        assert (rebuilt == 191).all()
        assert (error == 63).all()
        assert (below[0] == 127).all()
        assert (below[1] == np.where(np.arange(4) == k % 4, 0, 127)[:, None]).all()
        assert (below[2] == 0).all()  # -1, as far as it can be shown
        assert (below[3] == 255).all()  # the error is 3/2


def test_the_masks_of_the_coach_stand_in_a_grid(run: TrackedRun, tmp_path: Path):
    evaluator = build_pretext(TrackInpainting(run, every=1, count=1))
    run.execute(lambda: evaluator.run([0, 3]))
    grid = pictures(tmp_path / "store")["coach_masks/epoch_0001.png"]
    assert grid.shape == (2 * (4 + 2), 3 * (6 + 2))  # six slices: two rows of three, each with a grey edge
    for k in range(6):
        row, column = divmod(k, 3)
        cell = grid[row * 6 : row * 6 + 6, column * 8 : column * 8 + 8]
        assert (cell[1:-1, 1:-1] == np.where(np.arange(4) == k % 4, 0, 255)[:, None]).all()
        assert all((edge == 127).all() for edge in (cell[0], cell[-1], cell[:, 0], cell[:, -1]))


@pytest.mark.parametrize(("slices", "shape"), [(1, (6, 8)), (5, (12, 24)), (20, (24, 32))])
def test_the_grid_is_as_large_as_it_must_be_and_at_most_16(
    run: TrackedRun, tmp_path: Path, slices: int, shape: tuple[int, int]
):
    evaluator = build_pretext(TrackInpainting(run, every=1), size=1)
    run.execute(lambda: evaluator.run(list(range(slices))))
    assert pictures(tmp_path / "store")["coach_masks/epoch_0001.png"].shape == shape


def test_without_coach_random_masks_are_shown_alone(run: TrackedRun, tmp_path: Path):
    evaluator = build_pretext(TrackInpainting(run, every=1, count=1), coach=False)
    run.execute(lambda: evaluator.run([0, 3]))
    assert {name: picture.shape for name, picture in pictures(tmp_path / "store").items()} == {
        "inpainting/epoch_0001_0.png": (4, 24)
    }


def test_rebuilding_is_shown_every_so_many_epochs(run: TrackedRun, tmp_path: Path):
    evaluator = build_pretext(TrackInpainting(run, every=2, count=1))

    def validate() -> None:
        for epoch in range(1, 5):  # as a ValidationHandler does
            evaluator.state.epoch, evaluator.state.max_epochs, evaluator.state.iteration = epoch - 1, epoch, 0
            evaluator.run([0, 3], max_epochs=epoch)

    run.execute(validate)
    assert sorted(pictures(tmp_path / "store")) == [
        f"{name}/epoch_{epoch:04d}{number}.png"
        for name, number in (("coach_masks", ""), ("inpainting", "_0"))
        for epoch in (2, 4)
    ]


def test_a_disabled_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COVID_MONAI_ID_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    run = TrackedRun(f"sqlite:///{tmp_path}/mlflow.db", "lungs", "training", enabled=False)
    evaluator = build_evaluator(TrackEvaluation(run), TrackSamples(run, every=1), TrackCases(run))
    build_pretext(TrackInpainting(run, every=1)).run([0])
    trainer, optimizer = build_trainer(1, ValidationHandler(1, evaluator))
    TrackTraining(run, optimizer).attach(trainer)
    run.execute(trainer.run)
    assert trainer.state.epoch == 1
    assert not list(tmp_path.iterdir())
