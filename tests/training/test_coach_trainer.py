# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader
from torch import nn

from covid_monai.losses import InpaintingLoss
from covid_monai.networks import CoachNet, FineInfNet, InfNet, MultiInfNet, with_inpainting_heads
from covid_monai.training import (
    Checkpoints,
    CoachSchedule,
    Inpainting,
    KeepFraction,
    PretextEvaluator,
    PretextTrainer,
    RotationHead,
    RotationPrediction,
    SeedEpochs,
    prepare_image_batch,
)
from covid_monai.training.coach_trainer import random_masks_like
from covid_monai.training.pretext_evaluator import mask_overlap
from covid_monai.training.rotation import turned
from covid_monai.transforms import LungWindow, RandCellMask, cells_within
from tests.transforms.phantom import thorax


def images(count: int = 4, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(5))


def chests(count: int = 3, size: int = 64) -> torch.Tensor:
    return torch.stack([torch.as_tensor(LungWindow()(thorax(size, seed=k)[None])).float() for k in range(count)])


def inpainting(**options) -> Inpainting:
    torch.manual_seed(0)
    network = with_inpainting_heads(InfNet())
    coach = CoachNet(width=4, latent=5)
    arguments = {
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), 0.01, momentum=0.9),
        "random_masks": RandCellMask(0.75).set_random_state(0),
        "coach": coach,
        "coach_optimizer": torch.optim.Adam(coach.parameters(), 0.01),
    }
    return Inpainting(**(arguments | options))


def stepped(task: Inpainting, epoch: int, step: int = 0) -> dict[str, float]:
    made = task.step(images(), epoch, step)
    made.optimizer.zero_grad()
    made.loss.backward()
    made.optimizer.step()
    return made.scalars


def same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


class TestCoachSchedule:
    def test_blocks_of_epochs_follow_the_warm_up(self):
        schedule = CoachSchedule(coach=1, network=2, warm_up=2, unit="epochs")
        phases = [schedule.phase(epoch, step=7) for epoch in range(1, 9)]
        assert phases == ["random", "random", "coach", "network", "network", "coach", "network", "network"]

    def test_blocks_of_steps_begin_anew_in_each_epoch(self):
        schedule = CoachSchedule(coach=2, network=3, unit="steps")
        for epoch in (1, 2):
            assert [schedule.phase(epoch, step) for step in range(5)] == ["coach"] * 2 + ["network"] * 3

    @given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 40))
    def test_the_coach_has_its_share_of_whole_rounds(self, coach, network, rounds):
        schedule = CoachSchedule(coach, network, unit="steps")
        phases = [schedule.phase(1, step) for step in range(rounds * (coach + network))]
        assert phases.count("coach") == rounds * coach

    @pytest.mark.parametrize("lengths", [{"coach": -1}, {"network": 0}, {"warm_up": -1}, {"unit": "batches"}])
    def test_other_lengths_are_refused(self, lengths):
        with pytest.raises(ValueError, match="CoachSchedule"):
            CoachSchedule(**lengths)


class TestKeepFraction:
    def test_is_constant_without_an_end(self):
        assert [KeepFraction(0.8).at(epoch) for epoch in (1, 5, 50)] == [0.8, 0.8, 0.8]

    def test_changes_linearly_and_stays_at_the_end(self):
        shares = [KeepFraction(0.9, 0.5, epochs=5).at(epoch) for epoch in (1, 2, 3, 4, 5, 6)]
        assert shares == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.5])

    @pytest.mark.parametrize("shares", [(0.0, None), (1.0, None), (0.5, 1.5)])
    def test_other_shares_are_refused(self, shares):
        with pytest.raises(ValueError, match="no share between 0 and 1"):
            KeepFraction(*shares)


class TestInpainting:
    def test_a_coach_step_moves_the_coach_alone(self):
        task = inpainting(schedule=CoachSchedule(1, 1))
        network, coach = state(task.network), state(task.coach)
        scalars = stepped(task, epoch=1)
        assert set(scalars) == {"coach_loss", "erased_share"}
        assert same(network, task.network)  # statistics of its batch normalisation too
        assert not same(coach, task.coach)
        assert all(p.requires_grad for p in task.network.parameters())

    def test_a_network_step_moves_the_network_alone(self):
        task = inpainting(schedule=CoachSchedule(1, 1))
        network, coach = state(task.network), state(task.coach)
        scalars = stepped(task, epoch=2)
        assert set(scalars) == {"network_loss", "erased_share"}
        assert not same(network, task.network)
        assert same(coach, task.coach)

    def test_every_output_learns(self):
        task = inpainting(schedule=CoachSchedule(0, 1))
        task.step(images(), 1, 0).loss.backward()
        heads = [p for name, p in task.network.named_parameters() if ".head." in name]
        assert len(heads) == 10  # weight and bias of five
        assert all(p.grad.abs().sum() > 0 for p in heads)

    def test_the_warm_up_has_the_random_masks(self):
        task = inpainting(schedule=CoachSchedule(1, 1, warm_up=1), random_masks=RandCellMask().set_random_state(3))
        expected = random_masks_like(images(), RandCellMask().set_random_state(3))
        seen = []
        task.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        task.step(images(), 1, 0)
        assert torch.equal(seen[0], images() * expected)

    def test_without_a_coach_all_masks_are_random(self):
        task = inpainting(coach=None, coach_optimizer=None, schedule=CoachSchedule(1, 1))
        assert all("network_loss" in task.step(images(2), epoch, 0).scalars for epoch in (1, 2, 3))

    def test_coach_and_random_masks_follow_the_growing_share(self):
        task = inpainting(keep_fraction=KeepFraction(0.75, 0.5, epochs=3), schedule=CoachSchedule(1, 1))
        assert task.step(images(2), 3, 0).scalars["erased_share"] == 0.5
        assert task.coach.keep_fraction == task.random_masks.keep_fraction == 0.5
        assert task.coach.masks(images()).mean() == pytest.approx(0.5)

    @pytest.mark.parametrize("detach", [True, False])
    def test_detach_leaves_the_coach_the_erased_image_only(self, detach):
        class Blind(nn.Module):
            """Rebuilds nothing, whatever it sees."""

            def maps(self, x):
                return (x[:, :1] * 0,)

        task = inpainting(
            network=Blind(), schedule=CoachSchedule(1, 1), detach=detach, coach_loss=lambda loss, *_: 1 - loss
        )
        step = task.step(images(), 1, 0)
        step.loss.backward()
        moved = sum(float(p.grad.abs().sum()) for p in task.coach.parameters() if p.grad is not None)
        assert (moved == 0) is detach

    def test_the_coach_raises_the_error_of_a_network_that_stands_still(self):
        # left half hard to rebuild (noise), right half easy: the coach must come to erase the left
        torch.manual_seed(1)
        x = torch.full((4, 1, 64, 64), 0.5)
        x[..., :32] = torch.rand(4, 1, 64, 32).round()

        class Flat(nn.Module):
            def maps(self, x):
                return (torch.full_like(x[:, :1], 0.5) + 0 * x[:, :1],)

        coach = CoachNet(width=4, latent=5, alpha=5.0)
        task = inpainting(
            network=Flat(), coach=coach, coach_optimizer=torch.optim.Adam(coach.parameters(), 0.01),
            schedule=CoachSchedule(1, 1),
        )  # fmt: skip
        for _ in range(40):
            made = task.step(x, 1, 0)
            made.optimizer.zero_grad()
            made.loss.backward()
            made.optimizer.step()
        erased = 1 - coach.masks(x)
        assert erased[..., :32].sum() > 0.95 * erased.sum()

    @pytest.mark.parametrize("kind", ["random", "coach"])
    def test_masks_of_both_kinds_erase_the_same_share_of_the_lungs_alone(self, kind):
        x = chests()
        allowed = cells_within(x, "lungs", 8)
        masks = RandCellMask(0.5, 8, "lungs").set_random_state(0)
        coach = CoachNet(width=4, latent=5, cell=8)
        task = inpainting(random_masks=masks, coach=coach, schedule=CoachSchedule(0, 1, int(kind == "random")))
        seen = []
        task.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        task.step(x, 1, 0)
        erased = (seen[0] != x)[..., ::8, ::8]
        assert not erased[~allowed].any()
        # half of the cells, the rest rounded as Python does
        expected = [int(n) - round(0.5 * int(n)) for n in allowed.sum((1, 2, 3))]
        assert erased.sum((1, 2, 3)).tolist() == expected
        assert min(expected) >= 4

    def test_the_coach_gains_nothing_from_errors_outside_the_region(self):
        class Off(nn.Module):
            """Rebuilds zeros within the lungs' cells, and is off by ``error`` elsewhere."""

            def __init__(self, x, error):
                super().__init__()
                inside = cells_within(x, "lungs", 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
                self.map = torch.where(inside, 0.0, x + error)

            def maps(self, x):
                return (self.map + 0 * x,)

        x = chests()
        losses = []
        for error in (0.0, 0.5):
            task = inpainting(
                network=Off(x, error), schedule=CoachSchedule(1, 1), coach_loss=lambda loss, *_: 1 - loss,
                random_masks=RandCellMask(0.75, 16, "lungs"), loss=InpaintingLoss(1.0),
            )  # fmt: skip
            torch.manual_seed(3)
            losses.append(float(task.step(x, 1, 0).loss.detach()))
        assert losses[0] == losses[1] < 1

    @pytest.mark.parametrize(
        ("build", "channels", "maps"), [(FineInfNet, 1, 6), (MultiInfNet, 2, 1)], ids=["FineInfNet", "MultiInfNet"]
    )
    def test_other_networks_learn_within_the_lungs(self, build, channels, maps):
        torch.manual_seed(0)
        network = with_inpainting_heads(build())
        coach = CoachNet(channels, width=4, latent=5, cell=8)
        task = inpainting(
            network=network, optimizer=torch.optim.SGD(network.parameters(), 0.01), coach=coach,
            coach_optimizer=torch.optim.Adam(coach.parameters(), 0.01), schedule=CoachSchedule(1, 1),
            random_masks=RandCellMask(0.75, 8, "lungs"),
        )  # fmt: skip
        x = chests().repeat(1, channels, 1, 1)
        assert len(network.maps(x)) == maps
        assert "coach_loss" in task.step(x, 1, 0).scalars
        step = task.step(x, 2, 0)
        step.loss.backward()
        assert "network_loss" in step.scalars
        heads = [p for name, p in network.named_parameters() if ".head." in name or name.startswith("head.")]
        assert len(heads) == 2 * maps
        assert all(p.grad.abs().sum() > 0 for p in heads)

    def test_a_coach_with_cells_of_another_size_is_refused(self):
        with pytest.raises(ValueError, match="the coach's cells have 16 pixels and those of the random masks 8"):
            inpainting(random_masks=RandCellMask(0.75, 8))

    def test_a_coach_without_optimiser_is_refused(self):
        with pytest.raises(ValueError, match="coach_optimizer"):
            inpainting(coach_optimizer=None)


class TestRotation:
    def test_quarter_turns_of_the_central_square(self):
        x = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]).expand(4, 1, 2, 4)
        squares = turned(x, torch.tensor([0, 1, 2, 3]))[:, 0].tolist()
        assert squares == [[[1, 2], [5, 6]], [[2, 6], [1, 5]], [[6, 5], [2, 1]], [[5, 1], [6, 2]]]

    def test_learns_to_tell_the_turns_and_trains_the_encoder_only(self):
        torch.manual_seed(0)
        network = InfNet()
        head = RotationHead(network.feature_channels)
        optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 1e-3, weight_decay=0)
        task = RotationPrediction(network, head, optimizer)
        before = state(network)
        x = torch.linspace(0, 1, 64)[None, None, :, None].expand(16, 1, 64, 64)  # dark above
        accuracies = []
        for step in range(12):
            made = task.step(x, 1, step)
            optimizer.zero_grad()
            made.loss.backward()
            optimizer.step()
            accuracies.append(made.scalars["accuracy"])
        assert accuracies[-1] > 0.9
        moved = {name.split(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])}
        assert moved == {"encoder"}


def trainer(task, epochs: int, folder=None, resume: bool = True, scheduler=None):
    loader = DataLoader([{"image": x} for x in images(8, 32, 32)], batch_size=4, shuffle=True)
    engine = PretextTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        task=task,
        prepare_batch=prepare_image_batch,
        train_handlers=[SeedEpochs(7), SeedEpochs(7, task.random_masks)],
    )
    checkpoints = Checkpoints(
        folder,
        task.network,
        {"optimizer": task.optimizer, "coach": task.coach, "coach_optimizer": task.coach_optimizer},
        resume=resume,
    )
    return engine, checkpoints


class TestPretextTrainer:
    @pytest.mark.slow
    @pytest.mark.parametrize("unit", ["steps", "epochs"])
    def test_a_resumed_run_equals_an_unbroken_one(self, tmp_path, unit):
        def task() -> Inpainting:
            return inpainting(
                schedule=CoachSchedule(1, 1, warm_up=1, unit=unit), keep_fraction=KeepFraction(0.75, 0.5, 4)
            )

        unbroken, broken, resumed = task(), task(), task()
        engine, checkpoints = trainer(unbroken, 4, tmp_path / "a")
        checkpoints.run(engine)
        engine, checkpoints = trainer(broken, 2, tmp_path / "b")
        checkpoints.run(engine)
        engine, checkpoints = trainer(resumed, 4, tmp_path / "b")
        checkpoints.run(engine)
        assert engine.state.epoch == 4
        assert same(state(unbroken.network), resumed.network)
        assert same(state(unbroken.coach), resumed.coach)
        for name in ("optimizer", "coach_optimizer"):
            states = (getattr(task, name).state.values() for task in (unbroken, resumed))
            for one, other in zip(*states, strict=True):
                assert one.keys() == other.keys()
                assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)

    def test_output_holds_loss_and_scalars(self, tmp_path):
        engine, checkpoints = trainer(inpainting(), 1, tmp_path)
        checkpoints.run(engine)
        assert set(engine.state.output) == {"loss", "coach_loss", "erased_share"}


class TestPretextEvaluator:
    @pytest.fixture
    def loader(self) -> DataLoader:
        return DataLoader([{"image": x} for x in images(5, 32, 48)], batch_size=2)

    def test_an_oracle_has_no_error_and_the_mean_has_its_own(self, loader):
        whole = images(5, 32, 48)
        task = inpainting(inferer=lambda inputs, network, **options: network(inputs, **options))

        class Oracle(nn.Module):
            """Knows the slices by what is left of them."""

            def forward(self, x):
                return torch.stack([next(y for y in whole if ((y == z) | (z == 0)).all()) for z in x])

        task.network = Oracle()
        evaluator = PretextEvaluator("cpu", loader, task, prepare_image_batch)
        evaluator.run()
        metrics = evaluator.state.metrics
        assert metrics["val_error_random"] == metrics["val_error_coach"] == 0
        masks = RandCellMask(0.75).set_random_state(0)
        expected = []
        for x in whole:
            kept = torch.as_tensor(masks(x)) > 0
            expected.append(float((x[~kept] - x[kept].mean()).square().mean()))
        assert metrics["val_error_mean"] == pytest.approx(sum(expected) / 5, rel=1e-5)
        assert 0 <= metrics["val_mask_overlap"] <= 1

    def test_a_second_run_draws_the_same_masks_and_counts_anew(self, loader):
        evaluator = PretextEvaluator("cpu", loader, inpainting(), prepare_image_batch, seed=3)
        evaluator.run(1)
        first = dict(evaluator.state.metrics)
        evaluator.run(2)
        assert evaluator.state.metrics == first

    def test_holes_within_the_lungs_are_filled_with_the_mean_of_what_is_left_of_them(self):
        x = chests()
        loader = DataLoader([{"image": each} for each in x], batch_size=3)
        task = inpainting(random_masks=RandCellMask(0.6, 16, "lungs"))
        evaluator = PretextEvaluator("cpu", loader, task, prepare_image_batch, seed=2)
        evaluator.run()
        inside = cells_within(x, "lungs", 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
        masks = RandCellMask(0.6, 16, "lungs").set_random_state(2)
        erased = torch.stack([masks(each) for each in x]) == 0
        assert not (erased & ~inside).any()
        expected = [
            float((each[hole] - each[lung & ~hole].mean()).square().mean())
            for each, hole, lung in zip(x, erased, inside, strict=True)
        ]
        assert evaluator.state.metrics["val_error_mean"] == pytest.approx(sum(expected) / 3, rel=1e-5)
        output = evaluator.state.output
        assert torch.equal(output["random_mask"] == 0, erased)
        assert not ((output["coach_mask"] == 0) & ~inside).any()
        overlap = mask_overlap(1 - erased.float()).mean()
        assert evaluator.state.metrics["val_mask_overlap_random"] == pytest.approx(float(overlap))

    def test_a_slice_of_which_nothing_is_erased_does_not_count(self):
        # round(0.75 * 2) of two cells are kept, round(0.75 * 4) of four
        loader = [{"image": images(2, 16, 32)}, {"image": images(2, 32, 32)}]
        task = inpainting(coach=None)
        evaluator = PretextEvaluator("cpu", loader, task, prepare_image_batch)
        evaluator.run()
        assert all(0 < value < 1 for value in evaluator.state.metrics.values())

    def test_without_a_coach_there_are_no_figures_of_it(self, loader):
        evaluator = PretextEvaluator("cpu", loader, inpainting(coach=None), prepare_image_batch)
        evaluator.run()
        assert set(evaluator.state.metrics) == {"val_error_random", "val_error_mean"}
        assert set(evaluator.state.output) == {"image", "random_mask", "random_pred"}


def test_mask_overlap_is_the_jaccard_index_of_erased_areas():
    mask = torch.tensor([[1.0, 0, 0, 1], [1, 0, 1, 0], [0, 1, 1, 0]])[:, None, None]
    assert mask_overlap(mask).tolist() == pytest.approx([1 / 3, 0, 1 / 3])


def test_masks_have_one_channel_whatever_the_slices_have():
    mask = random_masks_like(torch.rand(2, 2, 32, 32), RandCellMask(0.5).set_random_state(0))
    assert mask.shape == (2, 1, 32, 32)
    assert mask.mean() == 0.5


def test_the_loss_refuses_masks_of_three_channels():
    with pytest.raises(ValueError, match="shape"):
        InpaintingLoss()([images()], images(), torch.ones(4, 3, 32, 48))
