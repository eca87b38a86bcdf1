# SPDX-License-Identifier: Apache-2.0
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, State
from ignite.handlers import EMAHandler
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, LrScheduleHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose, RandFlipd, RandGaussianNoised
from torch import nn
from torch.utils.data import WeightedRandomSampler

from covid_monai.networks import load_weights, weights_sha256
from covid_monai.training import Checkpoints, SeedEpochs

EPOCHS = 5
SEED = 11


# an interrupted and resumed run equals an unbroken one ---------------------------------------------------------------


class Interrupter:
    """Raises KeyboardInterrupt at an epoch and iteration of that epoch, as Ctrl-C does."""

    def __init__(self, epoch: int, event: Events, iteration: int = 0) -> None:
        self.epoch, self.event, self.iteration = epoch, event, iteration

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Engine) -> None:
        past = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if engine.state.epoch == self.epoch and (not self.iteration or past == self.iteration):
            raise KeyboardInterrupt


class Training:
    """A training with all that draws at random or has a state: sampler, transforms, dropout, schedule, average."""

    def __init__(self, folder: Path, initial: int, *handlers: Any, workers: int = 0) -> None:
        torch.manual_seed(initial)  # whatever a new process has drawn before
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 1)
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: 1 - epoch / EPOCHS)
        self.average = EMAHandler(self.network, momentum=0.2, handle_buffers="update")
        self.learning_rates: list[float] = []
        rng = np.random.default_rng(0)
        images = rng.random((6, 1, 8, 8), dtype=np.float32)
        items = [{"image": image, "label": (image > 0.6).astype(np.float32)} for image in images]
        transform = Compose([RandFlipd(["image", "label"], prob=0.5, spatial_axis=1), RandGaussianNoised("image", 0.5)])
        sampler = WeightedRandomSampler([1.0] * 6, num_samples=6)
        self.evaluator = SupervisedEvaluator(
            torch.device("cpu"),
            DataLoader(Dataset(items), batch_size=3),
            self.average.ema_model,
            postprocessing=AsDiscreted("pred", threshold=0.0),
            key_val_metric={
                "val_mean_dice": IgniteMetricHandler(DiceMetric(), output_transform=from_engine(["pred", "label"]))
            },
        )
        self.trainer = SupervisedTrainer(
            torch.device("cpu"),
            EPOCHS,
            DataLoader(Dataset(items, transform), batch_size=2, sampler=sampler, num_workers=workers),
            self.network,
            self.optimizer,
            nn.BCEWithLogitsLoss(),
            train_handlers=[
                SeedEpochs(SEED, transform),
                LrScheduleHandler(self.scheduler, print_lr=False),
                ValidationHandler(1, self.evaluator),
                *handlers,
            ],
        )
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda: self.learning_rates.append(self.optimizer.param_groups[0]["lr"])
        )
        self.average.attach(self.trainer)
        state = {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.checkpoints = Checkpoints(folder, self.average.ema_model, state, self.evaluator)

    def run(self) -> "Training":
        self.checkpoints.run(self.trainer)
        return self


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, whatever it is made of."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


@pytest.fixture(scope="module", params=[0, 1], ids=["in this process", "in a worker"])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(tmp_path_factory.mktemp("unbroken"), SEED, workers=request.param)
    return training.run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "interrupter",
    [
        Interrupter(3, Events.ITERATION_COMPLETED, iteration=2),  # amid an epoch
        Interrupter(2, Events.EPOCH_COMPLETED),  # after validation, before the checkpoint
        Interrupter(5, Events.EPOCH_STARTED),  # between two epochs
    ],
    ids=["amid", "before", "between"],
)
def test_a_resumed_run_equals_an_unbroken_one(unbroken: Training, tmp_path: Path, interrupter: Interrupter):
    workers = unbroken.trainer.data_loader.num_workers
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, SEED, interrupter, workers=workers).run()
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert last["epoch"] == interrupter.epoch - 1
    resumed = Training(tmp_path, initial=999, workers=workers).run()
    assert resumed.trainer.state.epoch == EPOCHS
    assert resumed.learning_rates == unbroken.learning_rates[interrupter.epoch - 1 :]
    for name in ("checkpoint.pt", "model.pt"):
        expected = torch.load(unbroken.checkpoints.folder / name, weights_only=True)
        assert_same(torch.load(tmp_path / name, weights_only=True), expected)
    assert_same(resumed.network.state_dict(), unbroken.network.state_dict())
    assert_same(resumed.average.ema_model.state_dict(), unbroken.average.ema_model.state_dict())


def test_other_seeds_give_another_run(unbroken: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.SEED", SEED + 1)
    other = Training(tmp_path, 11).run()
    assert not torch.equal(other.network[0].weight, unbroken.network[0].weight)


def test_a_checkpoint_holds_what_it_says(unbroken: Training):
    last = torch.load(unbroken.checkpoints.last_path, weights_only=True)
    assert last.keys() == {"state", "epoch", "iteration", "best_score", "best_epoch", "identity"}
    assert last["state"].keys() == {"result", "network", "optimizer", "scheduler"}
    assert (last["epoch"], last["iteration"]) == (EPOCHS, 3 * EPOCHS)
    assert torch.equal(last["state"]["network"]["0.weight"], unbroken.network[0].weight)
    assert torch.equal(last["state"]["result"]["0.weight"], unbroken.average.ema_model[0].weight)
    assert not torch.equal(last["state"]["result"]["0.weight"], unbroken.network[0].weight)


# best weights and patience, with scores from a script ----------------------------------------------------------------


class Validation:
    """What `Checkpoints` sees of a MONAI evaluator; run by itself it gives the score of the last epoch's own run."""

    def __init__(self) -> None:
        self.state = State(epoch=0, metrics={})
        self.runs: list[int] = []

    def run(self, epoch: int) -> None:
        self.runs.append(epoch)
        self.state.epoch = epoch
        self.state.metrics["val_mean_dice"] = 0.55


class Scripted:
    """A training whose validation gives the scores of a script and whose only weight is the epoch's number."""

    def __init__(
        self, folder: Path, scores: Sequence[float | None], max_epochs: int | None = None, **options: Any
    ) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.evaluator = Validation()
        self.epochs: list[int] = []
        self.scores = scores
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0)
        self.trainer = SupervisedTrainer(
            torch.device("cpu"),
            max_epochs or len(scores),
            [{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}],
            self.network,
            optimizer,
            nn.MSELoss(),
            decollate=False,
        )
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._validate)
        options.setdefault("evaluator", self.evaluator)
        self.checkpoints = Checkpoints(folder, self.network, {"optimizer": optimizer}, **options)

    def _validate(self, trainer: Engine) -> None:
        self.epochs.append(trainer.state.epoch)
        nn.init.constant_(self.network.weight, float(trainer.state.epoch))
        score = self.scores[trainer.state.epoch - 1]
        if score is not None:
            self.evaluator.state.epoch = trainer.state.epoch
            self.evaluator.state.metrics["val_mean_dice"] = score

    def run(self) -> "Scripted":
        self.checkpoints.run(self.trainer)
        return self


def best(folder: Path) -> float:
    """Epoch whose weights are the best ones, read as inference reads them."""
    return load_weights(folder / "model.pt")["weight"].item()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.7, 0.6], 2),
        ([0.5, 0.6, 0.7], 3),
        ([0.7, 0.6, 0.7], 1),  # no better than before
        ([0.0, 0.0, 0.0], 1),
        ([math.nan, 0.1, math.nan], 2),
        ([None, 0.5, None, 0.4], 2),  # validation at every other epoch
    ],
)
def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path, scores: list[float | None], expected: int):
    training = Scripted(tmp_path, scores).run()
    assert best(tmp_path) == expected
    assert training.checkpoints.best_epoch == expected
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["result"]["weight"].item() == len(scores)


def test_the_last_epoch_is_always_validated(tmp_path: Path):
    training = Scripted(tmp_path, [None, 0.5, None]).run()
    assert training.evaluator.runs == [3]
    assert best(tmp_path) == 3  # 0.55 from the run of its own


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path):
    Scripted(tmp_path, [0.5, 0.6], 1, identity={"data_hash": "a", "size": [192, 256]}).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for identity, fault in (
        ({"data_hash": "b", "size": [192, 256]}, "data_hash"),
        ({"size": [192, 256]}, "data_hash"),  # which this training does not have
        ({"data_hash": "a", "size": [192, 256], "pretrained": "c"}, "pretrained"),
    ):
        other = Scripted(tmp_path, [0.5, 0.6], identity=identity)
        for attempt in (other.checkpoints.check, other.run):
            with pytest.raises(ValueError, match=rf"is of another training \({fault} differ\): choose another folder"):
                attempt()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    same = Scripted(tmp_path, [0.5, 0.6], identity={"data_hash": "a", "size": [192, 256]}).run()
    assert same.epochs == [2]


def test_another_metric_may_decide(tmp_path: Path):
    training = Scripted(tmp_path, [0.9, 0.1], metric="val_other")
    training.trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda trainer: training.evaluator.state.metrics.update(val_other=float(trainer.state.epoch)),
    )
    training.run()
    assert best(tmp_path) == 2


def test_without_an_evaluator_the_last_weights_are_kept(tmp_path: Path):
    Scripted(tmp_path, [0.9, 0.5, 0.1], evaluator=None, patience=1).run()
    assert best(tmp_path) == 3


@pytest.mark.parametrize(
    ("patience", "epochs"),
    [(1, [1, 2, 3]), (2, [1, 2, 3, 4]), (3, [1, 2, 3, 4, 5, 6, 7]), (None, [1, 2, 3, 4, 5, 6, 7])],
)
def test_patience_stops_a_training_that_no_longer_improves(tmp_path: Path, patience: int | None, epochs: list[int]):
    training = Scripted(tmp_path, [0.5, 0.7, 0.6, 0.6, 0.8, 0.1, 0.1], patience=patience).run()
    assert training.epochs == epochs
    assert best(tmp_path) == (5 if 5 in epochs else 2)


def test_best_score_and_patience_are_remembered_over_a_resume(tmp_path: Path):
    scores = [0.5, 0.7, 0.6, 0.65, 0.69, 0.9]
    assert Scripted(tmp_path, scores, max_epochs=3, patience=2).run().epochs == [1, 2, 3]
    resumed = Scripted(tmp_path, scores, patience=2).run()
    assert resumed.epochs == [4]  # the second epoch without improvement, not the first
    assert best(tmp_path) == 2  # 0.65 is the best since the resume, but not the best
    assert Scripted(tmp_path, scores, patience=2).run().epochs == []
    assert Scripted(tmp_path, scores, patience=5).run().epochs == [5, 6]
    assert best(tmp_path) == 6


def test_a_finished_run_does_nothing(tmp_path: Path):
    Scripted(tmp_path, [0.5, 0.6]).run()
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    assert Scripted(tmp_path, [0.5, 0.6]).run().epochs == []
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before


def test_without_resume_a_training_begins_anew(tmp_path: Path):
    Scripted(tmp_path, [0.5, 0.9]).run()
    anew = Scripted(tmp_path, [0.3, 0.2], resume=False).run()
    assert anew.epochs == [1, 2]
    assert best(tmp_path) == 1
    assert anew.checkpoints.best_score == 0.3


def test_other_processes_read_but_do_not_write(tmp_path: Path):
    assert Scripted(tmp_path, [0.5], write=False).run().epochs == [1]
    assert not list(tmp_path.iterdir())
    Scripted(tmp_path, [0.5, 0.6], max_epochs=1).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = Scripted(tmp_path, [0.5, 0.4], write=False).run()
    assert other.epochs == [2]
    assert (other.checkpoints.best_score, other.checkpoints.best_epoch) == (0.5, 1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_the_best_weights_are_those_of_the_average_when_it_is_the_result(tmp_path: Path):
    training = Scripted(tmp_path, [0.5, 0.7, 0.6])
    average = nn.Linear(1, 1, bias=False)
    training.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda trainer: nn.init.constant_(average.weight, 100.0 + trainer.state.epoch)
    )
    Checkpoints(tmp_path, average, {"network": training.network}, training.evaluator).run(training.trainer)
    assert best(tmp_path) == 102
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert (state["result"]["weight"].item(), state["network"]["weight"].item()) == (103, 3)


@pytest.mark.parametrize("written", [1, 2], ids=["best", "last"])
def test_a_write_that_is_killed_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int):
    Scripted(tmp_path, [0.5, 0.6], max_epochs=1).run()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    save, calls = torch.save, []

    def killed(state: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) < written:
            save(state, path)
            return
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        Scripted(tmp_path, [0.5, 0.6]).run()
    monkeypatch.undo()
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["checkpoint.pt"] == before["checkpoint.pt"]
    assert best(tmp_path) == written  # the new best weights are whole when only the last state was torn
    assert Scripted(tmp_path, [0.5, 0.6]).run().epochs == [2]
    assert best(tmp_path) == 2


# seeds of epochs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def draws() -> Callable[..., dict[int, list[float]]]:
    """What every source of randomness gives in each epoch of a run that begins at ``first``."""

    def run(seed: int, first: int = 1, last: int = 3) -> dict[int, list[float]]:
        noise = RandGaussianNoised("image", prob=1.0)
        found: dict[int, list[float]] = {}

        def step(engine: Engine, batch: Any) -> None:
            drawn = [torch.rand(1).item(), np.random.rand(), random.random()]  # noqa: NPY002
            found.setdefault(engine.state.epoch, []).extend(
                [*drawn, float(noise({"image": torch.zeros(1, 2, 2)})["image"].sum())]
            )

        engine = Engine(step)
        SeedEpochs(seed, noise).attach(engine)
        engine.state.max_epochs = last
        engine.state.epoch = first - 1
        engine.run([0, 1], max_epochs=last)
        return found

    return run


def test_an_epoch_draws_the_same_wherever_a_run_begins(draws: Callable[..., dict[int, list[float]]]):
    whole = draws(5)
    assert draws(5, first=3) == {3: whole[3]}


def test_epochs_and_seeds_draw_differently(draws: Callable[..., dict[int, list[float]]]):
    runs = [drawn for seed in (5, 6) for drawn in draws(seed).values()]
    assert len({tuple(drawn) for drawn in runs}) == 6
    for source in range(8):
        assert len({drawn[source] for drawn in runs}) == 6


def test_a_data_set_in_other_processes_needs_no_transform():
    drawn = []
    engine = Engine(lambda engine, batch: drawn.append(torch.rand(1).item()))
    SeedEpochs(7).attach(engine)
    engine.run([0], max_epochs=2)
    torch.manual_seed(7 + 2 * 100_003)
    assert drawn[1] == torch.rand(1).item()


def test_the_hash_of_each_best_weights_is_told(tmp_path: Path):
    told: list[str] = []
    Scripted(tmp_path, [0.5, 0.4, 0.6], saved=told.append).run()
    assert len(told) == 2
    assert told[-1] == weights_sha256(tmp_path / "model.pt")


def test_a_training_without_any_score_does_not_end_well(tmp_path: Path):
    with pytest.raises(ValueError, match="no epoch has a val_mean_dice"):
        Scripted(tmp_path, [float("nan"), float("nan")]).run()


def test_a_checkpoint_of_this_training_passes_the_check(tmp_path: Path):
    training = Scripted(tmp_path, [0.5, 0.6])
    training.checkpoints.check()  # none is there
    training.run()
    training.checkpoints.check()
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is no checkpoint of this training"):
        training.checkpoints.check()
    Scripted(tmp_path, [0.5], resume=False).checkpoints.check()
