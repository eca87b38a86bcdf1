# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.engines import SupervisedTrainer
from torch import nn

from covid_monai.training import MeasureNorm, optimiser_steps

BATCHES = [torch.full((2, 1, 1, 1), 1.0), torch.tensor([2.0, 6.0]).reshape(2, 1, 1, 1)]


def average() -> nn.Module:
    """Doubles its input, then normalises."""
    double = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    return nn.Sequential(double, nn.BatchNorm2d(1)).requires_grad_(False).eval()


def train(handler: MeasureNorm, epochs: int = 1) -> list[float]:
    """Train some other network; the mean that the handler's average has as each epoch ends."""
    other = nn.Conv2d(1, 1, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": image, "label": image} for image in BATCHES],
        network=other,
        optimizer=torch.optim.SGD(other.parameters(), 0.0),
        loss_function=nn.MSELoss(),
        train_handlers=[handler],
        decollate=False,
    )
    means = []
    trainer.add_event_handler("EPOCH_COMPLETED", lambda _: means.append(float(handler.average[1].running_mean)))
    trainer.run()
    return means


def test_statistics_are_those_of_the_average_on_the_epochs_batches():
    net = average()
    assert train(MeasureNorm(net)) == [5.0]  # mean of the batches' means 2 and 8
    assert float(net[1].running_var) == pytest.approx(16.0)  # of the unbiased variances 0 and 32
    assert net[1].momentum == 0.1
    assert not any(module.training for module in net.modules())


def test_only_the_last_batches_count():
    assert train(MeasureNorm(average(), batches=1)) == [8.0]


def test_it_is_done_every_so_often_and_after_the_last_epoch():
    assert train(MeasureNorm(average(), interval=2), epochs=3) == [0.0, 5.0, 5.0]
    assert train(MeasureNorm(average(), interval=100), epochs=2) == [0.0, 5.0]


def test_networks_around_the_average_keep_theirs():
    net = average()
    around = nn.Sequential(nn.BatchNorm2d(1).eval(), net)
    around.train = lambda mode=True: net.train(mode)  # as the cascade holds its single network still
    train(MeasureNorm(net, around))
    assert float(around[0].running_mean) == 0.0
    assert float(net[1].running_mean) == pytest.approx(5.0, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"batches": 0}])
def test_numbers_below_1_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="give 1 or more"):
        MeasureNorm(average(), **wrong)


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_a_step_is_told_when_the_trainer_makes_one(batches: int, accumulation_steps: int, epochs: int):
    network = nn.Linear(1, 1)
    made: list[int] = []
    told: list[int] = []

    class Counted(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> None:
            made.append(trainer.state.iteration)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}] * batches,
        network=network,
        optimizer=Counted(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        accumulation_steps=accumulation_steps,
    )
    trainer.add_event_handler(optimiser_steps(accumulation_steps), lambda: told.append(trainer.state.iteration))
    trainer.run()
    assert told == made
