# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.reports.planes import areas, box_around, slices_that_matter, spread_over_lung

NONE = np.zeros(8, dtype=int)
FULL = np.full(8, 9)


@pytest.mark.parametrize(
    ("lesions", "lungs", "count", "expected"),
    [
        # slices 1..6 have lesion; in three runs (1, 2), (3, 4), (5, 6) the largest are 2, 3 and 5
        ([0, 1, 3, 5, 4, 2, 1, 0], FULL, 3, [5, 3, 2]),
        ([0, 0, 3, 0, 0, 0, 1, 0], FULL, 3, [6, 2, 0]),  # and one of the other slices with lung
        (NONE, [0, 0, 2, 5, 6, 4, 0, 0], 2, [4, 3]),  # no lesion: lung
        (NONE, NONE, 4, [6, 4, 2, 0]),  # no lung either: all
        ([2] * 8, FULL, 1, [0]),
    ],
)
def test_slices_worked_out_by_hand(lesions: list[int], lungs: list[int], count: int, expected: list[int]):
    assert slices_that_matter(np.asarray(lesions), np.asarray(lungs), count) == expected


@pytest.mark.parametrize(
    ("lesions", "lungs", "expected"),
    [
        # lung in planes 1..6: runs (1, 2, 3) and (4, 5, 6)
        ([0, 0, 7, 5, 0, 0, 0, 0], [0, 1, 2, 3, 4, 6, 5, 0], [2, 5]),  # most lesion; without lesion most lung
        ([0, 0, 0, 0, 0, 0, 0, 9], [0, 1, 2, 3, 4, 6, 5, 0], [3, 5]),  # a lesion where there is no lung does not count
        (NONE, NONE, []),
    ],
)
def test_planes_worked_out_by_hand(lesions: list[int], lungs: list[int], expected: list[int]):
    assert spread_over_lung(np.asarray(lesions), np.asarray(lungs), 2) == expected


counts = hnp.arrays(int, st.integers(1, 12), elements=st.sampled_from([0, 0, 0, 1, 2]))


@given(counts, st.integers(1, 15), st.booleans())
def test_slices_are_valid_unique_and_from_superior_to_inferior(area: np.ndarray, count: int, of_lesion: bool):
    other = np.zeros_like(area)
    found = slices_that_matter(*((area, other) if of_lesion else (other, area)), count)
    marked = np.flatnonzero(area)
    assert len(found) == min(count, len(marked) or len(area))
    assert all(type(z) is int for z in found)
    assert found == sorted(set(found), reverse=True)
    assert set(found) <= set(marked if len(marked) else range(len(area)))


@given(counts)
def test_the_slice_with_the_largest_area_is_among_them(area: np.ndarray):
    found = slices_that_matter(area, np.ones_like(area), 3)
    assert area[found].max() == area.max()


@given(
    hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 2)), st.sampled_from([None, 2])
)
def test_areas_are_counts_of_each_plane(mask: np.ndarray, code: int | None):
    found = areas(mask) if code is None else areas(mask, lambda plane: plane == code)
    marked = mask != 0 if code is None else mask == code
    for axis, area in enumerate((found.slices, found.rows, found.columns)):
        others = tuple({0, 1, 2} - {axis})
        assert area.tolist() == marked.sum(axis=others).tolist()


def test_the_box_has_margins_within_the_scan():
    mask = np.zeros((10, 12, 14), dtype=np.uint8)
    mask[4:6, 1:3, 7] = 1
    assert box_around(areas(mask), (2, 3, 20)) == (slice(2, 8), slice(0, 6), slice(0, 14))
    assert box_around(areas(mask * 0), (2, 3, 4)) == (slice(0, 10), slice(0, 12), slice(0, 14))
