# SPDX-License-Identifier: Apache-2.0
"""Readers of the public data sets: on small files in their authors' layout, and on the real ones where they are."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage
from skimage.feature import match_template

from covid_monai.datasets import (
    DatasetError,
    LayoutError,
    SplitError,
    data_hash,
    load_datalist,
    load_side,
    medseg,
    prepare,
)
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
    assert summary.slices == {"training": 50, "validation": 0, "testing": 48, "unlabelled": 0}
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
    assert summary.slices == {"training": 8, "validation": 2, "testing": 4, "unlabelled": 0}
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
    assert summary.slices == {"training": 10, "validation": 0, "testing": 4, "unlabelled": 0}
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
    assert summary.slices == {"training": 21, "validation": 6, "testing": 0, "unlabelled": 0}
    assert summary.lesion_slices == {"training": 7, "validation": 2, "testing": 0}
    assert summary.patients == {"training": 5, "validation": 2, "testing": 0, "unlabelled": 0}
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


def test_radiopaedia_unlabelled_keeps_lung_masks_and_lines(radiopaedia_slices, tmp_path):
    out = tmp_path / "list.json"
    summary = prepare("medseg_radiopaedia9", radiopaedia_slices, out, unlabelled=True)
    assert summary.slices == {"training": 0, "validation": 4, "testing": 0, "unlabelled": 14}
    assert summary.patients == {"training": 0, "validation": 2, "testing": 0, "unlabelled": 5}
    datalist = load_datalist(out)
    item = next(item for item in datalist["unlabelled"] if item["id"] == "medseg_radiopaedia9/4/002")
    assert item.keys() == {"image", "lung", "hu_line", "patient", "id", "dataset"}
    assert all("label" in item for item in datalist["validation"])
    with pytest.raises(SplitError, match=r"stands on two sides: training .* and unlabelled"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out, append=True)


def test_radiopaedia_takes_every_second_slice_of_each_volume(radiopaedia_slices, tmp_path):
    summary = prepare("medseg_radiopaedia9", radiopaedia_slices, tmp_path / "list.json", validation=(1, 2), every=2)
    assert summary.slices == {"training": 6, "validation": 3, "testing": 0, "unlabelled": 0}
    datalist = load_datalist(tmp_path / "list.json")
    assert {item["id"] for item in datalist["validation"]} == {f"medseg_radiopaedia9/{n}/001" for n in (1, 2, 3)}


def test_radiopaedia_slice_form_refuses(radiopaedia_slices, tmp_path):
    out = tmp_path / "list.json"
    with pytest.raises(DatasetError, match=r"no volume \[10\] to validate on"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out, validation=[10])
    with pytest.raises(DatasetError, match=r"no volume \[\[1\], 'a', True\] to validate on: there are 1\.\.9"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out, validation=[[1], "a", True, 5])
    for wrong in (0, 1.5, True):
        with pytest.raises(DatasetError, match=rf"every is {wrong}[:,] give"):
            prepare("medseg_radiopaedia9", radiopaedia_slices, out, every=wrong)
    (radiopaedia_slices / "lung_masks" / "v3_z002.png").unlink()
    with pytest.raises(LayoutError, match=r"slice v3_z002, which index\.csv names"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out)
    (radiopaedia_slices / "volumes.csv").write_text("volume,hu_slope\n1,5.5\n")
    with pytest.raises(LayoutError, match=r"volumes\.csv has no column hu_intercept: expected the index that belongs"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out)
    (radiopaedia_slices / "volumes.csv").unlink()
    with pytest.raises(LayoutError, match=r"volumes\.csv is missing"):
        prepare("medseg_radiopaedia9", radiopaedia_slices, out)


# Sets without labels ------------------------------------------------------------------------------------------------


def write_index(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def soares(tmp_path) -> Path:
    """Three slices of either class; covid/0003 is a duplicate that was left out."""
    source = tmp_path / "soares"
    rows = []
    for c, name in enumerate(("covid", "noncovid")):
        for k in (1, 2, 3):
            duplicate = (name, k) == ("covid", 3)
            rows.append({"name": f"{name}/{k:04d}", "note": f"dup_of:{name}/0002" if duplicate else ""})
            if not duplicate:
                save_slice((IMAGE + 830 + 40 * c + 10 * k).astype(np.uint8), source / name / f"{k:04d}.jpg")
    write_index(source / "index.csv", rows)
    return source


@pytest.fixture
def tcga(tmp_path) -> Path:
    """Five slices; two of one patient, one without lung, one a duplicate."""
    source = tmp_path / "tcga"
    table = [("P1", "1", ""), ("P1", "1", ""), ("P2", "1", ""), ("P2", "0", ""), ("P3", "1", "ID_0000")]
    rows = [
        {"name": f"ID_{k:04d}", "patient": patient, "has_lung": lung, "duplicate_of": other}
        for k, (patient, lung, other) in enumerate(table)
    ]
    for k in range(3):
        save_slice((IMAGE + k + 1024).astype(np.uint16), source / "images" / f"ID_{k:04d}.png")
    write_index(source / "index.csv", rows)
    return source


@pytest.fixture
def luna(tmp_path) -> Path:
    """Two slices of each patient."""
    source = tmp_path / "luna"
    for patient in (1, 2, 3):
        for z in (0, 4):
            save_slice((IMAGE + 830 + 10 * patient + z).astype(np.uint8), source / f"patient{patient}/z_{z:03d}.png")
    return source


@pytest.mark.parametrize("flag", [False, True])
def test_soares_has_neither_line_nor_patient(soares, tmp_path, flag):
    summary = prepare("sarscov2_ct_soares", soares, tmp_path / "list.json", unlabelled=flag)
    assert summary.slices == {"training": 0, "validation": 0, "testing": 0, "unlabelled": 5}
    assert summary.lesion_slices == {"training": 0, "validation": 0, "testing": 0}
    assert summary.patients["unlabelled"] == 0
    assert load_datalist(tmp_path / "list.json")["unlabelled"][2] == {
        "image": "soares/noncovid/0001.jpg",
        "patient": None,
        "id": "sarscov2_ct_soares/noncovid/0001",
        "dataset": "sarscov2_ct_soares",
    }


@pytest.mark.parametrize("flag", [False, True])
def test_tcga_takes_slices_with_lung_in_hu(tcga, tmp_path, flag):
    summary = prepare("tcga_lung62_hu", tcga, tmp_path / "list.json", unlabelled=flag)
    assert summary.slices == {"training": 0, "validation": 0, "testing": 0, "unlabelled": 3}
    assert summary.patients["unlabelled"] == 2
    item = load_datalist(tmp_path / "list.json")["unlabelled"][1]
    assert item == {
        "image": "tcga/images/ID_0001.png",
        "patient": "tcga_lung62_hu/P1",
        "id": "tcga_lung62_hu/ID_0001",
        "hu_line": [1.0, -1024.0],
        "dataset": "tcga_lung62_hu",
    }
    assert np.array_equal(read_slice(tmp_path / item["image"]) - 1024.0, IMAGE + 1)


@pytest.mark.parametrize("flag", [False, True])
def test_luna_has_the_line_of_its_window(luna, tmp_path, flag):
    summary = prepare("luna16_3pat_lungwin", luna, tmp_path / "list.json", unlabelled=flag)
    assert summary.slices == {"training": 0, "validation": 0, "testing": 0, "unlabelled": 6}
    assert summary.patients["unlabelled"] == 3
    item = load_datalist(tmp_path / "list.json")["unlabelled"][3]
    assert item["image"] == "luna/patient2/z_004.png" and item["id"] == "luna16_3pat_lungwin/patient2/004"
    assert item["patient"] == "luna16_3pat_lungwin/patient2"
    slope, intercept = item["hu_line"]
    assert [slope * grey + intercept for grey in (0, 127.5, 255)] == pytest.approx([-1350, -600, 150])


def test_unlabelled_sets_join_a_labelled_one_and_hash_with_it(medseg_slices, soares, tcga, luna, tmp_path):
    out = tmp_path / "list.json"
    before = prepare("medseg_sirm100", medseg_slices, out)
    for name, source in (("sarscov2_ct_soares", soares), ("tcga_lung62_hu", tcga), ("luna16_3pat_lungwin", luna)):
        summary = prepare(name, source, out, append=True)
    assert summary.slices == {**before.slices, "unlabelled": 14}
    assert summary.data_hash == data_hash(out) != before.data_hash
    assert len(load_side(out, "unlabelled")) == 14
    assert "label" not in load_decathlon_datalist(out, True, "unlabelled")[0]
    labelled = load_side(out, "testing")[0]["image"]
    Path(soares / "covid" / "0001.jpg").unlink()
    Path(soares / "covid" / "0001.jpg").write_bytes(Path(labelled).read_bytes())
    with pytest.raises(SplitError, match=r"image content .* stands on two sides: testing .* and unlabelled"):
        prepare("sarscov2_ct_soares", soares, out, append=True)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("sarscov2_ct_soares", "soares/index.csv", r"index\.csv is missing: expected covid/NNNN\.jpg, noncovid/"),
        ("sarscov2_ct_soares", "soares/covid/0001.jpg", r"0001\.jpg, which index\.csv names, is missing: expected"),
        ("tcga_lung62_hu", "tcga/index.csv", r"index\.csv is missing: expected images/ID_NNNN\.png"),
        ("tcga_lung62_hu", "tcga/images/ID_0002.png", r"ID_0002\.png, which index\.csv names, is missing: expected"),
        ("luna16_3pat_lungwin", "luna/patient2", r"patient2 is missing: expected patient1/, patient2/ and patient3/"),
    ],
)
def test_unlabelled_sets_refuse_missing_files(soares, tcga, luna, tmp_path, name, path, message):
    (tmp_path / path).rename(tmp_path / "elsewhere")
    with pytest.raises(LayoutError, match=message) as caught:
        prepare(name, tmp_path / path.split("/")[0], tmp_path / "list.json")
    assert "\n" not in str(caught.value)


def test_unlabelled_sets_refuse_other_layouts(soares, tcga, luna, tmp_path):
    out = tmp_path / "list.json"
    write_index(soares / "index.csv", [{"name": "covid/0001"}])
    with pytest.raises(LayoutError, match=r"index\.csv has no column note: expected the index that belongs to the set"):
        prepare("sarscov2_ct_soares", soares, out)
    write_index(tcga / "index.csv", [{"name": "ID_0000", "patient": "", "has_lung": "1", "duplicate_of": ""}])
    with pytest.raises(LayoutError, match=r"index\.csv names no patient of ID_0000: every slice must have one"):
        prepare("tcga_lung62_hu", tcga, out)
    (luna / "patient1" / "z_004.png").rename(luna / "patient1" / "slice4.png")
    with pytest.raises(LayoutError, match=r"slice4\.png is not named by its slice number: expected patient1/"):
        prepare("luna16_3pat_lungwin", luna, out)
    for path in (luna / "patient1").iterdir():
        path.unlink()
    with pytest.raises(LayoutError, match=r"patient1 holds no slice file"):
        prepare("luna16_3pat_lungwin", luna, out)


# The real files -----------------------------------------------------------------------------------------------------


def test_real_sets_join_without_a_patient_on_two_sides(shared_data, tmp_path):
    medseg_source, radiopaedia_source = shared_data("medseg_sirm100"), shared_data("medseg_radiopaedia9")
    out = tmp_path / "real.json"
    first = prepare("medseg_sirm100", medseg_source, out)
    assert first.slices == {"training": 50, "validation": 0, "testing": 48, "unlabelled": 0}
    both = prepare("medseg_radiopaedia9", radiopaedia_source, out, append=True)
    assert both.slices == {"training": 424, "validation": 102, "testing": 48, "unlabelled": 0}
    assert both.lesion_slices == {"training": 257, "validation": 81, "testing": 48}
    assert both.patients == {"training": 5, "validation": 2, "testing": 0, "unlabelled": 0} and both.dropped == 0
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


@pytest.mark.parametrize(
    ("name", "slices", "patients"),
    [("sarscov2_ct_soares", 2479, 0), ("tcga_lung62_hu", 62, 41), ("luna16_3pat_lungwin", 196, 3)],
)
def test_real_unlabelled_sets_are_whole(shared_data, tmp_path, name, slices, patients):
    summary = prepare(name, shared_data(name), tmp_path / "list.json")
    assert summary.slices == {"training": 0, "validation": 0, "testing": 0, "unlabelled": slices}
    assert summary.patients["unlabelled"] == patients and summary.dropped == 0


@pytest.mark.parametrize("name", ["tcga_lung62_hu", "luna16_3pat_lungwin"])
def test_real_lung_lies_at_its_density_after_the_line(shared_data, tmp_path, name):
    prepare(name, shared_data(name), tmp_path / "list.json")
    medians = []
    items = load_side(tmp_path / "list.json", "unlabelled")[::4]
    for item in items:
        slope, intercept = item["hu_line"]
        hu = slope * read_slice(Path(item["image"])) + intercept
        inner = ndimage.binary_fill_holes(ndimage.binary_opening(hu > -300, iterations=2)) & (hu < -400)
        if np.count_nonzero(inner) > 2000:
            medians.append(np.median(hu[inner]))
    assert len(medians) > 0.7 * len(items)
    assert -920 < np.median(medians) < -750
    assert np.mean((np.array(medians) > -960) & (np.array(medians) < -600)) > 0.9
