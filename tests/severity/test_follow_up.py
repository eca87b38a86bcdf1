# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.severity.anatomy import REGIONS
from covid_monai.severity.follow_up import FIGURES, check_days, difference, follow_up, trend
from covid_monai.severity.registration import RegistrationError
from covid_monai.severity.scores import Severity, count, severity
from covid_monai.severity.uncertainty import Spread
from tests.severity.in_place import in_place

SPACING = (5.0, 2.0, 1.0)  # a voxel has 0.01 mL
MODULE = "covid_monai.severity.follow_up"


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan of twenty slabs of lung, 10 mL each: ten rows, ten columns of 1 mm, ten slices of 5 mm for each region."""

    scan_id: str
    severity: Severity
    spread: Spread | None
    hu: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    regions: np.ndarray
    spacing: tuple[float, float, float] = SPACING
    classes: tuple[str, ...] = ("ground glass", "consolidation")


def build(scan_id: str, sick: dict[str, tuple[slice, int]], *, known: bool = True, assessable=range(1, 21)) -> Scan:
    """A scan whose region of each key has lesion of this code in these of its ten columns."""
    regions = np.zeros((10, 20, 10), dtype=np.uint8)
    lesions = np.zeros((10, 20, 10, 10), dtype=np.uint8)
    regions = np.arange(1, 21, dtype=np.uint8)[None, :, None, None].repeat(10, 0).repeat(10, 2).repeat(10, 3)
    for region in REGIONS:
        if region.key in sick:
            columns, code = sick[region.key]
            lesions[:, region.code - 1, :, columns] = code
    shape = (10, 200, 10)
    regions, lesions = regions.reshape(shape), lesions.reshape(shape)
    lungs = np.array([0, *(1 if region.side == "right_lung" else 2 for region in REGIONS)], np.uint8)[regions]
    figures = severity(count(lesions, regions), 0.01 if known else None, True, assessable=assessable)
    return Scan(scan_id, figures, None, np.full(shape, -800, np.float32), lungs, lesions, regions)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans that lie alike need no elastix."""
    monkeypatch.setattr(f"{MODULE}.elastix", lambda: None)
    monkeypatch.setattr(f"{MODULE}.register", in_place)


APICAL, ANTERIOR, BASAL = "right_upper_apical", "right_upper_anterior", "left_lower_posterior_basal"
FIRST = build("a" * 16, {APICAL: (slice(0, 4), 1), BASAL: (slice(0, 5), 1)})  # 4 and 5 mL
SECOND = build("b" * 16, {APICAL: (slice(2, 8), 1), ANTERIOR: (slice(0, 1), 2), BASAL: (slice(0, 2), 2)})  # 6, 1, 2
THIRD = build("c" * 16, {})


# one figure ---------------------------------------------------------------------------------------------------------


def test_a_difference_worked_out_by_hand():
    found = difference(10.0, 16.0, 4.0, ((9.0, 12.0), (13.0, 17.0)))
    assert (found.absolute, found.relative, found.per_day) == (6.0, 0.6, 1.5)
    assert (found.lowest, found.highest, found.beyond_ranges) == (1.0, 8.0, True)


@pytest.mark.parametrize(
    ("before", "after", "beyond"),
    [
        ((1.0, 2.0), (2.0, 3.0), False),  # they touch
        ((1.0, 2.0), (2.1, 3.0), True),
        ((2.1, 3.0), (1.0, 2.0), True),
        ((1.0, 5.0), (2.0, 3.0), False),
        (None, (2.0, 3.0), None),
        ((1.0, 2.0), None, None),
    ],
)
def test_a_change_is_beyond_ranges_where_they_do_not_touch(before, after, beyond: bool | None):
    assert difference(2.0, 2.5, ranges=(before, after)).beyond_ranges is beyond


@pytest.mark.parametrize(("earlier", "later"), [(None, 3.0), (3.0, None), (None, None)])
def test_what_is_unknown_stays_unknown(earlier: float | None, later: float | None):
    found = difference(earlier, later, 7.0)
    assert (found.earlier, found.later) == (earlier, later)
    assert (found.absolute, found.relative, found.per_day) == (None, None, None)


def test_a_change_from_nothing_has_no_relative_one():
    found = difference(0.0, 3.0, 3.0)
    assert (found.absolute, found.relative, found.per_day) == (3.0, None, 1.0)


figures = st.floats(0, 1e4)
ends = st.tuples(figures, figures).map(sorted)


@given(figures, figures, ends, ends)
def test_backwards_every_change_has_the_other_sign(earlier: float, later: float, before: list, after: list):
    there = difference(earlier, later, ranges=(before, after))
    back = difference(later, earlier, ranges=(after, before))
    assert there.absolute == -back.absolute
    assert (there.lowest, there.highest) == (-back.highest, -back.lowest)
    assert there.beyond_ranges == back.beyond_ranges
    if there.relative is not None and back.relative is not None and earlier > 1e-3 and later > 1e-3:
        assert math.isclose((1 + there.relative) * (1 + back.relative), 1, rel_tol=1e-6)


# a follow-up --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_every_figure_of_two_scans():
    found = follow_up([FIRST, SECOND], [0, 10])
    assert found.scan_ids == ("a" * 16, "b" * 16)
    (interval,) = found.intervals
    assert (interval.earlier, interval.later, interval.days) == (1, 2, 10)
    whole = interval.whole
    assert (whole.lung_ml.earlier, whole.lung_ml.absolute) == (200.0, 0.0)
    assert (whole.lesion_ml.earlier, whole.lesion_ml.later) == pytest.approx((9.0, 9.0))
    assert whole.lesion_share.later == pytest.approx(0.045)
    assert whole.consolidation_ml.absolute == pytest.approx(3.0)
    assert whole.ground_glass_share.absolute == pytest.approx(-0.015)
    right, left = interval.lungs
    assert right.lesion_ml.absolute == pytest.approx(3.0)
    assert left.lesion_ml.per_day == pytest.approx(-0.3)
    assert interval.lobes[0].lesion_share.absolute == pytest.approx(0.1)
    region = interval.regions[0]
    assert (region.key, region.score.earlier, region.score.later, region.score.absolute) == (APICAL, 1, 2, 1)
    assert (interval.ct_ss.earlier, interval.ct_ss.later, interval.ct_ss.absolute) == (3, 4, 1)
    assert interval.grades == ("mild", "mild")


@pytest.mark.usefixtures("registered")
def test_maps_and_volumes_of_two_scans():
    (interval,) = follow_up([FIRST, SECOND]).intervals
    # apical: columns 2-3 persist, 4-7 are new, 0-1 resolved; anterior: 1 new; basal: 0-1 persist denser, 2-4 resolved
    assert interval.lesions.persisting_ml == pytest.approx(4.0)
    assert interval.lesions.new_ml == pytest.approx(5.0)
    assert interval.lesions.resolved_ml == pytest.approx(5.0)
    assert interval.lesions.denser_ml == pytest.approx(2.0)
    assert interval.lesions.thinner_ml == 0
    # columns are 1 mm: of the new, 4-6 of the apical; of the resolved all
    assert interval.lesions.new_at_edge_ml == pytest.approx(3.0)
    assert interval.lesions.resolved_at_edge_ml == pytest.approx(5.0)
    apical, _, anterior = interval.regions[:3]
    assert (apical.persisting_ml, apical.new_ml, apical.resolved_ml) == pytest.approx((2.0, 4.0, 2.0))
    assert (anterior.persisting_ml, anterior.new_ml, anterior.resolved_ml) == pytest.approx((0.0, 1.0, 0.0))
    assert interval.lungs[1].resolved_ml == pytest.approx(3.0)
    assert interval.change.dtype == np.uint8
    assert interval.change[0, 0].tolist() == [3, 3, 1, 1, 2, 2, 2, 2, 0, 0]


@pytest.mark.usefixtures("registered")
def test_places_add_up():
    (interval,) = follow_up([FIRST, SECOND]).intervals
    for name in ("persisting_ml", "new_ml", "resolved_ml", "unseen_ml"):
        whole = getattr(interval.whole, name)
        assert whole == pytest.approx(getattr(interval.lesions, name))
        for places in (interval.lungs, interval.lobes, interval.regions):
            assert sum(getattr(place, name) for place in places) == pytest.approx(whole)


@pytest.mark.usefixtures("registered")
def test_each_scan_is_compared_with_the_one_before():
    found = follow_up([FIRST, SECOND, THIRD], [0, 10, 20])
    assert [(each.earlier, each.later, each.days) for each in found.intervals] == [(1, 2, 10), (2, 3, 10)]
    assert found.intervals[1].lesions.resolved_ml == pytest.approx(9.0)
    lesions = next(each for each in found.trends if each.key == "lesion_ml")
    assert lesions.values == pytest.approx((9.0, 9.0, 0.0))
    assert lesions.per_day == pytest.approx(-0.45)  # least squares of (0, 9), (10, 9), (20, 0)
    assert found.warnings[:2] == (
        "Scan 1 to 2: A warning of the registration.",
        "Scan 2 to 3: A warning of the registration.",
    )
    assert [each.key for each in found.trends] == list(FIGURES)


@pytest.mark.usefixtures("registered")
def test_without_days_there_are_no_slopes():
    found = follow_up([FIRST, SECOND])
    assert found.days is None
    assert found.intervals[0].days is None
    assert found.intervals[0].whole.lesion_ml.per_day is None
    assert {each.per_day for each in found.trends} == {None}


@pytest.mark.usefixtures("registered")
def test_a_score_that_is_not_assessable_is_no_change_to_or_from_0():
    cut = build("d" * 16, {APICAL: (slice(0, 4), 1)}, assessable=range(1, 20))
    (interval,) = follow_up([FIRST, cut], [0, 10]).intervals
    assert interval.regions[19].score.later is None
    assert interval.regions[19].score.absolute is None
    assert (interval.ct_ss.later, interval.ct_ss.absolute, interval.ct_ss.per_day) == (None, None, None)
    assert not interval.whole.assessable
    assert any("does not show all of both lungs" in warning for warning in interval.warnings)


@pytest.mark.usefixtures("registered")
def test_ranges_tell_whether_a_change_is_beyond_them():
    def ranged(scan: Scan, share: tuple[float, float], ct_ss: tuple[int, int]) -> Scan:
        return replace(scan, spread=Spread((0.3, 0.7), True, 4, (8.0, 10.0), share, None, ct_ss, (1, 3)))

    scans = [ranged(FIRST, (0.01, 0.02), (2, 4)), ranged(SECOND, (0.03, 0.05), (3, 5))]
    found = follow_up(scans)
    (interval,) = found.intervals
    assert interval.whole.lesion_share.beyond_ranges is True
    assert interval.whole.lesion_ml.beyond_ranges is False
    assert interval.whole.consolidation_share.beyond_ranges is None
    assert (interval.ct_ss.lowest, interval.ct_ss.highest, interval.ct_ss.beyond_ranges) == (-1, 3, False)
    assert interval.regions[0].lesion_share.beyond_ranges is None
    assert found.trends[0].ranges == ((0.01, 0.02), (0.03, 0.05))


@pytest.mark.usefixtures("registered")
def test_lungs_of_another_size_are_warned_of():
    figures = replace(SECOND.severity, whole=replace(SECOND.severity.whole, lung_ml=150.0))
    (interval,) = follow_up([FIRST, replace(SECOND, severity=figures)]).intervals
    assert any("The lungs are 25 % smaller in the later scan" in warning for warning in interval.warnings)


def test_a_slope_skips_what_is_unknown():
    def scored(scan: Scan, score: int | None) -> Scan:
        return replace(scan, severity=replace(scan.severity, ct_ss=replace(scan.severity.ct_ss, score=score)))

    scans = [scored(FIRST, 4), scored(SECOND, None), scored(THIRD, 10)]
    found = trend("ct_ss", scans, [0.0, 1.0, 3.0])
    assert found.values == (4, None, 10)
    assert found.per_day == pytest.approx(2.0)
    assert trend("ct_ss", scans[:2], [0.0, 1.0]).per_day is None


# misuse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "message"),
    [
        ([0], r"1 days \(0\) were given for 2 scans: give one for each scan"),
        ([0, 1, 2], r"3 days \(0 1 2\) were given for 2 scans"),
        ([3, 3], "the days 3 3 do not grow"),
        ([3, 1], "the days 3 1 do not grow"),
        ([0, math.nan], "the days 0 nan do not grow"),
        ([0, math.inf], "the days 0 inf do not grow"),
    ],
)
def test_days_that_do_not_fit_are_refused(days: Sequence[float], message: str):
    with pytest.raises(ValueError, match=message):
        check_days(days, 2)
    with pytest.raises(ValueError, match=message):
        follow_up([FIRST, SECOND], days)


def test_one_scan_is_refused():
    with pytest.raises(ValueError, match="1 was given: give two or more"):
        follow_up([FIRST])


def test_one_scan_given_twice_is_refused():
    with pytest.raises(ValueError, match="scans 1 and 3 are the same"):
        follow_up([FIRST, SECOND, FIRST])


def test_scans_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="different classes"):
        follow_up([FIRST, replace(SECOND, classes=("lesion",))])


def test_a_scan_without_lengths_is_refused():
    with pytest.raises(RegistrationError, match=r"scan 2 gives no lengths \(slice images\?\)"):
        follow_up([FIRST, build("d" * 16, {}, known=False)])


def test_a_scan_without_lungs_is_refused():
    with pytest.raises(RegistrationError, match="no lung was found in scan 1"):
        follow_up([replace(FIRST, regions=np.zeros_like(FIRST.regions)), SECOND])
