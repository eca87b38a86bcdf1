# SPDX-License-Identifier: Apache-2.0
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.datasets.phantom import Phantom, make_phantom, upright
from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.lobes import approximate_lobes
from covid_monai.severity.regions import divide_regions, sides_of_regions
from tests.severity.test_lobes import Spacing, lungs_of, radiopaedia_lungs, two_ellipsoids

SPACING = (5.0, 2.0, 2.0)
CODES = {region.key: region.code for region in REGIONS}
IN_LOBE = {lobe.code: [region.code for region in REGIONS if region.lobe == lobe.key] for lobe in LOBES}
BASAL = ("medial_basal", "anterior_basal", "lateral_basal", "posterior_basal")


def box(lobe: int, shape: tuple[int, int, int] = (10, 12, 12)) -> np.ndarray:
    return np.full(shape, lobe, dtype=np.uint8)


def unevenness(regions: np.ndarray) -> float:
    """Largest deviation of a region's volume from an equal share of its lobe, relative to that share."""
    voxels = np.bincount(regions.ravel(), minlength=21)
    return max(
        abs(voxels[code] * len(codes) / sum(voxels[codes]) - 1)
        for codes in IN_LOBE.values()
        for code in codes
        if sum(voxels[codes])
    )


def centres(regions: np.ndarray, spacing: Spacing) -> dict[str, np.ndarray]:
    """Mean height, depth and distance from the patient's right, in mm, of each region."""
    return {
        key: np.array([float(x.mean()) * step for x, step in zip(np.nonzero(regions == code), spacing, strict=True)])
        for key, code in CODES.items()
    }


# boxes ----------------------------------------------------------------------------------------------------------------


def test_the_middle_lobe_has_a_lateral_and_a_medial_half():
    regions = divide_regions(box(2), SPACING)
    assert np.count_nonzero(regions == CODES["right_middle_lateral"]) == 720
    assert (regions[:, :, :3] == CODES["right_middle_lateral"]).all()  # the patient's right side is the outer one
    assert (regions[:, :, -3:] == CODES["right_middle_medial"]).all()


def test_the_upper_lobe_has_a_top_a_back_and_a_front():
    regions = divide_regions(box(1, (12, 12, 12)), SPACING)
    assert (regions[-3:] == CODES["right_upper_apical"]).all()
    assert not (regions[:7] == CODES["right_upper_apical"]).any()
    assert (regions[:7, :3] == CODES["right_upper_anterior"]).all()
    assert (regions[:7, -3:] == CODES["right_upper_posterior"]).all()


@pytest.mark.parametrize(("lobe", "side", "inner", "outer"), [(3, "right", 11, 0), (5, "left", 0, 11)])
def test_the_lower_lobe_has_a_top_and_four_basal_regions_around_its_axis(lobe: int, side: str, inner: int, outer: int):
    regions = divide_regions(box(lobe), SPACING)
    assert (regions[-1] == CODES[f"{side}_lower_superior"]).all()
    assert (regions[:7] != CODES[f"{side}_lower_superior"]).all()
    found = [regions[2, row, column] for row, column in ((5, inner), (0, 5), (6, outer), (11, 6))]
    assert found == [CODES[f"{side}_lower_{part}"] for part in BASAL]


def test_the_lingula_is_the_bottom_of_the_left_upper_lobe():
    regions = divide_regions(box(4, (20, 12, 12)), SPACING)
    superior, inferior = CODES["left_upper_superior_lingular"], CODES["left_upper_inferior_lingular"]
    assert np.isin(regions, [superior, inferior]).mean() == pytest.approx(0.4, abs=0.01)
    middle = regions[:, 6, 6]
    assert (middle[:3] == inferior).all()
    assert (middle[5:7] == superior).all()
    assert not np.isin(middle[9:], [superior, inferior]).any()
    front, back = (np.flatnonzero((regions[:, row] == superior).any(axis=1))[-1] for row in (0, 11))
    assert front < back
    assert (regions[-2:] == CODES["left_upper_apical"]).all()


@pytest.mark.parametrize("lobe", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (1, 7, 7), (2, 9, 5), (12, 12, 12)])
def test_no_region_of_a_box_is_empty(lobe: int, shape: tuple[int, int, int]):
    assert sorted(set(divide_regions(box(lobe, shape), SPACING).ravel().tolist())) == IN_LOBE[lobe]


# any mask -------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    lobes=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 5), fill=st.just(0)
    ),
    spacing=st.tuples(*[st.floats(0.3, 12.0)] * 3),
)
def test_regions_cover_the_lobes_and_stay_in_their_own(lobes: np.ndarray, spacing: Spacing):
    regions = divide_regions(lobes, spacing)
    assert (regions.dtype, regions.shape) == (np.uint8, lobes.shape)
    for lobe, codes in IN_LOBE.items():
        assert np.array_equal(np.isin(regions, codes), lobes == lobe)
    assert np.array_equal(regions, divide_regions(lobes, spacing))
    assert divide_regions(lobes, spacing, out=lobes) is lobes
    assert np.array_equal(lobes, regions)


def test_the_lungs_follow_from_the_regions():
    codes = {side.key: side.code for side in SIDES}
    assert sides_of_regions(np.arange(21, dtype=np.uint8)).tolist() == [0, *(codes[region.side] for region in REGIONS)]


def test_lungs_become_lobes_and_regions_in_one_memory():
    lungs = two_ellipsoids((10, 16, 24))
    expected = divide_regions(approximate_lobes(lungs, SPACING), SPACING)
    same = lungs.copy()
    assert divide_regions(approximate_lobes(same, SPACING, out=same), SPACING, out=same) is same
    assert np.array_equal(same, expected)
    assert np.array_equal(sides_of_regions(same), lungs)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(16, 30), st.integers(24, 40), st.integers(48, 80)),
    stretch=st.tuples(*[st.floats(0.6, 1.0)] * 3),
)
def test_regions_of_a_lobe_have_equal_volumes(shape: tuple, stretch: tuple):
    regions = divide_regions(approximate_lobes(two_ellipsoids(shape, stretch), SPACING), SPACING)
    voxels = np.bincount(regions.ravel(), minlength=21)
    for codes in IN_LOBE.values():
        equal = sum(voxels[codes]) / len(codes)
        assert all(abs(voxels[code] - equal) < equal ** (2 / 3) for code in codes)  # less than a layer of voxels


@settings(max_examples=15, deadline=None)
@given(
    stretch=st.tuples(*[st.floats(0.6, 1.0)] * 3),
    shape=st.tuples(st.integers(20, 60), st.integers(30, 60), st.integers(60, 120)),
)
def test_regions_do_not_depend_on_the_grid(stretch: tuple, shape: tuple):
    coarse, fine = two_ellipsoids(shape, stretch), two_ellipsoids((60, 60, 120), stretch)
    regions, finer = (divide_regions(approximate_lobes(lungs, SPACING), SPACING) for lungs in (coarse, fine))
    near = np.ix_(*(((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, fine.shape, strict=True)))
    both = (coarse != 0) & (fine[near] != 0)
    assert np.mean(regions[both] == finer[near][both]) > 0.9


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(8, 20), st.integers(12, 24), st.integers(12, 24)),
    stretch=st.tuples(*[st.floats(0.6, 1.0)] * 3),
)
def test_lower_lobes_that_mirror_each_other_have_regions_that_do(shape: tuple, stretch: tuple):
    right = np.where(two_ellipsoids((*shape[:2], 2 * shape[2]), stretch)[..., : shape[2]] == 1, 3, 0).astype(np.uint8)
    left = np.where(right == 3, 5, 0).astype(np.uint8)[..., ::-1]
    first, second = divide_regions(right, SPACING), divide_regions(left, SPACING)[..., ::-1]
    to_left = CODES["left_lower_superior"] - CODES["right_lower_superior"]
    agree = np.where(first > 0, first + to_left, 0) == second
    assert agree[first > 0].mean() > 0.95  # voxels on a border may go either way


@pytest.mark.parametrize("absent", [1, 2, 3, 4, 5])
def test_a_lobe_that_is_not_there_has_no_regions(absent: int):
    lobes = approximate_lobes(two_ellipsoids((20, 30, 60)), SPACING)
    whole = divide_regions(lobes, SPACING)
    rest = divide_regions(np.where(lobes == absent, 0, lobes), SPACING)
    assert np.array_equal(rest, np.where(lobes == absent, 0, whole))


def test_without_lobes_there_are_no_regions():
    assert not divide_regions(np.zeros((3, 4, 5), np.uint8), SPACING).any()


@pytest.mark.parametrize("crop", [np.s_[:9], np.s_[9:], np.s_[:, :15], np.s_[:, :, 10:], np.s_[7:8]])
def test_lobes_cut_by_the_frame_are_divided_too(crop: tuple):
    lobes = approximate_lobes(two_ellipsoids((20, 30, 60)), SPACING)[crop]
    regions = divide_regions(lobes, SPACING)
    assert np.array_equal(regions != 0, lobes != 0)


@pytest.mark.parametrize(
    ("lobes", "fault"),
    [
        (np.full((2, 3, 4), 14, np.uint8), r"codes 14\.\.14: expected 0\.\.5"),
        (np.ones((2, 3, 4), np.float64), "float64 values"),
        (np.ones((3, 4), np.uint8), "got shape"),
    ],
)
def test_what_is_no_lobe_mask_is_refused(lobes: np.ndarray, fault: str):
    with pytest.raises(ValueError, match=fault):
        divide_regions(lobes, SPACING)


# chests ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(0, (96, 96, 48)), (1, (96, 96, 48)), (2, (128, 128, 16))], ids=str)
def chest(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Lungs and regions (Z, H, W) of a phantom, and its spacing."""
    seed, shape = request.param
    lungs, spacing = lungs_of(make_phantom(seed, shape, lesions=None))
    return lungs, divide_regions(approximate_lobes(lungs, spacing), spacing), spacing


Chest = tuple[np.ndarray, np.ndarray, Spacing]


def test_twenty_regions_part_the_lungs_of_a_phantom(chest: Chest):
    lungs, regions, _ = chest
    assert sorted(np.unique(regions).tolist()) == list(range(21))
    right = [region.code for region in REGIONS if region.side == "right_lung"]
    assert np.array_equal(np.isin(regions, right), lungs == 1)
    assert np.array_equal(regions > max(right), lungs == 2)
    assert unevenness(regions) < 0.03


def test_upper_regions_lie_where_they_belong(chest: Chest):
    _, regions, spacing = chest
    at = centres(regions, spacing)
    for side in ("right", "left"):
        apical, posterior, anterior = (at[f"{side}_upper_{part}"] for part in ("apical", "posterior", "anterior"))
        assert apical[0] > max(posterior[0], anterior[0]) + 20
        assert posterior[1] > anterior[1] + 30
        assert abs(posterior[0] - anterior[0]) < 35


def test_lingula_and_middle_lobe_lie_where_they_belong(chest: Chest):
    _, regions, spacing = chest
    at = centres(regions, spacing)
    superior, inferior = at["left_upper_superior_lingular"], at["left_upper_inferior_lingular"]
    assert inferior[0] < superior[0] - 10
    assert superior[0] < at["left_upper_anterior"][0] - 10
    assert inferior[1] < at["left_lower_superior"][1] - 30  # in front of the lower lobe
    assert at["right_middle_lateral"][2] < at["right_middle_medial"][2] - 15  # nearer the patient's right side


def test_lower_regions_lie_where_they_belong(chest: Chest):
    _, regions, spacing = chest
    at = centres(regions, spacing)
    for side, outward in (("right", -1), ("left", 1)):
        medial, anterior, lateral, posterior = (at[f"{side}_lower_{part}"] for part in BASAL)
        basal = np.array([medial, anterior, lateral, posterior])
        assert (basal[:, 0] < at[f"{side}_lower_superior"][0] - 30).all()
        assert np.argmin(basal[:, 1]) == 1
        assert np.argmax(basal[:, 1]) == 3
        outer = outward * basal[:, 2]
        assert np.argmin(outer) == 0
        assert np.argmax(outer) == 2
        assert posterior[1] > anterior[1] + 40
        assert outer[2] > outer[0] + 40


def test_regions_hold_when_a_phantom_is_scanned_on_another_grid():
    """Same patient, 3 mm and 12 mm slices: shares of one disease in the regions stay within two points."""
    shares = []
    for shape in ((120, 120, 96), (120, 120, 24)):
        phantom = make_phantom(3, shape)
        lungs, spacing = lungs_of(phantom)
        regions = divide_regions(approximate_lobes(lungs, spacing), spacing)
        lesion = np.bincount(regions.ravel(), weights=(upright(phantom.lesions) != 0).ravel(), minlength=21)
        shares.append(lesion[1:] / np.bincount(regions.ravel(), minlength=21)[1:])
    assert shares[0].max() > 0.2
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


@pytest.mark.parametrize("volume", [2, 4, 8])
def test_no_region_of_real_lungs_is_empty(volume: int, shared_data: Callable[[str], Path]):
    lungs = radiopaedia_lungs(shared_data("medseg_radiopaedia9"), volume)
    spacing = (5.0, 0.7, 0.7)
    regions = divide_regions(approximate_lobes(lungs, spacing), spacing)
    assert np.array_equal(regions != 0, lungs != 0)
    assert unevenness(regions) < 0.01


def test_no_array_of_floats_as_large_as_the_scan_is_made(phantom: Phantom):
    lungs, spacing = lungs_of(phantom)
    large = np.ascontiguousarray(lungs).repeat(4, axis=0).repeat(3, axis=1).repeat(3, axis=2)
    lobes = approximate_lobes(large, spacing)
    tracemalloc.start()
    divide_regions(lobes, spacing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.size * 4 + 40e6  # the result, a mask, a lobe's indices, and a sample of fixed size
