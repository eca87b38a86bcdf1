# SPDX-License-Identifier: Apache-2.0
from math import exp, isnan, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_monai.losses import CoachLoss, InpaintingLoss

LN2 = log(2)


def pixels(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([[list(rows)]])


IMAGE = pixels([0.0, 0.5], [1.0, 0.0])
REBUILT = pixels([0.5, 0.5], [0.0, 3.0])
MASK = pixels([0.0, 1.0], [1.0, 0.0])
# squared errors 1/4, 0, 1 and 9, clamped to 2; erased (1/4 + 2) / 2 = 9/8, kept (0 + 1) / 2
EXPECTED = 0.99 * 9 / 8 + 0.01 / 2


def test_value_worked_out_by_hand() -> None:
    assert InpaintingLoss()([REBUILT], IMAGE, MASK).item() == pytest.approx(EXPECTED, abs=1e-6)


def test_weights_and_clamp_are_parameters() -> None:
    assert InpaintingLoss(1.0)([REBUILT], IMAGE, MASK).item() == pytest.approx(9 / 8)
    assert InpaintingLoss(0.0)([REBUILT], IMAGE, MASK).item() == pytest.approx(1 / 2)
    assert InpaintingLoss(0.5, clamp=10)([REBUILT], IMAGE, MASK).item() == pytest.approx((37 / 8 + 1 / 2) / 2)


def test_all_maps_count() -> None:
    loss = InpaintingLoss()
    for position in range(3):
        maps = [IMAGE] * 3  # rebuilt perfectly
        maps[position] = REBUILT
        assert loss(maps, IMAGE, MASK).item() == pytest.approx(EXPECTED, abs=1e-6)
    assert loss([REBUILT] * 5, IMAGE, MASK).item() == pytest.approx(5 * EXPECTED, abs=1e-5)


def test_soft_masks_weigh_both_parts() -> None:
    # erased weights 3/4, 1/4, 1/2, 0: (3/16 + 1/2) / (3/2); kept 1/4, 3/4, 1/2, 1: (1/16 + 1/2 + 2) / (5/2)
    soft = pixels([0.25, 0.75], [0.5, 1.0])
    expected = 0.99 * (11 / 16) / 1.5 + 0.01 * (41 / 16) / 2.5
    assert InpaintingLoss()([REBUILT], IMAGE, soft).item() == pytest.approx(expected, abs=1e-6)


def test_means_are_over_the_batch_not_over_slices() -> None:
    # one erased pixel of error 1/4, and then four of error 1: 17/4 over 5, not (1/4 + 1) / 2; kept all 0
    image = torch.zeros(2, 1, 2, 2)
    rebuilt = torch.stack([pixels([0.5, 0.0], [0.0, 0.0])[0], torch.ones(1, 2, 2)])
    mask = torch.stack([pixels([0.0, 1.0], [1.0, 1.0])[0], torch.zeros(1, 2, 2)])
    assert InpaintingLoss()([rebuilt], image, mask).item() == pytest.approx(0.99 * 17 / 20, abs=1e-6)


@pytest.mark.parametrize(("fill", "share"), [(0.0, 0.99), (1.0, 0.01)])
def test_an_empty_part_counts_nothing(fill: float, share: float) -> None:
    mask = torch.full_like(IMAGE, fill, requires_grad=True)
    maps = [REBUILT.clone().requires_grad_()]
    loss = InpaintingLoss()(maps, IMAGE, mask)
    loss.backward()
    assert loss.item() == pytest.approx(share * (1 / 4 + 0 + 1 + 2) / 4, abs=1e-6)
    assert torch.as_tensor(mask.grad).isfinite().all()
    assert torch.as_tensor(maps[0].grad).isfinite().all()


def test_gradients_worked_out_by_hand() -> None:
    # erased: 0.99 * 2 (y - t) / 2; kept: 0.01 * 2 (y - t) / 2; none beyond the clamp
    rebuilt = REBUILT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(InpaintingLoss()([rebuilt], IMAGE, MASK), rebuilt)
    torch.testing.assert_close(slope, pixels([0.99 * 0.5, 0.0], [-0.01, 0.0]))
    # d/dM of sum(e (1 - M)) / sum(1 - M) is (mean error of the erased - e) / sum(1 - M), and the other way for kept
    mask = MASK.clone().requires_grad_()
    (slope,) = torch.autograd.grad(InpaintingLoss()([REBUILT], IMAGE, mask), mask)
    error = pixels([0.25, 0.0], [1.0, 2.0])
    torch.testing.assert_close(slope, 0.99 * (9 / 8 - error) / 2 + 0.01 * (error - 1 / 2) / 2)


def test_cross_entropy_is_an_option() -> None:
    # logits 0: ln 2 wherever; ln 3 where the image is 1: ln 4/3, where it is 0: ln 4; -100 where it is 1: 2, clamped
    loss = InpaintingLoss(criterion="cross_entropy")
    assert loss([torch.zeros_like(IMAGE)], IMAGE, MASK).item() == pytest.approx(LN2, abs=1e-6)
    image, rebuilt = pixels([1.0, 0.0], [1.0, 1.0]), pixels([log(3), log(3)], [-100.0, 100.0])
    mask = pixels([0.0, 1.0], [0.0, 1.0])
    expected = 0.99 * (log(4 / 3) + 2) / 2 + 0.01 * log(4) / 2
    assert loss([rebuilt], image, mask).item() == pytest.approx(expected, abs=1e-6)
    assert loss.reconstruction(rebuilt)[0, 0, 0].tolist() == pytest.approx([3 / 4, 3 / 4])
    assert InpaintingLoss().reconstruction(rebuilt) is rebuilt


def test_erased_error_of_each_slice() -> None:
    batch = [torch.cat([tensor, tensor]) for tensor in (REBUILT, IMAGE, MASK)]
    batch[2][1] = pixels([1.0, 1.0], [0.0, 1.0])
    assert InpaintingLoss().erased_error(*batch).tolist() == pytest.approx([9 / 8, 1])
    batch[2][1] = 1
    errors = InpaintingLoss().erased_error(*batch).tolist()
    assert errors[0] == pytest.approx(9 / 8)
    assert isnan(errors[1])


def test_erased_error_is_squared_whatever_the_criterion() -> None:
    # sigmoid(ln 3) = 3/4 where the image is 0 and 1/2: (9/16 + 1/16) / 2
    rebuilt = torch.full((1, 1, 1, 2), log(3))
    image, mask = torch.tensor([[[[0.0, 0.5]]]]), torch.zeros(1, 1, 1, 2)
    error = InpaintingLoss(criterion="cross_entropy").erased_error(rebuilt, image, mask)
    assert error.tolist() == pytest.approx([5 / 16])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0, 1), clamp=st.floats(0.1, 4))
def test_bounds_and_order(seed: int, share: float, clamp: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, noise = (torch.rand(2, 1, 6, 5, generator=generator) for _ in range(2))
    mask = (torch.rand(2, 1, 6, 5, generator=generator) < share).float()
    loss = InpaintingLoss(clamp=clamp)
    assert loss([image], image, mask).item() == 0
    near, far = (loss([image + step * noise], image, mask).item() for step in (0.2, 0.4))
    assert 0 < near < far <= clamp + 1e-5 or far == near  # equal where all errors are clamped


def test_computed_in_float32_under_autocast() -> None:
    # a float16 sum over 256x256 pixels would overflow, a bfloat16 one stop counting
    image, mask = torch.zeros(1, 1, 256, 256), torch.zeros(1, 1, 256, 256)
    rebuilt = torch.full((1, 1, 256, 256), 1.25, dtype=torch.bfloat16)
    mean = torch.full((1, 100, 16, 16), 3.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = InpaintingLoss()([rebuilt], image, mask)
        opposed = CoachLoss(1.0)(loss, mean, torch.zeros_like(mean))
    assert loss.dtype == opposed.dtype == torch.float32
    assert loss.item() == pytest.approx(0.99 * 1.5625, rel=1e-5)
    assert opposed.item() == pytest.approx(1 - 0.99 * 1.5625 + 25600 * 4.5, rel=1e-5)


@pytest.mark.parametrize(
    ("image", "mask"),
    [((1, 1, 4, 4), (1, 3, 4, 4)), ((1, 3, 4, 4), (1, 3, 4, 4)), ((2, 1, 4, 4), (1, 1, 4, 4)), ((4, 4),) * 2],
    ids=["mask of three channels", "image of three channels", "one mask for two slices", "no channel"],
)
def test_other_shapes_are_refused(image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    tensors = torch.zeros(image), torch.zeros(mask)
    with pytest.raises(ValueError, match=r"image has shape \(.*\) and mask \(.*\); both must be \(B, 1, H, W\)"):
        InpaintingLoss()([tensors[0]], *tensors)
    with pytest.raises(ValueError, match="masks have one channel"):
        InpaintingLoss().erased_error(tensors[0], *tensors)


def test_other_maps_are_refused() -> None:
    loss = InpaintingLoss()
    with pytest.raises(ValueError, match=r"a map has shape \(1, 3, 2, 2\) and the image \(1, 1, 2, 2\).*heads"):
        loss([REBUILT, torch.zeros(1, 3, 2, 2)], IMAGE, MASK)
    with pytest.raises(ValueError, match="a map has shape"):
        loss.erased_error(torch.zeros(1, 1, 2, 1), IMAGE, MASK)
    with pytest.raises(ValueError, match="found one tensor instead of the network's maps"):
        loss(REBUILT, IMAGE, MASK)
    with pytest.raises(ValueError, match="found no map"):
        loss([], IMAGE, MASK)


def test_settings_outside_their_range_are_refused() -> None:
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"erased_weight is {weight}; give a share"):
            InpaintingLoss(weight)
    for clamp in (0, float("nan")):
        with pytest.raises(ValueError, match=f"clamp is {clamp}; give an error above 0"):
            InpaintingLoss(clamp=clamp)
    with pytest.raises(ValueError, match="criterion is 'l1'; choose one of squared, cross_entropy"):
        InpaintingLoss(criterion="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kl_weight is -1; give 0 or more"):
        CoachLoss(-1)


# Latents N(0, 1): nothing; N(1, 1): 1/2; N(2, 4): -1/2 (1 + ln 4 - 4 - 4) = 7/2 - ln 2
MEAN = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).view(2, 1, 1, 2)
LOG_VARIANCE = torch.tensor([[0.0, 0.0], [log(4), 0.0]]).view(2, 1, 1, 2)
DIVERGENCE = (1 / 2 + 7 / 2 - LN2) / 2  # the mean over two slices


def test_coach_loss_worked_out_by_hand() -> None:
    reconstruction = torch.tensor(0.3)
    assert CoachLoss(0.5)(reconstruction, MEAN, LOG_VARIANCE).item() == pytest.approx(0.7 + DIVERGENCE / 2)
    assert CoachLoss(0.0)(reconstruction, MEAN, LOG_VARIANCE).item() == pytest.approx(0.7)
    by_default = CoachLoss()(torch.tensor(1.0), 1000 * MEAN, LOG_VARIANCE).item()
    # mean^2 / 2 of 1e6 and 4e6, over two slices, times 1e-6
    assert by_default == pytest.approx(1.25, abs=1e-4)


def test_coach_gains_what_the_network_loses() -> None:
    reconstruction = torch.tensor(0.3, requires_grad=True)
    mean, log_variance = MEAN.clone().requires_grad_(), LOG_VARIANCE.clone().requires_grad_()
    CoachLoss(0.5)(reconstruction, mean, log_variance).backward()
    assert torch.as_tensor(reconstruction.grad).item() == -1
    # slopes: weight * mean / 2, weight * (exp(lv) - 1) / 2 / 2
    torch.testing.assert_close(mean.grad, MEAN / 4)
    assert torch.as_tensor(log_variance.grad).flatten().tolist() == pytest.approx([0, 0, (exp(log(4)) - 1) / 8, 0])


def test_coach_loss_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"mean \(2, 1, 1, 2\) and log_variance \(2, 1, 1, 1\)"):
        CoachLoss()(torch.tensor(0.3), MEAN, LOG_VARIANCE[..., :1])
    with pytest.raises(ValueError, match=r"reconstruction has shape \(5,\)"):
        CoachLoss()(torch.zeros(5), MEAN, LOG_VARIANCE)
