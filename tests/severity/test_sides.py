# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from covid_monai.severity.sides import midline, right_half, split_sides
from tests.severity.chest import LUNG, TISSUE, chest

COARSE = (6.0, 3.0, 3.0)


def no(hu: np.ndarray) -> np.ndarray:
    return np.zeros(hu.shape, dtype=bool)


@pytest.mark.parametrize("moved", [-25, 0, 25])
def test_the_midline_goes_through_the_spine(moved: int):
    hu = np.roll(chest()[0], moved, axis=2)
    assert midline(hu, COARSE) == pytest.approx(np.full(len(hu), 66 + moved), abs=1)


def test_without_bone_the_midline_halves_the_body():
    hu, _, _ = chest()
    hu[hu > TISSUE] = TISSUE
    assert midline(np.roll(hu, 10, axis=2), COARSE) == pytest.approx(np.full(len(hu), 76), abs=2)


def test_a_curved_spine_is_followed():
    hu, _, _ = chest((6.0, 3.0, 3.0))
    for z in range(len(hu)):
        hu[z] = np.roll(hu[z], round(6 * np.sin(z / 40 * np.pi)), axis=1)
    found = midline(hu, COARSE)
    assert abs(found[0] - 66) <= 3
    assert 69 <= found[20] <= 73


@pytest.mark.parametrize("moved", [-6, 0, 6])
def test_lungs_that_touch_are_split_where_they_touch(moved: int):
    """The pleura between them is one voxel wide and not at the midline."""
    hu, lungs, mm = chest()
    bridge = (np.abs(mm[2]) < 45) & (np.abs(mm[1]) < 30) & (np.abs(mm[0]) < 40)
    pleura = 66 + moved
    hu[bridge] = LUNG
    hu[..., pleura][bridge[..., pleura]] = -650
    whole = (lungs > 0) | bridge
    found = split_sides(whole, right_half(hu, no(hu), COARSE))
    columns = np.arange(hu.shape[2])
    assert (found[whole & (columns < pleura)] == 1).all()
    assert (found[whole & (columns > pleura)] == 2).all()


def test_dense_lesions_are_no_mediastinum():
    hu, lungs, mm = chest()
    dense = (lungs == 2) & (mm[2] < 60)  # the inner part of the left lung
    hu[(np.abs(mm[2]) < 30) & (np.abs(mm[1]) < 60) & (np.abs(mm[0]) < 60)] = LUNG
    hu[..., 66][np.abs(mm[1][..., 66]) < 60] = -300
    hu[dense] = TISSUE
    right = right_half(hu, dense, COARSE)
    assert not right[dense].any()


@pytest.mark.parametrize("code", [1, 2])
def test_a_lung_that_reaches_across_stays_whole(code: int):
    hu, lungs, _ = chest()
    hu[lungs == 3 - code] = TISSUE
    lung = lungs == code
    across = np.zeros(hu.shape, dtype=bool)
    across[15:25, 40:50, 60:73] = True  # over the midline at 66
    side = np.arange(hu.shape[2])[None, None]
    right = np.broadcast_to(side <= 66, hu.shape)
    found = split_sides(lung | across, right)
    assert set(np.unique(found)) == {0, code}


def test_no_lung_has_no_sides():
    hu, _, _ = chest()
    assert not split_sides(no(hu), right_half(hu, no(hu), COARSE)).any()
