# SPDX-License-Identifier: Apache-2.0
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.training import balanced_weights


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


def test_nothing_weighs_nothing():
    assert balanced_weights([]) == []


@given(st.lists(st.fixed_dictionaries({"dataset": st.sampled_from("abc"), "lesion": st.booleans()}), min_size=1))
def test_every_group_has_the_same_share(items: list[dict]):
    shares: dict[tuple, float] = defaultdict(float)
    for item, weight in zip(items, balanced_weights(items), strict=True):
        shares[item["dataset"], item["lesion"]] += weight
    assert list(shares.values()) == pytest.approx([1 / len(shares)] * len(shares))
