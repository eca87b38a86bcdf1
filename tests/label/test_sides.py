# SPDX-License-Identifier: Apache-2.0
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from covid_monai.label.sides import deal_sides


def test_of_two_one_is_validated_on_and_of_six_two():
    assert deal_sides(["b", "a"], {}) == {"a": "validation", "b": "training"}
    assert Counter(deal_sides("abcdef", {}).values()) == {"training": 4, "validation": 2}
    assert Counter(deal_sides("abcde", {}).values()) == {"training": 4, "validation": 1}


def test_who_takes_the_place_of_a_label_that_was_removed():
    assert deal_sides(["b", "c"], {"a": "validation", "b": "training"}) == {"b": "training", "c": "validation"}


@given(st.lists(st.sets(st.integers(0, 30).map(str)), max_size=6))
def test_nobody_ever_changes_sides(rounds: list[set[str]]):
    known: dict[str, str] = {}
    for patients in rounds:
        dealt = deal_sides(patients, known)
        assert dealt.keys() == patients
        assert all(known.get(patient, side) == side for patient, side in dealt.items())
        known |= dealt
