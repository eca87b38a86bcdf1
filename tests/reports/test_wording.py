# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.reports.wording import ml, percent, total, unbroken
from covid_monai.severity.scores import Score


@pytest.mark.parametrize(
    ("share", "digits", "expected"),
    [
        (0.1213, 1, "12.1 %"),
        (0.1213, 0, "12 %"),
        (1.0, 1, "100.0 %"),
        (0.0, 1, "0.0 %"),
        (0.0004, 1, "< 0.1 %"),
        (0.0006, 1, "0.1 %"),
        (0.004, 0, "< 1 %"),
        (None, 1, "n/a"),
    ],
)
def test_percent(share: float | None, digits: int, expected: str):
    assert percent(share, digits) == expected


@given(st.floats(0, 1, exclude_min=True))
def test_what_is_there_is_never_written_as_nothing(share: float):
    assert percent(share) != "0.0 %"


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (0.0, "0 mL"),
        (0.02, "< 0.1 mL"),
        (0.34, "0.3 mL"),
        (9.94, "9.9 mL"),
        (9.96, "10 mL"),
        (4421.6, "4422 mL"),
        (None, "n/a"),
    ],
)
def test_ml(volume: float | None, expected: str):
    assert ml(volume) == expected


def test_a_total_that_is_not_certain_is_a_range():
    assert total(Score(14, 14, 14, 40, 20, 20)) == "14 / 40"
    assert total(Score(None, 6, 24, 40, 11, 20)) == "6-24 / 40"


def test_numbers_keep_their_units():
    assert unbroken("range 10.2 to 14.3 % of 20 mL, < 0.1 %, 3 / 5") == (
        "range 10.2 to 14.3\u00a0% of 20\u00a0mL, <\u00a00.1\u00a0%, 3\u00a0/\u00a05"
    )
