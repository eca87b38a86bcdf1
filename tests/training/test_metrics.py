# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.training import (
    BestThreshold,
    ClassMeanDice,
    KnownDice,
    ThresholdAveraged,
    classes_are_guessed,
    mark_guessed_classes,
)

STATISTICS = ("dice", "sensitivity", "specificity")


def metric(statistic: str, probability: torch.Tensor, mask: torch.Tensor, thresholds: int = 256) -> torch.Tensor:
    return ThresholdAveraged(statistic, thresholds)(probability, mask)


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks (2, 1, 2, 2)."""
    probability = torch.tensor([[[[1.0, 0.5], [0.25, 0.0]]], [[[0.75, 0.25], [0.5, 0.0]]]])
    mask = torch.tensor([[[[1, 1], [0, 0]]], [[[0, 1], [0, 0]]]])
    return probability, mask


# Five thresholds: 1, .75, .5, .25, 0.
# First image, lesion at 1.0 and 0.5:
#   t = 1, .75: TP 1, FP 0, FN 1   dice 2/3   sensitivity 1/2   specificity 1
#   t = .5:     TP 2, FP 0         dice 1     1                 1
#   t = .25:    TP 2, FP 1         dice 4/5   1                 1/2
#   t = 0:      TP 2, FP 2         dice 4/6   1                 0
# Second image, lesion at 0.25:
#   t = 1: nothing found; t = .75: FP 1; t = .5: FP 2; no true positive, so 0 for all three
#   t = .25:    TP 1, FP 2         dice 2/4   1                 1/3
#   t = 0:      TP 1, FP 3         dice 2/5   1                 0
BY_HAND = {
    "dice": ((2 / 3 + 2 / 3 + 1 + 4 / 5 + 4 / 6) / 5, (0 + 0 + 0 + 2 / 4 + 2 / 5) / 5),
    "sensitivity": ((1 / 2 + 1 / 2 + 1 + 1 + 1) / 5, (0 + 0 + 0 + 1 + 1) / 5),
    "specificity": ((1 + 1 + 1 + 1 / 2 + 0) / 5, (0 + 0 + 0 + 1 / 3 + 0) / 5),
}


@pytest.mark.parametrize("statistic", STATISTICS)
def test_values_worked_out_by_hand(statistic: str):
    found = metric(statistic, *two_images(), thresholds=5)
    assert found.shape == (2, 1)
    assert found.flatten().tolist() == pytest.approx(BY_HAND[statistic])


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_mean_over_images_is_aggregated_over_calls(statistic: str):
    probability, mask = two_images()
    averaged = ThresholdAveraged(statistic, thresholds=5)
    averaged(probability[:1], mask[:1])
    averaged(probability[1:], mask[1:])
    assert averaged.aggregate().item() == pytest.approx(sum(BY_HAND[statistic]) / 2)
    averaged.reset()
    averaged(probability[:1], mask[:1])
    assert averaged.aggregate().item() == pytest.approx(BY_HAND[statistic][0])


def test_a_list_of_images_is_taken_as_evaluators_give_it():
    probability, mask = two_images()
    averaged = ThresholdAveraged("dice", thresholds=5)
    averaged(list(probability), list(mask))
    assert averaged.aggregate().item() == pytest.approx(sum(BY_HAND["dice"]) / 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64])
def test_masks_may_be_of_any_type(dtype: torch.dtype):
    probability, mask = two_images()
    assert torch.equal(metric("dice", probability, mask.to(dtype)), metric("dice", probability, mask))


def brute_force(statistic: str, probability: np.ndarray, mask: np.ndarray) -> float:
    """Threshold by threshold, as the definition says."""
    values = []
    for i in range(256):
        found = probability >= i / 255
        tp, fp = int((found & mask).sum()), int((found & ~mask).sum())
        fn, tn = int((~found & mask).sum()), int((~found & ~mask).sum())
        if tp == 0:
            values.append(0.0)
        elif statistic == "dice":
            values.append(2 * tp / (2 * tp + fp + fn))
        elif statistic == "sensitivity":
            values.append(tp / (tp + fn))
        else:
            values.append(tn / (tn + fp) if tn + fp else 0.0)
    return float(np.mean(values))


levels = st.lists(st.integers(0, 255), min_size=4, max_size=4)
masks = st.lists(st.booleans(), min_size=4, max_size=4)


@given(st.sampled_from(STATISTICS), levels, masks)
def test_probabilities_that_are_thresholds_agree_with_a_loop_over_256(
    statistic: str, grey: list[int], lesion: list[bool]
):
    probability, mask = np.array(grey).reshape(2, 2) / 255, np.array(lesion).reshape(2, 2)
    found = metric(statistic, torch.from_numpy(probability)[None, None], torch.from_numpy(mask)[None, None])
    assert found.item() == pytest.approx(brute_force(statistic, probability, mask), abs=1e-6)


@given(st.sampled_from(STATISTICS), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_probabilities_agree_with_a_loop_over_256(statistic: str, seed: int, share: float):
    rng = np.random.default_rng(seed)
    probability, mask = rng.random((7, 5), dtype=np.float32), rng.random((7, 5)) < share
    found = metric(statistic, torch.from_numpy(probability)[None, None], torch.from_numpy(mask)[None, None])
    assert found.item() == pytest.approx(brute_force(statistic, probability.astype(np.float64), mask), abs=1e-6)


def test_a_perfect_map_is_marked_down_only_for_threshold_0():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :2] = 1
    # 255 thresholds find the 4 lesion pixels, the last finds all 16: dice 2 * 4 / (4 + 16)
    assert metric("dice", mask, mask).item() == pytest.approx((255 + 8 / 20) / 256)
    assert metric("sensitivity", mask, mask).item() == 1
    assert metric("specificity", mask, mask).item() == pytest.approx(255 / 256)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("probability", [0.0, 0.7])
def test_a_slice_without_lesion_counts_as_0(statistic: str, probability: float):
    assert metric(statistic, torch.full((1, 1, 2, 2), probability), torch.zeros(1, 1, 2, 2)).item() == 0


def test_maps_are_not_stretched():
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    faint = 0.2 * mask
    # 0.2 = 51/255 reaches the thresholds 1/255 .. 51/255 with dice 1, and threshold 0 with 2 / (1 + 4)
    assert metric("dice", faint, mask).item() == pytest.approx((51 + 2 / 5) / 256)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="must be one of dice, sensitivity, specificity, got 'precision'"):
        ThresholdAveraged("precision")


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 2, 3)])
def test_a_missing_or_other_mask_is_refused(mask: torch.Tensor | None):
    with pytest.raises(ValueError, match=r"prediction \(1, 1, 2, 2\) and mask .* differ"):
        ThresholdAveraged()(torch.zeros(1, 1, 2, 2), mask)


def test_a_mean_over_no_image_is_refused():
    with pytest.raises(ValueError, match="no image was evaluated"):
        ThresholdAveraged().aggregate()


# Dice of the two images by hand, above, at the thresholds 0, .25, .5, .75 and 1:
#   first   4/6  4/5  1    2/3  2/3
#   second  2/5  2/4  0    0    0
# sum       1.07 1.3  1    .67  .67
@pytest.mark.parametrize(("give", "expected"), [("dice", (4 / 5 + 2 / 4) / 2), ("threshold", 0.25)])
def test_the_best_threshold_is_one_for_all_images(give: str, expected: float):
    probability, mask = two_images()
    best = BestThreshold(give, thresholds=5)
    best(list(probability[:1]), list(mask[:1]))
    best(list(probability[1:]), list(mask[1:]))
    assert best.aggregate().item() == pytest.approx(expected)
    best.reset()
    best(probability[:1], mask[:1])
    assert best.aggregate().item() == pytest.approx({"dice": 1, "threshold": 0.5}[give])


def test_the_lowest_of_equal_thresholds_is_given():
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    best = BestThreshold("threshold")
    best(0.2 * mask, mask)  # 1/255 .. 51/255 all reach 1
    assert best.aggregate().item() == pytest.approx(1 / 255)


def test_the_best_dice_is_never_below_the_average():
    rng = torch.Generator().manual_seed(0)
    probability, mask = torch.rand(3, 1, 8, 8, generator=rng), torch.rand(3, 1, 8, 8, generator=rng) < 0.4
    best, averaged = BestThreshold(), ThresholdAveraged()
    best(probability, mask)
    averaged(probability, mask)
    assert averaged.aggregate() < best.aggregate() <= 1


def test_another_wish_than_dice_or_threshold_is_refused():
    with pytest.raises(ValueError, match="give must be dice or threshold, got 'both'"):
        BestThreshold("both")


def test_a_best_threshold_of_no_image_is_refused():
    with pytest.raises(ValueError, match="no image was evaluated"):
        BestThreshold().aggregate()


def one_hot(*codes: int) -> torch.Tensor:
    """(1, 3, 1, N) from class codes."""
    return torch.nn.functional.one_hot(torch.tensor(codes), 3).T[None, :, None]


def test_classes_weigh_the_same_however_many_slices_have_them():
    metric = ClassMeanDice(include_background=False)
    metric(one_hot(1, 1, 0, 0), one_hot(1, 0, 0, 0))  # ground glass 2/3, consolidation in neither
    metric(one_hot(1, 2, 0, 0), one_hot(1, 1, 0, 0))  # ground glass 2/3, consolidation a false alarm: not counted
    metric(one_hot(0, 1, 2, 2), one_hot(0, 1, 2, 0))  # ground glass 1, consolidation 2/3
    assert metric.aggregate().item() == pytest.approx(((2 / 3 + 2 / 3 + 1) / 3 + 2 / 3) / 2)


def test_a_class_that_no_slice_has_is_left_out():
    metric = ClassMeanDice(include_background=False)
    metric(one_hot(1, 1, 0, 0), one_hot(1, 0, 0, 0))
    assert metric.aggregate().item() == pytest.approx(2 / 3)


def test_background_is_no_class():
    metric = ClassMeanDice(include_background=False)
    metric(one_hot(0, 0, 0, 0), one_hot(0, 0, 0, 1))
    assert metric.aggregate().item() == 0


def test_class_mean_dice_without_images_is_refused():
    with pytest.raises(ValueError, match="no image was evaluated"):
        ClassMeanDice().aggregate()


def test_a_reference_that_is_not_known_is_left_out():
    unknown = torch.full((1, 1, 1, 4), torch.nan)
    predicted, empty = torch.tensor([[[[1, 1, 0, 0]]]]), torch.zeros(1, 1, 1, 4)
    dice = KnownDice(ignore_empty=False)
    found = [dice(*pair).item() for pair in ((predicted, predicted), (predicted, empty), (empty, unknown))]
    assert found[:2] == [1, 0]
    assert np.isnan(found[2])
    assert dice.aggregate().item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("include_background", [False, True])
def test_each_channel_is_known_or_not_by_itself(include_background: bool):
    reference = one_hot(1, 2, 0, 0).float()
    reference[:, 2] = torch.nan
    values = KnownDice(include_background=include_background)(one_hot(1, 1, 0, 0), reference)
    expected = [1.0] * include_background + [2 / 3, np.nan]
    assert values[0].tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_known_references_may_be_of_any_type(dtype: torch.dtype):
    mask = torch.tensor([[[[1, 1, 0, 0]]]])
    assert KnownDice()(mask, mask.to(dtype)).item() == 1


def test_slices_of_guessed_classes_do_not_count_for_the_mean_over_classes():
    metric = ClassMeanDice(include_background=False)
    metric(one_hot(1, 1, 0, 0), one_hot(1, 0, 0, 0))
    metric(one_hot(1, 1, 0, 0), torch.full((1, 3, 1, 4), torch.nan))
    assert metric.aggregate().item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("item", "guessed"),
    [
        ({}, False),
        ({"class_source": "stated"}, False),
        ({"class_source": "none"}, False),
        ({"class_source": "inferred"}, True),
    ],
)
def test_guessed_classes_are_marked(item: dict[str, str], guessed: bool):
    label = one_hot(1, 2, 0, 0)[0].float()
    marked = mark_guessed_classes({**item, "label": label})
    assert classes_are_guessed(item) == guessed
    assert marked["label"] is label
    assert marked["classes"].shape == label.shape
    assert marked["classes"].isnan().all() if guessed else torch.equal(marked["classes"], label)
