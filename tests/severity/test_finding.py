# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity.finding import LEAST, Finding, find_opacities, peripheral_share
from covid_monai.severity.scores import NoiseFloor, Severity, severity
from covid_monai.severity.uncertainty import spread

RIGHT_UPPER, RIGHT_LOWER, LEFT_UPPER, LEFT_LOWER = 1, 7, 11, 17


def patient(
    lesion_ml: dict[int, int], voxel_ml: float | None = 0.1, lungs: tuple[bool, bool] = (True, True)
) -> Severity:
    """Twenty regions of 200 mL in voxels of 0.1 mL, with ground glass of so many mL by region code."""
    counts = np.zeros((21, 3), dtype=np.int64)
    counts[1:11, 0], counts[11:, 0] = (2000 * seen for seen in lungs)
    for code, volume in lesion_ml.items():
        counts[code, :2] = 2000 - 10 * volume, 10 * volume
    return severity(counts, voxel_ml, True)


def find(main: Severity, *others: Severity, peripheral: float | None = None, **options: NoiseFloor) -> Finding:
    return find_opacities(main, spread([main, *others], (0.3, 0.5, 0.7), False), peripheral, **options)


BOTH = patient({RIGHT_UPPER: 20, LEFT_UPPER: 20})  # each 1 % of its lung


@pytest.mark.parametrize(
    ("lesion_ml", "peripheral", "result"),
    [
        ({}, None, "not found"),
        ({RIGHT_LOWER: 4}, 1.0, "not found"),  # 4 mL
        ({RIGHT_LOWER: 5}, 1.0, "found"),  # one lung: all peripheral and in a lower lobe
        ({RIGHT_LOWER: 60, RIGHT_UPPER: 30}, 0.67, "found"),  # two thirds of each
        ({RIGHT_LOWER: 60, RIGHT_UPPER: 31}, 0.67, "indeterminate"),
        ({RIGHT_LOWER: 60}, 0.66, "indeterminate"),
        ({RIGHT_LOWER: 60}, None, "indeterminate"),
        ({RIGHT_UPPER: 60}, 1.0, "indeterminate"),
        ({RIGHT_UPPER: 20, LEFT_UPPER: 20}, 0.1, "found"),  # both lungs
        ({RIGHT_UPPER: 100, LEFT_UPPER: 10}, 0.1, "found"),  # 0.5 % of the left lung
        ({RIGHT_UPPER: 100, LEFT_UPPER: 9}, 0.1, "indeterminate"),  # less than that
    ],
)
def test_results_of_the_rule_with_one_run(lesion_ml: dict, peripheral: float | None, result: str):
    for found in (
        find(patient(lesion_ml), peripheral=peripheral),
        find_opacities(patient(lesion_ml), None, peripheral),
    ):
        assert found.result == result


def test_the_distribution_is_reported():
    found = find(patient({RIGHT_LOWER: 60, LEFT_LOWER: 15, RIGHT_UPPER: 25}), peripheral=0.4)
    assert (found.bilateral, found.peripheral_share, found.lower_lobe_share) == (True, 0.4, 0.75)
    found = find(patient({RIGHT_UPPER: 25}), peripheral=0.9)
    assert (found.bilateral, found.peripheral_share, found.lower_lobe_share) == (False, 0.9, 0.0)


def test_runs_that_disagree_leave_it_open():
    small = patient({RIGHT_UPPER: 2, LEFT_UPPER: 2})
    for main, other in ((BOTH, small), (small, BOTH)):
        found = find(main, other)
        assert found.result == "indeterminate"
        assert "in some runs and not in others" in found.reason
    assert find(BOTH, BOTH).result == "found"
    assert find(small, small).result == "not found"


def test_without_lung_there_is_no_result_and_a_reason():
    found = find(patient({}, lungs=(False, False)))
    assert (found.result, found.reason) == (None, "No lung was found.")
    assert (found.bilateral, found.lower_lobe_share) == (None, None)
    assert found.rule


def test_one_lung_cannot_be_bilateral():
    found = find(patient({RIGHT_LOWER: 60}, lungs=(True, False)), peripheral=0.9)
    assert (found.bilateral, found.lower_lobe_share, found.result) == (None, None, "indeterminate")


def test_without_lengths_the_share_decides():
    assert find(patient({RIGHT_UPPER: 20, LEFT_UPPER: 20}, None)).result == "found"
    found = find(patient({RIGHT_LOWER: 3}, None), peripheral=1.0)  # 0.075 %
    assert (found.result, found.lower_lobe_share) == ("not found", None)


def test_the_limit_is_a_parameter_and_in_the_rule():
    found = find(BOTH, least=NoiseFloor(50.0, 0.02))
    assert found.result == "not found"
    assert "do the lesions reach 50 mL and 2 % of the lungs" in found.rule
    rule = find(replace(BOTH, floor=NoiseFloor(1.0, 0.01))).rule
    for part in ("5 mL and 0.1 %", "at least 1 mL and 1 %", "67 %", "Simpson et al. 2020", "fitted to no data"):
        assert part in rule


volumes = st.dictionaries(st.integers(1, 20), st.integers(0, 200))


@given(volumes, volumes, st.floats(0, 1) | st.none())
def test_found_and_not_found_need_every_run(one: dict, other: dict, peripheral: float | None):
    main, second = patient(one), patient(other)
    found = find(main, second, peripheral=peripheral)
    reached = [LEAST.reached(s.whole.lesion_ml, s.whole.lesion_share) for s in (main, second)]
    assert (found.result == "not found") == (not any(reached))
    assert all(reached) or found.result != "found"
    assert found.reason


# peripheral share ----------------------------------------------------------------------------------------------------


def lung_pair() -> np.ndarray:
    """One slice with two half-discs, flat towards the middle: radius 40, centres at columns 50 and 70, 20 apart."""
    row, column = np.mgrid[:120, :120]
    lungs = np.zeros((1, 120, 120), dtype=np.uint8)
    lungs[0][((row - 60) ** 2 + (column - 50) ** 2 < 1600) & (column <= 50)] = 1
    lungs[0][((row - 60) ** 2 + (column - 70) ** 2 < 1600) & (column >= 70)] = 2
    return lungs


SPACING = (5.0, 1.0, 1.0)


@pytest.mark.parametrize("outer", [0.25, 1 / 3, 0.5, 0.75])
def test_lesions_spread_evenly_give_the_outer_part_itself(outer: float):
    lungs = lung_pair()
    assert peripheral_share(lungs, lungs, SPACING, outer) == pytest.approx(outer, abs=0.03)


def test_depth_is_measured_from_the_outer_surface():
    """The outer half of a half-disc's area lies beyond 40 / sqrt(2) = 28 from its centre."""
    lungs = lung_pair()
    row, column = np.mgrid[:120, :120]
    from_centre = np.hypot(row - 60, np.where(column < 60, column - 50, column - 70))[None]
    rim, core = (lungs != 0) & (from_centre > 31), (lungs != 0) & (from_centre < 25)
    assert peripheral_share(rim, lungs, SPACING) == pytest.approx(1, abs=0.02)
    assert peripheral_share(core, lungs, SPACING) == pytest.approx(0, abs=0.02)
    both = rim | core
    assert peripheral_share(both, lungs, SPACING) == pytest.approx(rim.sum() / both.sum(), abs=0.02)


def test_the_medial_surface_is_not_peripheral():
    lungs = lung_pair()
    lesions = np.zeros_like(lungs)
    lesions[0, 45:75, 46:51] = lesions[0, 45:75, 70:75] = 1  # along the flat sides
    assert peripheral_share(lesions, lungs, SPACING) == 0


def test_a_lung_alone_is_measured_as_with_its_twin():
    lungs = lung_pair()
    right = np.where(lungs == 1, lungs, 0)
    lesions = (np.random.default_rng(0).random(lungs.shape) < 0.2) & (right != 0)
    assert peripheral_share(lesions, right, SPACING) == peripheral_share(lesions, lungs, SPACING)


def test_lesion_outside_the_lungs_is_not_counted():
    lungs = lung_pair()
    lesions = lungs == 0
    assert peripheral_share(lesions, lungs, SPACING) is None
    lesions[0, 60, 50] = True
    assert peripheral_share(lesions, lungs, SPACING) == 0


@pytest.mark.parametrize("lungs", [np.zeros((2, 9, 9), np.uint8), np.ones((2, 9, 9), np.uint8)])
def test_without_lung_or_lesion_there_is_no_share(lungs: np.ndarray):
    assert peripheral_share(np.zeros_like(lungs), lungs, SPACING) is None
    assert peripheral_share(1 - lungs, lungs, SPACING) is None


@pytest.mark.parametrize("millimetres", [0.7, 1.0, 3.0, 10.0])
def test_the_scale_does_not_matter(millimetres: float):
    """Slices without known lengths are measured as well: only the grid, of 4, 3 or 1 pixels, makes a difference."""
    lungs = lung_pair().repeat(3, axis=1).repeat(3, axis=2)
    lesions = np.broadcast_to((np.arange(360) < 90) & (np.arange(360)[:, None] > 150), lungs.shape)
    row, column = np.mgrid[:360, :360]
    outer = np.hypot(row - 181, column - 151) > 3 * 40 / 2**0.5
    expected = (lesions & outer & (lungs != 0)).sum() / (lesions & (lungs != 0)).sum()
    assert peripheral_share(lesions, lungs, (5.0, millimetres, millimetres)) == pytest.approx(expected, abs=0.02)


@given(hnp.arrays(bool, (2, 7, 8)), hnp.arrays(np.uint8, (2, 7, 8), elements=st.integers(0, 2)))
def test_mirrored_lungs_give_the_same_and_shares_stay_within_0_and_1(lesions: np.ndarray, lungs: np.ndarray):
    found = peripheral_share(lesions, lungs, (5.0, 0.7, 0.7))
    turned = peripheral_share(lesions[..., ::-1], np.array([0, 2, 1], np.uint8)[lungs[..., ::-1]], (5.0, 0.7, 0.7))
    inside = np.count_nonzero(lesions & (lungs != 0))
    assert (found is None) == (inside == 0)
    if found is not None:
        assert 0 <= found <= 1
        assert round(found * inside, 6) % 1 == pytest.approx(0, abs=1e-5)
    if lungs.shape[2] % 2 == 0:  # the grid of 2 x 2 pixels starts anew from the other side
        assert found == turned


@pytest.mark.parametrize(
    ("lesions", "spacing", "outer"),
    [
        (np.zeros((4, 3)), SPACING, 0.5),
        (np.zeros((1, 4, 3)), (5.0, 0.0, 1.0), 0.5),
        (np.zeros((1, 4, 3)), SPACING, 0.0),
        (np.zeros((1, 4, 3)), SPACING, 1.0),
    ],
)
def test_misuse_is_refused(lesions: np.ndarray, spacing: tuple, outer: float):
    with pytest.raises(ValueError, match=r"give \(Z, H, W\), positive lengths and a share between 0 and 1"):
        peripheral_share(lesions, lesions, spacing, outer)


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 4, 3), (0, 4, 3)])
def test_lungs_on_another_grid_are_refused(shape: tuple[int, int, int]):
    with pytest.raises(ValueError, match=r"give both as \(Z, H, W\) on one grid"):
        peripheral_share(np.zeros((1, 4, 3)), np.zeros(shape), SPACING)
