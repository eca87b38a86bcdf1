# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from covid_monai.analysis import Analysis, analyse
from covid_monai.ct import CTScan, read_ct
from covid_monai.inference import LesionSegmenter, UprightSliceInferer
from covid_monai.reports import FILES, ResultsError, write_results
from covid_monai.reports import results as results_module
from tests.inference.networks import Band


@pytest.fixture(scope="module")
def segmenter() -> LesionSegmenter:
    return LesionSegmenter(Band(-700, -100), UprightSliceInferer(size=(65, 96)), device="cpu")


@pytest.fixture(scope="module")
def scan(phantom_folder: Path) -> CTScan:
    return read_ct(phantom_folder / "image.nii.gz")


@pytest.fixture(scope="module")
def analysis(scan: CTScan, segmenter: LesionSegmenter) -> Analysis:
    return analyse(scan, segmenter)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes the most time; where pictures and reports do not matter they are one byte."""
    for name in ("save_overview", "save_html", "save_pdf"):
        monkeypatch.setattr(results_module, name, lambda analysis, path, *title: Path(path).write_bytes(b"!"))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_mask_figures_and_picture_are_written(analysis: Analysis, scan: CTScan, tmp_path: Path):
    files = write_results(analysis, scan, tmp_path / "new" / "results")
    assert files == {name: tmp_path / "new" / "results" / name for name in FILES}
    assert names(tmp_path / "new" / "results") == set(FILES)
    for name, array in (("lungs", analysis.lungs), ("regions", analysis.regions)):
        assert np.array_equal(scan.from_upright(array), np.asarray(nib.load(files[f"{name}.nii.gz"]).dataobj))
    mask = nib.load(files["lesions.nii.gz"])
    assert np.array_equal(scan.from_upright(analysis.lesions), np.asarray(mask.dataobj))
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-6)
    text = files["analysis.json"].read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == analysis.to_dict()
    with Image.open(files["overview.png"]) as image:
        image.load()
        assert image.width == 1400


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("classes", "comment"),
    [(("lesion",), b"1 = lesion"), (("ground glass", "consolidation"), b"1 = ground glass; 2 = consolidation")],
)
def test_codes_are_written_and_named_in_the_mask(
    analysis: Analysis, scan: CTScan, tmp_path: Path, classes: tuple[str, ...], comment: bytes
):
    lesions = analysis.lesions.copy()
    lesions[len(lesions) // 2 :] *= len(classes)
    files = write_results(replace(analysis, lesions=lesions, classes=classes), scan, tmp_path)
    mask = nib.load(files["lesions.nii.gz"])
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) == set(range(len(classes) + 1))
    assert np.array_equal(np.asarray(mask.dataobj), scan.from_upright(lesions))
    (extension,) = mask.header.extensions
    assert extension.get_content().strip(b"\0") == comment


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SRP", "IAR"])
def test_the_mask_lies_on_the_scan_in_any_orientation(
    codes: str, analysis: Analysis, segmenter: LesionSegmenter, phantom_folder: Path, tmp_path: Path
):
    image = nib.load(phantom_folder / "image.nii.gz")
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    nib.save(turned, tmp_path / "turned.nii.gz")
    scan = read_ct(tmp_path / "turned.nii.gz")
    files = write_results(analyse(scan, segmenter), scan, tmp_path / "results")
    mask = nib.load(files["lesions.nii.gz"])
    assert mask.shape == turned.shape
    np.testing.assert_allclose(mask.affine, turned.affine, atol=1e-4)
    # in world space it is the mask of the scan that was not turned
    canonical = nib.as_closest_canonical(mask)
    np.testing.assert_allclose(canonical.affine, image.affine, atol=1e-4)
    assert np.array_equal(np.asarray(canonical.dataobj), upright_to_ras(analysis.lesions))


def upright_to_ras(mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) along RAS+ axes, as the phantom's own, from upright (Z, H, W)."""
    return mask.transpose(2, 1, 0)[::-1, ::-1]


@pytest.mark.usefixtures("no_drawing")
def test_every_lesion_voxel_is_at_the_place_of_its_hu(
    analysis: Analysis, segmenter: LesionSegmenter, phantom_folder: Path, tmp_path: Path
):
    """By positions in mm, on a scan whose axes are oblique: no lesion voxel lies outside the band of HU, opened."""
    image = nib.load(phantom_folder / "image.nii.gz")
    angle = np.deg2rad(8)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = nib.Nifti1Image(
        np.asarray(image.dataobj)[:, ::-1].copy(), rotation @ image.affine @ flip_y(image.shape[1])
    )
    nib.save(oblique, tmp_path / "oblique.nii.gz")
    scan = read_ct(tmp_path / "oblique.nii.gz")
    mask = nib.load(write_results(analyse(scan, segmenter), scan, tmp_path / "results")["lesions.nii.gz"])
    mm = nib.affines.apply_affine(np.linalg.inv(rotation) @ mask.affine, np.argwhere(np.asarray(mask.dataobj)))
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), mm)).astype(int)
    values = np.asarray(image.dataobj)[tuple(voxels.T)]
    assert len(values) == analysis.lesions.sum()
    assert ((values >= -700) & (values <= -100)).all()


def flip_y(size: int) -> np.ndarray:
    """Voxels of a volume flipped along Y to those of the volume."""
    return np.array([[1, 0, 0, 0], [0, -1, 0, size - 1], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)


# whole or not at all -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["write_mask", "save_overview", "save_html", "save_pdf"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[BaseException]], None]:
    """Let a step of the writing raise."""

    def let(fault: type[BaseException]) -> None:
        def fail(*args: object) -> None:
            raise fault("no memory")

        monkeypatch.setattr(results_module, request.param, fail)

    return let


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(
    analysis: Analysis, scan: CTScan, tmp_path: Path, failing: Callable[..., None], fault: type[BaseException]
):
    failing(fault)
    with pytest.raises(fault, match="no memory"):
        write_results(analysis, scan, tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("no_drawing")
def test_a_failure_leaves_earlier_results_as_they_were(
    analysis: Analysis, scan: CTScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_results(analysis, scan, tmp_path)
    before = contents(tmp_path)

    def fail(analysis: Analysis, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_module, "save_overview", fail)
    with pytest.raises(ResultsError, match=r"cannot be written \(No space left on device\): choose another folder"):
        write_results(replace(analysis, warnings=("New.",)), scan, tmp_path)
    assert contents(tmp_path) == before


# what lies there already ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_drawing")
def test_results_of_the_same_scan_are_replaced_and_other_files_kept(analysis: Analysis, scan: CTScan, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    write_results(analysis, scan, tmp_path)
    write_results(replace(analysis, warnings=("New.",)), scan, tmp_path)
    assert json.loads((tmp_path / "analysis.json").read_text())["warnings"] == ["New."]
    assert names(tmp_path) == {*FILES, "notes.txt"}


@pytest.mark.usefixtures("no_drawing")
def test_results_of_another_scan_are_refused_unless_to_be_overwritten(analysis: Analysis, scan: CTScan, tmp_path: Path):
    write_results(analysis, scan, tmp_path)
    before = contents(tmp_path)
    other = replace(analysis, scan_id="f" * 16)
    with pytest.raises(ResultsError, match=rf"holds results of another scan \({analysis.scan_id}\): choose"):
        write_results(other, scan, tmp_path)
    assert contents(tmp_path) == before
    write_results(other, scan, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "analysis.json").read_text())["scan_id"] == "f" * 16


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("analysis.json", "{"),
        ("analysis.json", "[]"),
        ("analysis.json", "{}"),
        ("lesions.nii.gz", ""),
        ("overview.png", ""),
    ],
)
def test_files_of_unknown_origin_are_not_overwritten(
    analysis: Analysis, scan: CTScan, tmp_path: Path, name: str, content: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(ResultsError, match=r"of these names that are no results"):
        write_results(analysis, scan, tmp_path)
    assert contents(tmp_path) == {name: content.encode()}
    write_results(analysis, scan, tmp_path, overwrite=True)
    assert names(tmp_path) == set(FILES)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("below", [".", "below"])
def test_a_file_in_the_place_of_the_folder_is_refused(analysis: Analysis, scan: CTScan, tmp_path: Path, below: str):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultsError, match=r"cannot be written \((File exists|Not a directory)\)"):
        write_results(analysis, scan, tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"
