# SPDX-License-Identifier: Apache-2.0
"""The folder reader, and with it everything `prepare` does for all data sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from covid_monai.datasets import DATASETS, DatasetError, SplitError, data_hash, describe, load_datalist, prepare
from covid_monai.datasets.slices import read_slice, save_slice


@pytest.fixture
def source(tmp_path) -> Path:
    """Four patients, two slices each; the second slice of each has a lesion."""
    folder = tmp_path / "hospital"
    for patient in range(4):
        for k in range(2):
            image = np.full((4, 5), 10 * patient + k, np.uint8)
            save_slice(image, folder / "images" / f"p{patient}_{k}.png")
            save_slice(np.full((4, 5), k, np.uint8), folder / "masks" / f"p{patient}_{k}.png")
    return folder


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "hospital")


def test_prepare_writes_a_whole_datalist(source, tmp_path):
    out = tmp_path / "list.json"
    summary = prepare("folder", source, out, seed=1, patient="^[^_]+", validation=0.25, testing=0.25)
    assert summary.slices == {"training": 4, "validation": 2, "testing": 2, "unlabelled": 0}
    assert summary.patients == {"training": 2, "validation": 1, "testing": 1, "unlabelled": 0}
    assert summary.lesion_slices == {"training": 2, "validation": 1, "testing": 1}
    assert summary.path == out and summary.dropped == 0
    datalist = load_datalist(out)
    assert datalist["data_hash"] == summary.data_hash == data_hash(out)
    assert datalist["name"] == "folder" and datalist["licence"] == DATASETS["folder"].licence
    assert datalist["sources"][0]["seed"] == 1 and datalist["sources"][0]["options"]["validation"] == 0.25
    item = datalist["training"][1]
    assert item["image"].startswith("hospital/images/p") and item["lesion"] is True and item["dataset"] == "folder"
    assert "hu_line" not in item
    assert left_behind(tmp_path) == ["list.json"]


def test_the_seed_decides_the_split(source, tmp_path):
    hashes = {
        seed: prepare("folder", source, tmp_path / f"{seed}.json", seed=seed, patient="^p[0-9]").data_hash
        for seed in range(6)
    }
    assert len(set(hashes.values())) > 1
    assert prepare("folder", source, tmp_path / "again.json", seed=3, patient="^p[0-9]").data_hash == hashes[3]


def test_patients_come_from_the_group_of_the_pattern(source, tmp_path):
    prepare("folder", source, tmp_path / "list.json", patient="p([0-9])_")
    datalist = load_datalist(tmp_path / "list.json")
    assert {item["patient"] for item in datalist["training"] + datalist["validation"]} == {
        f"hospital/{number}" for number in range(4)
    }


def test_without_a_pattern_patients_are_unknown(source, tmp_path):
    summary = prepare("folder", source, tmp_path / "list.json", validation=0.25, hu_line=(2, -1000))
    assert summary.slices["validation"] == 2 and summary.patients["training"] == 0
    item = load_datalist(tmp_path / "list.json")["training"][0]
    assert item["patient"] is None and item["hu_line"] == [2.0, -1000.0]


def test_codes_are_translated_into_copies(source, tmp_path):
    for path in (source / "masks").iterdir():
        save_slice(np.array([[0, 255], [255, 0]], np.uint8).repeat(2, 0).repeat(5, 1)[:4, :5], path)
    out = tmp_path / "list.json"
    with pytest.raises(DatasetError, match=r"unknown codes \[255\]"):
        prepare("folder", source, out)
    assert left_behind(tmp_path) == []
    prepare("folder", source, out, codes={255: 1})
    item = load_datalist(out)["training"][0]
    assert item["label"].startswith("list_slices/folder-")
    assert set(np.unique(read_slice(tmp_path / item["label"]))) == {0, 1}
    assert set(np.unique(read_slice(source / "masks" / "p0_0.png"))) == {0, 255}


def test_replacing_a_datalist_removes_its_unpacked_slices_only(source, tmp_path):
    out = tmp_path / "list.json"
    prepare("folder", source, out, codes={1: 2})
    mine = tmp_path / "list_slices" / "mine"
    mine.mkdir()
    (first,) = (tmp_path / "list_slices").glob("folder-*")
    prepare("folder", source, out, codes={1: 3})
    (second,) = (tmp_path / "list_slices").glob("folder-*")
    assert first != second and mine.is_dir()
    assert data_hash(out) == load_datalist(out)["data_hash"]


def test_unlabelled_takes_the_training_side_without_its_labels(source, tmp_path):
    out, labelled = tmp_path / "list.json", tmp_path / "labelled.json"
    options = {"patient": "^[^_]+", "validation": 0.25, "testing": 0.25, "codes": {1: 2}}
    usual = prepare("folder", source, labelled, **options)
    summary = prepare("folder", source, out, unlabelled=True, **options)
    assert summary.slices == {"training": 0, "validation": 2, "testing": 2, "unlabelled": 4}
    assert summary.patients == {"training": 0, "validation": 1, "testing": 1, "unlabelled": 2}
    assert summary.lesion_slices == {"training": 0, "validation": 1, "testing": 1}
    datalist, before = load_datalist(out), load_datalist(labelled)
    assert all(item.keys() == {"image", "patient", "id", "dataset"} for item in datalist["unlabelled"])
    assert [item["id"] for item in datalist["unlabelled"]] == [item["id"] for item in before["training"]]
    assert [item["id"] for item in datalist["testing"]] == [item["id"] for item in before["testing"]]
    assert summary.data_hash == datalist["data_hash"] == data_hash(out) != usual.data_hash
    assert datalist["sources"][0]["unlabelled"] is True and "unlabelled" not in before["sources"][0]
    # masks that were made for the unlabelled slices are gone, those of the others are there
    masks = {path.stem for path in (tmp_path / "list_slices").rglob("*.png")}
    assert masks == {Path(item["label"]).stem for item in datalist["validation"] + datalist["testing"]}
    assert len(list((source / "masks").iterdir())) == 8
    with pytest.raises(SplitError, match=r"stands on two sides: training .* and unlabelled"):
        prepare("folder", source, labelled, append=True, unlabelled=True, **options)
    assert load_datalist(labelled) == before


def test_unlabelled_slices_of_two_sets_are_joined_and_repeats_dropped(source, tmp_path):
    out, copy = tmp_path / "list.json", tmp_path / "hospital" / "copy"
    for path in sorted((source / "images").iterdir())[:3]:
        save_slice(read_slice(path), copy / "images" / path.name)
        save_slice(np.zeros((4, 5), np.uint8), copy / "masks" / path.name)  # other labels, of which nothing is kept
    prepare("folder", source, out, unlabelled=True, validation=0.0)
    summary = prepare("folder", copy, out, append=True, unlabelled=True, validation=0.0)
    assert summary.slices["unlabelled"] == 8 and summary.dropped == 3


def test_append_joins_and_checks_the_whole(source, tmp_path):
    other = tmp_path / "hospital" / "clinic"
    for k in range(4):
        save_slice(np.full((4, 5), 100 + k, np.uint8), other / "images" / f"{k}.png")
        save_slice(np.full((4, 5), 2, np.uint8), other / "masks" / f"{k}.png")
    out = tmp_path / "list.json"
    first = prepare("folder", source, out, patient="^[^_]+")
    both = prepare("folder", other, out, append=True, seed=5)
    assert both.slices == {"training": first.slices["training"] + 3, "validation": 3, "testing": 0, "unlabelled": 0}
    datalist = load_datalist(out)
    assert [record["seed"] for record in datalist["sources"]] == [0, 5]
    assert both.data_hash == data_hash(out) != first.data_hash
    again = prepare("folder", other, out, append=True, seed=5)
    assert again.dropped == 4 and again.data_hash == both.data_hash


def test_append_refuses_a_patient_on_two_sides_and_keeps_the_old_file(source, tmp_path):
    out = tmp_path / "list.json"
    prepare("folder", source, out, patient="^[^_]+", seed=0)
    before = out.read_bytes()
    with pytest.raises(SplitError, match=r"patient hospital/p\d stands on two sides"):
        for seed in range(1, 20):  # one of them splits otherwise
            prepare("folder", source, out, patient="^[^_]+", seed=seed, append=True, codes={})
            out.write_bytes(before)
    assert out.read_bytes() == before and left_behind(tmp_path) == ["list.json"]


def test_the_same_image_under_two_names_on_two_sides_is_refused(source, tmp_path):
    for name in ("images", "masks"):
        (source / name / "q9_0.png").write_bytes((source / name / "p0_0.png").read_bytes())
    with pytest.raises(SplitError, match="image content"):
        for seed in range(20):
            prepare("folder", source, tmp_path / "list.json", patient="^[^_]+", seed=seed, validation=0.4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "unknown data set 'nothing': known are covid_semiseg, medseg_sirm100"),
        ("folder", {"colour": 1}, "folder has no option colour: it has patient, validation"),
        ("folder", {"patient": "("}, "is no regular expression"),
        ("folder", {"patient": "^z"}, "does not match slice p0_0"),
        ("folder", {"patient": 1}, r"patient is 1, give a regular expression such as"),
        ("folder", {"patient": "z*"}, "does not match slice p0_0"),
        ("folder", {"validation": 0.9, "testing": 0.1}, "leave nothing for training"),
        ("folder", {"codes": 255}, r"codes is 255, give mask values and what they mean, such as \{255: 1\}: 0 backgr"),
        ("folder", {"codes": {1: 999}}, r"codes is \{1: 999\}, give mask values .* 3 pleural effusion"),
        ("folder", {"codes": {"255": 1}}, r"codes is \{'255': 1\}, give mask values"),
        ("folder", {"codes": {255: [1]}}, r"codes is \{255: \[1\]\}, give mask values"),
        ("folder", {"codes": {True: 1}}, r"codes is \{True: 1\}, give mask values"),
        ("folder", {"hu_line": 1}, r"hu_line is 1, give \[slope, intercept\] with a slope above 0, such as \[1, 0\]"),
        ("folder", {"hu_line": "10"}, r"hu_line is '10', give \[slope"),
        ("folder", {"hu_line": [0, 0]}, r"hu_line is \[0, 0\], give \[slope"),
        ("folder", {"hu_line": [1, 2, 3]}, r"hu_line is \[1, 2, 3\], give \[slope"),
        ("folder", {"hu_line": [1, "0"]}, r"hu_line is \[1, '0'\], give \[slope"),
        ("folder", {"hu_line": [True, 0]}, r"hu_line is \[True, 0\], give \[slope"),
        ("folder", {"hu_line": [1, float("nan")]}, r"hu_line is \[1, nan\], give \[slope"),
        ("folder", {"hu_line": [10**400, 0]}, r"hu_line is \[10+, 0\], give \[slope"),
    ],
)
def test_prepare_refuses_with_one_line(source, tmp_path, name, options, message):
    with pytest.raises(DatasetError, match=message) as caught:
        prepare(name, source, tmp_path / "list.json", **options)
    assert "\n" not in str(caught.value) and left_behind(tmp_path) == []


def test_a_refusal_removes_the_folders_made_for_it_and_no_others(source, tmp_path):
    with pytest.raises(DatasetError, match="does not match slice"):
        prepare("folder", source, tmp_path / "a" / "b" / "list.json", patient="^z")
    assert left_behind(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(DatasetError, match="does not match slice"):
        prepare("folder", source, tmp_path / "mine" / "b" / "list.json", patient="^z")
    assert left_behind(tmp_path) == ["mine"] and not list((tmp_path / "mine").iterdir())
    prepare("folder", source, tmp_path / "a" / "b" / "list.json")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["list.json"]


@pytest.mark.parametrize(("dtype", "stored"), [(bool, 1), (np.uint8, 255), (np.uint16, 1000)])
def test_codes_are_translated_whatever_the_masks_type(source, tmp_path, dtype, stored):
    for path in (source / "masks").iterdir():
        save_slice((np.eye(4, 5) * stored).astype(dtype), path)
    prepare("folder", source, tmp_path / "list.json", codes={stored: 2})
    item = load_datalist(tmp_path / "list.json")["training"][0]
    assert np.array_equal(read_slice(tmp_path / item["label"]), 2 * np.eye(4, 5))


def test_values_that_codes_does_not_name_are_refused_not_wrapped(source, tmp_path):
    save_slice(np.full((4, 5), 256, np.uint16), source / "masks" / "p1_0.png")  # 0 in eight bits
    with pytest.raises(DatasetError, match=r"p1_0\.png holds values 256 that codes \{1: 2\} does not name: add them"):
        prepare("folder", source, tmp_path / "list.json", codes={1: 2})
    assert left_behind(tmp_path) == []


def test_prepare_refuses_wrong_sources(source, tmp_path):
    out = tmp_path / "list.json"
    with pytest.raises(DatasetError, match="folder needs a source folder: a folder with images/"):
        prepare("folder", None, out)
    with pytest.raises(DatasetError, match="is not a folder: folder needs"):
        prepare("folder", tmp_path / "none", out)
    with pytest.raises(DatasetError, match="phantom is made here and takes no source"):
        prepare("phantom", source, out)
    with pytest.raises(DatasetError, match="images is missing"):
        prepare("folder", source / "masks", out)
    (source / "masks" / "p2_1.png").unlink()
    with pytest.raises(DatasetError, match="masks lacks 1 of the slices, first p2_1"):
        prepare("folder", source, out)
    (source / "images" / "p2_1.png").unlink()
    save_slice(np.zeros((4, 5), np.uint8), source / "images" / "x.png")
    save_slice(np.zeros((4, 5), np.uint8), source / "masks" / "x.jpg")
    with pytest.raises(DatasetError, match=r"x\.jpg is a JPEG mask"):
        prepare("folder", source, out)


def test_prepare_refuses_places_it_cannot_or_must_not_write(source, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DatasetError, match=r"cannot prepare .*file/list\.json"):
        prepare("folder", source, tmp_path / "file" / "list.json")
    notes = tmp_path / "notes.json"
    notes.write_text(json.dumps({"mine": 1}))
    with pytest.raises(DatasetError, match="is not a datalist made by"):
        prepare("folder", source, notes)
    assert json.loads(notes.read_text()) == {"mine": 1}
    with pytest.raises(DatasetError, match="cannot be read"):
        prepare("folder", source, tmp_path / "none.json", append=True)


def test_describe_has_a_row_for_every_data_set():
    rows = describe()
    assert [row["name"] for row in rows] == list(DATASETS)
    assert all(row["title"] and row["licence"] and row["source"] for row in rows)
    assert "validation=(5, 8)" in next(row["options"] for row in rows if row["name"] == "medseg_radiopaedia9")
