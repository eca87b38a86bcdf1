# SPDX-License-Identifier: Apache-2.0
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.training import balanced_weights, take_fraction


def test_values_worked_out_by_hand():
    items = [
        {"dataset": "a", "lesion": True},
        {"dataset": "b", "lesion": True},
        {"dataset": "a", "lesion": True},
        {"dataset": "a", "lesion": False},
        {"dataset": "a", "lesion": True},
        {"dataset": "b", "lesion": True},
    ]
    # three groups, a third each: a with lesion (3 items), a without (1), b with (2)
    assert balanced_weights(items) == pytest.approx([1 / 9, 1 / 6, 1 / 9, 1 / 3, 1 / 9, 1 / 6])


def test_items_are_grouped_by_the_keys_asked_for():
    items = [{"dataset": "a", "patient": "1"}, {"dataset": "b", "patient": "1"}, {"dataset": "b", "patient": "2"}]
    assert balanced_weights(items, ["patient"]) == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert balanced_weights(items, []) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_items_without_a_key_are_one_group():
    assert balanced_weights([{}, {"dataset": "a"}, {}]) == pytest.approx([1 / 4, 1 / 2, 1 / 4])


def test_a_data_set_can_be_drawn_less_often():
    items = [{"dataset": "phantom", "lesion": True}, *[{"dataset": "real", "lesion": flag} for flag in (True, False)]]
    # groups of one item each at shares 0.5, 1 and 1
    assert balanced_weights(items, shares={"phantom": 0.5}) == pytest.approx([0.2, 0.4, 0.4])


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"draw_shares are {'a': 0}: give numbers above 0"):
        balanced_weights([{"dataset": "a"}], shares={"a": 0, "b": 1})


def test_nothing_weighs_nothing():
    assert balanced_weights([]) == []


@given(st.lists(st.fixed_dictionaries({"dataset": st.sampled_from("abc"), "lesion": st.booleans()}), min_size=1))
def test_every_group_has_the_same_share(items: list[dict]):
    shares: dict[tuple, float] = defaultdict(float)
    for item, weight in zip(items, balanced_weights(items), strict=True):
        shares[item["dataset"], item["lesion"]] += weight
    assert list(shares.values()) == pytest.approx([1 / len(shares)] * len(shares))


@given(st.integers(1, 40), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_smaller_fractions_lie_within_larger_ones(count, one, other, seed):
    small, large = sorted((one, other))
    items = list(range(count))
    few, many = take_fraction(items, small, seed), take_fraction(items, large, seed)
    assert set(few) <= set(many)
    assert few == sorted(few)
    assert 1 <= len(few) <= count


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 10), (0.1, 5), (0.01, 1), (0.21, 11), (1, 50)])
def test_the_number_of_a_fraction_is_rounded_up(fraction, count):
    assert len(take_fraction(range(50), fraction, 0)) == count


def test_another_seed_draws_others():
    assert take_fraction(range(50), 0.2, 0) != take_fraction(range(50), 0.2, 1)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_other_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match="label_fraction"):
        take_fraction([1, 2], fraction, 0)
