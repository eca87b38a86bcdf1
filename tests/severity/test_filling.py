# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity.filling import NEAR_MM, REACH_ALONG_MM, REACH_MM, fill_sides, islands_in_lesions, with_lesions
from tests.severity.chest import LUNG, TISSUE

ONE = (1.0, 1.0, 1.0)


def test_each_lung_is_closed_on_its_own():
    codes = np.zeros((1, 40, 60), dtype=np.uint8)
    codes[0, 10:30, 10:28] = 1
    codes[0, 10:30, 32:50] = 2  # 4 mm beside the other
    codes[0, 18:22, 24:28] = 0  # a vessel that enters from between them
    filled = fill_sides(codes, ONE)
    assert (filled[0, 18:22, 24:27] == 1).all()
    assert not filled[0, 10:30, 28:32].any()


def test_small_holes_are_filled_and_large_ones_where_they_are_closed_in_space():
    codes = np.zeros((9, 90, 90), dtype=np.uint8)
    codes[:, 5:85, 5:85] = 1
    codes[:, 10:25, 10:25] = 0  # 2.25 cm2, through all slices: a vessel
    codes[:5, 40:75, 40:75] = 0  # 12 cm2, open below: the diaphragm
    codes[3:6, 40:75, 5 + 6 : 11 + 24] = 0  # 8.4 cm2, within
    filled = fill_sides(codes, ONE)
    assert filled[:, 10:25, 10:25].all()
    assert not filled[:5, 50:65, 50:65].any()
    assert filled[5:, 40:75, 40:75].all()
    assert filled[3:6, 40:75, 11:35].all()


def test_only_the_slices_asked_for_are_closed():
    codes = np.zeros((3, 20, 20), dtype=np.uint8)
    codes[:, 5:15, 5:15] = 2
    codes[:, 9:11, 9:11] = 0
    filled = fill_sides(codes, ONE, slices=np.array([False, True, False]))
    assert filled[1, 9:11, 9:11].all()
    assert not filled[0, 9:11, 9:11].any()


@given(hnp.arrays(np.uint8, (3, 9, 9), elements=st.sampled_from([0, 0, 1, 2])))
def test_filling_takes_nothing_away(codes: np.ndarray):
    filled = fill_sides(codes, (5.0, 4.0, 4.0))
    assert np.array_equal(filled[codes > 0], codes[codes > 0])


def test_islands_count_when_lesions_surround_them():
    lesions = np.zeros((1, 30, 30), dtype=bool)
    lesions[0, 2:20, 2:20] = True
    islands = np.zeros_like(lesions)
    islands[0, 5:10, 5:10] = True  # within
    islands[0, 15:25, 17:27] = True  # at a corner
    lesions &= ~islands
    expected = islands.copy()
    expected[0, 15:25, 17:27] = False
    assert np.array_equal(islands_in_lesions(islands, lesions), expected)


def strip(length: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes, lesions, right half and HU (5, 9, length), 1 mm: a lung in columns 0..9, and lesion from there on."""
    codes = np.zeros((5, 9, length), dtype=np.uint8)
    codes[..., :10] = 1
    lesions = np.zeros(codes.shape, dtype=bool)
    lesions[..., 10:] = True
    hu = np.where(codes > 0, LUNG, TISSUE)
    return codes, lesions, np.ones(codes.shape, dtype=bool), hu


def test_lesions_are_followed_as_far_as_the_reach():
    codes, lesions, right, hu = strip()
    grown = with_lesions(codes, lesions, np.zeros_like(lesions), right, hu, ONE)
    reached = int(np.flatnonzero(grown[2, 4])[-1]) - 9
    assert REACH_MM - 3 <= reached - 2 * NEAR_MM <= REACH_MM
    assert np.array_equal(grown[codes > 0], codes[codes > 0])
    assert not grown[~lesions & (codes == 0)].any()


def test_lesions_across_slices_are_followed_less_far():
    codes = np.zeros((60, 9, 9), dtype=np.uint8)
    codes[:5] = 2
    grown = with_lesions(
        codes, codes == 0, np.zeros(codes.shape, dtype=bool), codes > 5, np.full(codes.shape, TISSUE), ONE
    )
    assert np.flatnonzero(grown[:, 4, 4])[-1] == 4 + REACH_ALONG_MM


def test_bone_stops_lesions():
    codes, lesions, right, hu = strip()
    hu[2, :, 30:33] = 300  # one slice's rib, which its neighbours see
    grown = with_lesions(codes, lesions, np.zeros_like(lesions), right, hu, ONE)
    assert grown[..., :30].all()
    assert not grown[..., 30 + int(NEAR_MM) :].any()


def test_a_gap_wider_than_near_stops_lesions_and_air_bridges_it():
    codes, lesions, right, hu = strip()
    lesions[..., 20:30] = False
    apart = with_lesions(codes, lesions, np.zeros_like(lesions), right, hu, ONE)
    assert apart[..., 10:20].all()
    assert not apart[..., 20:].any()
    islands = np.zeros_like(lesions)
    islands[..., 20:30] = True
    assert with_lesions(codes, lesions, islands, right, hu, ONE)[..., :40].all()


def test_a_lung_does_not_follow_lesions_across_the_line():
    codes, lesions, right, hu = strip(60)
    codes[..., 50:] = 2
    lesions[..., 50:] = False
    right[..., 20:] = False
    grown = with_lesions(codes, lesions, np.zeros_like(lesions), right, hu, ONE)
    assert (grown[..., :20] == 1).all()
    assert (grown[..., 20:] == 2).all()


@given(hnp.arrays(np.uint8, (3, 6, 8), elements=st.integers(0, 2)), hnp.arrays(bool, (3, 6, 8)))
def test_lungs_keep_their_codes_and_only_lesions_are_added(codes: np.ndarray, lesions: np.ndarray):
    hu = np.full(codes.shape, TISSUE)
    right = np.broadcast_to(np.arange(8) < 4, codes.shape)
    grown = with_lesions(codes, lesions, np.zeros_like(lesions), right, hu, (5.0, 3.0, 3.0))
    assert np.array_equal(grown[codes > 0], codes[codes > 0])
    assert not grown[(codes == 0) & ~lesions].any()
