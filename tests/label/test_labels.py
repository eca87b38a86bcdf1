# SPDX-License-Identifier: Apache-2.0
"""From a corrected label to its score, the next scan, and many scans at once."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import voxels
from tests.label.server import LabelServer, array_of, running_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(patients: list[Path], tmp_path: Path) -> Iterator[LabelServer]:
    (tmp_path / "scans").mkdir()
    for number, patient in enumerate(patients, start=1):
        shutil.copy(patient / "image.nii.gz", tmp_path / "scans" / f"scan{number}.nii.gz")
    with running_server(tmp_path / "scans", tmp_path / "work") as server:
        yield server


def corrected(found: bytes, like: Path, folder: Path) -> tuple[np.ndarray, Path]:
    """A model's mask with its consolidation made ground glass, as a radiologist might save it."""
    mask = array_of(found).copy()
    mask[mask == 2] = 1
    path = folder / "corrected.nii.gz"
    nib.save(nib.Nifti1Image(mask, nib.load(like).affine), path)
    return mask, path


def test_a_corrected_label_is_kept_and_scored(
    server: LabelServer, patients: list[Path], tmp_path: Path, analysed: Callable[[Path], Path]
) -> None:
    image = patients[0] / "image.nii.gz"
    _, found = server.mask("lesions", "scan1")
    mask, file = corrected(found, image, tmp_path)
    before = array_of(found)
    response = server.save("scan1", file)
    assert response.status_code == 200, response.text
    dice = response.json()["dice"]
    ground_glass = 2 * (before == 1).sum() / ((before == 1).sum() + (mask == 1).sum())  # all of it is in the mask
    assert dice["any lesion"] == 1
    assert dice["ground glass"] == pytest.approx(ground_glass, abs=1e-4)
    assert dice["consolidation"] == 0
    np.testing.assert_array_equal(voxels(tmp_path / "scans" / "labels" / "final" / "scan1.nii.gz"), mask)
    np.testing.assert_array_equal(voxels(tmp_path / "scans" / "labels" / "original" / "scan1.nii.gz"), before)
    info = server.ask("GET", "/datastore/label/info", params={"label": "scan1", "tag": "final"}).json()
    assert info["dice"] == dice
    assert server.ask("POST", "/scoring/dice?run_sync=true").json() == {"scan1": dice}
    assert server.ask("GET", "/datastore/").json()["completed"] == 1

    # 3D Slicer numbers segments by their place and sends their names
    swapped = {"label_info": [{"name": "consolidation"}, {"name": "ground glass"}]}
    assert server.save("scan1", file, params=swapped).ok
    kept = voxels(tmp_path / "scans" / "labels" / "final" / "scan1.nii.gz")
    np.testing.assert_array_equal(kept, np.where(mask == 1, 2, 0))

    # OHIF sends bare voxels
    raw = tmp_path / "label.bin"
    raw.write_bytes(mask.astype(np.uint8).tobytes(order="F"))
    assert server.save("scan1", raw).ok
    np.testing.assert_array_equal(voxels(tmp_path / "scans" / "labels" / "final" / "scan1.nii.gz"), mask)

    # what is no label of this scan changes nothing
    wrong = tmp_path / "wrong.nii.gz"
    affine = nib.load(image).affine
    for content, matrix, told in (
        (np.full(mask.shape, 7, np.uint8), affine, "holds the code 7"),
        (mask[1:], affine, "no label of that scan"),
        (mask, np.diag([2, 2, 2, 1]), "no label of that scan"),
    ):
        nib.save(nib.Nifti1Image(content, matrix), wrong)
        refused = server.save("scan1", wrong)
        assert refused.status_code == 400
        assert told in refused.json()["detail"]
    raw.write_bytes(b"12")
    assert "has 2 voxels" in server.save("scan1", raw).json()["detail"]
    named = server.save("scan1", file, params={"label_info": [{"name": "heart"}]})
    assert "'heart' is none of ground glass, consolidation" in named.json()["detail"]
    assert "no such image" in server.save("scan9", file).json()["detail"]
    np.testing.assert_array_equal(voxels(tmp_path / "scans" / "labels" / "final" / "scan1.nii.gz"), mask)


def test_the_next_scan_is_the_least_certain_one(server: LabelServer, tmp_path: Path) -> None:
    refused = server.ask("POST", "/activelearning/uncertainty", json={})
    assert refused.status_code == 400
    assert "run the batch inference" in refused.json()["detail"]
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no NIfTI")
    while "broken" not in server.ask("GET", "/datastore/?output=all").json()["objects"]:
        pass
    assert server.ask("POST", "/batch/infer/lesions?images=unlabeled", json={}).ok
    task = server.wait("batch/infer")
    assert task["status"] == "DONE", task
    (tmp_path / "scans" / "broken.nii.gz").unlink()
    objects = server.ask("GET", "/datastore/?output=all").json()["objects"]
    figures = {name: objects[name]["image"]["info"]["uncertainty"]["value"] for name in ("scan1", "scan2")}
    assert all("original" in objects[name]["labels"] for name in figures)
    most = max(figures, key=lambda name: figures[name])
    found = server.ask("POST", "/activelearning/uncertainty", json={}).json()
    assert (found["id"], found["lesion_share_range"]) == (most, figures[most])

    empty = tmp_path / "empty.nii.gz"
    reference = nib.load(tmp_path / "scans" / f"{most}.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(reference.shape, np.uint8), reference.affine), empty)
    assert server.save(most, empty).ok
    (other,) = set(figures) - {most}
    assert server.ask("POST", "/activelearning/uncertainty", json={}).json()["id"] == other
    assert server.ask("POST", "/activelearning/first", json={}).json()["id"] == other
    assert server.ask("POST", "/activelearning/random", json={}).json()["id"] == other
    assert json.loads((tmp_path / "scans" / "datastore_v2.json").read_text())["objects"][most]["labels"]["final"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips the test, with that reason, where none may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False).returncode:
        pytest.skip("a file system of its own may not be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_told_and_the_earlier_label_stays(
    small_disk: Path, patients: list[Path], tiny_cascade_bundle: Path, tmp_path: Path
) -> None:
    image = patients[0] / "image.nii.gz"
    shutil.copy(image, small_disk / "scan1.nii.gz")
    label = small_disk / "labels" / "final" / "scan1.nii.gz"
    new = tmp_path / "new.nii.gz"
    reference = nib.load(image)
    random = np.random.default_rng(0).integers(0, 3, reference.shape).astype(np.uint8)  # compresses badly
    nib.save(nib.Nifti1Image(random, reference.affine), new)
    with running_server(small_disk, tmp_path / "work", "--bundle", tiny_cascade_bundle) as server:
        assert server.save("scan1", patients[0] / "lesions.nii.gz").ok
        before, index = label.read_bytes(), (small_disk / "datastore_v2.json").read_bytes()
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 1024):
                pass
        refused = server.save("scan1", new)
        assert refused.status_code == 507, refused.text
        assert "the disk is full: nothing was changed" in refused.json()["detail"]
        assert label.read_bytes() == before
        assert (small_disk / "datastore_v2.json").read_bytes() == index
        assert sorted(path.name for path in label.parent.iterdir()) == ["scan1.nii.gz"]
        (small_disk / "filler").unlink()
        assert server.save("scan1", new).ok
        np.testing.assert_array_equal(voxels(label), random)
