# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.scores import CUT_OFF, CUT_OFF_SOURCE, NoiseFloor, Score, count, severity, slice_shares

ALL = range(1, 21)
NO_FLOOR = NoiseFloor(0.0, 0.0)


def counts_of(
    ground_glass: dict[int, int], consolidation: dict[int, int] | None = None, lung: int = 1000
) -> np.ndarray:
    """Regions of ``lung`` voxels each, with lesion voxels by region code."""
    counts = np.zeros((21, 3), dtype=np.int64)
    counts[1:, 0] = lung
    for column, voxels in ((1, ground_glass), (2, consolidation or {})):
        for code, number in voxels.items():
            counts[code, column] += number
            counts[code, 0] -= number
    return counts


# counting ------------------------------------------------------------------------------------------------------------


def test_voxels_are_counted_by_region_and_code():
    regions = np.array([[[0, 0, 1], [1, 20, 20]], [[20, 3, 0], [1, 1, 0]]], dtype=np.uint8)
    lesions = np.array([[[0, 2, 1], [0, 2, 1]], [[2, 0, 0], [1, 1, 1]]], dtype=np.uint8)
    expected = np.zeros((21, 3), dtype=int)
    expected[0] = (2, 1, 1)
    expected[1] = (1, 3, 0)
    expected[3] = (1, 0, 0)
    expected[20] = (0, 1, 2)
    found = count(lesions, regions)
    assert np.array_equal(found, expected)
    assert found.dtype == np.int64


@given(st.data(), st.sampled_from([2, 3, 12, 30]), st.sampled_from([np.uint8, np.int16, np.int64]))
def test_it_is_the_count_of_each_pair(data: st.DataObject, values: int, kind: type):
    shape = (2, 3, 4)
    lesions = data.draw(hnp.arrays(kind, shape, elements=st.integers(0, values - 1)))
    regions = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 20)))
    found = count(lesions[::-1], regions[::-1], values)
    assert found.shape == (21, values)
    for code, value in {*zip(regions.ravel().tolist(), lesions.ravel().tolist(), strict=True), (5, 1)}:
        assert found[code, value] == np.count_nonzero((regions == code) & (lesions == value))
    assert found.sum() == lesions.size


def test_a_mask_of_bools_is_counted():
    lesions = np.array([[[True, False]]])
    assert count(lesions, np.full((1, 1, 2), 4, dtype=np.uint8), 2)[4].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("lesions", "regions", "message"),
    [
        (
            np.zeros((1, 2, 3), np.uint8),
            np.zeros((1, 3, 2), np.uint8),
            r"shape \(2, 3\) and one of the regions \(3, 2\)",
        ),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), r"give both as \(Z, H, W\) on one grid"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8), r"shape \(2, 3\) and one of the regions \(\)"),
        (np.full((1, 1, 1), 3, np.uint8), np.zeros((1, 1, 1), np.uint8), "lesions hold values from 3 to 3: .* 0 to 2"),
        (np.full((1, 1, 1), -1, np.int8), np.zeros((1, 1, 1), np.uint8), "lesions hold values from -1 to -1"),
        (
            np.zeros((1, 1, 1), np.uint8),
            np.full((1, 1, 1), 21, np.uint8),
            "regions hold values from 21 to 21: .* 0 to 20",
        ),
        (np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.uint8), "lesions hold float32 values"),
    ],
)
def test_other_arrays_are_not_counted(lesions: np.ndarray, regions: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        count(lesions, regions)


# scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lesion", "expected"),
    [(0, 0), (1, 1), (499, 1), (500, 2), (501, 2), (1000, 2)],
)
def test_a_region_scores_0_1_2(lesion: int, expected: int):
    """Yang et al. 2020: no opacity, under 50 %, 50 % or more."""
    found = severity(counts_of({7: lesion}), 0.001, True, NO_FLOOR)
    assert found.regions[6].score == expected
    assert found.ct_ss == Score(expected, expected, expected, 40, 20, 20)


@pytest.mark.parametrize(
    ("lesion", "expected"),
    [(0, 0), (1, 1), (99, 1), (100, 2), (500, 2), (501, 3), (999, 3), (1000, 4), (1500, 4), (1501, 5), (2000, 5)],
)
def test_a_lobe_scores_0_to_5(lesion: int, expected: int):
    """Pan et al. 2020, the right middle lobe of two regions of 1000 voxels: 5 % is 100, 75 % is 1500."""
    halves = {4: (lesion + 1) // 2, 5: lesion // 2}
    found = severity(counts_of(halves), 0.001, True, NO_FLOOR)
    assert found.lobes[1].score == expected
    assert found.lobar == Score(expected, expected, expected, 25, 5, 5)


def test_a_patient_worked_out_by_hand():
    """Regions of 200 mL each: 100 mL in 1, 20 in 2 (10 of them consolidation), 200 in 6..10."""
    ground_glass = {1: 1000, 2: 100, **dict.fromkeys(range(6, 11), 2000)}
    found = severity(counts_of(ground_glass, {2: 100}, lung=2000), 0.1, True)
    assert [place.score for place in found.regions] == [2, 1, 0, 0, 0, 2, 2, 2, 2, 2, *[0] * 10]
    assert found.ct_ss == Score(13, 13, 13, 40, 20, 20)
    assert [place.score for place in found.lobes] == [2, 0, 5, 0, 0]  # 120 of 600 mL are 20 %
    assert found.lobar == Score(7, 7, 7, 25, 5, 5)
    assert found.grade == "mild"
    whole, right, left = found.whole, *found.lungs
    assert (whole.lung_ml, whole.lesion_ml, whole.ground_glass_ml, whole.consolidation_ml) == (4000, 1120, 1110, 10)
    assert (whole.lesion_share, whole.ground_glass_share, whole.consolidation_share) == (0.28, 0.2775, 0.0025)
    assert (right.lung_ml, right.lesion_ml, right.lesion_share) == (2000, 1120, 0.56)
    assert (left.lung_ml, left.lesion_ml, left.lesion_share, left.score) == (2000, 0, 0, None)
    assert (found.regions[1].ground_glass_ml, found.regions[1].consolidation_share) == (10, 0.05)
    assert found.approximate


def test_places_are_named_in_the_order_of_the_anatomy():
    found = severity(counts_of({}), None, False)
    for places, known in ((found.lungs, SIDES), (found.lobes, LOBES), (found.regions, REGIONS)):
        assert [(place.key, place.name) for place in places] == [(place.key, place.name) for place in known]
    assert found.whole.key == "whole"


@pytest.mark.parametrize(
    ("twos", "ones", "missing", "grade"),
    [
        (9, 1, 0, "mild"),  # 19
        (10, 0, 0, "severe"),  # 20
        (0, 0, 0, "mild"),
        (9, 1, 1, None),  # 19..21
        (0, 11, 4, "mild"),  # 11..19
        (10, 0, 2, "severe"),  # 20..24
        (0, 0, 20, None),
    ],
)
def test_the_grade_is_given_where_every_possible_score_agrees(twos: int, ones: int, missing: int, grade: str | None):
    lesion = {**dict.fromkeys(range(1, twos + 1), 1000), **dict.fromkeys(range(twos + 1, twos + ones + 1), 100)}
    found = severity(counts_of(lesion), 0.1, True, assessable=range(1, 21 - missing))
    assert found.grade == grade


def test_the_cut_off_and_its_source_are_stated():
    assert CUT_OFF == 19.5
    for fact in ("Yang et al. 2020", "2(2):e200047", "83.3 %", "94 %"):
        assert fact in CUT_OFF_SOURCE


# noise floor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxel_ml", "lesion", "expected"),
    [
        (0.1, 4, 0),  # 0.4 mL, 0.4 %
        (0.1, 5, 1),  # 0.5 mL, 0.5 %
        (0.01, 5, 0),  # the share, not the volume
        (0.2, 3, 0),  # the volume, not the share
        (0.01, 50, 1),
        (None, 4, 0),
        (None, 5, 1),
        (0.0001, 1000, 0),  # a whole region of 0.1 mL is under the floor
    ],
)
def test_a_place_must_reach_both_limits(voxel_ml: float | None, lesion: int, expected: int):
    found = severity(counts_of({3: lesion}), voxel_ml, True, NoiseFloor(0.5, 0.005))
    assert found.regions[2].score == expected
    assert found.regions[2].lesion_share == lesion / 1000  # reported as it is


def test_the_floor_holds_for_lobes_and_is_reported():
    found = severity(counts_of({4: 20}), 0.1, True, NoiseFloor(1.0, 0.02))
    assert (found.regions[3].score, found.lobes[1].score) == (1, 0)  # 2 % of the region, 1 % of the lobe
    assert found.floor == NoiseFloor(1.0, 0.02)
    assert severity(counts_of({}), 0.1, True).floor == NoiseFloor(0.5, 0.005)


def test_without_lesion_no_floor_calls_a_place_involved():
    assert severity(counts_of({}), 0.1, True, NO_FLOOR).ct_ss.score == 0


@pytest.mark.parametrize(
    ("ml", "share", "message"),
    [
        (-0.1, 0.0, "floor's ml is -0.1: give a number, 0 or more"),
        (float("nan"), 0.0, "floor's ml is nan"),
        (float("inf"), 0.0, "floor's ml is inf"),
        ("1", 0.0, "floor's ml is '1'"),
        (True, 0.0, "floor's ml is True"),
        (0.0, 0.5, r"floor's share is 0.5: give a number, 0 or more and under 0.5"),
        (0.0, -0.01, "floor's share is -0.01"),
    ],
)
def test_an_impossible_floor_is_refused(ml: float, share: float, message: str):
    with pytest.raises(ValueError, match=message):
        NoiseFloor(ml, share)


# what cannot be assessed ---------------------------------------------------------------------------------------------


def test_an_empty_region_is_not_0():
    counts = counts_of({1: 600, 4: 600, 6: 50})
    counts[5] = 0
    found = severity(counts, 0.1, True)
    empty = found.regions[4]
    assert (empty.score, empty.assessable, empty.lesion_share, empty.lung_ml) == (None, False, None, 0)
    assert found.ct_ss == Score(None, 5, 7, 40, 19, 20)
    assert (found.lobes[1].score, found.lobes[1].assessable) == (None, False)
    assert found.lobes[1].lesion_share == 0.6  # of what is there
    assert found.lobar == Score(None, 3, 8, 25, 4, 5)  # 600 of 3000, 50 of 5000
    assert [lung.assessable for lung in found.lungs] == [False, True]
    assert not found.whole.assessable


def test_a_region_that_the_scan_cuts_is_not_scored_but_measured():
    found = severity(counts_of({20: 900}), 0.1, True, assessable=range(1, 20))
    cut = found.regions[19]
    assert (cut.score, cut.assessable, cut.lesion_share, cut.lesion_ml) == (None, False, 0.9, 90)
    assert found.ct_ss == Score(None, 0, 2, 40, 19, 20)


def test_without_lung_nothing_is_known():
    found = severity(np.zeros((21, 3), dtype=int), 0.1, True)
    assert found.ct_ss == Score(None, 0, 40, 40, 0, 20)
    assert found.lobar == Score(None, 0, 25, 25, 0, 5)
    assert (found.whole.lesion_share, found.whole.lung_ml, found.grade) == (None, 0, None)


def test_without_lengths_there_are_shares_and_scores_alone():
    found = severity(counts_of({2: 600}), None, True)
    assert found.ct_ss.score == 2
    for place in (found.whole, *found.lungs, *found.lobes, *found.regions):
        assert (place.lung_ml, place.lesion_ml, place.ground_glass_ml, place.consolidation_ml) == (None,) * 4
        assert place.ground_glass_share is not None


def test_classes_that_are_not_told_apart_are_not_given():
    found = severity(counts_of({2: 600}), 0.1, False)
    for place in (found.whole, *found.lungs, *found.lobes, *found.regions):
        assert (place.ground_glass_ml, place.consolidation_ml) == (None, None)
        assert (place.ground_glass_share, place.consolidation_share) == (None, None)
    assert (found.whole.lesion_ml, found.whole.lesion_share) == (60, 0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.zeros((20, 3), int)}, r"shape \(20, 3\): .* \(21, 3\)"),
        ({"counts": np.zeros((21, 3))}, "float64 of shape"),
        ({"counts": np.full((21, 3), -1)}, "integers from 0"),
        ({"voxel_ml": 0.0}, "a voxel is 0.0 mL"),
        ({"voxel_ml": float("nan")}, "a voxel is nan mL"),
        ({"assessable": [0, 1]}, "there is no region 0: .* 1..20"),
        ({"counts": counts_of({}, {1: 1}), "told_apart": False}, "hold lesion code 2"),
    ],
)
def test_misuse_is_refused(change: dict, message: str):
    arguments = {"counts": counts_of({}), "voxel_ml": 0.1, "told_apart": True, **change}
    with pytest.raises(ValueError, match=message):
        severity(**arguments)


# properties ----------------------------------------------------------------------------------------------------------

many = hnp.arrays(np.int64, (21, 3), elements=st.integers(0, 30))
floors = st.builds(NoiseFloor, st.floats(0, 3), st.floats(0, 0.49))
codes = st.sets(st.integers(1, 20))


@given(many, st.data(), floors, codes)
def test_more_lesion_never_lowers_a_score(counts: np.ndarray, data: st.DataObject, floor: NoiseFloor, known: set[int]):
    turned = data.draw(hnp.arrays(np.int64, 21, elements=st.integers(0, 30)))
    more = counts.copy()
    more[:, 0] -= np.minimum(turned, counts[:, 0])
    more[:, 1] += np.minimum(turned, counts[:, 0])
    before, after = (severity(c, 0.1, True, floor, known) for c in (counts, more))
    for less, greater in zip((*before.regions, *before.lobes), (*after.regions, *after.lobes), strict=True):
        assert less.assessable == greater.assessable
        assert less.score is None or less.score <= greater.score
    for less, greater in ((before.ct_ss, after.ct_ss), (before.lobar, after.lobar)):
        assert less.lowest <= greater.lowest
        assert less.highest <= greater.highest


@given(many, floors, codes)
def test_more_consolidation_in_the_same_lesion_changes_no_score(counts: np.ndarray, floor: NoiseFloor, known: set[int]):
    dense = counts.copy()
    dense[:, 2] += dense[:, 1]
    dense[:, 1] = 0
    before, after = (severity(c, 0.1, True, floor, known) for c in (counts, dense))
    assert (before.ct_ss, before.lobar, before.grade) == (after.ct_ss, after.lobar, after.grade)


@given(many, floors, codes)
def test_sums_of_parts_are_the_whole(counts: np.ndarray, floor: NoiseFloor, known: set[int]):
    found = severity(counts, 0.1, True, floor, known)
    for name in ("lung_ml", "lesion_ml", "ground_glass_ml", "consolidation_ml"):
        for places in (found.lungs, found.lobes, found.regions):
            parts = sum(getattr(place, name) or 0 for place in places)
            assert parts == pytest.approx(getattr(found.whole, name) or 0)
    for place in (found.whole, *found.lungs, *found.lobes, *found.regions):
        assert (place.lesion_ml is None) == (place.lesion_share is None) == (place.lung_ml == 0)
        if place.lesion_share is not None:
            assert place.ground_glass_ml + place.consolidation_ml == pytest.approx(place.lesion_ml)
            assert 0 <= place.lesion_share <= 1
            assert place.ground_glass_share + place.consolidation_share == pytest.approx(place.lesion_share)
    assert sum(place.score or 0 for place in found.regions) == found.ct_ss.lowest
    assert sum(place.score or 0 for place in found.lobes) == found.lobar.lowest


@given(many, floors, codes)
def test_no_lesion_scores_0_and_what_is_not_assessable_never_does(
    counts: np.ndarray, floor: NoiseFloor, known: set[int]
):
    counts[:, 1:] = 0
    found = severity(counts, 0.1, True, floor, known)
    for code, place in enumerate(found.regions, start=1):
        assert place.score == (0 if code in known and counts[code].any() else None)
    missing = sum(place.score is None for place in found.regions)
    assert (found.ct_ss.score is None) == (missing > 0)
    assert (found.ct_ss.lowest, found.ct_ss.highest, found.ct_ss.assessable) == (0, 2 * missing, 20 - missing)
    assert found.grade != "severe"


@given(many, floors, codes)
def test_any_possible_score_lies_between_lowest_and_highest(counts: np.ndarray, floor: NoiseFloor, known: set[int]):
    counts[1:, 0] += 1
    known_ones, all_ones = (severity(counts, 0.1, True, floor, codes) for codes in (known, ALL))
    assert known_ones.ct_ss.lowest <= all_ones.ct_ss.score <= known_ones.ct_ss.highest
    assert known_ones.lobar.lowest <= all_ones.lobar.score <= known_ones.lobar.highest
    assert known_ones.grade in (None, all_ones.grade)


@given(many, st.floats(0, 3), st.floats(0, 3), st.floats(0, 0.49))
def test_a_higher_floor_never_raises_a_score(counts: np.ndarray, one: float, other: float, share: float):
    low, high = (severity(counts, 0.1, True, NoiseFloor(ml, share)) for ml in sorted((one, other)))
    assert low.ct_ss.lowest >= high.ct_ss.lowest
    assert low.lobar.lowest >= high.lobar.lowest


@given(
    hnp.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 2)),
    hnp.arrays(np.uint8, (2, 4, 5)),
    st.permutations(range(3)),
)
def test_the_order_and_direction_of_axes_do_not_matter(lesions: np.ndarray, regions: np.ndarray, axes: list[int]):
    regions %= 21
    turned = [array.transpose(axes)[:, ::-1] for array in (lesions, regions)]
    assert asdict(severity(count(*turned), 0.1, True)) == asdict(severity(count(lesions, regions), 0.1, True))


# single slices -------------------------------------------------------------------------------------------------------


def test_the_share_of_each_slice():
    lungs = np.zeros((4, 2, 5), dtype=np.uint8)
    lungs[1:, 0, :4] = 1
    lungs[2, 1, :] = 2
    lesions = np.zeros_like(lungs)
    lesions[0, 0, 0] = 1  # no lung here
    lesions[1, 0, :2] = (1, 2)
    lesions[2, 0, 0] = 2
    lesions[3, 0, 4] = 1  # outside the lung
    assert slice_shares(lesions, lungs) == (None, 0.5, 1 / 9, 0.0)


def test_lungs_on_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\) and the lungs \(2, 2, 3\)"):
        slice_shares(np.zeros((1, 2, 3)), np.zeros((2, 2, 3)))
