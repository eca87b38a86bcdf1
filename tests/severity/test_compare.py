# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_hausdorff_distance

from covid_monai.severity.compare import Agreement, compare_masks, dice

SPACING = (5.0, 0.5, 2.0)

# dice ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "reference", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 0], [1, 0, 0, 0], 0.5),  # 2 * 1 / (3 + 1)
        ([1, 1, 0, 0], [0, 1, 1, 0], 0.5),  # 2 * 1 / (2 + 2)
        ([0, 0, 0, 0], [0, 1, 0, 0], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
        ([2, 1, 0, 0], [1, 2, 0, 0], 1.0),  # foreground is foreground
        ([True, False, True, False], [1.0, 0.5, 0.0, 0.0], 0.5),
    ],
)
def test_values_worked_out_by_hand(mask: list, reference: list, expected: float):
    assert dice(np.array(mask).reshape(2, 2), np.array(reference).reshape(2, 2)) == expected


pairs = st.tuples(*[hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2))] * 2)


@given(pairs)
def test_it_is_symmetric_and_bounded_and_1_for_equals_only(pair: tuple[np.ndarray, np.ndarray]):
    mask, reference = pair
    score = dice(mask, reference)
    assert 0 <= score <= 1
    assert score == dice(reference, mask)
    assert (score == 1) == np.array_equal(mask != 0, reference != 0)
    assert dice(mask, mask) == 1


@given(pairs, st.permutations(range(3)))
def test_it_does_not_depend_on_the_order_of_axes(pair: tuple[np.ndarray, np.ndarray], axes: list[int]):
    mask, reference = pair
    assert dice(mask.transpose(axes), reference.transpose(axes)) == dice(mask, reference)


def test_large_masks_of_bytes_are_counted_in_full():
    mask = np.ones((300, 300), dtype=np.uint8)
    reference = mask.copy()
    reference[:150] = 0
    assert dice(mask, reference) == pytest.approx(2 * 45000 / 135000)


def test_masks_on_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and the reference \(3, 2\): they must lie on one grid"):
        dice(np.zeros((2, 3)), np.zeros((3, 2)))


# comparison ----------------------------------------------------------------------------------------------------------


def boxes() -> tuple[np.ndarray, np.ndarray]:
    """A box of 2 x 4 x 3 voxels, and the same two columns further with its first slice consolidated."""
    mask, reference = np.zeros((4, 6, 9), dtype=np.uint8), np.zeros((4, 6, 9), dtype=np.uint8)
    mask[1:3, 1:5, 2:5] = 1
    reference[1:3, 1:5, 4:7] = 1
    reference[1, 1:5, 4:7] = 2
    return mask, reference


def test_two_boxes_worked_out_by_hand():
    mask, reference = boxes()
    found = compare_masks(mask, reference, SPACING)
    whole = found.whole
    assert whole.dice == pytest.approx(2 * 8 / 48)
    # Two columns of 2 mm: the columns at 2 and 3 lie 4 and 2 mm from the reference's nearest surface voxel, at 4.
    assert (whole.hausdorff_mm, whole.hausdorff_95_mm) == (4.0, 4.0)
    assert whole.mask_ml == whole.reference_ml == pytest.approx(24 * 0.005)
    assert (whole.difference_ml, whole.difference_share) == (0, 0)
    ground_glass, consolidation = found.classes
    assert (ground_glass.name, consolidation.name) == ("ground glass", "consolidation")
    assert ground_glass.dice == pytest.approx(2 * 4 / 36)
    assert (ground_glass.mask_ml, ground_glass.reference_ml) == pytest.approx((0.12, 0.06))
    assert (ground_glass.difference_ml, ground_glass.difference_share) == pytest.approx((0.06, 1.0))
    assert ground_glass.hausdorff_mm == pytest.approx(np.hypot(5, 4))  # one slice and two columns
    assert consolidation == Agreement(
        "consolidation", 0.0, None, None, 0.0, pytest.approx(0.06), pytest.approx(-0.06), -1.0
    )


def test_one_far_voxel_moves_the_maximum_and_not_the_percentile():
    reference = np.zeros((3, 30, 30), dtype=np.uint8)
    reference[1, 5:25, 5:25] = 1
    mask = reference.copy()
    mask[1, 15, 29] = 1  # 5 columns of 2 mm from the box
    found = compare_masks(mask, reference, SPACING).whole
    assert (found.hausdorff_mm, found.hausdorff_95_mm) == (10.0, 0.0)


def test_masks_of_one_code_have_no_classes():
    mask = (boxes()[0] != 0).astype(np.uint8)
    assert compare_masks(mask, mask, SPACING).classes == ()
    assert compare_masks(mask * 2, mask * 2, SPACING).classes == ()
    assert [part.name for part in compare_masks(mask * 2, mask, SPACING).classes] == ["ground glass", "consolidation"]


def test_two_empty_masks_agree():
    nothing = np.zeros((2, 3, 4), dtype=np.uint8)
    found = compare_masks(nothing, nothing, SPACING)
    assert found.whole == Agreement("lesion", 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("swapped", [False, True])
def test_one_empty_mask_has_no_distance(swapped: bool):
    mask, nothing = boxes()[0], np.zeros((4, 6, 9), dtype=np.uint8)
    found = compare_masks(*((nothing, mask) if swapped else (mask, nothing)), SPACING).whole
    assert (found.dice, found.hausdorff_mm, found.hausdorff_95_mm) == (0, None, None)
    assert found.difference_ml == pytest.approx(-0.12 if swapped else 0.12)
    assert found.difference_share == (-1 if swapped else None)


def monai_hausdorff(mask: np.ndarray, reference: np.ndarray, percentile: float | None) -> float:
    one_hot = [torch.from_numpy(array != 0)[None, None].float() for array in (mask, reference)]
    return float(compute_hausdorff_distance(*one_hot, include_background=True, percentile=percentile, spacing=SPACING))


masks = hnp.arrays(np.uint8, (4, 6, 7), elements=st.sampled_from([0, 0, 0, 1])).filter(np.any)


@given(masks, masks)
def test_distances_are_those_of_monai(mask: np.ndarray, reference: np.ndarray):
    found = compare_masks(mask, reference, SPACING).whole
    assert found.hausdorff_mm == pytest.approx(monai_hausdorff(mask, reference, None), abs=1e-4)
    assert found.hausdorff_95_mm == pytest.approx(monai_hausdorff(mask, reference, 95), abs=1e-4)


@given(pairs, st.permutations(range(3)))
def test_axes_in_another_order_give_the_same(pair: tuple[np.ndarray, np.ndarray], axes: list[int]):
    mask, reference = pair
    turned = [array.transpose(axes)[::-1] for array in pair]
    found, other = (
        compare_masks(mask, reference, SPACING),
        compare_masks(*turned, tuple(SPACING[axis] for axis in axes)),
    )
    for one, same in zip((found.whole, *found.classes), (other.whole, *other.classes), strict=True):
        assert one.dice == same.dice
        for name in ("hausdorff_mm", "hausdorff_95_mm", "mask_ml", "difference_share"):
            assert getattr(one, name) == pytest.approx(getattr(same, name))


@given(pairs)
def test_exchanging_the_masks_turns_the_difference_round(pair: tuple[np.ndarray, np.ndarray]):
    there, back = compare_masks(*pair, SPACING).whole, compare_masks(*pair[::-1], SPACING).whole
    assert (there.dice, there.hausdorff_mm, there.hausdorff_95_mm) == (
        back.dice,
        back.hausdorff_mm,
        back.hausdorff_95_mm,
    )
    assert there.difference_ml == -back.difference_ml


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": np.zeros((2, 3, 5))}, r"shape \(2, 3, 4\) and the reference \(2, 3, 5\)"),
        ({"mask": np.zeros((2, 3)), "reference": np.zeros((2, 3))}, r"shape \(2, 3\) .* give three axes"),
        ({"spacing": (1.0, 0.0, 1.0)}, "positive lengths"),
        (
            {"mask": np.full((2, 3, 4), 3)},
            r"the mask holds the value 3: .* codes 1 \(ground glass\), 2 \(consolidation\)",
        ),
        ({"reference": np.full((2, 3, 4), 0.5)}, "the reference holds the value 0.5"),
        ({"mask": np.full((2, 3, 4), np.nan)}, "the mask holds the value nan"),
        ({"codes": {1: "lesion"}, "mask": np.full((2, 3, 4), 2)}, r"the mask holds the value 2: .* codes 1 \(lesion\)"),
    ],
)
def test_misuse_is_refused(change: dict, message: str):
    arguments = {"mask": np.zeros((2, 3, 4)), "reference": np.zeros((2, 3, 4)), "spacing": SPACING, **change}
    with pytest.raises(ValueError, match=message):
        compare_masks(**arguments)


@pytest.mark.slow
def test_two_masks_of_a_large_scan_are_compared_in_seconds():
    """Two noisy masks of about 770 mL each, 512 x 512 x 300: far more surface than lesions have."""
    import time

    from scipy import ndimage

    rng = np.random.default_rng(0)
    grids = [ndimage.gaussian_filter(rng.standard_normal((75, 128, 128)), 4) for _ in range(2)]
    found = [np.kron(grid > np.quantile(grid, 0.98), np.ones((4, 4, 4), dtype=bool)).astype(np.uint8) for grid in grids]
    start = time.process_time()
    assert compare_masks(*found, (1.0, 0.7, 0.7)).whole.hausdorff_mm > 10
    assert time.process_time() - start < 15
