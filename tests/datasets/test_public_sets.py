# SPDX-License-Identifier: Apache-2.0
"""Readers of the public data sets: on small files in their authors' layout, and on the real ones where they are."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from skimage.feature import match_template

from covid_monai.datasets import DatasetError, LayoutError, SplitError, load_datalist, medseg, prepare
from covid_monai.datasets.slices import read_slice, save_slice
from covid_monai.datasets.volumes import read_upright, read_upright_mask, to_upright

# One upright slice (H, W): every corner differs, the lesion lies on the patient's left (image right), behind.
IMAGE = np.array([[0, 10, 20, 30], [40, 50, 60, 70], [80, 90, 100, 110]], np.int16) - 800
MASK = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 3, 2]], np.uint8)


def save_nifti(upright: np.ndarray, axes: str, path: Path, code: str | None = "scanner") -> None:
    """Write upright slices (Z, H, W) with stored axes such as "LPS", 1 mm voxels."""
    change = ornt_transform(axcodes2ornt(("S", "P", "L")), axcodes2ornt(tuple(axes)))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (1, -1, -1, 1)  # of upright order: slices S, rows P, columns L
    image = nib.Nifti1Image(
        np.ascontiguousarray(apply_orientation(upright, change)), affine @ inv_ornt_aff(change, upright.shape)
    )
    image.set_sform(image.affine, code or "unknown")
    image.set_qform(image.affine, code or "unknown")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


axes_strategy = st.permutations(["RL", "AP", "SI"]).flatmap(lambda pairs: st.tuples(*map(st.sampled_from, pairs)))


@settings(max_examples=48, deadline=None)
@given(axes=axes_strategy.map("".join))
def test_a_volume_of_any_orientation_comes_out_upright(axes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nifti")
    volume = np.stack([IMAGE, IMAGE + 200, IMAGE + 400])
    save_nifti(volume, axes, folder / "ct.nii.gz")
    save_nifti(np.stack([MASK, 0 * MASK, MASK]), axes, folder / "mask.nii.gz")
    slices, units = read_upright(folder / "ct.nii.gz")
    assert units == "HU" and np.array_equal(slices, volume)
    assert np.array_equal(read_upright_mask(folder / "mask.nii.gz", folder / "ct.nii.gz")[2], MASK)
    assert np.array_equal(read_upright(folder / "ct.nii.gz", axes).slices, volume)


@pytest.mark.parametrize("axes", ["", "LP", "LLS", "LRS", "XYZ", "lps", "LPSI", 3, ["L", "P", "S"]])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(DatasetError, match="one letter each of R/L, A/P and S/I"):
        to_upright(np.zeros((2, 2, 2)), nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), axes)


@pytest.mark.parametrize("name", ["medseg_sirm100", "medseg_radiopaedia9"])
@pytest.mark.parametrize("axes", [3, "XYZ"])
def test_wrong_axes_are_refused_before_anything_is_read(name, axes, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(DatasetError, match=rf"^axes is {axes!r}: expected one letter each of .*, such as LPS$"):
        prepare(name, tmp_path / "source", tmp_path / "list.json", axes=axes)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_masks_off_their_image_are_refused(tmp_path):
    volume = np.stack([IMAGE] * 3)
    save_nifti(volume, "LPS", tmp_path / "ct.nii.gz")
    save_nifti(volume[:, :2], "LPS", tmp_path / "small.nii.gz")
    with pytest.raises(DatasetError, match="they must be one grid"):
        read_upright_mask(tmp_path / "small.nii.gz", tmp_path / "ct.nii.gz")
    save_nifti(np.abs(volume) % 3, "RAS", tmp_path / "turned.nii.gz")
    with pytest.raises(DatasetError, match="differ in affine"):
        read_upright_mask(tmp_path / "turned.nii.gz", tmp_path / "ct.nii.gz")
    save_nifti(volume.astype(np.float32) / 7, "LPS", tmp_path / "soft.nii.gz")
    with pytest.raises(DatasetError, match="no whole codes"):
        read_upright_mask(tmp_path / "soft.nii.gz", tmp_path / "ct.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "ct.nii.gz").read_bytes()[:40])
    with pytest.raises(DatasetError, match="is the download complete"):
        read_upright_mask(tmp_path / "cut.nii.gz", tmp_path / "ct.nii.gz")


# MedSeg's 100 slices ------------------------------------------------------------------------------------------------


def medseg_stack() -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([IMAGE + 3 * number for number in range(100)])
    return images, np.stack([MASK * (number != 48) for number in range(100)])


@pytest.mark.parametrize(("axes", "code"), [("LPS", "scanner"), ("RAI", "scanner"), ("LPS", None)])
def test_medseg_nifti_pair(tmp_path, axes, code):
    images, masks = medseg_stack()
    order = slice(None, None, -1 if axes[2] == "I" else 1)  # stored slice k is always slice k of the set
    save_nifti(images[order], axes, tmp_path / "tr_im.nii.gz", code)
    save_nifti(masks[order], axes, tmp_path / "tr_mask.nii.gz", code)
    summary = prepare("medseg_sirm100", tmp_path, tmp_path / "list.json")
    assert summary.slices == {"training": 50, "validation": 0, "testing": 48}
    datalist = load_datalist(tmp_path / "list.json")
    ids = [item["id"] for item in datalist["testing"]]
    assert ids == [f"medseg_sirm100/{number:03d}" for number in medseg.INFNET_TEST]
    item = datalist["testing"][4]  # slice 018
    assert np.array_equal(read_slice(tmp_path / item["image"]), IMAGE + 3 * 18 + 1024)
    assert np.array_equal(read_slice(tmp_path / item["label"]), MASK)
    assert item["hu_line"] == [1.0, -1024.0] and item["patient"] is None


@pytest.mark.parametrize("axes", ["LPS", "LPI"])
def test_medseg_axes_turn_slices_and_keep_their_numbers(tmp_path, axes):
    images, masks = medseg_stack()
    save_nifti(images, "LPS", tmp_path / "tr_im.nii.gz")
    save_nifti(masks, "LPS", tmp_path / "tr_mask.nii.gz")
    prepare("medseg_sirm100", tmp_path, tmp_path / "list.json", axes=axes)
    item = load_datalist(tmp_path / "list.json")["testing"][4]
    assert item["id"] == "medseg_sirm100/018"
    assert np.array_equal(read_slice(tmp_path / item["image"]), IMAGE + 3 * 18 + 1024)


def test_medseg_refuses_axes_that_stack_slices_in_plane(tmp_path):
    with pytest.raises(DatasetError, match=r"axes is 'LSP': the third is that of the slices, S or I, such as LPS"):
        prepare("medseg_sirm100", tmp_path, tmp_path / "list.json", axes="LSP")


def test_medseg_refuses_another_number_of_slices_and_a_missing_mask(tmp_path):
    save_nifti(np.stack([IMAGE] * 4), "LPS", tmp_path / "tr_im.nii.gz")
    with pytest.raises(LayoutError, match=r"tr_mask\.nii\.gz is missing: expected tr_im"):
        prepare("medseg_sirm100", tmp_path, tmp_path / "list.json")
    save_nifti(np.stack([MASK] * 4), "LPS", tmp_path / "tr_mask.nii.gz")
    with pytest.raises(DatasetError, match="holds 4 slices: MedSeg's set has 100"):
        prepare("medseg_sirm100", tmp_path, tmp_path / "list.json")


@pytest.fixture
def medseg_slices(tmp_path) -> Path:
    """Ten training and four test slices in the slice-image form."""
    source = tmp_path / "medseg"
    for number in range(14):
        save_slice((IMAGE + 800 + number).astype(np.uint8), source / "images" / f"{number:03d}.png")
        save_slice(MASK, source / "masks" / f"{number:03d}.png")
    (source / "splits").mkdir()
    (source / "splits" / "infnet_train.txt").write_text("".join(f"{n:03d}\n" for n in range(10)))
    (source / "splits" / "infnet_test.txt").write_text("".join(f"{n:03d}\n" for n in range(10, 14)))
    return source


def test_medseg_slice_form_validates_on_training_slices_only(medseg_slices, tmp_path):
    summary = prepare("medseg_sirm100", medseg_slices, tmp_path / "list.json", validation=0.2)
    assert summary.slices == {"training": 8, "validation": 2, "testing": 4}
    assert [item["id"][-3:] for item in load_datalist(tmp_path / "list.json")["testing"]] == [
        "010",
        "011",
        "012",
        "013",
    ]


def test_medseg_slice_form_refuses_an_unfinished_copy(medseg_slices, tmp_path):
    (medseg_slices / "masks" / "011.png").unlink()
    with pytest.raises(LayoutError, match=r"slice 011, which splits/infnet_test\.txt names"):
        prepare("medseg_sirm100", medseg_slices, tmp_path / "list.json")
    (medseg_slices / "splits" / "infnet_train.txt").unlink()
    with pytest.raises(LayoutError, match=r"infnet_train\.txt is missing"):
        prepare("medseg_sirm100", medseg_slices, tmp_path / "list.json")


# Inf-Net's layout ---------------------------------------------------------------------------------------------------


@pytest.fixture
def semiseg(tmp_path) -> Path:
    """Slices 0..9 (training) and 10..13 (test) on their side."""
    source = tmp_path / "semiseg"
    for part, numbers in (("Train", range(10)), ("Test", range(10, 14))):
        folder = source / f"{part}ingSet" / f"MultiClassInfection-{part}"
        for n in numbers:
            save_slice((IMAGE + 830 + 2 * n).astype(np.uint8).T, folder / "Imgs" / f"{n}.png")
            save_slice((MASK % 3).T, folder / "GT" / f"{n}.png")
    return source


def test_semiseg_comes_out_upright(semiseg, tmp_path):
    summary = prepare("covid_semiseg", semiseg, tmp_path / "list.json")
    assert summary.slices == {"training": 10, "validation": 0, "testing": 4}
    item = load_datalist(tmp_path / "list.json")["testing"][1]
    assert item["id"] == "medseg_sirm100/011"
    assert np.array_equal(read_slice(tmp_path / item["image"]), IMAGE + 830 + 22)
    assert np.array_equal(read_slice(tmp_path / item["label"]), MASK % 3)


def test_semiseg_refuses_other_layouts(semiseg, tmp_path):
    with pytest.raises(LayoutError, match="MultiClassInfection-Train is missing: expected TrainingSet/"):
        prepare("covid_semiseg", semiseg / "TrainingSet", tmp_path / "list.json")
    folder = semiseg / "TestingSet" / "MultiClassInfection-Test"
    (folder / "GT" / "12.png").unlink()
    with pytest.raises(LayoutError, match="GT lacks the mask of slice 12"):
        prepare("covid_semiseg", semiseg, tmp_path / "list.json")
    (folder / "Imgs" / "12.png").rename(folder / "Imgs" / "case.png")
    save_slice((MASK % 3).T, folder / "GT" / "case.png")
    with pytest.raises(LayoutError, match="is not named by its slice number"):
        prepare("covid_semiseg", semiseg, tmp_path / "list.json")


def test_the_same_slice_in_two_sets_cannot_stand_on_two_sides(medseg_slices, semiseg, tmp_path):
    out = tmp_path / "list.json"
    prepare("medseg_sirm100", medseg_slices, out)
    with pytest.raises(SplitError, match=r"slice medseg_sirm100/00\d stands on two sides: training"):
        prepare("covid_semiseg", semiseg, out, append=True, validation=0.2)
    assert prepare("covid_semiseg", semiseg, out, append=True).slices["testing"] == 8


# Radiopaedia volumes ------------------------------------------------------------------------------------------------


def radiopaedia_volume(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five slices, lung in the middle three, lesions in the middle one."""
    image = np.stack([IMAGE + 20 * number + k for k in range(5)])
    lung = np.zeros(image.shape, np.uint8)
    lung[1:4, 1:] = (0, 1, 1, 2)
    lesion = np.zeros(image.shape, np.uint8)
    lesion[2] = MASK % 3
    return image, lesion, lung


def test_radiopaedia_nifti_folders(tmp_path):
    for number in range(1, 10):
        axes = ("LPS", "RAI", "LAS")[number % 3]
        for folder, array in zip(("rp_im", "rp_msk", "rp_lung_msk"), radiopaedia_volume(number), strict=True):
            save_nifti(array, axes, tmp_path / folder / f"{number}.nii.gz")
    summary = prepare("medseg_radiopaedia9", tmp_path, tmp_path / "list.json")
    assert summary.slices == {"training": 21, "validation": 6, "testing": 0}
    assert summary.lesion_slices == {"training": 7, "validation": 2, "testing": 0}
    assert summary.patients == {"training": 5, "validation": 2, "testing": 0}
    item = load_datalist(tmp_path / "list.json")["validation"][1]
    assert item["id"] == "medseg_radiopaedia9/5/003" and item["class_source"] == "stated"
    assert np.array_equal(read_slice(tmp_path / item["image"]), IMAGE + 102 + 1024)
    assert np.array_equal(read_slice(tmp_path / item["label"]), MASK % 3)
    assert np.array_equal(read_slice(tmp_path / item["lung"]), (radiopaedia_volume(5)[2][2] > 0))
    assert item["hu_line"] == [1.0, -1024.0]
    (tmp_path / "rp_lung_msk" / "4.nii.gz").unlink()
    with pytest.raises(LayoutError, match=r"rp_lung_msk/4\.nii\.gz is missing: expected rp_im/"):
        prepare("medseg_radiopaedia9", tmp_path, tmp_path / "other.json")


@pytest.fixture
def radiopaedia_slices(tmp_path) -> Path:
    """Two slices of each volume in the slice-image form."""
    source = tmp_path / "radiopaedia"
    rows, lines = [], []
    for volume in range(1, 10):
        lines.append({"volume": volume, "hu_slope": 5.5 + volume, "hu_intercept": -1300})
        for z in (1, 2):
            stem = f"v{volume}_z{z:03d}"
            save_slice((IMAGE + 800 + 10 * volume + z).astype(np.uint8), source / "images" / f"{stem}.png")
            save_slice(MASK % 3 * (z == 2), source / "masks" / f"{stem}.png")
            save_slice(MASK >= 0, source / "lung_masks" / f"{stem}.png")
            rows.append({"id": stem, "volume": volume, "z_1based": z, "class_source": "stated" if z == 2 else "none"})
    for name, table in (("index.csv", rows), ("volumes.csv", lines)):
        with (source / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys())
            writer.writeheader()
            writer.writerows(table)
    return source


@pytest.mark.parametrize(("validation", "volumes"), [((5, 8), "58"), ((2,), "23"), ((7, 9), "679"), ((), "")])
def test_radiopaedia_slice_form_keeps_volumes_of_a_patient_together(radiopaedia_slices, tmp_path, validation, volumes):
    prepare("medseg_radiopaedia9", radiopaedia_slices, tmp_path / "list.json", validation=validation)
    datalist = load_datalist(tmp_path / "list.json")
    assert {item["id"].split("/")[1] for item in datalist["validation"]} == set(volumes)
    assert len(datalist["training"]) == 18 - 2 * len(volumes)
    items = {item["id"]: item for side in ("training", "validation") for item in datalist[side]}
    item = items["medseg_radiopaedia9/4/002"]
    assert item["hu_line"] == [5.5 + 4, -1300.0] and item["class_source"] == "stated" and item["lesion"]
    assert item["lung"].endswith("lung_masks/v4_z002.png")
    # the lines published for these anchor fat as soft tissue
    assert {name.split("/")[1] for name, item in items.items() if "hu_line" not in item} == {"1", "6", "7"}


def test_radiopaedia_slice_form_refuses(radiopaedia_slices, tmp_path):
    out = tmp_path / "list.json"
    with pytest.raises(DatasetError, match=r"no volume \[10\] to validate on"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out, validation=[10])
    with pytest.raises(DatasetError, match=r"no volume \[\[1\], 'a', True\] to validate on: there are 1\.\.9"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out, validation=[[1], "a", True, 5])
    (radiopaedia_slices / "lung_masks" / "v3_z002.png").unlink()
    with pytest.raises(LayoutError, match=r"slice v3_z002, which index\.csv names"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out)
    (radiopaedia_slices / "volumes.csv").unlink()
    with pytest.raises(LayoutError, match=r"volumes\.csv is missing"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out)


# The real files -----------------------------------------------------------------------------------------------------


def test_real_sets_join_without_a_patient_on_two_sides(shared_data, tmp_path):
    medseg_source, radiopaedia_source = shared_data("medseg_sirm100"), shared_data("medseg_radiopaedia9")
    out = tmp_path / "real.json"
    assert prepare("medseg_sirm100", medseg_source, out).slices == {"training": 50, "validation": 0, "testing": 48}
    both = prepare("medseg_radiopaedia9", radiopaedia_source, out, append=True)
    assert both.slices == {"training": 424, "validation": 102, "testing": 48}
    assert both.lesion_slices == {"training": 257, "validation": 81, "testing": 48}
    assert both.patients == {"training": 5, "validation": 2, "testing": 0} and both.dropped == 0
    testing = sorted(int(item["id"][-3:]) for item in load_datalist(out)["testing"])
    assert tuple(testing) == medseg.INFNET_TEST


def test_real_semiseg_masks_are_crops_of_medsegs(shared_data, tmp_path):
    medseg_source = shared_data("medseg_sirm100")
    prepare("covid_semiseg", shared_data("infnet_covid_semiseg"), tmp_path / "list.json")
    datalist = load_datalist(tmp_path / "list.json")
    assert len(datalist["training"]) == 50 and len(datalist["testing"]) == 48
    for item in [datalist["training"][0], datalist["testing"][0], datalist["testing"][3]]:
        image, mask = (read_slice(tmp_path / item[key]) for key in ("image", "label"))
        whole_image, whole = (read_slice(medseg_source / key / f"{item['id'][-3:]}.png") for key in ("images", "masks"))
        fit = match_template(whole_image, image)
        y, x = np.unravel_index(fit.argmax(), fit.shape)
        assert fit[y, x] > 0.99
        assert np.array_equal(whole[y : y + mask.shape[0], x : x + mask.shape[1]] % 3, mask)
