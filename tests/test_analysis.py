# SPDX-License-Identifier: Apache-2.0
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from covid_monai.analysis import Analysis, analyse
from covid_monai.ct import CTScan, SourceFacts, read_ct
from covid_monai.datasets.phantom import Phantom, make_phantom, upright
from covid_monai.inference import FastNetwork, LesionSegmenter, ModelFacts, UprightSliceInferer
from covid_monai.inference.int8 import is_exact
from covid_monai.networks import FineInfNet
from covid_monai.severity import GivenLungs, LungFinder, LungSearch, ThresholdLungs, dice
from covid_monai.transforms import LungWindow
from tests.inference.networks import Band, ClassBands, Constant

GROUND_GLASS = (-700.0, -100.0)  # between lung and soft tissue, HU
BODY = (65, 96)  # rows and columns of the phantom's body box, so that nothing is resampled


def segmenter(size: tuple[int, int] = BODY, **options: Any) -> LesionSegmenter:
    return LesionSegmenter(Band(*GROUND_GLASS), UprightSliceInferer(size=size, batch_size=8), device="cpu", **options)


@pytest.fixture(scope="module")
def scan(phantom_folder: Path) -> CTScan:
    return read_ct(phantom_folder / "image.nii.gz")


@pytest.fixture(scope="module")
def analysis(scan: CTScan) -> Analysis:
    facts = ModelFacts("band", "1.2", "ab" * 32, {"_target_": "tests.Band"})
    return analyse(scan, segmenter(facts=facts))


# against the truth of the phantom ------------------------------------------------------------------------------------


def test_masks_lie_on_those_of_the_phantom(analysis: Analysis, phantom: Phantom):
    assert dice(analysis.lesions, upright(phantom.lesions)) > 0.8
    assert dice(analysis.lungs, upright(phantom.lungs)) > 0.96  # slices of 18 mm


def test_figures_are_those_of_the_phantom(analysis: Analysis, phantom: Phantom):
    figures, truth = analysis.severity.whole, phantom.truth
    assert figures.lung_ml == pytest.approx(truth["lung_ml"], rel=0.05)
    assert figures.lesion_share == pytest.approx(truth["lesion_share"], abs=0.06)
    assert figures.lesion_ml == pytest.approx(truth["lesion_ml"], rel=0.2)
    with_lung = int((phantom.lungs != 0).any(axis=(0, 1)).sum())
    assert analysis.lung_slices == pytest.approx(with_lung, abs=1)


def test_healthy_lungs_have_a_small_share(tmp_path: Path):
    path = make_phantom(0, (96, 96, 16), lesions=None).write_nifti(tmp_path)
    share = analyse(read_ct(path), segmenter()).severity.whole.lesion_share
    assert share is not None
    assert share < 0.07


def test_dicom_and_nifti_of_one_scan_give_the_same_figures(phantom_folder: Path, analysis: Analysis):
    found = analyse(read_ct(phantom_folder / "dicom"), segmenter())
    assert np.array_equal(found.lesions, analysis.lesions)
    assert found.severity.whole.lesion_ml == pytest.approx(analysis.severity.whole.lesion_ml)
    assert found.severity.whole.lesion_share == analysis.severity.whole.lesion_share


@pytest.mark.parametrize("codes", ["SPL", "ARI"])
def test_figures_do_not_depend_on_the_order_of_the_axes(
    codes: str, analysis: Analysis, phantom_folder: Path, tmp_path: Path
):
    image = nib.load(phantom_folder / "image.nii.gz")
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))
    nib.save(turned, tmp_path / "turned.nii.gz")
    found = analyse(read_ct(tmp_path / "turned.nii.gz"), segmenter())
    assert np.array_equal(found.lungs, analysis.lungs)
    assert np.array_equal(found.lesions, analysis.lesions)
    assert found.severity.whole.lung_ml == pytest.approx(analysis.severity.whole.lung_ml)


# exactly, on a scan of boxes -----------------------------------------------------------------------------------------

SPACING = (2.0, 3.0, 5.0)
LUNG_VOXELS, LESION_VOXELS = 2 * 10 * 40 * 20, 6 * 8 * 10


def boxes() -> np.ndarray:
    """HU (Z, H, W), (12, 64, 64): a body with 4 pixels of air around it, two lungs, lesions in and out of them."""
    hu = np.full((12, 64, 64), -1000, dtype=np.float32)
    hu[:, 4:60, 4:60] = 40
    for left in (8, 36):
        hu[1:11, 12:52, left : left + 20] = -850
    hu[3:9, 20:28, 12:22] = -400  # in the lung of the patient's right
    hu[2:5, 54:58, 20:30] = -300  # behind the lungs: dropped
    return hu


def boxed(hu: np.ndarray, **options: Any) -> CTScan:
    """Upright slices as a scan whose own axes point to the left, posterior and superior."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    return CTScan(np.ascontiguousarray(hu.T), affine, SourceFacts("NIfTI", 1), **options)


def test_figures_are_counts_of_voxels():
    found = analyse(boxed(boxes()), segmenter(size=(64, 64)))
    assert found.lesions.sum() == LESION_VOXELS
    assert np.count_nonzero(found.lungs) == LUNG_VOXELS
    figures = found.severity.whole
    assert figures.lesion_ml == pytest.approx(LESION_VOXELS * 2 * 3 * 5 / 1000)
    assert figures.lung_ml == pytest.approx(LUNG_VOXELS * 2 * 3 * 5 / 1000)
    assert figures.lesion_share == LESION_VOXELS / LUNG_VOXELS
    assert (found.lesion_slices, found.lung_slices) == (6, 10)


@pytest.mark.parametrize("kind", ["lungs", "lobes"])
def test_masks_that_are_given_serve_again_and_stay_as_they_are(kind: str):
    sides = np.zeros((12, 64, 64), dtype=np.uint8)
    sides[1:11, 12:52, 8:28], sides[1:11, 12:52, 36:56] = 1, 2
    upper = np.arange(12)[:, None, None] > 5
    lobes = np.select([sides == 1, sides == 2], [np.where(upper, 3, 5), np.where(upper, 1, 2)], 0).astype(np.uint8)
    given = {"lungs": sides, "lobes": lobes}[kind]
    finder, before = GivenLungs(**{kind: given}), given.copy()
    first, again = (analyse(boxed(boxes()), segmenter(size=(64, 64)), finder) for _ in range(2))
    assert np.array_equal(given, before)
    assert np.array_equal(first.lungs, sides)
    assert np.array_equal(first.regions, again.regions)
    assert first.severity == again.severity


def test_lesions_that_reach_out_of_the_lungs_are_lung():
    hu = boxes()
    hu[5:7, 30:34, 18:34] = -400  # from one lung into what lies between the two
    found = analyse(boxed(hu), segmenter(size=(64, 64)))
    assert found.lesions[5:7, 30:34, 18:34].all()
    assert found.lungs[5:7, 30:34, 18:34].all()
    assert np.count_nonzero(found.lungs) >= LUNG_VOXELS + 2 * 4 * 6  # the columns 28..33
    assert found.severity.whole.lesion_share == found.lesions.sum() / np.count_nonzero(found.lungs)


def test_without_a_lung_there_is_no_share_and_a_warning():
    hu = np.full((4, 64, 64), 40, dtype=np.float32)
    hu[:, 10:20, 10:20] = -300
    found = analyse(boxed(hu), segmenter(size=(64, 64)))
    assert found.severity.whole.lesion_share is None
    assert (found.severity.whole.lung_ml, found.lung_slices) == (0, 0)
    assert found.lesion_slices == 0  # what lies outside the lungs is dropped
    assert sum("No lung was found" in warning for warning in found.warnings) == 1


@pytest.mark.parametrize(("spacing", "warned"), [(2.0, True), (5.0, False), (12.0, True)])
def test_implausible_lung_volumes_are_warned_of(spacing: float, warned: bool):
    # 16000 voxels: 128 mL, 2000 mL and 27.6 L
    scan = CTScan(np.ascontiguousarray(boxes().T), np.diag([-spacing, -spacing, spacing, 1]), SourceFacts("NIfTI", 1))
    warnings = analyse(scan, segmenter(size=(64, 64))).warnings
    assert any("not plausible" in warning for warning in warnings) == warned


def test_a_lung_that_the_threshold_misses_is_warned_of():
    """A consolidated lung is as dense as the chest wall: its share would silently be that of the other lung."""
    assert not any("left lung" in w for w in analyse(boxed(boxes()), segmenter(size=(64, 64))).warnings)
    hu = boxes()
    hu[1:11, 12:52, 36:56] = 40  # the left one
    warnings = analyse(boxed(hu), segmenter(size=(64, 64))).warnings
    assert any("left lung" in warning for warning in warnings)


def test_lesions_drawn_out_of_the_chest_are_warned_of():
    assert not any("outside the lungs" in w for w in analyse(boxed(boxes()), segmenter(size=(64, 64))).warnings)
    hu = boxes()
    hu[1:11, 4:8, 8:56] = -400  # in front of the lungs
    warnings = analyse(boxed(hu), segmenter(size=(64, 64))).warnings
    assert any("of the lesion volume" in w and "outside the lungs" in w for w in warnings)


def test_warnings_of_the_scan_are_handed_on():
    found = analyse(boxed(boxes(), warnings=["Slices are thick."]), segmenter(size=(64, 64)))
    assert found.warnings[0] == "Slices are thick."


class Misled(LungFinder):
    """Its first look finds slices that have no lung, and its search the lungs."""

    def begin(self, hu: np.ndarray, spacing: tuple[float, float, float]) -> LungSearch:
        search = ThresholdLungs().begin(hu, spacing)
        search.slices = slice(0, 1)
        return search


@pytest.mark.parametrize("ranges", [True, False])
def test_what_a_first_look_missed_is_looked_at(ranges: bool, monkeypatch: pytest.MonkeyPatch):
    model = segmenter(size=(64, 64))
    seen: list[int] = []
    fitted = model.fitted
    monkeypatch.setattr(model, "fitted", lambda hu, slabs, box: seen.append(len(slabs)) or fitted(hu, slabs, box))
    found = analyse(boxed(boxes()), model, Misled(), ranges=ranges)
    assert seen == [1, 12]  # what predicts is fitted to all slices, not to those that it was misled to
    expected = analyse(boxed(boxes()), model, ranges=ranges)
    assert np.array_equal(found.lesions, expected.lesions)
    assert (found.severity, found.spread) == (expected.severity, expected.spread)


def test_a_search_that_fails_ends_the_analysis():
    class Failing(LungFinder):
        def begin(self, hu: np.ndarray, spacing: tuple[float, float, float]) -> LungSearch:
            search = ThresholdLungs().begin(hu, spacing)
            search.search = fail  # type: ignore[method-assign]
            return search

    def fail() -> slice:
        raise ValueError("no lungs today")

    seen: list[int] = []
    hu = np.concatenate([boxes()] * 10)
    with pytest.raises(ValueError, match="no lungs today"):
        analyse(boxed(hu), segmenter(size=(64, 64)), Failing(), progress=seen.append)
    assert sum(seen) < len(hu)  # before the network is done


def test_progress_counts_the_slices():
    done: list[int] = []
    analyse(boxed(boxes()), segmenter(size=(64, 64)), progress=done.append)
    assert sum(done) == 2 * 12
    done.clear()
    assert analyse(boxed(boxes()), segmenter(size=(64, 64)), ranges=False, progress=done.append).spread is None
    assert sum(done) == 12


@pytest.mark.parametrize(("spacing_known", "seen"), [(True, 3), (False, 12)])
def test_of_thin_slices_the_network_sees_slabs(spacing_known: bool, seen: int):
    slices: list[int] = []

    class Counted(Band):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            slices.append(len(x))
            return super().forward(x)

    counted = LesionSegmenter(Counted(-700, -100), UprightSliceInferer((64, 64), slab=3.0), device="cpu")
    counted.prepare()
    slices.clear()
    source = CTScan(
        np.ascontiguousarray(boxes().T), np.diag([-3, -3, 0.6, 1]), SourceFacts("NIfTI", 1), spacing_known=spacing_known
    )
    found = analyse(source, counted)
    assert sum(slices) == 2 * seen  # once mirrored
    assert found.record["method"]["slab_mm"] == 3.0


@pytest.mark.parametrize("network", ["float32", "int8"])
def test_both_passes_are_by_one_network_which_is_told(network: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if network == "int8" and not is_exact():
        pytest.skip("this CPU has no VNNI instructions")
    for module in ("fast", "precision", "int8"):
        monkeypatch.setattr(f"covid_monai.inference.{module}.has_bfloat16", lambda: False)
    monkeypatch.setattr("covid_monai.inference.fast.gains_by_int8", lambda: network == "int8")
    calibrated: list[int] = []
    quantised = FastNetwork.quantised
    monkeypatch.setattr(
        FastNetwork, "quantised", lambda self, slices: calibrated.append(len(slices)) or quantised(self, slices)
    )
    path = make_phantom(0, (96, 96, 48), lesions=None).write_nifti(tmp_path)
    found = analyse(read_ct(path), LesionSegmenter(FineInfNet(), UprightSliceInferer((64, 64)), device="cpu"))
    assert found.record["method"]["precision"] == network
    assert calibrated == ([4] if network == "int8" else [])


# ground glass and consolidation --------------------------------------------------------------------------------------


def tell_apart(size: tuple[int, int] = (64, 64)) -> LesionSegmenter:
    return LesionSegmenter(
        ClassBands((-700, -350), (-350, -100)), UprightSliceInferer(size, batch_size=8), device="cpu"
    )


def mixed() -> np.ndarray:
    """The scan of boxes with a consolidated part of 2 x 4 x 10 voxels in its lesion."""
    hu = boxes()
    hu[3:5, 24:28, 12:22] = -200
    return hu


def test_classes_are_counted_apart_and_add_up():
    found = analyse(boxed(mixed()), tell_apart())
    consolidation, voxel_ml = 2 * 4 * 10, 2 * 3 * 5 / 1000
    assert found.classes == ("ground glass", "consolidation")
    assert np.array_equal(np.bincount(found.lesions.ravel())[1:], [LESION_VOXELS - consolidation, consolidation])
    figures = found.severity.whole
    assert figures.lesion_ml == pytest.approx(LESION_VOXELS * voxel_ml)
    assert figures.consolidation_ml == pytest.approx(consolidation * voxel_ml)
    assert figures.ground_glass_ml == pytest.approx((LESION_VOXELS - consolidation) * voxel_ml)
    assert figures.lesion_share == LESION_VOXELS / LUNG_VOXELS
    assert figures.consolidation_share == consolidation / LUNG_VOXELS
    assert figures.ground_glass_share == (LESION_VOXELS - consolidation) / LUNG_VOXELS


def test_a_model_that_does_not_tell_them_apart_gives_none():
    found = analyse(boxed(mixed()), segmenter(size=(64, 64)))
    assert found.classes == ("lesion",)
    assert found.severity.whole.lesion_share == LESION_VOXELS / LUNG_VOXELS
    parts = ("ground_glass_ml", "consolidation_ml", "ground_glass_share", "consolidation_share")
    assert [found.to_dict()["severity"]["whole"][part] for part in parts] == [None] * 4


def test_a_class_that_is_not_there_is_zero_not_none():
    figures = analyse(boxed(boxes()), tell_apart()).severity.whole
    assert (figures.consolidation_ml, figures.consolidation_share) == (0, 0)
    assert figures.ground_glass_share == figures.lesion_share


def test_codes_stay_when_parts_outside_the_lungs_are_dropped():
    hu = mixed()
    hu[7:9, 54:58, 40:50] = -200  # behind the lungs, consolidation alone
    hu[5:7, 30:34, 18:34] = -200  # from one lung into what lies between the two
    found = analyse(boxed(hu), tell_apart())
    assert not found.lesions[7:9, 54:58].any()
    assert (found.lesions[5:7, 30:34, 18:34] == 2).all()
    assert np.array_equal(found.lesions[3:9, 20:28, 12:22], np.where(hu[3:9, 20:28, 12:22] == -200, 2, 1))


@pytest.mark.parametrize(("spacing_known", "lung"), [(False, True), (True, False)])
def test_classes_without_lengths_or_lung_have_the_figures_that_can_be_had(spacing_known: bool, lung: bool):
    hu = mixed()
    if not lung:
        hu[hu == -850] = 40
    figures = analyse(boxed(hu, spacing_known=spacing_known), tell_apart()).severity.whole
    assert (figures.ground_glass_ml is not None, figures.consolidation_ml is not None) == (spacing_known and lung,) * 2
    assert (figures.ground_glass_share is not None, figures.consolidation_share is not None) == (lung,) * 2


def test_the_record_says_which_classes_the_model_gives():
    codes = [
        analyse(boxed(boxes()), each).to_dict()["method"]["classes"] for each in (segmenter((64, 64)), tell_apart())
    ]
    assert codes == [{"1": "lesion"}, {"1": "ground glass", "2": "consolidation"}]


@given(hnp.arrays(np.uint8, (6, 8, 6), elements=st.sampled_from([0, 0, 1, 2])))
@settings(max_examples=20, deadline=None)
def test_parts_add_up_to_the_lesions(codes: np.ndarray):
    """Whatever is drawn into a lung, in blocks of 3 x 3 pixels, which the bands find whole."""
    drawn = np.zeros((12, 64, 64), dtype=np.uint8)
    drawn[2:8, 20:44, 9:27] = codes.repeat(3, axis=1).repeat(3, axis=2)
    hu = boxes()
    hu[3:9, 20:28, 12:22] = -850
    hu[drawn != 0] = np.choose(drawn[drawn != 0], [-850, -400, -200])
    found = analyse(boxed(hu), tell_apart())
    assert np.array_equal(found.lesions, drawn)
    figures = found.severity.whole
    assert figures.ground_glass_ml + figures.consolidation_ml == pytest.approx(figures.lesion_ml)
    assert figures.ground_glass_share + figures.consolidation_share == pytest.approx(figures.lesion_share)
    assert figures.lesion_ml == pytest.approx(np.count_nonzero(found.lesions) * 2 * 3 * 5 / 1000)


# grey slices ---------------------------------------------------------------------------------------------------------


def test_grey_slices_without_lengths_give_a_share_but_no_volumes(phantom: Phantom, analysis: Analysis, tmp_path: Path):
    grey = np.round(255 * np.asarray(LungWindow()(upright(phantom.hu).astype(np.float32)))).astype(np.uint8)
    for number, plane in enumerate(grey):
        Image.fromarray(np.kron(plane, np.ones((2, 2), np.uint8))).save(tmp_path / f"slice{number}.png")
    found = analyse(read_ct(tmp_path), segmenter(size=(130, 192)))
    assert (found.severity.whole.lesion_ml, found.severity.whole.lung_ml) == (None, None)
    assert found.severity.whole.lesion_share == pytest.approx(analysis.severity.whole.lesion_share, abs=0.2)
    scan = found.to_dict()["scan"]
    assert (scan["units"], scan["spacing_mm"], scan["voxel_ml"]) == ("grey", None, None)
    assert any("volumes in mL cannot be given" in warning for warning in found.warnings)
    assert not any("not plausible" in warning for warning in found.warnings)


# the record ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("spacing_known", [True, False])
def test_the_record_is_plain_json(spacing_known: bool):
    found = analyse(boxed(boxes(), spacing_known=spacing_known), segmenter(size=(64, 64))).to_dict()
    assert plain(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("spacing_known", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("lung", [True, False])
def test_the_record_keeps_to_its_schema(spacing_known: bool, ranges: bool, lung: bool):
    schema = json.loads((files("covid_monai.reports") / "analysis-3.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    hu = boxes()
    if not lung:
        hu[hu == -850] = 40
    for each in (segmenter((64, 64)), tell_apart()):
        found = analyse(boxed(hu, spacing_known=spacing_known), each, ranges=ranges)
        jsonschema.validate(found.to_dict(), schema, jsonschema.Draft202012Validator)
    damaged = found.to_dict()
    damaged["severity"]["regions"][0]["score"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="'none' is not of type"):
        jsonschema.validate(damaged, schema, jsonschema.Draft202012Validator)


def test_the_record_says_what_ran(analysis: Analysis, scan: CTScan):
    found = analysis.to_dict()
    assert found["schema"] == "covid_monai/analysis/3"
    assert found["notice"] == "Research use only, not a medical device."
    assert found["scan_id"] == analysis.scan_id
    assert found["severity"]["whole"]["lesion_share"] == analysis.severity.whole.lesion_share
    assert found["warnings"] == list(analysis.warnings)
    assert found["scan"]["shape"] == [96, 96, 16]
    assert found["scan"]["spacing_mm"] == [3.75, 3.75, 18.0]
    assert found["scan"]["voxel_ml"] == pytest.approx(3.75 * 3.75 * 18 / 1000)
    assert (found["scan"]["format"], found["scan"]["files"]) == ("NIfTI", 1)
    method = found["method"]
    assert method["model"] == {
        "name": "band",
        "version": "1.2",
        "weights_sha256": "ab" * 32,
        "network": {"_target_": "tests.Band"},
    }
    assert (method["threshold"], method["size"], method["device"]) == (0.5, [65, 96], "cpu")
    assert method["precision"] in ("float32", "bfloat16")  # as this CPU has it
    assert method["window_hu"] == {"level": -600.0, "width": 1500.0}
    assert found["software"]["torch"] == version("torch")
    assert found["software"]["covid_monai"] == version("covid_monai")
    assert all(0 <= seconds < 60 for seconds in found["seconds"].values())


def test_the_record_holds_no_path_and_no_patient(phantom_folder: Path, phantom: Phantom):
    from pydicom import dcmread

    header = dcmread(next(file for file in sorted((phantom_folder / "dicom").rglob("*")) if file.is_file()))
    text = json.dumps(analyse(read_ct(phantom_folder / "dicom"), segmenter()).to_dict())
    secrets = [str(header.get(name, "")) for name in ("PatientName", "PatientID", "StudyDate", "SeriesInstanceUID")]
    assert any(secrets)
    for secret in [*filter(None, secrets), str(phantom_folder), "/tmp"]:
        assert secret not in text


# the scan's id -------------------------------------------------------------------------------------------------------


def test_the_id_follows_from_voxels_and_affine_alone(scan: CTScan, phantom_folder: Path, tmp_path: Path):
    copy = tmp_path / "other_name.nii.gz"
    copy.write_bytes((phantom_folder / "image.nii.gz").read_bytes())
    first = scan.id
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert read_ct(copy).id == first
    array = scan.array.copy(order="K")
    array[3, 4, 5] += 1
    assert CTScan(array, scan.affine, scan.source).id != first
    moved = scan.affine.copy()
    moved[2, 3] += 1
    assert CTScan(scan.array, moved, scan.source).id != first
    other = CTScan(scan.array, scan.affine, SourceFacts("DICOM", 99), warnings=["Other."])
    assert other.id == first


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_id_does_not_depend_on_the_order_in_memory(scan: CTScan, order: Any):
    array = np.array(scan.array, order=order)
    assert CTScan(array, scan.affine, scan.source).id == scan.id


def test_a_network_that_finds_nothing_gives_zero(scan: CTScan):
    found = analyse(scan, LesionSegmenter(Constant(-10), UprightSliceInferer(size=(64, 64)), device="cpu"))
    assert (found.severity.whole.lesion_ml, found.severity.whole.lesion_share, found.lesion_slices) == (0, 0, 0)
    assert found.lungs.any()
