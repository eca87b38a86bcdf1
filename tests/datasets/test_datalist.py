# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist

from covid_monai.datasets import prepare
from covid_monai.datasets.datalist import (
    SIDES,
    Fingerprint,
    check_split,
    data_hash,
    drop_duplicates,
    fingerprint,
    fingerprints,
    hash_of,
    load_datalist,
    load_side,
    portable_item,
    split_by_patient,
    without_label,
    write_json,
)
from covid_monai.datasets.faults import DatasetError, SplitError
from covid_monai.datasets.slices import pictures_by_stem, read_slice, save_slice

PRINT = Fingerprint("a", "b", "", False)


def make_item(folder: Path, name: str = "s", image: int = 5, label: int = 1) -> dict:
    """An item of one 2 x 3 slice."""
    return {
        "image": str(save_slice(np.full((2, 3), image, np.uint8), folder / f"{name}.png")),
        "label": str(save_slice(np.full((2, 3), label, np.uint8), folder / f"{name}_label.png")),
        "patient": None,
        "id": name,
    }


@given(
    patients=st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=8, max_size=30),
    validation=st.floats(0, 0.4),
    testing=st.floats(0, 0.4),
    seed=st.integers(0, 1000),
)
def test_split_keeps_patients_whole_and_loses_nothing(patients, validation, testing, seed):
    items = [{"id": str(i), "patient": patient} for i, patient in enumerate(patients)]
    shares = {"validation": validation, "testing": testing}
    groups = len({p for p in patients if p}) + patients.count(None)
    wanted = sum(max(1, round(share * groups)) for share in shares.values() if share)
    if wanted >= groups:
        with pytest.raises(DatasetError, match="too few"):
            split_by_patient(items, shares, seed)
        return
    sides = split_by_patient(items, shares, seed)
    assert sorted(item["id"] for side in sides.values() for item in side) == sorted(item["id"] for item in items)
    for patient in {p for p in patients if p}:
        assert sum(any(item["patient"] == patient for item in side) for side in sides.values()) == 1
    again = split_by_patient(reversed(items), shares, seed)
    for side in SIDES:
        assert {item["id"] for item in again[side]} == {item["id"] for item in sides[side]}
    assert bool(sides["testing"]) == (testing > 0)


def test_split_counts_by_hand():
    items = [{"id": f"{p}{k}", "patient": p} for p in "abcdefghij" for k in range(3)]
    sides = split_by_patient(items, {"validation": 0.2, "testing": 0.1}, seed=3)
    assert [len(sides[side]) for side in SIDES] == [21, 6, 3, 0]


@pytest.mark.parametrize("shares", [{"validation": 1.0}, {"validation": -0.1}, {"validation": 0.6, "testing": 0.4}])
def test_split_refuses_shares_that_leave_no_training(shares):
    with pytest.raises(DatasetError, match="leave nothing for training"):
        split_by_patient([{"id": "1", "patient": "a"}], shares, seed=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        ({"patient": "p"}, {"patient": "p"}, "patient p"),
        ({"id": "same"}, {"id": "same"}, "slice same"),
        ({"image": "/x/1.png"}, {"image": "/x/y/../1.png"}, "file /x/1.png"),
        ({"label": "/x/m.png"}, {"label": "/x/m.png"}, "file /x/m.png"),
    ],
)
def test_a_patient_slice_or_file_on_two_sides_is_refused(ours, theirs, kind):
    left = {"image": "/i/1.png", "label": "/l/1.png", "patient": None, "id": "1", **ours}
    right = {"image": "/i/2.png", "label": "/l/2.png", "patient": None, "id": "2", **theirs}
    other = PRINT._replace(image="c")
    with pytest.raises(SplitError, match=f"^{kind} stands on two sides: training .* and testing") as caught:
        check_split(
            {"training": [left], "validation": [], "testing": [right]},
            {"training": [PRINT], "validation": [], "testing": [other]},
        )
    assert "\n" not in str(caught.value)
    check_split(
        {"training": [left, right], "validation": [], "testing": []},
        {"training": [PRINT, other], "validation": [], "testing": []},
    )


def test_an_unlabelled_item_must_not_stand_on_a_labelled_side(tmp_path):
    labelled, other = make_item(tmp_path, "one", 5), make_item(tmp_path, "two", 6)
    for ours, kind in (
        ({**without_label(other), "patient": "p"}, "patient p"),
        ({**without_label(other), "id": "one"}, "slice one"),
        (without_label(labelled) | {"id": "three"}, "file .*one.png"),
        (without_label(make_item(tmp_path, "four", 5)), "image content"),
        ({**without_label(other), "lung": labelled["label"]}, "file .*one_label.png"),
    ):
        sides = {"training": [], "validation": [], "testing": [{**labelled, "patient": "p"}], "unlabelled": [ours]}
        with pytest.raises(SplitError, match=f"^{kind}.* stands on two sides: testing .* and unlabelled .*: keep it"):
            check_split(sides, fingerprints(sides))
        del sides["testing"]
        check_split(sides, fingerprints(sides))


def test_equal_images_on_two_sides_are_refused_but_equal_empty_masks_are_not(tmp_path):
    one, two = make_item(tmp_path, "one", 5, 0), make_item(tmp_path, "two", 5, 0)
    sides = {"training": [one], "validation": [two], "testing": []}
    with pytest.raises(SplitError, match=r"image content .* stands on two sides"):
        check_split(sides, {side: [fingerprint(i) for i in items] for side, items in sides.items()})
    sides["validation"] = [make_item(tmp_path, "three", 6, 0)]
    check_split(sides, {side: [fingerprint(i) for i in items] for side, items in sides.items()})


def test_duplicates_on_one_side_are_dropped_and_contradictions_refused(tmp_path):
    items = [make_item(tmp_path, "a", 5, 1), make_item(tmp_path, "b", 6, 1), make_item(tmp_path, "c", 5, 1)]
    kept, prints = drop_duplicates(items, [fingerprint(item) for item in items])
    assert [item["id"] for item in kept] == ["a", "b"] and len(prints) == 2
    items.append(make_item(tmp_path, "d", 5, 2))
    with pytest.raises(DatasetError, match=r"a\.png and .*d\.png are the same image with different labels"):
        drop_duplicates(items, [fingerprint(item) for item in items])


def test_fingerprint_hashes_contents_and_sees_lesions(tmp_path):
    item = make_item(tmp_path, label=3)
    found = fingerprint(item)
    assert found.image == hashlib.sha256(Path(item["image"]).read_bytes()).hexdigest()
    assert not found.lesion  # pleural effusion is none
    assert fingerprint(make_item(tmp_path, "x", label=2)).lesion


def test_fingerprint_refuses_what_does_not_fit(tmp_path):
    item = make_item(tmp_path)
    Path(item["label"]).unlink()
    with pytest.raises(DatasetError, match=r"label .*s_label\.png cannot be read"):
        fingerprint(item)
    save_slice(np.zeros((3, 2), np.uint8), Path(item["label"]))
    with pytest.raises(DatasetError, match=r"\(3, 2\) \(H, W\) but image .*\(2, 3\)"):
        fingerprint(item)
    save_slice(np.full((2, 3), 7, np.uint8), Path(item["label"]))
    with pytest.raises(DatasetError, match=r"unknown codes \[7\]"):
        fingerprint(item)
    del item["label"]
    with pytest.raises(DatasetError, match="has no label: every item needs one but those of the unlabelled side"):
        fingerprint(item)


def test_an_item_has_a_label_on_every_side_but_the_unlabelled(tmp_path):
    item = {**make_item(tmp_path, label=2), "lesion": True, "class_source": "stated"}
    item["lung"] = item["label"]
    bare = without_label(item)
    assert bare.keys() == {"image", "patient", "id", "lung"} and "label" in item
    found = fingerprint(bare, "unlabelled")
    assert found == fingerprint(item)._replace(label="", lesion=False)
    with pytest.raises(DatasetError, match=r"s\.png has a label but stands on the unlabelled side: leave one of them"):
        fingerprint(item, "unlabelled")
    for side in ("training", "validation", "testing"):
        assert fingerprint(item, side).lesion
        with pytest.raises(DatasetError, match="has no label"):
            fingerprint(bare, side)


def test_hash_counts_contents_and_sides_but_not_order():
    one, two = PRINT, PRINT._replace(image="z")
    expected = hashlib.sha256(b"testing z b \ntraining a b \n").hexdigest()
    assert hash_of({"training": [one], "validation": [], "testing": [two]}) == expected
    without = hash_of({"training": [one], "validation": [], "testing": [two], "unlabelled": []})
    assert without == expected  # as it was before there was that side
    bare = Fingerprint("q", "", "m", False)
    expected = hashlib.sha256(b"testing z b \ntraining a b \nunlabelled q  m\n").hexdigest()
    assert hash_of({"training": [one], "validation": [], "testing": [two], "unlabelled": [bare]}) == expected
    both = {"training": [one, two], "validation": [], "testing": []}
    assert hash_of(both) == hash_of({**both, "training": [two, one]}) != expected


def test_written_datalist_is_portable_and_read_by_monai(tmp_path):
    item = portable_item({**make_item(tmp_path / "slices"), "hu_line": [1.0, 0.0]}, tmp_path)
    assert item["image"] == "slices/s.png"
    outside = portable_item({"image": "/elsewhere/s.png"}, tmp_path)
    assert outside == {"image": "/elsewhere/s.png"}
    path = tmp_path / "list.json"
    write_json({"sources": [], "training": [item], "validation": [], "testing": []}, path)
    (read,) = load_decathlon_datalist(path, True, "training")
    assert read["image"] == str(tmp_path / "slices" / "s.png") and read["hu_line"] == [1.0, 0.0]
    before = data_hash(path)
    (tmp_path / "slices").rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match="cannot be read"):
        data_hash(path)
    moved = json.loads(path.read_text().replace("slices/", "moved/"))
    write_json(moved, path)
    assert data_hash(path) == before


def test_a_datalist_of_three_sides_is_read_and_added_to_as_before(tmp_path):
    path = tmp_path / "list.json"
    item = {**portable_item(make_item(tmp_path / "slices"), tmp_path), "dataset": "folder", "lesion": True}
    sha = hashlib.sha256((tmp_path / item["image"]).read_bytes()).hexdigest()
    label_sha = hashlib.sha256((tmp_path / item["label"]).read_bytes()).hexdigest()
    line = f"validation {sha} {label_sha} \n"
    old = {"name": "folder", "licence": "own", "seed": 0, "options": {}}
    write_json({"sources": [old], "training": [], "validation": [item], "testing": []}, path)
    before = path.read_text()
    assert data_hash(path) == hashlib.sha256(line.encode()).hexdigest()
    assert load_datalist(path)["unlabelled"] == [] and path.read_text() == before
    assert [i["id"] for i in load_side(path, "validation")] == ["s"]
    with pytest.raises(DatasetError, match="has no unlabelled slices: add a set with `--unlabelled`"):
        load_side(path, "unlabelled")
    summary = prepare("phantom", None, path, append=True, unlabelled=True, patients=3, slices=2, size=32, healthy=0.0)
    assert summary.slices == {"training": 0, "validation": 3, "testing": 2, "unlabelled": 2}
    assert summary.data_hash == data_hash(path)


@pytest.mark.parametrize(("side", "label"), [("unlabelled", True), ("training", False)])
def test_a_datalist_with_labels_on_the_wrong_side_is_refused(tmp_path, side, label):
    item = portable_item(make_item(tmp_path), tmp_path)
    sides = {"training": [], "validation": [], "testing": [], "unlabelled": []}
    write_json({"sources": [], **sides, side: [item if label else without_label(item)]}, tmp_path / "list.json")
    with pytest.raises(DatasetError, match="not a datalist made by"):
        load_datalist(tmp_path / "list.json")


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is not JSON"), ('{"training": []}', "not a datalist made by"), ("[]", "not a")],
)
def test_load_datalist_refuses_other_files(tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_datalist(path)


def test_slices_of_every_kind_read_as_height_by_width(tmp_path):
    array = np.arange(6, dtype=np.uint16).reshape(2, 3) + 4000
    assert np.array_equal(read_slice(save_slice(array, tmp_path / "a.png")), array)
    codes = np.array([[0, 1, 2], [3, 0, 1]], np.uint8)
    assert np.array_equal(read_slice(save_slice(codes, tmp_path / "b.png")), codes)
    assert np.array_equal(read_slice(save_slice(codes > 0, tmp_path / "c.png")), codes > 0)


def test_slices_that_are_none_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="missing"):
        read_slice(tmp_path / "none.png")
    with pytest.raises(DatasetError, match="is a RGB picture"):
        read_slice(save_slice(np.zeros((2, 3, 3), np.uint8), tmp_path / "rgb.png"))
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(DatasetError, match="is not a slice file"):
        read_slice(tmp_path / "a.tif")
    whole = save_slice(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), tmp_path / "cut.png")
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="is the file complete"):
        read_slice(whole)


def test_pictures_are_found_in_natural_order(tmp_path):
    for name in ("10.png", "2.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    assert list(pictures_by_stem(tmp_path)) == ["2", "10"]
    (tmp_path / "2.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"holds both 2\.jpg and 2\.png"):
        pictures_by_stem(tmp_path)
    with pytest.raises(DatasetError, match="is missing"):
        pictures_by_stem(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no slice file"):
        pictures_by_stem(tmp_path / "empty")


def test_a_side_has_absolute_paths_and_is_not_empty(tmp_path):
    prepare("phantom", None, tmp_path / "list.json", patients=4, slices=2, size=32, healthy=0.0, testing=0.0)
    items = load_side(tmp_path / "list.json", "training")
    assert items and all(Path(item["image"]).is_file() for item in items)
    with pytest.raises(DatasetError, match=r"has no testing slices: prepare it with `--option testing=SHARE`"):
        load_side(tmp_path / "list.json", "testing")
    with pytest.raises(DatasetError, match="has no side 'test': choose one of training, validation, testing, unlab"):
        load_side(tmp_path / "list.json", "test")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_side(tmp_path / "none.json", "training")
