# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from covid_monai.severity.evaluate import AtCutOff, Proportion, RocPoint, evaluate, read_scores

SEVERE = ("Severe", "Critically ill")


def of(positive: list[float], negative: list[float], **options: object):
    """Evaluate scores of severe and of mild cases."""
    outcomes = ["severe"] * len(positive) + ["mild"] * len(negative)
    return evaluate([*positive, *negative], outcomes, ["severe"], **options)


@pytest.mark.parametrize(
    ("positive", "negative", "auc"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 3], [2, 4], 0.25),  # of the pairs 1-2, 1-4, 3-2, 3-4 only 3-2 is right
        ([2, 4], [1, 3], 0.75),
        ([1, 1], [1, 1], 0.5),  # ties count half
        ([2, 3], [2, 1], 0.875),  # (0.5 + 1 + 1 + 1) / 4
        ([5], [5, 1, 9], 0.5),  # (0.5 + 1 + 0) / 3
    ],
)
def test_areas_worked_out_by_hand(positive: list, negative: list, auc: float):
    assert of(positive, negative).auc == auc


def ratings(counts: tuple[int, ...]) -> list[int]:
    return [rating for rating, number in enumerate(counts, start=1) for _ in range(number)]


def test_area_and_interval_are_those_published():
    """Ratings 1..5 of 109 CT images, Hanley and McNeil 1982 (Radiology 143:29-36), their Table I.

    The area is 0.893 there; Stata's manual ([R] roctab) gives for these data 0.8932, a standard error of 0.0307 by
    DeLong's method, and the interval 0.83295 to 0.95339.
    """
    found = of(ratings((3, 2, 2, 11, 33)), ratings((33, 6, 6, 11, 2)))
    assert (found.positives, found.negatives) == (51, 58)
    assert found.auc == pytest.approx(0.8932, abs=5e-5)
    assert (found.auc_low, found.auc_high) == pytest.approx((0.83295, 0.95339), abs=5e-6)
    assert (found.auc_high - found.auc) / 1.959964 == pytest.approx(0.0307, abs=5e-5)


def test_an_interval_worked_out_by_hand():
    """Positive 2, 4 and negative 1, 3. Placements: 2 beats 1 of 2, 4 beats both; 1 is beaten by both, 3 by one of 2.

    Both variances are (0.5^2) / 2 = 0.125, so the area's is 0.125 / 2 + 0.125 / 2 = 0.125, and the 68.27 % interval
    reaches its root, 0.3536.
    """
    found = of([2, 4], [1, 3], confidence=0.6826894921)
    assert (found.auc_low, found.auc_high) == pytest.approx((0.75 - 0.125**0.5, 1.0))
    assert found.confidence == 0.6826894921


@pytest.mark.parametrize(
    ("positive", "negative"), [([3, 4], [1, 2]), ([1, 1], [1, 1]), ([2], [1, 3, 4]), ([2, 3], [1])]
)
def test_there_is_no_interval_without_variance(positive: list, negative: list):
    found = of(positive, negative)
    assert (found.auc_low, found.auc_high) == (None, None)


def test_cut_off_worked_out_by_hand():
    """A score that reaches the cut-off is positive. Wilson's interval of 8 of 10 is 0.490 to 0.943 (Newcombe 1998)."""
    found = of([19, 19.5, 20, 20, 20, 20, 20, 20, 20, 3], [19, 20, 19.5, 0], cut_off=19.5).at_cut_off
    assert found == AtCutOff(
        19.5,
        Proportion(0.8, pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4), 8, 10),
        Proportion(0.5, pytest.approx(0.1500, abs=1e-4), pytest.approx(0.8500, abs=1e-4), 2, 4),
    )
    assert of([1, 2], [0, 1]).at_cut_off is None


def test_the_curve_has_a_point_for_each_score():
    assert of([2, 3, 3], [1, 2]).roc == (
        RocPoint(None, 0.0, 1.0),
        RocPoint(3.0, pytest.approx(2 / 3), 1.0),
        RocPoint(2.0, 1.0, 0.5),
        RocPoint(1.0, 1.0, 0.0),
    )


def test_outcomes_of_ictcf_in_any_case():
    scores = [0, 3, 10, 24, 31]
    outcomes = ["Control", " MILD", "regular", "Severe ", "Critically  ill"]
    found = evaluate(scores, outcomes, SEVERE)
    assert (found.auc, found.positives, found.negatives) == (1.0, 2, 3)
    assert found.positive == ("severe", "critically ill")
    assert found.negative == ("control", "mild", "regular")


def test_other_outcomes_are_named_on_both_sides():
    found = evaluate([1, 2, 3], ["ward", "home", "ICU"], ["icu"], negative=["ward", "home"])
    assert (found.auc, found.positive, found.negative) == (1.0, ("icu",), ("ward", "home"))


def test_missing_scores_are_dropped_and_counted():
    found = evaluate(["1", None, " 3.5 ", "", float("nan"), "nan"], ["mild", "mild", "severe", *["severe"] * 3], SEVERE)
    assert (found.auc, found.positives, found.negatives, found.dropped) == (1.0, 1, 1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1, 2]}, "2 scores and 3 outcomes"),
        ({"scores": [1, 2, "high"]}, "case 3 has the score 'high', which is no number"),
        ({"scores": [1, 2, float("inf")]}, "case 3 has an infinite score"),
        (
            {"outcomes": ["mild", "sever", "severe"]},
            "case 2 has the outcome 'sever', expected one of severe, critically",
        ),
        ({"outcomes": ["mild", None, "severe"]}, "case 2 has the outcome 'none'"),
        ({"outcomes": ["mild", "", "severe"]}, "case 2 has the outcome ''"),
        ({"outcomes": ["mild"] * 3}, "no case with a score has the outcome severe or critically ill: two sides"),
        ({"outcomes": ["severe"] * 3}, "no case with a score has the outcome control or mild or regular"),
        ({"scores": [None, None, 2]}, "no case with a score has the outcome control or mild"),
        ({"positive": ["ICU"]}, "the positive outcome 'icu' is none of control, mild, regular, severe, critically ill"),
        ({"positive": []}, "there is no positive outcome"),
        ({"positive": "severe"}, "give outcomes as a list, not as the text 'severe'"),
        ({"negative": ["mild", "Severe"]}, "'severe' is named as positive and as negative"),
        ({"negative": []}, "there is no negative outcome"),
        ({"cut_off": float("nan")}, "the cut-off is nan"),
        ({"confidence": 95}, "the confidence level is 95"),
    ],
)
def test_misuse_is_refused(change: dict, message: str):
    arguments = {"scores": [1, 2, 3], "outcomes": ["mild", "control", "severe"], "positive": SEVERE, **change}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


some = st.lists(st.integers(0, 8), min_size=1, max_size=12)


@given(some, some)
def test_the_area_is_the_share_of_pairs_in_order_and_that_below_the_curve(positive: list, negative: list):
    found = of(positive, negative)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert found.auc == pytest.approx(np.mean(pairs))
    x, y = [1 - point.specificity for point in found.roc], [point.sensitivity for point in found.roc]
    assert found.auc == pytest.approx(trapezoid(y, x))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()


@given(some, some)
def test_exchanging_the_sides_mirrors_the_area(positive: list, negative: list):
    found, turned = of(positive, negative), of(negative, positive)
    assert found.auc == pytest.approx(1 - turned.auc)
    assert (found.auc_low is None) == (turned.auc_low is None)
    if found.auc_low is not None:
        assert 0 <= found.auc_low <= found.auc <= found.auc_high <= 1
        assert found.auc_low == pytest.approx(1 - turned.auc_high)


@given(some, some, st.integers(0, 9))
def test_the_cut_off_lies_on_the_curve(positive: list, negative: list, cut_off: int):
    found = of(positive, negative, cut_off=cut_off)
    points = {(point.sensitivity, point.specificity) for point in found.roc}
    at = found.at_cut_off
    assert any((at.sensitivity.value, at.specificity.value) == pytest.approx(point) for point in points)
    for rate in (at.sensitivity, at.specificity):
        assert 0 <= rate.low <= rate.value + 1e-12
        assert rate.value - 1e-12 <= rate.high <= 1


# tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_are_read_by_name(separator: str, mark: str, tmp_path: Path):
    lines = [["scan", "CT-SS", "outcome"], ["a", "12", '"Mild"'], ["b", "", "Severe"], ["c", "20"]]
    text = mark + "\n".join(separator.join(line) for line in lines) + "\n"
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8")
    assert read_scores(tmp_path / "scores.csv", "CT-SS", "outcome") == (["12", "", "20"], ["Mild", "Severe", ""])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"scan,score\na,1\n", r"scores.csv has no column 'outcome': its columns are scan, score"),
        (b"outcome\nmild\n", r"has no column 'score': its columns are outcome"),
        (b"", "has no column 'score': its columns are none"),
        (b"score,outcome\n", "has a head line and no rows"),
        (b"score,outcome\n\xff\xfe,mild\n", r"cannot be read \(no UTF-8 text\)"),
        (None, r"scores.csv cannot be read \(No such file or directory\)"),
    ],
)
def test_other_tables_are_refused(content: bytes | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path / "scores.csv", "score", "outcome")
