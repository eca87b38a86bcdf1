# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImage
from scipy import ndimage

from covid_monai.ct import read_ct
from covid_monai.datasets import DatasetError, Lesions, data_hash, load_datalist, make_phantom, prepare
from covid_monai.datasets.grid import Field, Grid
from covid_monai.datasets.phantom import upright
from covid_monai.datasets.slices import read_slice
from covid_monai.datasets.vessel_tree import Tubes, grow_tree, tube

SHAPE = (96, 96, 24)  # 3.75 x 3.75 x 12 mm


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, SHAPE, lesions=Lesions(0.2, 0.4))


def test_truth_is_counted_from_the_masks(phantom):
    voxel_ml = 3.75 * 3.75 * 12 / 1000
    truth = phantom.truth
    for key, count in {
        "right_lung_ml": (phantom.lungs == 1).sum(),
        "left_lung_ml": (phantom.lungs == 2).sum(),
        "lung_ml": (phantom.lungs > 0).sum(),
        "ground_glass_ml": (phantom.lesions == 1).sum(),
        "consolidation_ml": (phantom.lesions == 2).sum(),
        "lesion_ml": (phantom.lesions > 0).sum(),
    }.items():
        assert truth[key] == pytest.approx(count * voxel_ml)
    assert truth["lesion_share"] == pytest.approx(truth["lesion_ml"] / truth["lung_ml"])
    assert not np.any(phantom.lesions[phantom.lungs == 0])


def test_lungs_are_those_of_an_adult(phantom):
    assert 3000 < phantom.truth["lung_ml"] < 6500
    assert 1.0 < phantom.truth["right_lung_ml"] / phantom.truth["left_lung_ml"] < 1.4
    axes = nib.aff2axcodes(phantom.affine)
    assert axes == ("R", "A", "S")
    right = np.argwhere(phantom.lungs == 1).mean(axis=0)
    left = np.argwhere(phantom.lungs == 2).mean(axis=0)
    assert right[0] > left[0]  # x grows to the patient's right
    heart = ndimage.center_of_mass((phantom.hu > 0) & (phantom.hu < 80) & (phantom.lungs == 0))
    assert heart[1] < SHAPE[1] * 0.6


def test_densities_are_those_of_tissues(phantom):
    def median(where):
        return float(np.median(phantom.hu[where]))

    inside = ndimage.binary_erosion(phantom.lungs > 0, iterations=1)
    assert -920 < median(inside & (phantom.lesions == 0)) < -820
    assert -680 < median(inside & (phantom.lesions == 1)) < -420
    assert -60 < median(inside & (phantom.lesions == 2)) < 70
    assert median(np.s_[:4, -4:]) == pytest.approx(-1000, abs=15)  # the air in front
    assert phantom.hu.min() >= -1024 and phantom.hu.max() <= 3071


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.03, 0.6), consolidation=st.floats(0.1, 0.9))
def test_shares_are_met(seed, share, consolidation):
    truth = make_phantom(seed, (64, 64, 32), lesions=Lesions(share, consolidation)).truth
    assert truth["lesion_share"] == pytest.approx(share, rel=0.1)
    assert truth["consolidation_ml"] / truth["lesion_ml"] == pytest.approx(consolidation, rel=0.15)


def test_the_seed_decides_everything(phantom):
    again = make_phantom(3, SHAPE, lesions=Lesions(0.2, 0.4))
    assert np.array_equal(again.hu, phantom.hu) and again.truth == phantom.truth
    other = make_phantom(4, SHAPE, lesions=Lesions(0.2, 0.4))
    assert not np.array_equal(other.lungs, phantom.lungs)


def test_the_grid_samples_one_anatomy(phantom):
    fine = make_phantom(3, (192, 192, 48), lesions=Lesions(0.2, 0.4))
    for key, value in phantom.truth.items():
        assert fine.truth[key] == pytest.approx(value, rel=0.05)
    cut = make_phantom(3, (48, 48, 4), (3.75, 3.75, 12.0), lesions=Lesions(0.2, 0.4))
    assert np.mean(cut.lungs != phantom.lungs[24:72, 24:72, 10:14]) < 0.001


def test_healthy_lungs_have_no_lesion(phantom):
    healthy = make_phantom(3, SHAPE, lesions=None)
    assert not healthy.lesions.any() and healthy.truth["lesion_share"] == 0
    assert np.array_equal(healthy.lungs, phantom.lungs)


def test_without_noise_air_is_flat():
    assert np.all(make_phantom(0, (48, 48, 4), noise=0.0).hu[:2, -2:] == -1000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (64, 64)},
        {"shape": (64, 64, 1)},
        {"spacing": (1, 1, 0)},
        {"spacing": (1, 1)},
        {"noise": -1},
        {"thickness": 0},
    ],
)
def test_misuse_is_refused(arguments):
    with pytest.raises(ValueError, match=r"^phantom .* expected"):
        make_phantom(0, **arguments)


@pytest.mark.parametrize("arguments", [(-0.1,), (0.9,), (0.1, 1.1)])
def test_lesions_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="share must be"):
        Lesions(*arguments)


def test_nifti_holds_the_phantom(phantom, tmp_path):
    path = phantom.write_nifti(tmp_path / "out")
    scan = read_ct(path)
    assert scan.units == "HU" and np.array_equal(scan.array, phantom.hu)
    assert np.allclose(scan.affine, phantom.affine)
    for name in ("lesions", "lungs"):
        image = nib.Nifti1Image.from_filename(tmp_path / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), getattr(phantom, name))
        assert np.allclose(image.affine, phantom.affine)
    assert json.loads((tmp_path / "out" / "truth.json").read_text()) == phantom.truth


def test_dicom_series_lies_where_the_nifti_lies(phantom, tmp_path):
    scan = read_ct(phantom.write_dicom(tmp_path / "series"))
    assert scan.units == "HU" and scan.spacing == pytest.approx((3.75, 3.75, 12))
    assert np.array_equal(scan.upright(), upright(phantom.hu))
    nifti = read_ct(phantom.write_nifti(tmp_path))
    lesion = scan.from_upright(upright(phantom.lesions))
    ours = scan.affine @ [*np.argwhere(lesion == 2).mean(axis=0), 1]
    theirs = nifti.affine @ [*np.argwhere(phantom.lesions == 2).mean(axis=0), 1]
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_dicom_series_is_read_by_monai(phantom, tmp_path):
    image = LoadImage(reader="PydicomReader")(phantom.write_dicom(tmp_path / "series"))
    assert image.shape == SHAPE
    corner = image.affine.numpy() @ [0, 0, 0, 1]
    assert corner[:2] == pytest.approx((phantom.affine @ [95, 95, 0, 1])[:2])
    assert int(image.min()) == phantom.hu.min() and int(image.max()) == phantom.hu.max()


def test_dicom_uids_follow_from_the_phantom(phantom, tmp_path):
    def header(folder, number=1):
        return pydicom.dcmread(folder / f"slice-{number:04d}.dcm")

    first = header(phantom.write_dicom(tmp_path / "a"))
    again = header(phantom.write_dicom(tmp_path / "b"))
    assert first == again and first.SOPInstanceUID == again.SOPInstanceUID
    second = header(tmp_path / "a", 2)
    assert second.SeriesInstanceUID == first.SeriesInstanceUID and second.SOPInstanceUID != first.SOPInstanceUID
    other = header(make_phantom(3, SHAPE, lesions=None).write_dicom(tmp_path / "c"))
    assert other.StudyInstanceUID != first.StudyInstanceUID
    assert first.Modality == "CT" and first.RescaleIntercept == -1024 and "PHANTOM" in str(first.PatientName)


def test_dicom_folder_must_be_empty(phantom, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        phantom.write_dicom(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["image.nii.gz", "lesions.nii.gz", "lungs.nii.gz", "truth.json"])
def test_nifti_overwrites_nothing(phantom, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DatasetError, match=rf" holds {name} already: choose another folder or remove them$"):
        phantom.write_nifti(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("name", ["lesions.nii.gz", "lungs.nii.gz", "truth.json"])
def test_truth_overwrites_nothing_and_no_series_is_put_beside_another_truth(phantom, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DatasetError, match=rf" holds {name} already: choose another folder or remove them$"):
        phantom.write_truth(tmp_path)
    with pytest.raises(DatasetError, match=rf" holds {name} already"):
        phantom.write_dicom(tmp_path / "dicom")
    assert contents(tmp_path) == {name: b"mine"}


def test_a_write_that_fails_leaves_no_part(phantom, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(Path, "write_text", disk_full)  # of truth.json, the last file
    with pytest.raises(OSError, match="No space left"):
        phantom.write_nifti(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.slow
def test_data_set_splits_phantoms_by_patient(tmp_path):
    out = tmp_path / "phantoms.json"
    options: dict[str, Any] = {"patients": 6, "slices": 4, "size": 48, "healthy": 0.5}
    summary = prepare("phantom", None, out, seed=2, **options)
    assert summary.slices == {"training": 8, "validation": 8, "testing": 8, "unlabelled": 0}
    assert summary.patients == {"training": 2, "validation": 2, "testing": 2, "unlabelled": 0}
    assert all(0 < summary.lesion_slices[side] <= 4 for side in summary.lesion_slices)  # one of two is healthy
    datalist = load_datalist(out)
    item = datalist["training"][0]
    assert item["image"].startswith("phantoms_slices/phantom-") and item["hu_line"] == [1.0, -1024.0]
    assert read_slice(tmp_path / item["image"]).dtype == np.uint16
    assert read_slice(tmp_path / item["lung"]).shape == (48, 48)
    assert (
        summary.data_hash
        == data_hash(out)
        == prepare("phantom", None, tmp_path / "b.json", seed=2, **options).data_hash
    )
    assert prepare("phantom", None, tmp_path / "c.json", seed=3, **options).data_hash != summary.data_hash


@pytest.mark.slow
def test_data_set_deals_unlabelled_patients_from_the_training_side_only(tmp_path):
    options: dict[str, Any] = {"patients": 6, "slices": 2, "size": 32, "healthy": 0.0}
    usual = prepare("phantom", None, tmp_path / "usual.json", **options)
    summary = prepare("phantom", None, tmp_path / "list.json", unlabelled_share=0.3, **options)
    assert usual.slices == {"training": 8, "validation": 2, "testing": 2, "unlabelled": 0}
    assert summary.slices == {"training": 4, "validation": 2, "testing": 2, "unlabelled": 4}
    assert summary.patients["unlabelled"] == 2
    datalist, before = load_datalist(tmp_path / "list.json"), load_datalist(tmp_path / "usual.json")
    ids = {side: {item["id"] for item in datalist[side]} for side in summary.slices}
    for side in ("validation", "testing"):
        assert ids[side] == {item["id"] for item in before[side]}
    assert ids["training"] | ids["unlabelled"] == {item["id"] for item in before["training"]}
    item = datalist["unlabelled"][0]
    assert item.keys() == {"image", "lung", "hu_line", "patient", "id", "dataset"}
    made = [path.name for path in (tmp_path / item["image"]).parent.iterdir()]
    assert sorted(made) == ["001_image.png", "001_lung.png", "002_image.png", "002_lung.png"]
    with pytest.raises(DatasetError, match="leave nothing for training"):
        prepare("phantom", None, tmp_path / "none.json", unlabelled_share=0.6, **options)


def test_data_set_refuses_too_few_healthy_patients_before_it_makes_any(tmp_path, monkeypatch):
    monkeypatch.setattr("covid_monai.datasets.phantoms.make_phantom", None)
    with pytest.raises(DatasetError, match=r"2 healthy patients \(of 8, with healthy=0\.25\) are too few for shares"):
        prepare("phantom", None, tmp_path / "list.json", patients=8, slices=2, size=32)
    assert not list(tmp_path.iterdir())


def test_data_set_refuses_too_few_patients(tmp_path):
    with pytest.raises(DatasetError, match="too few for shares"):
        prepare("phantom", None, tmp_path / "list.json", patients=2, slices=2, size=32)
    with pytest.raises(DatasetError, match=r"expected at least 1, 2, 32 and 0\.\.1"):
        prepare("phantom", None, tmp_path / "list.json", patients=0)
    assert not list(tmp_path.iterdir())


# parts --------------------------------------------------------------------------------------------------------------

GRID = Grid(np.arange(-10.0, 11.0), np.arange(-10.0, 11.0), 1.0)


def test_ellipse_is_a_distance_on_its_axes():
    distance = GRID.ellipse((1, -2), (5, 5))
    assert distance[8, 11] == 5  # its centre, y = -2, x = 1
    assert distance[8, 14] == pytest.approx(2) and distance[8, 16] == 0 and distance[8, 18] == pytest.approx(-2)
    assert GRID.cover(distance)[8, 11] == 1 and GRID.cover(distance)[8, 16] == 0.5 and GRID.cover(distance)[0, 0] == 0


def test_a_tube_is_cut_as_a_disc():
    line = tube([(2, 0, -20), (2, 0, 20)], 4.0)
    assert line.points[0] == pytest.approx((2, 0, -20)) and line.points[-1] == pytest.approx((2, 0, 20))
    cover = line.cover(GRID, 0.0)
    assert cover.sum() == pytest.approx(np.pi * 16, rel=0.03)
    assert cover[10, 12] == 1 and cover[10, 16] == 0.5 and cover[10, 18] == 0
    assert not line.cover(GRID, 26.0).any()


def test_a_tube_thinner_than_the_slice_covers_it_in_part():
    thin = Tubes(np.array([[0.0, 0, 0]]), np.array([1.0]))
    assert thin.cover(Grid(GRID.x, GRID.y, 10.0), 3.0)[10, 10] == pytest.approx(0.35 + 0.2)


def test_a_vessel_tree_reaches_its_targets_and_thins_outwards():
    rng = np.random.default_rng(0)
    targets = rng.uniform(-50, 50, (40, 3))
    tree = grow_tree(np.zeros(3), targets, rng)
    nearest = np.linalg.norm(targets[:, None] - tree.points[None], axis=2).min(axis=1)
    assert nearest.max() < 1e-6
    far = np.linalg.norm(tree.points, axis=1)
    assert tree.radii[far < 10].mean() > tree.radii[far > 40].mean()


def test_a_random_field_has_mean_0_and_variance_1():
    grid = Grid(np.arange(-150.0, 151.0, 5), np.arange(-150.0, 151.0, 5), 5.0)
    field = Field(np.random.default_rng(0), 12.0)
    values = np.stack([field(grid, z) for z in range(-150, 151, 10)])
    assert abs(values.mean()) < 0.1 and values.std() == pytest.approx(1, abs=0.1)
    assert np.abs(field(grid, 0.0) - field(grid, 0.1)).max() < 0.1  # smooth
