# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity.lesion_change import (
    CHANGES,
    UNSEEN,
    at_edge,
    change_map,
    lesion_change,
    transitions,
    volumes,
)
from covid_monai.severity.scores import count

PERSISTING, NEW, RESOLVED, NOT_SEEN_BEFORE = CHANGES


@pytest.mark.parametrize(
    ("earlier", "later", "code"),
    [
        (0, 0, 0),
        (0, 1, NEW),
        (0, 2, NEW),
        (1, 0, RESOLVED),
        (1, 1, PERSISTING),
        (1, 2, PERSISTING),
        (2, 0, RESOLVED),
        (2, 1, PERSISTING),
        (2, 2, PERSISTING),
        (UNSEEN, 0, 0),
        (UNSEEN, 1, NOT_SEEN_BEFORE),
        (UNSEEN, 2, NOT_SEEN_BEFORE),
    ],
)
def test_the_code_of_each_change(earlier: int, later: int, code: int):
    transition = transitions(*(np.full((1, 1, 1), value, dtype=np.uint8) for value in (earlier, later)))
    assert change_map(transition, np.ones((1, 1, 1))).item() == code
    assert change_map(transition, np.zeros((1, 1, 1))).item() == 0


def test_volumes_worked_out_by_hand():
    counts = np.zeros((21, 12), dtype=np.int64)
    table = counts.reshape(21, 4, 3)
    table[3] = [[100, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]
    table[20, 0, 1] = 1
    table[0] = [[900, 0, 0], [3, 0, 0], [2, 0, 0], [0, 0, 0]]  # outside the later lungs
    found = lesion_change(counts, 0.5, told_apart=True, edge=(2, 4))
    assert found.persisting_ml == (7 + 8 + 10 + 11) / 2
    assert found.new_ml == (4 + 5 + 1) / 2
    assert found.resolved_ml == (6 + 9) / 2
    assert found.unseen_ml == (13 + 14) / 2
    assert (found.new_at_edge_ml, found.resolved_at_edge_ml) == (1.0, 2.0)
    assert (found.denser_ml, found.thinner_ml) == (4.0, 5.0)
    assert found.displaced_ml == 2.5
    assert volumes(table[20], 0.5) == {"persisting_ml": 0.0, "new_ml": 0.5, "resolved_ml": 0.0, "unseen_ml": 0.0}


def test_changes_of_class_are_unknown_where_there_is_one_class():
    found = lesion_change(np.zeros((21, 12), dtype=np.int64), 0.5, told_apart=False)
    assert found.denser_ml is None
    assert found.thinner_ml is None


def test_what_lies_at_the_edge_is_near_along_each_axis():
    earlier, later = np.zeros((2, 5, 9, 12), dtype=np.uint8)
    earlier[2, 4, 2] = 1
    later[2, 4, 3:8] = 1  # 1, 2, 3, 4 and 5 mm from it
    later[3, 4, 2] = 1  # in the next slice, 4 mm away
    later[2, 8, 2] = 1  # 4 mm away
    change = change_map(transitions(earlier, later), np.ones(earlier.shape))
    assert at_edge(earlier, later, change, (4.0, 1.0, 1.0)) == (3, 1)
    assert at_edge(earlier, later, change, (3.0, 1.0, 1.0)) == (4, 1)
    assert at_edge(earlier, later, change, (4.0, 1.0, 2.0)) == (1, 1)


def test_what_was_not_seen_is_no_earlier_lesion_at_an_edge():
    earlier, later = np.zeros((2, 1, 1, 6), dtype=np.uint8)
    earlier[..., 0] = UNSEEN
    later[..., 1] = 1
    change = change_map(transitions(earlier, later), np.ones(earlier.shape))
    assert at_edge(earlier, later, change, (1.0, 1.0, 1.0)) == (0, 0)


def test_masks_on_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), the later \(2, 2, 3\): warp them first"):
        transitions(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8))


def codes(most: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, most))


@given(codes(UNSEEN), codes(2), codes(20))
def test_parts_add_up_to_the_lesions(earlier: np.ndarray, later: np.ndarray, regions: np.ndarray):
    lungs = regions != 0
    later[~lungs] = 0  # as every analysis has it
    transition = transitions(earlier, later)
    change = change_map(transition, lungs)
    found = lesion_change(count(transition, regions, values=12), 1.0, told_apart=True)
    assert found.persisting_ml + found.new_ml + found.unseen_ml == np.count_nonzero(later)
    seen = (earlier != 0) & (earlier != UNSEEN)
    assert found.persisting_ml + found.resolved_ml + found.displaced_ml == np.count_nonzero(seen)
    for code, volume in zip(
        CHANGES, (found.persisting_ml, found.new_ml, found.resolved_ml, found.unseen_ml), strict=True
    ):
        assert np.count_nonzero(change == code) == volume
    assert found.denser_ml + found.thinner_ml <= found.persisting_ml


@given(codes(2), codes(2), codes(20))
def test_backwards_new_is_resolved_and_denser_is_thinner(earlier: np.ndarray, later: np.ndarray, regions: np.ndarray):
    there, back = (
        lesion_change(count(transitions(*pair), regions, values=12), 1.0, told_apart=True)
        for pair in ((earlier, later), (later, earlier))
    )
    assert (there.new_ml, there.resolved_ml, there.persisting_ml) == (back.resolved_ml, back.new_ml, back.persisting_ml)
    assert (there.denser_ml, there.thinner_ml) == (back.thinner_ml, back.denser_ml)
