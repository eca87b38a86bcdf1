# SPDX-License-Identifier: Apache-2.0
from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_monai.losses import InfNetLoss, SegmentationLoss
from covid_monai.losses.segmentation import boundary_weight
from covid_monai.networks import InfNetMaps

VARIANTS = ("unweighted", "published", "weighted")
LN2 = log(2)

# A 2x2 slice, its upper row lesion. Any 31x31 window holds all of it and zeros, so the mean is 2/961 everywhere and
# the weight is W1 = 1 + 5 (1 - 2/961) on the lesion, W0 = 1 + 5 * 2/961 beside it.
TARGET = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
W1, W0 = 1 + 5 * (1 - 2 / 961), 1 + 5 * 2 / 961
# Logits ln 3 on the lesion (p = 3/4, cross-entropy ln 4/3) and 0 beside it (p = 1/2, cross-entropy ln 2).
LOGITS = torch.tensor([[[[log(3), log(3)], [0.0, 0.0]]]])
# unweighted: intersection 2 * 3/4 = 3/2; union 2 * (3/4 + 1) + 2 * 1/2 - 3/2 = 3; 1 - 2.5/4 = 3/8
# weighted: intersection 3/2 W1; union 7/2 W1 + W0 - 3/2 W1 = 2 W1 + W0
IOU_WEIGHTED = 1 - (1.5 * W1 + 1) / (2 * W1 + W0 + 1)
BCE = (log(4 / 3) + LN2) / 2
BCE_WEIGHTED = (W1 * log(4 / 3) + W0 * LN2) / (W1 + W0)
EXPECTED = {
    "unweighted": 3 / 8 + BCE,
    "published": IOU_WEIGHTED + BCE,
    "weighted": IOU_WEIGHTED + BCE_WEIGHTED,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_worked_out_by_hand(variant):
    assert SegmentationLoss(variant)(LOGITS, TARGET).item() == pytest.approx(EXPECTED[variant], abs=1e-6)


def test_default_is_the_papers_equation_4():
    assert SegmentationLoss()(LOGITS, TARGET).item() == pytest.approx(3 / 8 + BCE, abs=1e-6)


# Logits 0 (p = 1/2) on n = 4 pixels. Empty mask: intersection 0, union 2, 1 - 1/3; full mask: intersection 2, union 4,
# 1 - 3/5. Weighted, an empty mask has weight 1; a full one of 2x2 has 1 + 5 (1 - 4/961) = w: 1 - (2w + 1)/(4w + 1).
FULL = 1 + 5 * (1 - 4 / 961)


@pytest.mark.parametrize(
    ("variant", "fill", "expected"),
    [
        ("unweighted", 0.0, 2 / 3 + LN2),
        ("published", 0.0, 2 / 3 + LN2),
        ("weighted", 0.0, 2 / 3 + LN2),
        ("unweighted", 1.0, 2 / 5 + LN2),
        ("published", 1.0, 1 - (2 * FULL + 1) / (4 * FULL + 1) + LN2),
        ("weighted", 1.0, 1 - (2 * FULL + 1) / (4 * FULL + 1) + LN2),
    ],
)
def test_empty_and_full_masks_are_defined(variant, fill, expected):
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = SegmentationLoss(variant)(logits, torch.full((1, 1, 2, 2), fill))
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    # an empty mask pushes the logits down, a full one up
    assert (logits.grad * (1 - 2 * fill) > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_without_lesion_may_cost_their_cross_entropy_alone(variant):
    logits = torch.cat([LOGITS, torch.zeros_like(LOGITS)]).requires_grad_()
    target = torch.cat([TARGET, torch.zeros_like(TARGET)])
    loss = SegmentationLoss(variant, ignore_empty=True)(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx((EXPECTED[variant] + LN2) / 2, abs=1e-6)
    slope = torch.as_tensor(logits.grad)[1]  # that of the cross-entropy, p over the pixels of the batch
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5 / 8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ignoring_empty_slices_changes_nothing_where_there_are_none(variant):
    assert SegmentationLoss(variant, ignore_empty=True)(LOGITS, TARGET) == SegmentationLoss(variant)(LOGITS, TARGET)
    maps = [LOGITS] * 5
    assert InfNetLoss(variant, ignore_empty=True)(maps, TARGET, TARGET) == InfNetLoss(variant)(maps, TARGET, TARGET)


def test_the_total_ignores_empty_slices_in_all_its_maps():
    zero = torch.zeros_like(LOGITS)
    loss = InfNetLoss(ignore_empty=True)([zero] * 5, zero, zero)
    assert loss.item() == pytest.approx(5 * LN2, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_right_and_certain_costs_nothing_wrong_and_certain_stays_finite(variant, fill):
    target = torch.full((1, 1, 8, 8), fill)
    logits = (1000 * (2 * target - 1)).requires_grad_()
    loss = SegmentationLoss(variant)(logits, target)
    wrong = SegmentationLoss(variant)(-logits, target)
    wrong.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() > 1000
    assert torch.isfinite(torch.as_tensor(logits.grad)).all()


def test_gradient_worked_out_by_hand():
    # one lesion pixel, logit 0: loss 1 - (p + 1)/2 - ln p, its derivative -p(1-p)/2 - (1-p) = -5/8
    logits = torch.zeros(1, 1, 1, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(SegmentationLoss("unweighted")(logits, torch.ones(1, 1, 1, 1)), logits)
    assert slope.item() == pytest.approx(-5 / 8, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_slope(variant):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 5, 4, generator=generator).requires_grad_()
    target = (torch.rand(2, 1, 5, 4, generator=generator) > 0.5).float()
    loss = SegmentationLoss(variant)
    (slope,) = torch.autograd.grad(loss(logits, target), logits)
    step = 1e-2 * torch.randn(2, 1, 5, 4, generator=generator)
    with torch.no_grad():
        difference = loss(logits + step, target) - loss(logits - step, target)
    assert difference.item() == pytest.approx(2 * (slope * step).sum().item(), rel=1e-2)


def test_boundary_weight_worked_out_by_hand():
    # all lesion, 61x61: the centre's window is full; a corner's holds 16x16 of 961
    weight = boundary_weight(torch.ones(1, 1, 61, 61))
    assert weight[0, 0, 30, 30].item() == pytest.approx(1, abs=1e-5)
    assert weight[0, 0, 0, 60].item() == pytest.approx(1 + 5 * (1 - 256 / 961), abs=1e-5)
    assert torch.equal(boundary_weight(torch.zeros(1, 1, 61, 61)), torch.ones(1, 1, 61, 61))


def test_boundary_weight_averages_a_31_pixel_square():
    target = (torch.rand(2, 1, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    expected = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    torch.testing.assert_close(boundary_weight(target), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    shape=st.tuples(st.integers(1, 3), st.just(1), st.integers(1, 40), st.integers(1, 40)),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_loss_is_the_mean_over_slices_and_blind_to_flips(variant, shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(shape, generator=generator)
    target = (torch.rand(shape, generator=generator) < share).float()
    loss = SegmentationLoss(variant)
    value = loss(logits, target).item()
    assert value >= 0
    apart = [loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(shape[0])]
    assert value == pytest.approx(sum(apart) / shape[0], rel=1e-4, abs=1e-5)
    assert value == pytest.approx(loss(logits.flip(-1, -2), target.flip(-1, -2)).item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_computed_in_float32_under_autocast(variant, dtype):
    # sums over 256x256 pixels exceed what float16 holds and what bfloat16 counts
    logits = torch.full((1, 1, 256, 256), 3.0, dtype=dtype)
    target = torch.ones(1, 1, 256, 256)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SegmentationLoss(variant)(logits, target)
        total = InfNetLoss(variant)((logits,) * 5, target, target)
    assert loss.dtype == total.dtype == torch.float32
    assert loss.item() == pytest.approx(SegmentationLoss(variant)(logits.float(), target).item(), rel=1e-6)
    assert total.item() == pytest.approx(InfNetLoss(variant)((logits.float(),) * 5, target, target).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_integer_masks_count_as_float_ones(dtype):
    assert SegmentationLoss()(LOGITS, TARGET.to(dtype)) == SegmentationLoss()(LOGITS, TARGET)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="variant is 'dice'; choose one of unweighted, published, weighted"):
        SegmentationLoss("dice")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant is None"):
        InfNetLoss(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logits", "target"),
    [((1, 1, 4, 4), (1, 1, 4, 5)), ((2, 1, 4, 4), (1, 1, 4, 4)), ((1, 2, 4, 4),) * 2, ((4, 4),) * 2],
)
def test_other_shapes_are_refused(logits, target):
    with pytest.raises(ValueError, match=r"logits has shape \(.*\) and its target \(.*\); both must be \(B, 1, H, W\)"):
        SegmentationLoss()(torch.zeros(logits), torch.zeros(target))


@pytest.mark.parametrize("variant", VARIANTS)
def test_total_is_four_maps_and_the_edges_cross_entropy(variant):
    # three maps as above, one of logits 0, an edge map of logits ln 3 where the edge is (ln 4/3) and 0 elsewhere (ln 2)
    zero = torch.zeros_like(LOGITS)
    at_zero = SegmentationLoss(variant)(zero, TARGET).item()
    expected = 3 * EXPECTED[variant] + at_zero + BCE
    for position in range(4):
        maps = [LOGITS] * 5
        maps[position] = zero
        assert InfNetLoss(variant)(maps, TARGET, TARGET).item() == pytest.approx(expected, abs=1e-5)


def test_edge_map_is_held_against_the_edge_only():
    edge = 1 - TARGET
    loss = InfNetLoss()([LOGITS] * 5, TARGET, edge)
    # logits ln 3 where no edge is: ln 4; 0 where it is: ln 2
    assert loss.item() == pytest.approx(4 * EXPECTED["unweighted"] + (log(4) + LN2) / 2, abs=1e-5)


def test_two_more_maps_count_as_the_others():
    # six maps as above and the edge map of logits ln 3
    loss = InfNetLoss()([LOGITS] * 7, TARGET, TARGET)
    assert loss.item() == pytest.approx(6 * EXPECTED["unweighted"] + BCE, abs=1e-5)


def test_total_refuses_other_maps():
    with pytest.raises(ValueError, match=r"found one tensor instead of Inf-Net's maps.*training mode"):
        InfNetLoss()(torch.zeros(5, 1, 2, 2), TARGET, TARGET)
    with pytest.raises(ValueError, match="found 1 maps"):
        InfNetLoss()([LOGITS], TARGET, TARGET)
    with pytest.raises(ValueError, match=r"edge has shape \(1, 1, 2, 2\) and its target \(1, 1, 3, 3\)"):
        InfNetLoss()([LOGITS] * 5, TARGET, torch.zeros(1, 1, 3, 3))
    maps = InfNetMaps(LOGITS, LOGITS, torch.zeros(1, 1, 1, 1), LOGITS, LOGITS)
    with pytest.raises(ValueError, match=r"s_4 has shape \(1, 1, 1, 1\)"):
        InfNetLoss()(maps, TARGET, TARGET)
