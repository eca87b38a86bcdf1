# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.datasets.phantom import Phantom, upright
from covid_monai.severity import dice, lung_mask, lung_sides, touching_lung

AIR, LUNG, TISSUE = -1000.0, -850.0, 40.0
SIZE_MM = np.array([240.0, 300.0, 360.0])  # of the scan, along Z, H and W


def grid(spacing: tuple[float, float, float]) -> np.ndarray:
    """Coordinates (3, Z, H, W) in mm from the middle of the scan."""
    axes = [
        (np.arange(round(size / step)) + 0.5) * step - size / 2 for size, step in zip(SIZE_MM, spacing, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def ellipsoid(mm: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """(Z, H, W) bool."""
    return sum(((x - c) / r) ** 2 for x, c, r in zip(mm, centre, radii, strict=True)) <= 1


def chest(spacing: tuple[float, float, float] = (6.0, 3.0, 3.0)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU (Z, H, W) of an elliptic body with two ellipsoids of lung, the lungs, and the coordinates."""
    mm = grid(spacing)
    lungs = ellipsoid(mm, (0, 0, -70), (100, 80, 55)) | ellipsoid(mm, (0, 0, 70), (90, 75, 50))
    hu = np.full(lungs.shape, AIR, dtype=np.float32)
    hu[(mm[1] / 110) ** 2 + (mm[2] / 150) ** 2 <= 1] = TISSUE
    hu[lungs] = LUNG
    return hu, lungs, mm


def volume_ml(mask: np.ndarray, spacing: tuple[float, float, float]) -> float:
    return float(np.count_nonzero(mask) * np.prod(spacing) / 1000)


# 4/3 pi (100 * 80 * 55 + 90 * 75 * 50) mm3
ELLIPSOIDS_ML = 4 / 3 * np.pi * (100 * 80 * 55 + 90 * 75 * 50) / 1000


@pytest.mark.parametrize("spacing", [(6.0, 3.0, 3.0), (10.0, 1.5, 1.5), (5.0, 0.75, 0.75), (4.0, 4.0, 2.0)])
def test_the_volume_of_ellipsoids_is_found(spacing: tuple[float, float, float]):
    hu, lungs, _ = chest(spacing)
    found = lung_mask(hu, spacing)
    assert (found.shape, found.dtype) == (hu.shape, bool)
    assert volume_ml(found, spacing) == pytest.approx(ELLIPSOIDS_ML, rel=0.03)
    assert dice(found, lungs) > 0.98


def test_vessels_and_lesions_within_the_lung_are_lung():
    hu, lungs, mm = chest()
    within = ellipsoid(mm, (0, 0, -70), (60, 30, 20)) | ellipsoid(mm, (20, 10, 70), (12, 12, 12))
    hu[within] = TISSUE
    found = lung_mask(hu, (6.0, 3.0, 3.0))
    assert found[within].all()
    assert dice(found, lungs) > 0.98


def test_a_shallow_lesion_at_the_pleura_is_lung():
    hu, lungs, mm = chest()
    shallow = lungs & (np.abs(mm[1]) < 5) & (mm[2] < -112) & (np.abs(mm[0]) < 30)  # 9 mm wide, 13 mm deep
    assert shallow.sum() > 50
    hu[shallow] = TISSUE
    assert lung_mask(hu, (6.0, 3.0, 3.0))[shallow].mean() > 0.75


def test_a_wide_lesion_at_the_pleura_is_not_guessed_to_be_lung():
    hu, lungs, mm = chest()
    wide = lungs & (np.abs(mm[1]) < 30) & (mm[2] < -105) & (np.abs(mm[0]) < 30)  # 60 mm wide, up to 20 mm deep
    hu[wide] = TISSUE
    assert lung_mask(hu, (6.0, 3.0, 3.0))[wide].mean() < 0.2


def test_what_stands_between_the_lungs_stays_out():
    hu, _, mm = chest()
    assert not lung_mask(hu, (6.0, 3.0, 3.0))[np.abs(mm[2]) < 12].any()


def test_air_around_the_body_is_no_lung():
    hu, _, _ = chest()
    assert not lung_mask(hu, (6.0, 3.0, 3.0))[hu == AIR].any()


@pytest.mark.parametrize(("gas", "is_lung"), [(-990.0, False), (-900.0, True)])
def test_a_large_space_is_lung_unless_it_is_pure_gas(gas: float, is_lung: bool):
    hu, lungs, mm = chest()
    stomach = ellipsoid(mm, (0, -75, 0), (100, 30, 26))
    assert stomach.sum() > 0.15 * (lungs & (mm[2] < 0)).sum()  # of the larger lung
    assert not (stomach & lungs).any()
    hu[stomach] = gas
    assert lung_mask(hu, (6.0, 3.0, 3.0))[stomach].all() == is_lung
    assert lung_mask(hu, (6.0, 3.0, 3.0))[stomach].any() == is_lung


@pytest.mark.parametrize(("axis", "side"), [(1, 0), (1, -1), (2, 0), (2, -1)])
def test_air_that_reaches_the_frame_is_no_lung(axis: int, side: int):
    hu = np.full((4, 60, 60), TISSUE, dtype=np.float32)
    hu[:, 20:40, 20:40] = LUNG
    outside = np.zeros(hu.shape, dtype=bool)
    np.moveaxis(outside, axis, 0)[slice(0, 12) if side == 0 else slice(-12, None), :, 15:45] = True
    hu[outside] = LUNG
    found = lung_mask(hu, (5.0, 3.0, 3.0))
    assert not found[outside].any()
    assert found[:, 22:38, 22:38].all()


def test_small_bubbles_are_no_lung():
    hu, lungs, mm = chest()
    bubble = ellipsoid(mm, (0, 95, 0), (15, 9, 12))
    hu[bubble] = LUNG
    found = lung_mask(hu, (6.0, 3.0, 3.0))
    assert not found[bubble & ~lungs].any()


@pytest.mark.parametrize("value", [TISSUE, AIR])
def test_without_air_in_a_body_there_is_no_lung(value: float):
    found = lung_mask(np.full((4, 20, 30), value, dtype=np.float32), (5.0, 3.0, 3.0))
    assert found.shape == (4, 20, 30)
    assert not found.any()


def test_the_scan_is_left_as_it_is():
    hu, _, _ = chest()
    before = hu.copy()
    lung_mask(hu, (6.0, 3.0, 3.0))
    assert np.array_equal(hu, before)


@pytest.mark.parametrize("size", [(96, 96), (97, 101)])
def test_sides_that_the_step_does_not_divide_are_covered(size: tuple[int, int]):
    hu = np.full((3, *size), TISSUE, dtype=np.float32)
    hu[:, 20:-20, 20:-20] = LUNG
    found = lung_mask(hu, (5.0, 0.5, 0.5))  # on every third row and column
    assert found.shape == hu.shape
    assert abs(int(found.sum()) / (3 * (size[0] - 40) * (size[1] - 40)) - 1) < 0.08


def test_lungs_of_the_phantom_are_found(phantom: Phantom):
    spacing = tuple(np.diag(phantom.affine)[2::-1])
    truth = upright(phantom.lungs) != 0
    assert dice(lung_mask(upright(phantom.hu).astype(np.float32), spacing), truth) > 0.9


@pytest.mark.parametrize(
    ("shape", "spacing"), [((4, 5), (1.0, 1.0, 1.0)), ((4, 5, 6), (1.0, 0.0, 1.0)), ((1, 4, 5, 6), (1.0, 1.0, 1.0))]
)
def test_other_arrays_and_spacings_are_refused(shape: tuple[int, ...], spacing: tuple[float, float, float]):
    with pytest.raises(ValueError, match=r"expected \(Z, H, W\) and positive spacing in mm"):
        lung_mask(np.zeros(shape, dtype=np.float32), spacing)


# lesions that touch the lung -----------------------------------------------------------------------------------------


def test_parts_wholly_outside_the_lungs_are_dropped():
    lungs = np.zeros((3, 6, 9), dtype=bool)
    lungs[:, 1:5, 1:4] = True
    lesion = np.zeros(lungs.shape, dtype=np.uint8)
    lesion[0, 2, 2] = 1  # inside
    lesion[1, 2, 3:6] = 2  # reaches out of the lung
    lesion[1, 2, 7] = 1  # outside
    lesion[2, 0, 0] = 1  # outside, diagonal neighbour of the lung but not in it
    expected = lesion.copy()
    expected[1, 2, 7] = expected[2, 0, 0] = 0
    kept = touching_lung(lesion, lungs)
    assert np.array_equal(kept, expected)
    assert kept.dtype == np.uint8


def test_parts_are_connected_over_slices_and_corners():
    lungs = np.zeros((3, 3, 3), dtype=bool)
    lungs[0, 0, 0] = True
    lesion = np.eye(3, dtype=np.uint8)[:, :, None] * np.eye(3, dtype=np.uint8)[:, None, :]  # the space diagonal
    assert lesion.sum() == 3
    assert np.array_equal(touching_lung(lesion, lungs), lesion)


def test_no_lesion_stays_no_lesion():
    assert not touching_lung(np.zeros((2, 3, 4), dtype=np.uint8), np.ones((2, 3, 4), dtype=bool)).any()


small = (4, 5, 6)


@given(hnp.arrays(np.uint8, small, elements=st.sampled_from([0, 0, 0, 1, 2])), hnp.arrays(bool, small))
def test_only_outside_the_lungs_is_something_dropped(lesion: np.ndarray, lungs: np.ndarray):
    before = lesion.copy()
    kept = touching_lung(lesion, lungs)
    assert np.array_equal(lesion, before)
    assert np.array_equal(kept[lungs], lesion[lungs])
    assert np.isin(kept[~lungs], 0).sum() >= np.isin(lesion[~lungs], 0).sum()
    assert (kept[kept != 0] == lesion[kept != 0]).all()
    assert np.array_equal(touching_lung(kept, lungs), kept)


def test_sides_are_counted_from_the_midline_of_the_body():
    hu, lungs, mm = chest()
    right, left = lungs & (mm[2] < 0), lungs & (mm[2] > 0)
    assert lung_sides(lungs, hu) == (int(right.sum()), int(left.sum()))
    assert lung_sides(right, hu) == (int(right.sum()), 0)
    assert lung_sides(left, np.roll(hu, 3, axis=2)) == (0, int(left.sum()))  # the body may lie off the centre
