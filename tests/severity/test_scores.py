# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity import dice


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
