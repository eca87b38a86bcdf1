# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from covid_monai.severity import Lungs, lung_warnings
from covid_monai.severity.lung_checks import CONTRAST, NO_LUNG, added_by_lesions, check_lungs, cut_ends
from tests.severity.chest import LUNG, TISSUE, chest, none

COARSE = (6.0, 3.0, 3.0)


def boxes(right: int = 20, left: int = 20) -> np.ndarray:
    """(12, 60, 60): lungs 8 slices high, 40 rows deep, ``right`` and ``left`` columns wide."""
    mask = np.zeros((12, 60, 60), dtype=np.uint8)
    mask[2:10, 10:50, 5 : 5 + right] = 1
    mask[2:10, 10:50, 35 : 35 + left] = 2
    return mask


def told(mask: np.ndarray, spacing=(5.0, 3.0, 3.0), known: bool = True, **lungs) -> tuple[str, ...]:
    return lung_warnings(Lungs(mask, "threshold", cut=cut_ends(mask), **lungs), spacing, known, None)


# ends ----------------------------------------------------------------------------------------------------------------


def test_whole_lungs_are_not_cut():
    assert cut_ends(boxes()) == ()
    assert told(boxes(), (8.0, 4.0, 3.0)) == ()


@pytest.mark.parametrize(("rows", "cut"), [(4, True), (3, False)])  # of 40: a tenth, or less
@pytest.mark.parametrize(("z", "end"), [(0, "lower"), (-1, "upper")])
def test_an_end_cuts_a_lung_from_a_tenth_of_its_area_on(rows: int, cut: bool, z: int, end: str):
    mask = boxes()
    mask[z, 10 : 10 + rows, 35:55] = 2
    assert cut_ends(mask) == ((("left_lung", end),) if cut else ())


def test_cut_lungs_are_named():
    warnings = told(boxes()[4:], (8.0, 4.0, 3.0))
    assert warnings == (
        "The lower end of the scan cuts the right lung and the left lung: figures are of the part in view, and regions "
        "beyond it cannot be assessed.",
    )


def test_lungs_on_the_frame_are_named():
    mask = boxes()
    mask[4:6, :, 5:25] = 1
    assert any(warning.startswith("The frame of the slices cuts a lung") for warning in told(mask))


# volumes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "warned"), [(2.0, True), (5.0, False), (10.0, True)])
def test_implausible_volumes(length: float, warned: bool):
    # 2 x 8 x 40 x 20 = 12800 voxels: 102 mL, 1600 mL and 12.8 L
    assert any("not plausible" in warning for warning in told(boxes(), (length,) * 3)) == warned
    assert told(boxes(), (length,) * 3, known=False) == ()


def test_a_small_volume_of_cut_lungs_is_no_wonder():
    assert not any("not plausible" in warning for warning in told(boxes()[4:], (2.0,) * 3))


@pytest.mark.parametrize(
    ("right", "left", "start"), [(20, 10, ""), (20, 9, "The left lung has 45 %"), (4, 20, "The right lung has 20 %")]
)
def test_asymmetry(right: int, left: int, start: str):
    warnings = told(boxes(right, left), (8.0, 4.0, 3.0), known=False)
    assert len(warnings) == bool(start)
    assert all(warning.startswith(f"{start} of the other's volume") for warning in warnings)


@pytest.mark.parametrize(("right", "left", "name"), [(20, 0, "left"), (0, 20, "right")])
def test_a_lung_that_is_not_there(right: int, left: int, name: str):
    warnings = told(boxes(right, left), (10.0, 5.0, 5.0))
    assert [warning.split(" was found")[0] for warning in warnings] == [f"No {name} lung"]


def test_without_lungs_that_is_all_there_is_to_say():
    assert told(np.zeros((3, 4, 5), dtype=np.uint8), warnings=(NO_LUNG,)) == (NO_LUNG,)


# density, contrast, lesions ------------------------------------------------------------------------------------------


def test_plain_lungs_need_no_warning():
    hu, lungs, _ = chest()
    assert check_lungs(lungs, hu, none(hu)) == ()


def test_no_lung():
    hu, lungs, _ = chest()
    assert check_lungs(np.zeros_like(lungs), hu, none(hu)) == (NO_LUNG,)


@pytest.mark.parametrize(("value", "warned"), [(-310.0, False), (-290.0, True), (LUNG + 1024, True)])
def test_lungs_that_are_too_dense(value: float, warned: bool):
    hu, lungs, _ = chest()
    hu[lungs > 0] = value
    found = check_lungs(lungs, hu, none(hu))
    assert len(found) == warned
    assert all(warning.startswith(f"The lungs have a median of {value:.0f} HU") for warning in found)


@pytest.mark.parametrize(("blood", "seen"), [(45.0, False), (120.0, False), (220.0, True)])
def test_contrast_agent_is_seen_between_the_lungs(blood: float, seen: bool):
    hu, lungs, mm = chest()
    heart = (np.hypot(mm[1] + 25, mm[2]) < 45) & (lungs == 0)
    hu[heart & (hu == TISSUE)] = blood
    assert check_lungs(lungs, hu, none(hu)) == ((CONTRAST,) if seen else ())


@pytest.mark.parametrize(("stated", "told_again"), [(True, False), (False, True), (None, True)])
def test_contrast_agent_that_the_header_states_is_not_told_again(stated: bool | None, told_again: bool):
    lungs = Lungs(boxes(), "threshold", warnings=(CONTRAST,))
    assert lung_warnings(lungs, (8.0, 4.0, 3.0), True, stated) == ((CONTRAST,) if told_again else ())


@pytest.mark.parametrize(("outside", "warned"), [(25, False), (26, True)])
def test_lesions_outside_the_lungs(outside: int, warned: bool):
    hu, lungs, _ = chest()
    lesions = none(hu)
    lesions.flat[np.flatnonzero(lungs)[: 100 - outside]] = 1
    lesions.flat[np.flatnonzero(hu == TISSUE)[:outside]] = 2
    found = check_lungs(lungs, hu, lesions)
    assert len(found) == warned
    assert all(warning.startswith("26 % of the lesion volume lies outside the lungs") for warning in found)


@pytest.mark.parametrize(("after", "warned"), [(100, False), (111, False), (125, True)])
def test_lungs_that_are_largely_lesion_without_air(after: int, warned: bool):
    before = np.arange(200) < 100
    found = added_by_lesions(before, np.arange(200) < after)
    assert len(found) == warned
    assert all(warning.startswith("20 % of the lungs are lesion without air") for warning in found)
