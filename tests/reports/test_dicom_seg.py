# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pytest

from covid_monai.ct import read_ct
from covid_monai.ct.sources import SourceError, read_sources
from covid_monai.reports.dicom_seg import write_seg
from covid_monai.severity.anatomy import REGIONS
from tests.ct.series import datasets, write
from tests.ct.test_dicom import ORIENTATIONS
from tests.ct.test_sources import enhanced_file
from tests.reports.dicom_case import case_on, faults

CONSOLIDATION, GROUND_GLASS = ("9656002", "SCT"), ("112120", "DCM")
LUNG, RIGHT, LEFT = ("39607008", "SCT"), ("24028007", "SCT"), ("7771000", "SCT")


@pytest.fixture
def series(tmp_path):
    """A scan in an empty folder's ``dicom``, and its sources."""
    folder = write(tmp_path / "dicom", datasets())
    return SimpleNamespace(scan=read_ct(folder), sources=read_sources(folder), out=tmp_path / "out")


def code(item):
    return item.CodeValue, item.CodingSchemeDesignator


def positions(scan, upright):
    """Where the voxels of a mask lie: rounded (x, y, z) in mm, LPS."""
    indices = np.argwhere(scan.from_upright(upright))
    ras = indices @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    return sorted(map(tuple, np.round(ras * [-1, -1, 1], 2) + 0.0))


def positions_of_segment(seg, number):
    """The same of a segment, from the geometry that its frames state."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    found = []
    for frame, plane in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            i, j = np.nonzero(plane)
            origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            found.append(origin + np.outer(j * between_columns, row) + np.outer(i * between_rows, column))
    return sorted(map(tuple, np.round(np.concatenate(found), 2) + 0.0))


@pytest.mark.parametrize("step", [2.0, -2.0])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_voxels_lie_where_the_lesions_are(name, step, tmp_path):
    normal = np.cross(*np.reshape(ORIENTATIONS[name], (2, 3)))
    folder = write(tmp_path / "dicom", datasets(slices=8, orientation=ORIENTATIONS[name], step=step * normal))
    scan = read_ct(folder)
    case = case_on(scan)
    files = write_seg(case, read_sources(folder), tmp_path, ["lesions"])
    seg = hd.seg.segread(files["lesions"])
    for number, label in enumerate(("ground glass", "consolidation"), start=1):
        assert seg.get_segment_description(number).SegmentLabel == label
        assert positions_of_segment(seg, number) == positions(scan, case.lesions == number)


def test_all_masks_come_back_on_the_source_images(series):
    case = case_on(series.scan)
    files = write_seg(case, series.sources, series.out)
    assert sorted(path.name for path in series.out.iterdir()) == ["lesions.seg.dcm", "lungs.seg.dcm", "regions.seg.dcm"]
    uids = [source.SOPInstanceUID for source in series.sources]
    for content, path in files.items():
        pixels = hd.seg.segread(path).get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(pixels, series.scan.from_upright(getattr(case, content)).T, err_msg=content)


def test_what_the_segments_are_called(series):
    files = write_seg(case_on(series.scan), series.sources, series.out)
    lesions, lungs, regions = (hd.seg.segread(files[content]).SegmentSequence for content in files)

    assert [code(one.SegmentedPropertyTypeCodeSequence[0]) for one in lesions] == [GROUND_GLASS, CONSOLIDATION]
    assert {code(one.SegmentedPropertyCategoryCodeSequence[0]) for one in lesions} == {("49755003", "SCT")}
    assert {code(one.AnatomicRegionSequence[0]) for one in lesions} == {LUNG}

    assert [one.SegmentLabel for one in lungs] == ["right lung", "left lung"]
    assert {code(one.SegmentedPropertyTypeCodeSequence[0]) for one in lungs} == {LUNG}
    sides = [one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0] for one in lungs]
    assert [code(side) for side in sides] == [RIGHT, LEFT]

    assert [one.SegmentLabel for one in regions] == [region.name for region in REGIONS]
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in regions]
    assert [code(kind) for kind in kinds] == [(f"region-{number:02}", "99COVIDMONAI") for number in range(1, 21)]
    assert all("(approximate)" in kind.CodeMeaning for kind in kinds)
    middle = regions[3].AnatomicRegionSequence[0]  # its code says right already
    assert code(middle) == ("72481006", "SCT")
    assert "AnatomicRegionModifierSequence" not in middle
    lowest = regions[19].AnatomicRegionSequence[0]
    assert code(lowest) == ("90572001", "SCT")
    assert code(lowest.AnatomicRegionModifierSequence[0]) == LEFT


def test_who_what_and_from_where(series):
    files = write_seg(case_on(series.scan), series.sources, series.out)
    segs = [hd.seg.segread(path) for path in files.values()]
    for seg in segs:
        assert (seg.PatientName, seg.PatientID, seg.StudyInstanceUID) == ("Doe^Jane", "PID4711", "1.2")
        assert (seg.FrameOfReferenceUID, seg.SegmentationType, seg.SegmentsOverlap) == ("1.2.9", "BINARY", "NO")
        assert "Research use only" in seg.ContentDescription
        referred = seg.ReferencedSeriesSequence[0]
        assert referred.SeriesInstanceUID == "1.2.3"
        uids = {image.ReferencedSOPInstanceUID for image in referred.ReferencedInstanceSequence}
        assert uids == {source.SOPInstanceUID for source in series.sources}
    assert len({seg.SeriesInstanceUID for seg in segs}) == len({seg.SOPInstanceUID for seg in segs}) == 3
    first = segs[0].SegmentSequence[0]
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (first.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", "covid_monai test bundle")
    assert (algorithm.AlgorithmVersion, algorithm.AlgorithmFamilyCodeSequence[0].CodeValue) == ("1.2.3", "123110")


def test_a_name_in_another_alphabet(tmp_path):
    slices = datasets()
    for part in slices:
        part.SpecificCharacterSet, part.PatientName = "ISO_IR 144", "Иванова^Анна"
    folder = write(tmp_path / "dicom", slices)
    files = write_seg(case_on(read_ct(folder)), read_sources(folder), tmp_path, ["lungs"])
    assert hd.seg.segread(files["lungs"]).PatientName == "Иванова^Анна"


def test_lungs_that_were_given_are_not_called_automatic(series):
    files = write_seg(case_on(series.scan, made_by="given lungs"), series.sources, series.out, ["lungs"])
    assert hd.seg.segread(files["lungs"]).SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_one_class_of_lesion(series):
    case = case_on(series.scan, classes=("lesion",))
    case.lesions[case.lesions > 0] = 1
    seg = hd.seg.segread(write_seg(case, series.sources, series.out)["lesions"])
    assert [code(one.SegmentedPropertyTypeCodeSequence[0]) for one in seg.SegmentSequence] == [("52988006", "SCT")]


def test_a_class_without_voxels_is_no_segment(series):
    case = case_on(series.scan)
    case.lesions[case.lesions == 1] = 0
    seg = hd.seg.segread(write_seg(case, series.sources, series.out)["lesions"])
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["consolidation"]
    assert np.count_nonzero(seg.pixel_array) == np.count_nonzero(case.lesions)
    assert seg.NumberOfFrames == np.count_nonzero(case.lesions.any(axis=(1, 2))) == 1


def test_no_lesion_no_file(series):
    case = case_on(series.scan)
    case.lesions[:] = 0
    assert list(write_seg(case, series.sources, series.out)) == ["lungs", "regions"]
    assert sorted(path.name for path in series.out.iterdir()) == ["lungs.seg.dcm", "regions.seg.dcm"]


def test_an_enhanced_multi_frame_source(tmp_path):
    slices = [datasets()[k] for k in (3, 0, 5, 1, 4, 2)]
    image = enhanced_file(tmp_path / "all.dcm", slices)
    scan = read_ct(tmp_path / "all.dcm")
    case = case_on(scan)
    seg = hd.seg.segread(write_seg(case, read_sources(tmp_path / "all.dcm"), tmp_path / "out")["lesions"])
    assert positions_of_segment(seg, 1) == positions(scan, case.lesions == 1)
    pixels = seg.get_pixels_by_source_frame(
        image.SOPInstanceUID, range(1, 7), combine_segments=True, assert_missing_frames_are_empty=True
    )
    order = np.argsort([part.ImagePositionPatient[2] for part in slices])
    np.testing.assert_array_equal(pixels[order], scan.from_upright(case.lesions).T)


def test_masks_of_another_scan_leave_nothing(series):
    case = case_on(series.scan)
    case.spacing = (1.0, 1.0, 1.0)
    with pytest.raises(SourceError, match="give the series that was analysed"):
        write_seg(case, series.sources, series.out)
    assert list(series.out.iterdir()) == []


def test_sources_of_two_studies(series):
    series.sources[2].StudyInstanceUID = "1.2.77"
    with pytest.raises(SourceError, match="cannot refer to the source images"):
        write_seg(case_on(series.scan), series.sources, series.out)


def test_unknown_content(series):
    with pytest.raises(ValueError, match="include names lobes: give some of lesions, lungs, regions"):
        write_seg(case_on(series.scan), series.sources, series.out, ["lobes"])


@pytest.mark.slow
def test_dciodvfy_finds_no_error(phantom_folder, tmp_path):
    scan = read_ct(phantom_folder / "dicom")
    for path in write_seg(case_on(scan), read_sources(phantom_folder / "dicom"), tmp_path).values():
        errors, warnings = faults(path)
        assert errors == []
        unknown = [line for line in warnings if "DICOMDIR" not in line and "<99COVIDMONAI>" not in line]
        assert unknown == []  # the phantom has no study date; the private scheme is unknown to dciodvfy
