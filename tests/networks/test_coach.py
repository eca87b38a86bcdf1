# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covid_monai.losses import InpaintingLoss
from covid_monai.networks import CoachNet
from covid_monai.networks.coach import CELLS, cell_mask

FRACTION = st.floats(0.01, 1)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def coach() -> CoachNet:
    """A small coach after some steps in training mode, so that its statistics are not the initial ones."""
    torch.manual_seed(0)
    coach = CoachNet(width=8, latent=6)
    with torch.no_grad():
        for _ in range(3):
            coach(images(4, 1, 64, 64))
    return coach


@pytest.mark.parametrize(
    ("in_channels", "width", "count"),
    [(3, 64, 11_279_213), (1, 64, 11_272_941), (1, 32, 2_847_245), (1, 16, 726_429)],
)
def test_number_of_parameters(in_channels: int, width: int, count: int) -> None:
    # ResNet-18 without classifier has 11,176,512; the head 512 * 200 + 200 and 100 + 1
    assert sum(p.numel() for p in CoachNet(in_channels, width).parameters()) == count


SCORES = torch.tensor([[[[2.0, 4.0], [1.0, 3.0]]]])


@pytest.mark.parametrize(
    ("keep_fraction", "alpha", "expected"),
    [
        # k = 2, the threshold is 3; k = 3, it is 2; k = 4, it is 1
        (0.5, 1.0, [1 / (1 + math.e), 1 / (1 + 1 / math.e), 1 / (1 + math.e**2), 0.5]),
        (0.5, 100.0, [0, 1, 0, 0.5]),
        (0.5, math.inf, [0, 1, 0, 1]),
        (0.75, 1.0, [0.5, 1 / (1 + math.e**-2), 1 / (1 + math.e), 1 / (1 + 1 / math.e)]),
        (0.75, math.inf, [1, 1, 0, 1]),
        (1.0, math.inf, [1, 1, 1, 1]),
        (1.0, 100.0, [1, 1, 0.5, 1]),
        (0.05, math.inf, [0, 0, 0, 0]),  # round(0.2) cells
    ],
)
def test_masks_worked_out_by_hand(keep_fraction: float, alpha: float, expected: list[float]) -> None:
    mask = cell_mask(SCORES, keep_fraction, alpha)
    torch.testing.assert_close(mask, torch.tensor(expected, dtype=torch.float32).view(1, 1, 2, 2))


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 3), st.just(1), st.integers(1, 7), st.integers(1, 7))),
    keep_fraction=FRACTION,
)
@example(scores=np.zeros((2, 1, 16, 16), np.float32), keep_fraction=0.75)
@example(scores=np.full((1, 1, 5, 4), -np.inf, np.float32), keep_fraction=0.75)
def test_exactly_the_share_is_kept_and_it_scores_highest(scores: np.ndarray, keep_fraction: float) -> None:
    scores = np.nan_to_num(scores, nan=0.0)
    mask = cell_mask(torch.from_numpy(scores), keep_fraction).numpy()
    kept = round(keep_fraction * scores[0].size)
    assert set(np.unique(mask)) <= {0, 1}
    for one, chosen in zip(scores, mask == 1, strict=True):
        assert chosen.sum() == kept
        if 0 < kept < one.size:
            assert one[chosen].min() >= one[~chosen].max()


def test_among_equal_scores_the_first_are_kept() -> None:
    mask = cell_mask(torch.zeros(1, 1, 3, 4), 0.5)
    assert mask.flatten().tolist() == [1.0] * 6 + [0.0] * 6
    assert cell_mask(torch.zeros(1, 1, 3, 4), 0.5, 1.0).unique().tolist() == [0.5]


# The cell of score 4 may not be erased: the others are 2, 1 and 3.
ALLOWED = torch.tensor([[[[True, False], [True, True]]]])


@pytest.mark.parametrize(
    ("keep_fraction", "alpha", "expected"),
    [
        # k = round(1.5) = 2 of three cells, the threshold is 2; k = round(1.05) = 1, it is 3; round(0.15) = 0, too
        (0.5, 1.0, [0.5, 1, 1 / (1 + math.e), 1 / (1 + 1 / math.e)]),
        (0.5, math.inf, [1, 1, 0, 1]),
        (0.35, 1.0, [1 / (1 + math.e), 1, 1 / (1 + math.e**2), 0.5]),
        (0.35, math.inf, [0, 1, 0, 1]),
        (0.05, 1.0, [1 / (1 + math.e), 1, 1 / (1 + math.e**2), 0.5]),
        (0.05, math.inf, [0, 1, 0, 0]),
        (1.0, math.inf, [1, 1, 1, 1]),
    ],
)
def test_masks_within_a_region_worked_out_by_hand(keep_fraction: float, alpha: float, expected: list[float]) -> None:
    mask = cell_mask(SCORES, keep_fraction, alpha, ALLOWED)
    torch.testing.assert_close(mask, torch.tensor(expected, dtype=torch.float32).view(1, 1, 2, 2))


@given(
    scores=arrays(np.float32, (3, 1, 4, 5), elements=st.floats(width=32, allow_nan=False)),
    allowed=arrays(np.bool_, (3, 1, 4, 5)),
    keep_fraction=FRACTION,
)
def test_the_share_is_of_the_allowed_cells_of_each_slice(
    scores: np.ndarray, allowed: np.ndarray, keep_fraction: float
) -> None:
    mask = cell_mask(torch.from_numpy(scores), keep_fraction, allowed=torch.from_numpy(allowed)).numpy()
    assert (mask[~allowed] == 1).all()
    for one, free, each in zip(mask, allowed, scores, strict=True):
        assert one[free].sum() == round(keep_fraction * int(free.sum()))
        kept, erased = each[free & (one == 1)], each[free & (one == 0)]
        if kept.size and erased.size:
            assert kept.min() >= erased.max()


def test_a_slice_without_allowed_cells_is_kept_and_has_no_gradient() -> None:
    scores = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]], requires_grad=True)
    allowed = torch.tensor([[[[False, False]]], [[[True, True]]]])
    mask = cell_mask(scores, 0.5, 2.0, allowed)
    (slope,) = torch.autograd.grad(mask.sum(), scores)
    p = 1 / (1 + math.exp(4))  # sigmoid(2 (0 - 2))
    torch.testing.assert_close(mask.flatten(), torch.tensor([1, 1, 0.5, p]))
    torch.testing.assert_close(slope.flatten(), 2 * p * (1 - p) * torch.tensor([0.0, 0, -1, 1]))


@pytest.mark.parametrize(
    "allowed", [torch.ones(1, 1, 2, 3, dtype=torch.bool), torch.ones(1, 1, 2, 2)], ids=["another grid", "numbers"]
)
def test_other_allowed_cells_are_refused(allowed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"allowed has shape .*; give booleans of shape \[1, 1, 2, 2\], one a cell"):
        cell_mask(SCORES, 0.5, allowed=allowed)


@given(scores=arrays(np.float32, (2, 1, 5, 5), elements=st.floats(-8, 8, width=32)), keep_fraction=FRACTION)
def test_soft_masks_order_the_cells_as_hard_ones_do(scores: np.ndarray, keep_fraction: float) -> None:
    soft, hard = (cell_mask(torch.from_numpy(scores), keep_fraction, alpha) for alpha in (1.0, math.inf))
    assert (soft[hard == 1] >= 0.5).all()
    assert (soft[hard == 0] <= 0.5).all()


def test_gradients_worked_out_by_hand() -> None:
    # k = 1, the threshold is the first score: mask = (1/2, sigmoid(2 (s2 - s1))), whose slope is 2 p (1 - p)
    scores = torch.tensor([[[[1.0, 0.0]]]], requires_grad=True)
    first, second = cell_mask(scores, 0.5, 2.0).flatten()
    p = second.item()
    (of_first,) = torch.autograd.grad(first, scores, retain_graph=True)
    (of_second,) = torch.autograd.grad(second, scores)
    torch.testing.assert_close(of_first.flatten(), torch.zeros(2))
    torch.testing.assert_close(of_second.flatten(), 2 * p * (1 - p) * torch.tensor([-1.0, 1.0]))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), keep_fraction=FRACTION)
def test_sides_that_are_no_multiple_of_a_cell(height: int, width: int, keep_fraction: float) -> None:
    torch.manual_seed(0)
    coach = CoachNet(width=2, latent=2, keep_fraction=keep_fraction).eval()
    mask = coach(images(2, 1, height, width))
    assert mask.shape == (2, 1, height, width)
    cells = mask[..., ::16, ::16]
    assert cells.shape[2:] == (math.ceil(height / 16), math.ceil(width / 16))
    assert cells.sum((1, 2, 3)).tolist() == [round(keep_fraction * cells[0].numel())] * 2
    whole = cells.repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert torch.equal(mask, whole[..., :height, :width])


@pytest.mark.parametrize("cell", CELLS)
def test_smaller_cells_with_as_many_weights(cell: int) -> None:
    coach = CoachNet(width=4, latent=3, keep_fraction=0.5, cell=cell)
    like = CoachNet(width=4, latent=3)
    assert {k: v.shape for k, v in coach.state_dict().items()} == {k: v.shape for k, v in like.state_dict().items()}
    mask = coach.masks(images(2, 1, 64, 70))
    cells = mask[..., ::cell, ::cell]
    assert cells.shape[2:] == (64 // cell, math.ceil(70 / cell))
    assert torch.equal(mask, cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., :70])
    assert cells.sum((1, 2, 3)).tolist() == [cells[0].numel() / 2] * 2


@pytest.mark.parametrize("mode", ["training", "evaluation", "masks"])
def test_cells_that_are_not_allowed_are_kept(coach: CoachNet, mode: str) -> None:
    x = images(2, 1, 64, 64)
    allowed = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    allowed[0, :, :2] = allowed[1, :, :, 3] = True
    coach.train(mode == "training")
    out = coach.masks(x, sample=True, allowed=allowed) if mode == "masks" else coach(x, allowed)
    mask = out.mask if mode == "training" else out
    inside = allowed.repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert (mask[~inside] == 1).all()
    if mode == "training":
        assert ((mask[inside] > 0) & (mask[inside] < 1)).all()
    else:
        # a quarter of eight cells, of four cells
        assert ((1 - mask).sum((1, 2, 3)) / 256).tolist() == [2, 1]


def test_training_gives_soft_masks_of_alpha_and_the_moments(coach: CoachNet) -> None:
    x = images(4, 1, 70, 64)
    out = coach(x)
    assert out.mask.shape == (4, 1, 70, 64)
    assert out.mean.shape == out.log_variance.shape == (4, 6, 5, 4)
    assert ((out.mask > 0) & (out.mask < 1)).all()
    coach.alpha = 1000.0
    sharp = coach(x).mask
    assert ((sharp < 0.01) | (sharp > 0.99) | (sharp == 0.5)).float().mean() > 0.9


def test_training_samples_the_latents_and_evaluation_does_not(coach: CoachNet) -> None:
    x = images(2, 1, 64, 64)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(coach(x))
    assert torch.equal(drawn[0].mask, drawn[1].mask)
    assert not torch.equal(drawn[0].mask, drawn[2].mask)
    assert torch.equal(drawn[0].mean, drawn[2].mean)
    coach.eval()
    assert torch.equal(coach(x), coach(x))
    assert coach(x).unique().tolist() == [0, 1]


def test_masks_are_those_of_evaluation_in_either_mode(coach: CoachNet) -> None:
    x = images(3, 1, 64, 96)
    in_training = coach.masks(x)
    assert not in_training.requires_grad
    assert torch.equal(in_training, coach.eval()(x))
    assert torch.equal(in_training, coach.masks(x))
    assert in_training.mean((1, 2, 3)).tolist() == [0.75] * 3


def test_masks_of_alpha_100_are_nearly_those_of_infinity(coach: CoachNet) -> None:
    x = images(2, 1, 128, 128)
    near, hard = coach.masks(x, alpha=100.0), coach.masks(x)
    assert ((near - hard).abs() <= 0.5).all()
    # only the threshold itself, one cell of 64 of each slice, is at one half
    assert [(one == 0.5).sum().item() for one in near] == [16**2, 16**2]


def test_sampled_masks_differ_between_seeds_and_keep_the_share(coach: CoachNet) -> None:
    x = images(2, 1, 128, 128)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(coach.masks(x, sample=True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert all(mask.mean((1, 2, 3)).tolist() == [0.75, 0.75] for mask in drawn)


@pytest.mark.parametrize("mode", [True, False])
def test_masks_leave_statistics_and_mode_as_they_were(coach: CoachNet, mode: bool) -> None:
    coach.train(mode)
    before = {name: tensor.clone() for name, tensor in coach.state_dict().items()}
    coach.masks(images(2, 1, 64, 64), sample=True)
    assert {module.training for module in coach.modules()} == {mode}
    assert all(torch.equal(before[name], tensor) for name, tensor in coach.state_dict().items())


def test_masks_differ_between_images(coach: CoachNet) -> None:
    first, second = coach.masks(images(2, 1, 128, 128))
    assert not torch.equal(first, second)


def test_gradients_reach_the_coach_through_the_mask_alone(coach: CoachNet) -> None:
    x = images(2, 1, 64, 64)
    rebuilt = x + images(2, 1, 64, 64).flip(3)
    (-InpaintingLoss()([rebuilt], x, coach(x).mask)).backward()
    # the score's bias moves scores and threshold alike
    without = [name for name, p in coach.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert set(without) <= {"score.bias"}


def test_a_coach_step_moves_the_mask_off_what_is_easy() -> None:
    # the left half is rebuilt perfectly, the right is not: the coach learns to erase the right
    torch.manual_seed(0)
    coach = CoachNet(width=4, latent=4, keep_fraction=0.5)
    x = images(2, 1, 64, 64)
    x[..., 32:] += 1
    rebuilt = torch.where(torch.arange(64) < 32, x, x - 1)
    optimizer = torch.optim.Adam(coach.parameters(), 0.01)
    for _ in range(25):
        optimizer.zero_grad()
        (1 - InpaintingLoss()([rebuilt], x, coach(x).mask)).backward()
        optimizer.step()
    mask = coach.masks(x)
    assert mask[..., 32:].mean() < 0.25
    assert mask[..., :32].mean() > 0.75


def test_a_schedule_may_change_the_share(coach: CoachNet) -> None:
    coach.keep_fraction = 0.5
    assert coach.masks(images(1, 1, 64, 64)).mean().item() == 0.5
    coach.keep_fraction = 0.0
    with pytest.raises(ValueError, match=r"keep_fraction is 0\.0; give a share above 0 and at most 1"):
        coach.masks(images(1, 1, 64, 64))


def test_masks_have_one_channel_whatever_the_slices_have() -> None:
    assert CoachNet(3, width=4).masks(images(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_float32_and_as_many_cells_under_autocast(coach: CoachNet) -> None:
    x = images(2, 1, 128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        out, hard = coach(x), coach.masks(x)
    assert {out.mask.dtype, out.mean.dtype, out.log_variance.dtype, hard.dtype} == {torch.float32}
    assert hard.mean((1, 2, 3)).tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_fraction": 0.0},
        {"keep_fraction": 1.1},
        {"keep_fraction": math.nan},
        {"alpha": 0.0},
        {"alpha": math.inf},
        {"width": 0},
        {"latent": 0},
        {"in_channels": 0},
        {"cell": 32},
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is {wrong[name]}; (give|choose)"):
        CoachNet(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32)])
def test_other_slices_are_refused(coach: CoachNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"slices have shape \[1, .*\]; this coach wants \(B, 1, H, W\)"):
        coach(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"alpha is -1\.0; give a steepness above 0"):
        coach.masks(images(1, 1, 32, 32), alpha=-1.0)
