# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from covid_monai.severity.air_spaces import air_spaces
from tests.severity.chest import AIR, GAS, LUNG, TISSUE, chest, ellipsoid

FINE, COARSE = (6.0, 1.5, 1.5), (6.0, 3.0, 3.0)


def test_air_of_the_lungs_is_told_from_air_around_the_body():
    hu, lungs, _ = chest(FINE)
    air, islands, gas = air_spaces(hu.astype(np.int16), FINE)
    assert np.array_equal(air, lungs > 0)
    assert not islands.any()
    assert not gas.any()


def test_gas_is_what_tissue_surrounds_and_what_leads_on_from_it():
    hu, lungs, mm = chest(FINE)
    trachea = (np.hypot(mm[1], mm[2]) < 8) & (mm[0] > 10)
    branch = (np.hypot(mm[1], mm[2] + 12) < 6) & (np.abs(mm[0] - 4) < 7)  # begins beside the end of the trachea
    bulla = ellipsoid(mm, (0, 0, -70), (20, 12, 12))  # in the lung
    hu[trachea | branch | bulla] = GAS
    air, _, gas = air_spaces(hu, FINE)
    assert gas[trachea].all()
    assert gas[branch].mean() > 0.95
    assert not gas[bulla].any()
    assert air[bulla].all()
    assert lungs[bulla].all()


@pytest.mark.parametrize(("radius", "is_lung"), [(45.0, False), (70.0, True)])
def test_a_dark_space_in_tissue_is_gas_unless_it_is_too_large(radius: float, is_lung: bool):
    """The smaller has 64 cm2, the larger 154 cm2: a lung with emphysema."""
    hu, lungs, mm = chest(FINE)
    hu[lungs == 2] = TISSUE
    hu[(np.hypot(mm[1], mm[2] - 75) < radius) & (np.abs(mm[0]) < 60)] = -960
    air, _, gas = air_spaces(hu, FINE)
    space = np.hypot(mm[1], mm[2] - 75)[20] < radius - 6
    assert gas[20][space].all() != is_lung
    assert not gas[20][space].any() or not is_lung
    assert not air[20][space].any() or is_lung


def test_small_spaces_are_islands():
    hu, _, mm = chest(FINE)
    bubble = ellipsoid(mm, (0, 85, -40), (14, 7, 12))
    hu[bubble] = LUNG
    air, islands, _ = air_spaces(hu, FINE)
    assert islands[bubble].all()
    assert not air[bubble].any()


def test_a_little_air_is_no_lung():
    hu = np.full((10, 60, 60), TISSUE, dtype=np.float32)
    hu[4:6, 25:35, 25:35] = LUNG  # 2 x 100 voxels of 45 mm3: 9 mL
    air, islands, _ = air_spaces(hu, (5.0, 3.0, 3.0))
    assert not air.any()
    assert not islands.any()


def test_the_frame_may_lie_in_lung_that_is_nearly_as_dark_as_air():
    hu, lungs, _ = chest(COARSE)
    hu[lungs > 0] = -920
    cut = (slice(None), slice(15, 85), slice(40, 95))
    air, _, _ = air_spaces(np.ascontiguousarray(hu[cut]), COARSE)
    assert np.array_equal(air, lungs[cut] > 0)


def test_hu_that_are_off_by_a_little_change_nothing():
    hu, lungs, _ = chest(FINE)
    for shift in (-20, 30):
        air, _, _ = air_spaces(hu + shift, FINE)
        assert np.array_equal(air, lungs > 0)


def test_a_bright_streak_in_the_air_is_no_body():
    hu, lungs, mm = chest(FINE)
    hu[(mm[1] > 125) & (mm[1] < 129)] = 300  # a thin board behind the body
    hu[(mm[1] >= 129) & (mm[1] < 145)] = -880
    air, _, _ = air_spaces(hu, FINE)
    assert np.array_equal(air, lungs > 0)
    assert (hu[:, :3] == AIR).all()
