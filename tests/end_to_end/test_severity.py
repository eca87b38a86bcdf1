# SPDX-License-Identifier: Apache-2.0
"""From a scan to its scores: what is known of a phantom is found again, and odd scans give a clear result."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from covid_monai.analysis import Analysis, analyse
from covid_monai.ct import CTScan, SourceFacts, read_ct
from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom, upright
from covid_monai.inference import LesionLevels, LesionSegmenter, UprightSliceInferer
from covid_monai.severity import REGIONS, approximate_lobes, dice, divide_regions
from tests.inference.networks import ClassBands

SHAPE = (128, 128, 60)
LESION_HU = -400
ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "IS"))
    for letters in itertools.product(*axes)
]  # fmt: skip


class Drawn(LesionSegmenter):
    """Gives the lesions that were drawn, whatever the slices show, and is as sure of them at every threshold."""

    def __init__(self, lesions: np.ndarray) -> None:
        bands = ClassBands((-600, -250), (-250, -50))
        super().__init__(bands, UprightSliceInferer(size=(64, 64)), device="cpu")
        self.lesions = lesions

    def levels(self, hu: np.ndarray, thresholds: Sequence[float], *args: Any, **kwargs: Any) -> LesionLevels:
        ascending = tuple(sorted(set(thresholds)))
        values = (2 * len(ascending) * (self.lesions != 0) + (self.lesions == 2)).astype(np.uint8)
        empty = np.zeros_like(values[:1])
        return LesionLevels(ascending, np.concatenate([values, empty]), np.arange(len(hu)), self._fast)


@pytest.fixture(scope="module")
def healthy() -> Phantom:
    return make_phantom(3, SHAPE, lesions=None)


@pytest.fixture(scope="module")
def regions(healthy: Phantom) -> np.ndarray:
    """The regions of the phantom's true lungs, (Z, H, W)."""
    spacing = tuple(float(each) for each in np.diag(healthy.affine)[2::-1])
    return divide_regions(approximate_lobes(np.ascontiguousarray(upright(healthy.lungs)), spacing), spacing)


def draw(healthy: Phantom, regions: np.ndarray, shares: dict[int, float]) -> tuple[CTScan, np.ndarray]:
    """The phantom with the innermost share of each region's voxels made lesion, and these lesions (Z, H, W)."""
    hu = upright(healthy.hu).astype(np.float32)
    lesions = np.zeros(hu.shape, dtype=np.uint8)
    spacing = np.diag(healthy.affine)[2::-1]
    for code, share in shares.items():
        inside = regions == code
        depth = ndimage.distance_transform_edt(inside, sampling=spacing)
        lesions[inside & (depth >= np.quantile(depth[inside], 1 - share))] = 1
    hu[lesions != 0] = LESION_HU
    array = np.ascontiguousarray(hu[:, ::-1, ::-1].T)
    return CTScan(array, healthy.affine, SourceFacts("NIfTI", 1)), lesions


def score(healthy: Phantom, regions: np.ndarray, shares: dict[int, float]) -> Analysis:
    scan, lesions = draw(healthy, regions, shares)
    return analyse(scan, Drawn(lesions))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_score_of_known_regions_is_exact(healthy: Phantom, regions: np.ndarray, seed: int):
    """Lesions clear of the borders: nothing, a fifth, or three fifths of a region, drawn at random."""
    rng = np.random.default_rng(seed)
    shares = dict(enumerate(rng.choice([0, 0.2, 0.6], size=20), start=1))
    drawn = {code: share for code, share in shares.items() if share}
    found = score(healthy, regions, drawn)
    expected = [int(np.ceil(share * 2)) if share else 0 for share in shares.values()]
    assert [region.score for region in found.severity.regions] == expected
    assert found.severity.ct_ss.score == sum(expected)
    assert found.severity.grade == ("severe" if sum(expected) > 19.5 else "mild")
    assert found.spread is not None
    assert found.spread.ct_ss[0] <= sum(expected) <= found.spread.ct_ss[1]


def test_healthy_lungs_score_nothing(healthy: Phantom, regions: np.ndarray):
    found = score(healthy, regions, {}).severity
    assert (found.ct_ss.score, found.lobar.score, found.grade) == (0, 0, "mild")
    assert {region.score for region in found.regions} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_lungs_and_involved_share_are_those_of_the_phantom(share: float):
    phantom = make_phantom(5, (256, 256, 48), lesions=Lesions(share, 0.4))
    scan = CTScan(phantom.hu.astype(np.float32), phantom.affine, SourceFacts("NIfTI", 1))
    found = analyse(scan, Drawn(upright(phantom.lesions)))
    assert dice(found.lungs, upright(phantom.lungs)) >= 0.97
    for code in (1, 2):
        assert dice(found.lungs == code, upright(phantom.lungs) == code) >= 0.97
    assert found.severity.whole.lesion_share == pytest.approx(phantom.truth["lesion_share"], abs=0.01)


# the same scan, stored in another way --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(healthy: Phantom, regions: np.ndarray) -> tuple[CTScan, np.ndarray]:
    """A scan with a lesion in every third region, and the lesions."""
    return draw(healthy, regions, dict.fromkeys(range(1, 21, 3), 0.3))


@pytest.fixture(scope="module")
def first(drawn: tuple[CTScan, np.ndarray]) -> Analysis:
    scan, lesions = drawn
    return analyse(scan, Drawn(lesions))


@pytest.mark.slow
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_figures_do_not_depend_on_the_orientation(
    codes: str, drawn: tuple[CTScan, np.ndarray], first: Analysis, tmp_path: Path
):
    scan, lesions = drawn
    image = nib.Nifti1Image(scan.array.astype(np.int16), scan.affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))
    nib.save(turned, tmp_path / "turned.nii.gz")
    found = analyse(read_ct(tmp_path / "turned.nii.gz"), Drawn(lesions))
    assert np.array_equal(found.regions, first.regions)
    known, figures = first.to_dict(), found.to_dict()
    assert (figures["finding"], figures["slices"]) == (known["finding"], known["slices"])
    for name, value in known["spread"].items():
        assert figures["spread"][name] == pytest.approx(value), name
    assert figures["severity"]["ct_ss"] == known["severity"]["ct_ss"]
    for one, other in zip(found.severity.regions, first.severity.regions, strict=True):
        assert one.lesion_ml == pytest.approx(other.lesion_ml)
        assert one.lesion_share == other.lesion_share


@pytest.mark.parametrize("factors", [(1, 1, 2), (2, 2, 1), (0.7, 0.7, 1.0)], ids=str)
def test_scores_hold_when_the_scan_is_resampled(
    factors: tuple[float, float, float], drawn: tuple[CTScan, np.ndarray], first: Analysis
):
    """Within a point of the score, 1 percentage point of the lungs and 3 of a region."""
    scan, lesions = drawn
    before = scan.array

    def zoom(array: np.ndarray, order: int) -> np.ndarray:
        return ndimage.zoom(array, 1 / np.asarray(factors), order=order, grid_mode=True, mode="nearest")

    array = zoom(before, 1)
    scale = np.asarray(before.shape) / np.asarray(array.shape)
    affine = scan.affine.copy()
    affine[:3, :3] *= scale
    affine[:3, 3] += scan.affine[:3, :3] @ ((scale - 1) / 2)
    resampled = np.ascontiguousarray(upright(zoom(lesions[:, ::-1, ::-1].T, 0)))
    found = analyse(CTScan(array, affine, SourceFacts("NIfTI", 1)), Drawn(resampled))
    assert found.severity.ct_ss.score is not None
    assert first.severity.ct_ss.score is not None
    assert abs(found.severity.ct_ss.score - first.severity.ct_ss.score) <= 1
    assert found.severity.whole.lesion_share == pytest.approx(first.severity.whole.lesion_share, abs=0.01)
    for one, other in zip(found.severity.regions, first.severity.regions, strict=True):
        assert one.lesion_share == pytest.approx(other.lesion_share, abs=0.03), one.name


# odd scans -----------------------------------------------------------------------------------------------------------


def nothing_drawn(scan: CTScan) -> Analysis:
    return analyse(scan, Drawn(np.zeros(scan.upright().shape, dtype=np.uint8)))


def cropped(healthy: Phantom, keep: slice) -> CTScan:
    affine = healthy.affine.copy()
    affine[2, 3] += affine[2, 2] * (keep.start or 0)
    return CTScan(healthy.hu[:, :, keep].astype(np.float32), affine, SourceFacts("NIfTI", 1))


def one_lung(healthy: Phantom) -> CTScan:
    hu = healthy.hu.astype(np.float32)
    hu[healthy.lungs == 2] = 30
    return CTScan(hu, healthy.affine, SourceFacts("NIfTI", 1))


def constant(healthy: Phantom, value: float) -> CTScan:
    return CTScan(np.full(SHAPE, value, dtype=np.float32), healthy.affine, SourceFacts("NIfTI", 1))


def head(healthy: Phantom) -> CTScan:
    """An ellipsoid of brain in a skull, with air around and in its sinuses."""
    x, y, z = np.ogrid[-1:1:128j, -1:1:128j, -1:1:60j]
    radius = np.sqrt((x / 0.45) ** 2 + (y / 0.55) ** 2 + (z / 0.9) ** 2)
    hu = np.where(radius < 1, 900.0, -1000.0)
    hu = np.where(radius < 0.92, 35.0, hu)
    hu = np.where((np.abs(x) < 0.08) & (np.abs(y - 0.35) < 0.1) & (np.abs(z + 0.2) < 0.25), -1000.0, hu)
    return CTScan(hu.astype(np.float32), healthy.affine, SourceFacts("NIfTI", 1))


def test_an_air_phantom_has_no_lungs(healthy: Phantom):
    no_lung(nothing_drawn(constant(healthy, -1000)))


def test_water_has_no_lungs(healthy: Phantom):
    no_lung(nothing_drawn(constant(healthy, 0)))


def test_a_head_has_no_lungs(healthy: Phantom):
    no_lung(nothing_drawn(head(healthy)))


def no_lung(found: Analysis) -> None:
    """Nothing is scored, and it is said why."""
    assert not found.lungs.any()
    assert found.severity.whole.lesion_share is None
    score = found.severity.ct_ss
    assert (score.score, score.lowest, score.highest, score.assessable) == (None, 0, 40, 0)
    assert (found.severity.grade, found.finding.result) == (None, None)
    assert any(warning.startswith("No lung was found") for warning in found.warnings)


def test_one_lung_alone_is_scored_and_the_other_is_not(healthy: Phantom):
    found = nothing_drawn(one_lung(healthy))
    scores = {region.key: region.score for region in found.severity.regions}
    for region in REGIONS:
        assert (scores[region.key] is None) == (region.side == "left_lung"), region.name
    assert (found.severity.ct_ss.score, found.severity.ct_ss.assessable) == (None, 10)
    assert found.severity.ct_ss.highest == found.severity.ct_ss.lowest + 20
    assert any("left lung" in warning for warning in found.warnings)


@pytest.mark.parametrize("keep", [slice(28, 31), slice(0, 30), slice(30, 60)], ids=["3 slices", "bases", "apices"])
def test_cut_lungs_are_not_scored(healthy: Phantom, keep: slice):
    found = nothing_drawn(cropped(healthy, keep))
    assert found.severity.ct_ss.score is None
    assert (found.severity.ct_ss.lowest, found.severity.ct_ss.highest) == (0, 40)
    assert found.severity.whole.lesion_share is not None
    assert any("cut" in warning for warning in found.warnings)


def test_values_shifted_by_1024_are_warned_of(healthy: Phantom):
    scan = CTScan(healthy.hu.astype(np.float32) + 1024, healthy.affine, SourceFacts("NIfTI", 1))
    found = nothing_drawn(scan)
    assert found.warnings
    assert found.severity.ct_ss.score is None


@pytest.mark.parametrize("edit", ["metal", "gap"])
def test_metal_and_thick_slices_do_not_move_the_lungs(healthy: Phantom, edit: str):
    if edit == "metal":
        hu = healthy.hu.astype(np.float32)
        hu[40:44, 20:24, 20:40] = 3071  # in the chest wall
        hu[:, 22, 20:40] -= 150  # a streak through everything
        found = nothing_drawn(CTScan(hu, healthy.affine, SourceFacts("NIfTI", 1)))
        truth = upright(healthy.lungs)
    else:
        affine = healthy.affine @ np.diag([1, 1, 2, 1])  # slices of 4.8 mm, 9.6 mm apart
        scan = CTScan(healthy.hu[:, :, ::2].astype(np.float32), affine, SourceFacts("NIfTI", 1))
        found = nothing_drawn(scan)
        truth = upright(healthy.lungs[:, :, ::2])
    assert dice(found.lungs, truth) > 0.96
    assert found.severity.ct_ss.score is not None


@pytest.mark.parametrize("option", ["--lung-mask", "--lobe-mask"])
def test_a_mask_on_another_grid_is_refused(
    option: str, phantom_folder: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from covid_monai.cli import main

    make: Callable[..., nib.Nifti1Image] = nib.Nifti1Image
    nib.save(make(np.ones((64, 64, 30), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    scan = phantom_folder / "image.nii.gz"
    words = ["analyse", scan, "--output", tmp_path / "out", "--bundle", tiny_bundle, option, tmp_path / "mask.nii.gz"]
    assert main(list(map(str, words))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "another grid" in line
    assert not (tmp_path / "out").exists()
