# SPDX-License-Identifier: Apache-2.0
from math import log
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from covid_monai.losses import MultiInfNetLoss

LN2 = log(2)
WEIGHTS = (1.0, 2.0, 5.0)


class WithEdge(NamedTuple):
    coarse: torch.Tensor
    fine: torch.Tensor
    edge: torch.Tensor


def row(*codes: int) -> torch.Tensor:
    return torch.tensor(codes).view(1, 1, 1, -1)


# Probabilities 1/2, 1/4, 1/4 at each of three pixels
LOGITS = torch.tensor([LN2, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
NO_EDGE = torch.zeros(1, 1, 1, 3)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Dice of each class 2 * 1/4 / (3/4 + 1) = 2/7; cross-entropy (1 ln 2 + 2 ln 4 + 5 ln 4) / 8
        (row(0, 1, 2), 5 / 7 + 15 / 8 * LN2),
        # ground glass 2 * 1/2 / (3/4 + 2) = 4/11, no consolidation; (1 ln 2 + 4 ln 4) / 5
        (row(0, 1, 1), 7 / 11 / 2 + 9 / 5 * LN2),
        # consolidation 2 * 1/4 / (3/4 + 1), no ground glass; (2 ln 2 + 5 ln 4) / 7
        (row(0, 0, 2), 5 / 7 / 2 + 12 / 7 * LN2),
        # no lesion: cross-entropy alone
        (row(0, 0, 0), LN2),
    ],
    ids=["all classes", "no consolidation", "no ground glass", "no lesion"],
)
def test_values_worked_out_by_hand(target: torch.Tensor, expected: float) -> None:
    assert MultiInfNetLoss(WEIGHTS)([LOGITS], target, NO_EDGE).item() == pytest.approx(expected, abs=1e-5)


def test_all_class_maps_count() -> None:
    target = row(0, 1, 2)
    one = 5 / 7 + 15 / 8 * LN2
    perfect = 1000 * F.one_hot(target[:, 0], 3).permute(0, 3, 1, 2).float()
    loss = MultiInfNetLoss(WEIGHTS)
    assert loss([LOGITS] * 4, target, NO_EDGE).item() == pytest.approx(4 * one, abs=1e-4)
    for maps in ([LOGITS, perfect], [perfect, LOGITS]):
        assert loss(maps, target, NO_EDGE).item() == pytest.approx(one, abs=1e-4)


def test_edge_counts_where_the_maps_have_one() -> None:
    # edge logits ln 3: ln 4/3 where the edge is, ln 4 on two other pixels
    edge = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    maps = WithEdge(LOGITS, LOGITS, torch.full((1, 1, 1, 3), log(3)))
    loss = MultiInfNetLoss(WEIGHTS)
    expected = 2 * (5 / 7 + 15 / 8 * LN2) + (log(4 / 3) + 2 * log(4)) / 3
    assert loss(maps, row(0, 1, 2), edge).item() == pytest.approx(expected, abs=1e-5)
    without = loss(maps[:2], row(0, 1, 2), edge)
    assert without.item() == pytest.approx(2 * (5 / 7 + 15 / 8 * LN2), abs=1e-5)


def test_dice_is_over_the_batch() -> None:
    # one lesion pixel among six: 2 * 1/4 / (6/4 + 1); a Dice a slice would count the second slice's as fully missed
    target = torch.cat([row(0, 0, 1), row(0, 0, 0)])
    loss = MultiInfNetLoss((1.0, 1.0, 1.0))([LOGITS.expand(2, 3, 1, 3)], target, NO_EDGE.expand(2, 1, 1, 3))
    assert loss.item() == pytest.approx((1 - 0.2) / 2 + (5 * LN2 + log(4)) / 6, abs=1e-5)


def test_equal_weights_and_all_classes_give_monais_dice_ce() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 1, 8, 8), generator=generator)
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, target)
    ours = MultiInfNetLoss((1.0, 1.0, 1.0))([logits], target, target == 1)
    torch.testing.assert_close(ours, theirs)


def test_an_absent_class_changes_no_gradient_but_cross_entropys() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    (slope,) = torch.autograd.grad(MultiInfNetLoss(WEIGHTS)([logits], target, target), logits)
    (entropy,) = torch.autograd.grad(F.cross_entropy(logits, target[:, 0]), logits)
    torch.testing.assert_close(slope, entropy)
    # and what is wrongly predicted as the class is pushed down
    assert (slope[:, 1:] > 0).all()


@pytest.mark.parametrize("lesion", [1, 2])
def test_silence_about_a_lesion_costs_more_than_the_lesion(lesion: int) -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.long)
    target[..., 4, 4] = lesion  # a single pixel
    silent = torch.zeros(1, 3, 16, 16)
    silent[:, 0] = 8
    hit = silent.clone()
    hit[:, lesion, 4, 4] = 16
    loss = MultiInfNetLoss()
    assert loss([hit], target, target).item() < 0.1
    assert loss([silent], target, target).item() > 0.5


@settings(max_examples=25, deadline=None)
@given(codes=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_the_better_the_prediction_the_lower_the_loss(codes: list[int]) -> None:
    target = torch.tensor(codes).view(1, 1, 3, 4)
    truth = F.one_hot(target[:, 0], 3).permute(0, 3, 1, 2).float()
    loss = MultiInfNetLoss()
    values = [loss([scale * truth], target, target).item() for scale in (-4, 0, 1, 3, 40)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("codes", [(0, 0), (1, 1), (2, 2)])
def test_wrong_and_certain_stays_finite(codes: tuple[int, int]) -> None:
    target = row(*codes)
    logits = (-1000 * F.one_hot(target[:, 0], 3).permute(0, 3, 1, 2).float()).requires_grad_()
    loss = MultiInfNetLoss()([logits], target, target)
    loss.backward()
    assert loss.item() > 100
    assert torch.as_tensor(logits.grad).isfinite().all()


def test_computed_in_float32_under_autocast() -> None:
    logits = torch.full((1, 3, 256, 256), 3.0, dtype=torch.bfloat16)
    target = torch.ones(1, 1, 256, 256)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MultiInfNetLoss()([logits], target, target)
    assert loss.dtype == torch.float32
    # Dice of ground glass 2 * 1/3 / (1/3 + 1) = 1/2, consolidation absent
    assert loss.item() == pytest.approx(1 / 4 + log(3), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_codes_of_any_number_type(dtype: torch.dtype) -> None:
    target = row(0, 1, 2)
    loss = MultiInfNetLoss()
    assert loss([LOGITS], target.to(dtype), NO_EDGE) == loss([LOGITS], target, NO_EDGE)


def test_weights_move_with_the_loss_and_are_not_saved() -> None:
    loss = MultiInfNetLoss()
    assert loss.class_weights.tolist() == [1.0, 4.5, 6.0]
    assert loss.to("meta").class_weights.device.type == "meta"
    assert not loss.state_dict()


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0), 3.0])
def test_other_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"class_weights is .*; give a weight above 0"):
        MultiInfNetLoss(weights)


def test_other_maps_and_targets_are_refused() -> None:
    loss, target = MultiInfNetLoss(), row(0, 1, 2)
    with pytest.raises(ValueError, match=r"found one tensor instead of .*training mode"):
        loss(LOGITS, target, NO_EDGE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found no map"):
        loss([], target, NO_EDGE)
    with pytest.raises(ValueError, match=r"fine has shape \(1, 2, 1, 3\) and its target \(1, 1, 1, 3\)"):
        loss(WithEdge(LOGITS, LOGITS[:, :2], NO_EDGE), target, NO_EDGE)
    with pytest.raises(ValueError, match=r"edge has shape \(1, 3, 1, 3\) and its target \(1, 1, 1, 3\)"):
        loss(WithEdge(LOGITS, LOGITS, LOGITS), target, NO_EDGE)
    with pytest.raises(ValueError, match=r"target has shape \(1, 1, 3\); it must be \(B, 1, H, W\)"):
        loss([LOGITS], target[0], NO_EDGE)
    with pytest.raises(ValueError, match="target has codes 0 to 3; give classes 0 to 2"):
        loss([LOGITS], row(0, 1, 3), NO_EDGE)
