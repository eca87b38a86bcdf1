# SPDX-License-Identifier: Apache-2.0
"""The bundles' inference on volumes: on the scan's grid, and what `analyse` does but for rounding."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from covid_monai.ct import read_ct
from covid_monai.datasets.phantom import Lesions, make_phantom
from covid_monai.inference import LesionSegmenter
from covid_monai.networks import load_weights, save_weights
from tests.bundles.bundle import CASCADE, NAMES, Bundle
from tests.conftest import BUNDLES


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[[str], Bundle]) -> Bundle:
    """Either bundle with the weights that it comes with, at the size that these were trained at."""
    bundle = make_bundle(request.param)
    shutil.copy(BUNDLES / bundle.name / "configs" / "inference.yaml", bundle.folder / "configs")
    shutil.copytree(
        BUNDLES / bundle.name / "models", bundle.folder / "models", ignore=shutil.ignore_patterns("training")
    )
    return bundle


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one scan in two orders of its axes."""
    folder = tmp_path_factory.mktemp("scans")
    make_phantom(5, (96, 96, 10), lesions=Lesions(0.2)).write_nifti(folder / "made")
    upright = nibabel.load(folder / "made" / "image.nii.gz")
    nibabel.save(upright, folder / "upright.nii.gz")
    nibabel.save(upright.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])), folder / "turned.nii.gz")
    return folder


@pytest.fixture(scope="module")
def masks(bundle: Bundle, scans: Path) -> dict[str, nibabel.Nifti1Image]:
    """What `inferring` writes for both."""
    bundle.perform("inferring", dataset_dir=str(scans))
    return {name: nibabel.load(bundle.folder / "eval" / f"{name}_lesions.nii.gz") for name in ("upright", "turned")}


def test_masks_lie_on_the_scans_grid(bundle: Bundle, masks: dict[str, nibabel.Nifti1Image], scans: Path):
    codes = {0, 1, 2} if bundle.name == CASCADE else {0, 1}
    for name, mask in masks.items():
        scan = nibabel.load(scans / f"{name}.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= codes
    assert len(np.unique(masks["upright"].dataobj)) > 1  # else the comparisons below are of empty masks


def test_masks_do_not_depend_on_the_order_of_the_axes(masks: dict[str, nibabel.Nifti1Image]):
    upright, turned = (nibabel.as_closest_canonical(masks[name]) for name in ("upright", "turned"))
    np.testing.assert_array_equal(np.asarray(turned.dataobj), np.asarray(upright.dataobj))


def test_masks_are_those_of_the_segmenter_but_for_rounding(
    bundle: Bundle, masks: dict[str, nibabel.Nifti1Image], scans: Path
):
    segmenter = LesionSegmenter.from_bundle(bundle.folder, "cpu")
    segmenter.fitted = lambda *scan: segmenter.network  # the network itself, whose copy rounds otherwise
    for name, mask in masks.items():
        scan = read_ct(scans / f"{name}.nii.gz")
        np.testing.assert_array_equal(scan.from_upright(segmenter(scan)), np.asarray(mask.dataobj))


def test_inference_needs_its_own_config_and_weights_alone(
    bundle: Bundle, masks: dict[str, nibabel.Nifti1Image], scans: Path, tmp_path: Path
):
    alone = Bundle(tmp_path / bundle.name, tmp_path)
    (alone.folder / "configs").mkdir(parents=True)
    for name in ("inference.yaml", "metadata.json"):
        shutil.copy(bundle.folder / "configs" / name, alone.folder / "configs")
    shutil.copytree(bundle.folder / "models", alone.folder / "models")
    alone.perform("inferring", dataset_dir=str(scans))
    here = nibabel.load(alone.folder / "eval" / "upright_lesions.nii.gz")
    np.testing.assert_array_equal(here.dataobj, masks["upright"].dataobj)


def test_changed_weights_are_refused_in_one_line(bundle: Bundle, tmp_path: Path):
    weights = tmp_path / "model.pt"
    save_weights(load_weights(bundle.folder / "models" / "model.pt"), weights)
    with weights.open("r+b") as file:
        file.seek(2000)
        file.write(b"\x00\x01\x02")
    with pytest.raises(RuntimeError) as error:
        bundle.perform("inferring", weights=str(weights), datalist=[])
    assert "was changed: its SHA-256" in str(error.value.__cause__)
    assert "\n" not in str(error.value.__cause__)


def test_weights_of_another_network_are_refused(bundle: Bundle, tiny_bundle: Path, tiny_cascade_bundle: Path):
    other = (tiny_bundle if bundle.name == CASCADE else tiny_cascade_bundle) / "models" / "model.pt"
    with pytest.raises(RuntimeError) as error:
        bundle.perform("inferring", weights=str(other), datalist=[])
    assert "does not fit" in str(error.value.__cause__)
