# SPDX-License-Identifier: Apache-2.0
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from scipy import ndimage

from covid_monai.datasets.phantom import Lesions, make_phantom, upright
from covid_monai.severity import registration
from covid_monai.severity.compare import dice
from covid_monai.severity.lesion_change import UNSEEN, change_map, transitions
from covid_monai.severity.registration import Registration, RegistrationError, elastix, register
from covid_monai.severity.registration_grid import Fit, LungGrid, best_shift, fit, folded_share

GOOD = Fit(0.98, 1.0, 0.9)


@dataclass(frozen=True, eq=False)
class Scan:
    hu: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    spacing: tuple[float, float, float]


def build(displacement: np.ndarray, shape: tuple[int, int, int], spacing=(1.0, 1.0, 1.0), **changes) -> Registration:
    """A registration whose nodes lie every 3 mm from the first voxel on."""
    nodes = tuple(3.0 * np.arange(size) for size in displacement.shape[1:])
    given = {"earlier_spacing": (1.0, 1.0, 1.0), "earlier_shape": shape, "dice_before": 0.8, "fit": GOOD, "folded": 0.0}
    return Registration(displacement.astype(np.float32), nodes, spacing, shape, **{**given, **changes})


# what a registration does -------------------------------------------------------------------------------------------


def test_a_mask_is_shifted_by_whole_voxels():
    labels = np.zeros((7, 7, 7), dtype=np.uint8)
    labels[5, 4, 2] = 2
    shift = np.ones((3, 3, 3, 3)) * np.array([2, 1, -1])[:, None, None, None]  # earlier less later position
    warped = build(shift, (7, 7, 7)).warp(labels, outside=9)
    assert warped[3, 3, 3] == 2
    assert (warped == 2).sum() == 1
    # what the earlier scan does not show: the last two slices, the last row, the first column
    assert (warped[:5, :6, 1:] != 9).all()
    assert (warped == 9).sum() == 7**3 - 5 * 6 * 6


def test_a_mask_is_brought_to_another_spacing():
    labels = np.arange(4, dtype=np.uint8).repeat(2)[:, None, None].repeat(4, 1).repeat(4, 2)  # (8, 4, 4), 1 mm
    same = build(np.zeros((3, 3, 2, 2)), (4, 4, 4), (2.0, 1.0, 1.0), earlier_shape=(8, 4, 4))
    assert same.warp(labels)[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_between_nodes_positions_are_interpolated():
    displacement = np.zeros((3, 2, 2, 2))
    displacement[2, :, :, 1] = 3.0  # twice as wide along the columns
    displacement[0, 1] = 1.5
    found = build(displacement, (4, 4, 4), earlier_spacing=(0.5, 1.0, 2.0))
    np.testing.assert_allclose(found.positions(2)[0], (2 + 1.0) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.positions(2)[1], np.arange(4.0)[:, None].repeat(4, 1), rtol=1e-6)
    np.testing.assert_allclose(found.positions(0)[2, 0], [0.0, 1.0, 2.0, 3.0], rtol=1e-6)


def test_only_what_was_registered_is_warped():
    nodes = (np.array([3.0, 6.0]), np.array([0.0, 3.0, 6.0]), np.array([0.0, 3.0, 6.0]))
    found = replace(build(np.zeros((3, 2, 3, 3)), (8, 6, 7), (2.0, 1.0, 1.0)), nodes=nodes)
    assert found.box == (slice(2, 4), slice(0, 6), slice(0, 7))
    found = replace(found, earlier_spacing=(2.0, 1.0, 1.0))
    warped = found.warp(np.ones((8, 6, 7), dtype=np.uint8), outside=5)
    assert (warped[2:4] == 1).all()
    assert (np.delete(warped, [2, 3], axis=0) == 5).all()


def test_a_mask_of_another_scan_is_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2, 2\), the earlier scan \(4, 4, 4\)"):
        build(np.zeros((3, 2, 2, 2)), (4, 4, 4)).warp(np.zeros((2, 2, 2), dtype=np.uint8))


@pytest.mark.parametrize(
    ("found", "trusted"),
    [
        (Fit(0.9, 1.0, 0.4), True),
        (Fit(0.89, 1.0, 0.9), False),
        (Fit(0.99, 1.0, 0.39), False),
        (Fit(0.9, 1.0, None), True),
    ],
)
def test_change_maps_are_trusted_where_lungs_and_vessels_agree(found: Fit, trusted: bool):
    assert build(np.zeros((3, 2, 2, 2)), (4, 4, 4), fit=found).trusted is trusted


# how well two scans agree -------------------------------------------------------------------------------------------


def two_boxes(shift: tuple[int, int, int] = (0, 0, 0), shape=(40, 48, 64)) -> Scan:
    """A right and a left box of lung, (18, 21, 15) voxels each, on a grid of 3 mm, with noise for vessels."""
    lungs = np.zeros(shape, dtype=np.uint8)
    z, y, x = (start + move for start, move in zip((12, 14, 12), shift, strict=True))
    for code, column in ((1, x), (2, x + 24)):
        lungs[z : z + 18, y : y + 21, column : column + 15] = code
    vessels = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 400, (64, 64, 96)), 1)
    vessels = np.roll(vessels, shift, (0, 1, 2))[: shape[0], : shape[1], : shape[2]]
    hu = np.where(lungs, -850 + vessels, 40).astype(np.float32)
    return Scan(hu, lungs, np.zeros_like(lungs), (3.0, 3.0, 3.0))


def test_a_shift_is_found_and_makes_scans_agree():
    moving, fixed = LungGrid.of(two_boxes((-4, 2, 3))), LungGrid.of(two_boxes())
    shift = best_shift(moving, fixed)
    np.testing.assert_allclose(shift, [-12, 6, 9], atol=1e-6)
    found = fit(moving, fixed, shift[:, None, None, None])
    assert (found.dice, found.seen) == (1.0, 1.0)
    assert found.vessels == pytest.approx(1.0, abs=1e-3)


def test_half_a_lung_is_laid_over_the_same_half():
    whole, upper = two_boxes(), two_boxes()
    upper = Scan(upper.hu[21:], upper.lungs[21:], upper.lesions[21:], upper.spacing)  # of 18 slices of lung the last 9
    moving, fixed = LungGrid.of(upper), LungGrid.of(whole)
    shift = best_shift(moving, fixed)
    np.testing.assert_allclose(shift, [-63, 0, 0], atol=1e-6)
    found = fit(moving, fixed, shift[:, None, None, None])
    assert found.dice == 1.0
    assert found.seen == 0.5


def test_dice_of_boxes_worked_out_by_hand():
    grid = LungGrid.of(two_boxes())
    # shifted by 3 of 15 columns: 12 columns of each agree
    found = fit(grid, grid, np.array([0.0, 0.0, 9.0])[:, None, None, None])
    assert found.dice == pytest.approx(2 * 12 / 30)


def test_a_right_lung_does_not_agree_with_a_left_one():
    scan = two_boxes()
    other = replace(scan, lungs=np.where(scan.lungs == 0, 0, 3 - scan.lungs).astype(np.uint8))
    assert fit(LungGrid.of(other), LungGrid.of(scan), np.zeros((3, 1, 1, 1))).dice == 0.0


def test_other_vessels_do_not_agree_although_the_lungs_do():
    scan = two_boxes()
    noise = np.random.default_rng(1).normal(0, 150, scan.hu.shape)
    other = replace(scan, hu=np.where(scan.lungs, -850 + noise, 40).astype(np.float32))
    found = fit(LungGrid.of(other), LungGrid.of(scan), np.zeros((3, 1, 1, 1)))
    assert found.dice == 1.0
    assert abs(found.vessels) < 0.2


def test_lungs_full_of_lesion_have_no_vessels_to_compare():
    scan = two_boxes()
    scan = replace(scan, lesions=(scan.lungs > 0).astype(np.uint8))
    assert fit(LungGrid.of(scan), LungGrid.of(scan), np.zeros((3, 1, 1, 1))).vessels is None


def test_lesions_are_made_healthy_and_everything_around_the_lungs_one_value():
    scan = two_boxes()
    scan.lesions[15:20, 15:20, 15:20] = 2
    scan.hu[15:20, 15:20, 15:20] = 0
    grid = LungGrid.of(scan)
    start = [round(nodes[0] / 3) for nodes in grid.nodes]
    z, y, x = (17 - first for first in start)
    healthy = scan.hu[(scan.lungs > 0) & (scan.lesions == 0)]
    assert grid.image[z, y, x] == pytest.approx(np.median(healthy), abs=20)
    assert (grid.image[grid.lungs == 0] == 0).all()


@pytest.mark.parametrize(("slope", "folded"), [(0.0, 0.0), (-0.9, 0.0), (-1.1, 1.0), (2.0, 0.0)])
def test_a_deformation_folds_where_it_turns_tissue_inside_out(slope: float, folded: float):
    displacement = np.zeros((3, 4, 4, 4))
    displacement[1] = slope * 3.0 * np.arange(4)[:, None]
    assert folded_share(displacement, np.ones((4, 4, 4), dtype=bool)) == folded


# misuse -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_elastix(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """An elastix that finds no solution."""
    itk = MagicMock()
    itk.elastix_registration_method.side_effect = RuntimeError("too many samples map outside")
    monkeypatch.setattr(registration, "elastix", lambda: itk)
    return itk


def test_without_a_solution_scans_are_shifted_and_the_reader_warned(fake_elastix: MagicMock):
    scan = two_boxes((3, 0, 0))
    found = register(scan, two_boxes())
    assert fake_elastix.elastix_registration_method.called
    np.testing.assert_array_equal(found.warp(scan.lungs), two_boxes().lungs)
    assert found.fit.dice == found.dice_before == 1.0
    assert found.warnings == ("The registration found no solution: the scans are only shifted over each other.",)


@pytest.mark.usefixtures("fake_elastix")
def test_lungs_that_do_not_agree_are_warned_of():
    earlier, later = two_boxes(), two_boxes(shape=(40, 48, 64))
    later.lungs[12:22] = 0
    later.lungs[22:30, 14:18] = 0
    found = register(earlier, later)
    assert not found.trusted
    assert any("below 0.90: change maps are not to be trusted" in warning for warning in found.warnings)


def test_what_the_earlier_scan_does_not_show_is_warned_of(fake_elastix: MagicMock):
    whole, upper = two_boxes(), two_boxes()
    found = register(Scan(upper.hu[21:], upper.lungs[21:], upper.lesions[21:], upper.spacing), whole)
    assert found.fit.seen == 0.5
    assert any("shows 50 % of the later lungs" in warning for warning in found.warnings)
    warped = found.warp(np.zeros((19, 48, 64), dtype=np.uint8), outside=UNSEEN)
    assert (warped[:21] == UNSEEN).all()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lungs": np.zeros((40, 48, 64), np.uint8)}, "no lung was found in the {} scan"),
        ({"lesions": np.zeros((4, 4, 4), np.uint8)}, "the {} scan's arrays have the shapes"),
        ({"spacing": (3.0, 0.0, 3.0)}, "the {} scan has spacing"),
    ],
)
def test_scans_that_cannot_be_registered_are_refused(which: int, change: dict, message: str):
    scans = [two_boxes(), two_boxes()]
    scans[which] = replace(scans[which], **change)
    with pytest.raises(RegistrationError, match=message.format(("earlier", "later")[which])) as caught:
        register(*scans)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("itk", [None, SimpleNamespace()])  # no itk, and itk without elastix
def test_missing_elastix_is_said_with_the_way_to_get_it(itk: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "itk", itk)
    with pytest.raises(RegistrationError, match=r"pip install 'covid_monai\[registration\]'"):
        elastix()


# real registrations -------------------------------------------------------------------------------------------------

MATRIX = np.array([[0.9, 0.03, 0], [-0.03, 1.03, 0.04], [0, -0.04, 1.02]])  # another breath, and a patient who turned
OFFSET = np.array([12.0, -9.0, 15.0])  # mm
BEND = 5.0  # mm


def scan_of(lesions: Lesions) -> Scan:
    phantom = make_phantom(3, (120, 120, 60), lesions=lesions)
    z, y, x = np.diag(phantom.affine)[2::-1].tolist()
    return Scan(
        upright(phantom.hu).astype(np.float32),
        np.ascontiguousarray(upright(phantom.lungs)),
        np.ascontiguousarray(upright(phantom.lesions)),
        (z, y, x),
    )


def moved(scan: Scan, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Scan, np.ndarray]:
    """The scan deformed and on another grid, and where each voxel of that lies in the scan, (3, Z, H, W) in mm."""

    def middle(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
        return (np.array(shape) - 1) * np.array(spacing) / 2

    axes = [np.arange(size) * step for size, step in zip(shape, spacing, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij")) - middle(shape, spacing)[:, None, None, None]
    there = np.tensordot(MATRIX, place, axes=(1, 0))
    there += (middle(scan.hu.shape, scan.spacing) + OFFSET)[:, None, None, None]
    there[0] += BEND * np.sin(place[1] / 60) * np.cos(place[2] / 50)
    there[1] += BEND * np.cos(place[0] / 55)
    there[2] += BEND * np.sin(place[0] / 65)
    index = there / np.array(scan.spacing)[:, None, None, None]
    hu = ndimage.map_coordinates(scan.hu, index, order=1, cval=-1000)
    lungs, lesions = (ndimage.map_coordinates(mask, index, order=0) for mask in (scan.lungs, scan.lesions))
    return Scan(hu, lungs, lesions, spacing), there


@pytest.fixture(scope="module")
def pair() -> tuple[Scan, Scan, np.ndarray]:
    """A mild scan, the same patient with more disease, and where the voxels of the second lie in the first."""
    try:
        elastix()
    except RegistrationError as error:
        pytest.skip(str(error))
    later, truth = moved(scan_of(Lesions(0.22, 0.3)), (46, 140, 130), (5.0, 2.4, 2.6))
    return scan_of(Lesions(0.10, 0.2)), later, truth


@pytest.fixture(scope="module")
def found(pair: tuple[Scan, Scan, np.ndarray]) -> Registration:
    return register(pair[0], pair[1])


def truth_of(mask: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    return ndimage.map_coordinates(mask, truth / np.array(spacing)[:, None, None, None], order=0)


@pytest.mark.slow
def test_lungs_agree_and_places_are_found_within_millimetres(pair: tuple[Scan, Scan, np.ndarray], found: Registration):
    earlier, later, truth = pair
    assert found.trusted
    assert found.fit.dice >= 0.95 > found.dice_before
    assert found.fit.vessels > 0.7
    assert found.folded == 0
    assert found.warnings == ()
    assert dice(found.warp(earlier.lungs) > 0, later.lungs > 0) >= 0.95
    slices, rows, columns = found.box
    errors = []
    for z in range(slices.start, slices.stop):
        mm = found.positions(z) * np.array(earlier.spacing)[:, None, None]
        distance = np.linalg.norm(mm - truth[:, z, rows, columns], axis=0)
        errors.append(distance[later.lungs[z, rows, columns] != 0])
    assert np.concatenate(errors).mean() < 1.5
    assert np.percentile(np.concatenate(errors), 95) < 3.5


@pytest.mark.slow
def test_lesions_land_where_they_belong(pair: tuple[Scan, Scan, np.ndarray], found: Registration):
    earlier, later, truth = pair
    warped, expected = found.warp(earlier.lesions), truth_of(earlier.lesions, truth, earlier.spacing)
    spacing = np.array(later.spacing)
    centroids = [spacing * np.argwhere(mask).mean(axis=0) for mask in (warped, expected)]
    assert np.linalg.norm(centroids[0] - centroids[1]) < 2.0
    assert dice(warped, expected) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("worse", [True, False])
def test_new_and_resolved_lesion_is_that_of_the_truth(
    pair: tuple[Scan, Scan, np.ndarray], found: Registration, worse: bool
):
    earlier, later, truth = pair
    if not worse:  # disease that shrinks: the masks change places, the deformation stays
        mild = truth_of(earlier.lesions, truth, earlier.spacing)
        earlier = replace(earlier, lesions=scan_of(Lesions(0.22, 0.3)).lesions)
        later = replace(later, lesions=mild)
    voxel_ml = np.prod(later.spacing) / 1000
    maps = [
        change_map(transitions(lesions, later.lesions), later.lungs)
        for lesions in (found.warp(earlier.lesions, UNSEEN), truth_of(earlier.lesions, truth, earlier.spacing))
    ]
    persisting, new, resolved, unseen = ([voxel_ml * (each == code).sum() for each in maps] for code in (1, 2, 3, 4))
    most = new[1] if worse else resolved[1]
    assert most > 300
    assert unseen == [0, 0]
    for volume in (persisting, new, resolved):
        assert abs(volume[0] - volume[1]) < 0.08 * most
    code = 2 if worse else 3
    assert dice(maps[0] == code, maps[1] == code) > 0.85


@pytest.mark.slow
def test_the_same_scans_give_the_same_result_and_leave_no_file(
    pair: tuple[Scan, Scan, np.ndarray], found: Registration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    again = register(pair[0], pair[1])
    np.testing.assert_array_equal(again.displacement, found.displacement)
    assert list(tmp_path.iterdir()) == []  # elastix writes where it stands unless told otherwise
