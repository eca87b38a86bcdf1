# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes

from covid_monai.ct import read_ct
from covid_monai.ct.sources import SourceError, read_sources
from covid_monai.reports.dicom_seg import write_seg
from covid_monai.reports.dicom_sr import write_sr
from covid_monai.severity.anatomy import LOBES, REGIONS
from tests.ct.series import datasets, write
from tests.reports.dicom_case import case_on, faults

PRIVATE = "99COVIDMONAI"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A scan, its sources, and the segmentations of a case on it; only to read."""
    folder = tmp_path_factory.mktemp("series")
    scan = read_ct(write(folder / "dicom", datasets()))
    sources = read_sources(folder / "dicom")
    return SimpleNamespace(scan=scan, sources=sources, segs=write_seg(case_on(scan), sources, folder / "segs"))


@pytest.fixture(scope="module")
def report(series, tmp_path_factory):
    """The report of the case; only to read."""
    path = tmp_path_factory.mktemp("report") / "report.sr.dcm"
    return hd.sr.srread(write_sr(case_on(series.scan), series.sources, series.segs, path))


def groups(report):
    """Groups of measurements by their label, as highdicom reads them."""
    content = report.content
    found = [*content.get_image_measurement_groups(), *content.get_volumetric_roi_measurement_groups()]
    return {group.tracking_identifier: group for group in found}


def figures(group):
    """Values of a group by code and unit."""
    return {(one.name.value, one.unit.value): one.value for one in group.get_measurements()}


def evaluations(group):
    return {one.name.value: one.value for one in group.get_qualitative_evaluations()}


def items(content):
    """All content items below an item."""
    for item in content.get("ContentSequence", ()):
        yield item
        yield from items(item)


def numbers(value):
    """All numbers in plain values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {number for one in value for number in numbers(one)}
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_scores_and_volumes_of_the_whole(report, series):
    severity = case_on(series.scan).severity
    whole = groups(report)[severity.whole.name]
    assert figures(whole) == {
        ("118565006", "ml"): severity.whole.lung_ml,
        ("ct-ss", "1"): severity.ct_ss.score,
        ("ct-ss-lowest", "1"): severity.ct_ss.lowest,
        ("ct-ss-highest", "1"): severity.ct_ss.highest,
        ("lobar", "1"): severity.lobar.score,
        ("lobar-lowest", "1"): severity.lobar.lowest,
        ("lobar-highest", "1"): severity.lobar.highest,
    }
    assert severity.ct_ss.score > 0
    assert evaluations(whole) == {"246112005": codes.SCT.Mild, "viral-pneumonia": codes.SCT.Present}


def test_every_place_has_its_figures(report, series):
    severity, found = case_on(series.scan).severity, groups(report)
    for place in (severity.whole, *severity.lungs, *severity.lobes, *severity.regions):
        assert figures(found[place.name])["118565006", "ml"] == place.lung_ml
        for label in ("lesion",) if place in severity.regions else ("lesion", "ground glass", "consolidation"):
            key = label.replace(" ", "_")
            expected = {
                ("118565006", "ml"): getattr(place, f"{key}_ml"),
                ("share", "%"): 100 * getattr(place, f"{key}_share"),
            }
            assert figures(found[f"{place.name}: {label}"]) == expected
    for lobe in severity.lobes:
        assert figures(found[lobe.name])["lobar-lobe", "1"] == lobe.score
    for region in severity.regions:
        assert figures(found[region.name])["ct-ss-region", "1"] == region.score
    assert len(found) == 8 * 4 + 20 * 2


def test_no_number_that_the_json_does_not_have(report, series):
    known = numbers(case_on(series.scan).to_dict())
    known |= {100 * number for number in known}  # percent
    written = {item.value for item in items(report) if item.ValueType == "NUM"}
    assert written
    assert written <= known


def test_where_and_what(report):
    found = groups(report)
    lobe = found["right upper lobe: ground glass"]
    assert lobe.finding_type == codes.DCM.GroundGlassOpacity
    assert lobe.finding_sites[0].value == codes.SCT.UpperLobeOfLung
    assert lobe.finding_sites[0].laterality == codes.SCT.Right
    middle = found["right middle lobe"].finding_sites[0]
    assert (middle.value, middle.laterality) == (codes.SCT.MiddleLobeOfRightLung, None)
    assert found["left lung: lesion"].finding_type == codes.SCT.Lesion
    assert found["left lung"].finding_sites[0].laterality == codes.SCT.Left
    region = found[REGIONS[19].name]
    assert (region.finding_type.value, region.finding_type.scheme_designator) == ("region-20", PRIVATE)
    assert region.finding_sites[0].value == codes.SCT.LowerLobeOfLung
    assert {item.finding_type.value for label, item in found.items() if label.endswith(": consolidation")} == {
        "9656002"
    }


def test_segments_are_referred_to(report, series):
    found = {group.tracking_identifier: group for group in report.content.get_volumetric_roi_measurement_groups()}
    headers = {content: dcmread(path) for content, path in series.segs.items()}
    expected = {
        f"{label}": (headers[content].SOPInstanceUID, number)
        for content, labels in {
            "lesions": [": ground glass", ": consolidation"],
            "lungs": ["right lung", "left lung"],
            "regions": [region.name for region in REGIONS],
        }.items()
        for number, label in enumerate(labels, start=1)
    }
    referred = {}
    for label, group in found.items():
        segment = group.referenced_segment
        key = next(key for key in expected if label == key or (key[0] == ":" and label.endswith(key)))
        referred[key] = (segment[0].referenced_sop_instance_uid, segment[0].referenced_segment_numbers[0])
        assert segment.source_series_for_segmentation.value == "1.2.3"
    assert referred == expected


def test_evidence_is_the_source_series_and_the_segmentations(report, series):
    sequences = [
        *report.get("CurrentRequestedProcedureEvidenceSequence", []),
        *report.get("PertinentOtherEvidenceSequence", []),
    ]
    evidence = {
        instance.ReferencedSOPInstanceUID
        for study in sequences
        for one in study.ReferencedSeriesSequence
        for instance in one.ReferencedSOPSequence
    }
    segs = {dcmread(path).SOPInstanceUID for path in series.segs.values()}
    assert evidence == segs | {source.SOPInstanceUID for source in series.sources}


def test_what_a_reader_must_know(report):
    comments = [item.TextValue for item in items(report) if item.ValueType == "TEXT" and item.name == codes.DCM.Comment]
    assert comments[0] == "Research use only, not a medical device."
    assert comments[1] == "Lobes and regions are a geometric approximation, not anatomical lobes and segments."
    assert comments[2:] == ["Finding by this rule: lesion above 1 %", "The scan is short."]
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert (report.PatientName, report.PatientID, report.StudyInstanceUID) == ("Doe^Jane", "PID4711", "1.2")


def test_what_is_not_assessable_has_no_number(series, tmp_path):
    case = case_on(series.scan, assessable=(1,), result="indeterminate")
    severity = case.severity
    found = groups(hd.sr.srread(write_sr(case, series.sources, series.segs, tmp_path / "report.dcm")))
    whole = found[severity.whole.name]
    assert not {("ct-ss", "1"), ("lobar", "1")} & set(figures(whole))
    assert figures(whole)["ct-ss-lowest", "1"] == severity.ct_ss.lowest <= 2
    assert figures(whole)["ct-ss-highest", "1"] == severity.ct_ss.lowest + 38
    assert evaluations(whole) == {
        "ct-ss": codes.DCM.ValueIndeterminate,
        "lobar": codes.DCM.ValueIndeterminate,
        "246112005": codes.SCT.Undetermined,
        "viral-pneumonia": codes.SCT.Undetermined,
    }
    for place, name in ((REGIONS[1].name, "ct-ss-region"), (LOBES[0].name, "lobar-lobe")):
        assert evaluations(found[place]) == {name: codes.DCM.ValueIndeterminate}
        assert (name, "1") not in figures(found[place])


def test_classes_that_are_not_told_apart_are_left_out(series, tmp_path):
    case = case_on(series.scan, classes=("lesion",), result=None, regions_from="lobes")
    case.lesions[case.lesions > 0] = 1
    report = hd.sr.srread(write_sr(case, series.sources, {}, tmp_path / "report.dcm"))
    found = groups(report)
    assert len(found) == 28 * 2
    comments = [item.TextValue for item in items(report) if item.ValueType == "TEXT" and item.name == codes.DCM.Comment]
    assert comments[1] == "Regions are a geometric approximation, not anatomical segments."
    assert not any("ground glass" in label for label in found)
    assert "viral-pneumonia" not in evaluations(found[case.severity.whole.name])


def test_without_lesion_and_without_segmentation(series, tmp_path):
    case = case_on(series.scan, result="not found")
    case.lesions[:] = 0
    report = hd.sr.srread(write_sr(case, series.sources, {}, tmp_path / "report.dcm"))
    assert report.content.get_volumetric_roi_measurement_groups() == []
    found = groups(report)
    assert figures(found[f"{case.severity.whole.name}: lesion"]) == {("118565006", "ml"): 0.0, ("share", "%"): 0.0}
    whole = found[case.severity.whole.name]
    assert figures(whole)["ct-ss", "1"] == 0
    assert evaluations(whole)["viral-pneumonia"] == codes.cid240.Absent


def test_codes_fit_their_fields(report):
    concepts = [
        code
        for item in items(report)
        for sequence in ("ConceptNameCodeSequence", "ConceptCodeSequence")
        for code in item.get(sequence, ())
    ]
    assert all(len(code.CodeValue) <= 16 and len(code.CodeMeaning) <= 64 for code in concepts)
    assert len({(code.CodingSchemeDesignator, code.CodeValue) for code in concepts}) > 40


def test_segmentations_of_another_study(series, tmp_path):
    foreign = dcmread(series.segs["lungs"])
    foreign.StudyInstanceUID = "1.2.77"
    foreign.save_as(tmp_path / "lungs.dcm")
    with pytest.raises(SourceError, match="of another study"):
        write_sr(case_on(series.scan), series.sources, {"lungs": tmp_path / "lungs.dcm"}, tmp_path / "report.dcm")
    assert not (tmp_path / "report.dcm").exists()


@pytest.mark.slow
def test_dciodvfy_finds_no_error(phantom_folder, tmp_path):
    scan, sources = read_ct(phantom_folder / "dicom"), read_sources(phantom_folder / "dicom")
    cases = {"all": case_on(scan), "some": case_on(scan, assessable=(1, 2), result=None)}
    for name, case in cases.items():
        segs = write_seg(case, sources, tmp_path / name) if name == "all" else {}
        errors, warnings = faults(write_sr(case, sources, segs, tmp_path / f"{name}.dcm"))
        assert errors == []
        unknown = [line for line in warnings if "DICOMDIR" not in line and "<99COVIDMONAI>" not in line]
        assert unknown == []  # the phantom has no study date; the private scheme is unknown to dciodvfy
