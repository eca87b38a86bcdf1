# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import pixel_array

from covid_monai.ct import NoScanFound, SeriesChoiceError, TiltedGantry, UnsupportedImage, read_ct
from covid_monai.ct.sources import SourceError, on_sources, read_sources
from tests.ct.series import datasets, enhanced, write
from tests.ct.test_dicom import ORIENTATIONS


def enhanced_file(path, slices):
    image = enhanced(slices)
    image.StudyInstanceUID, image.FrameOfReferenceUID = "1.2", "1.2.9"
    image.save_as(path, enforce_file_format=True)
    return image


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_files_of_the_scan_in_its_order(name, tmp_path):
    scan = read_ct(write(tmp_path, datasets(orientation=ORIENTATIONS[name])))
    sources = read_sources(tmp_path)
    positions = np.array([source.ImagePositionPatient for source in sources]) * [-1, -1, 1]  # LPS to RAS
    slices = np.array([[0, 0, k, 1] for k in range(6)])
    np.testing.assert_allclose(positions, (slices @ scan.affine.T)[:, :3], atol=1e-9)


@pytest.mark.parametrize("step", [2.0, -2.0])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_upright_slices_come_back_to_their_own_files(name, step, tmp_path):
    """Each plane is the one that its file stores, whichever way the series runs."""
    normal = np.cross(*np.reshape(ORIENTATIONS[name], (2, 3)))
    scan = read_ct(write(tmp_path, datasets(orientation=ORIENTATIONS[name], step=step * normal)))
    stored = {dcmread(file).SOPInstanceUID: pixel_array(file) - 1000.0 for file in tmp_path.iterdir()}
    sources = read_sources(tmp_path)[::-1]  # any order will do
    planes = on_sources(scan.upright(), scan.upright_spacing, sources)
    for source, plane in zip(sources, planes, strict=True):
        np.testing.assert_array_equal(plane, stored[source.SOPInstanceUID])


def test_upright_slices_come_back_to_the_frames_of_an_enhanced_image(tmp_path):
    slices = [datasets(orientation=ORIENTATIONS["coronal"])[k] for k in (3, 0, 5, 1, 4, 2)]
    enhanced_file(tmp_path / "all.dcm", slices)
    scan, sources = read_ct(tmp_path), read_sources(tmp_path)
    assert len(sources) == 1
    planes = on_sources(scan.upright(), scan.upright_spacing, sources)
    np.testing.assert_array_equal(planes, pixel_array(tmp_path / "all.dcm") - 1000.0)


def test_sources_hold_no_pixels_and_what_others_expect_is_there(tmp_path):
    slices = datasets()
    del slices[0].PatientID
    for source in read_sources(write(tmp_path, slices)):
        assert "PixelData" not in source
        assert source.AccessionNumber == source.StudyID == ""
        assert source.PatientName == "Doe^Jane"
        assert source.PatientID in ("", "PID4711")


def test_the_chosen_series(tmp_path):
    write(tmp_path / "a", datasets(slices=6, series="1.2.3"))
    write(tmp_path / "b", datasets(slices=4, series="1.2.4"))
    assert {source.SeriesInstanceUID for source in read_sources(tmp_path, "1.2.4")} == {"1.2.4"}
    assert len(read_sources(tmp_path, 2)) == read_ct(tmp_path, 2).shape[2] == 4
    with pytest.raises(SeriesChoiceError, match="2 series"):
        read_sources(tmp_path)


def test_localisers_and_other_files_are_no_sources(tmp_path):
    slices = datasets(slices=7)
    slices[6].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(tmp_path, slices)
    (tmp_path / "notes.txt").write_text("nothing")
    assert slices[6].SOPInstanceUID not in {source.SOPInstanceUID for source in read_sources(tmp_path)}
    assert len(read_sources(tmp_path)) == read_ct(tmp_path).shape[2] == 6


def test_what_the_scan_is_refused_for_the_sources_are_too(tmp_path):
    slices = datasets()
    for part in slices:
        part.GantryDetectorTilt = 12
    with pytest.raises(TiltedGantry):
        read_sources(write(tmp_path, slices))


def test_a_nifti_volume_has_no_sources(phantom_folder):
    with pytest.raises(UnsupportedImage, match=r"image\.nii\.gz is no DICOM.*leave the DICOM output out"):
        read_sources(phantom_folder / "image.nii.gz")


def test_nothing_there(tmp_path):
    with pytest.raises(NoScanFound, match="does not exist"):
        read_sources(tmp_path / "nowhere")


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_what_cannot_be_referred_to(keyword, tmp_path):
    slices = datasets()
    delattr(slices[2], keyword)
    with pytest.raises(SourceError, match=rf"\d+\.dcm has no {keyword}"):
        read_sources(write(tmp_path, slices))


def test_several_multi_frame_files(tmp_path):
    slices = datasets()
    for number, part in enumerate((slices[:3], slices[3:])):
        enhanced_file(tmp_path / f"{number}.dcm", part)
    assert read_ct(tmp_path).shape[2] == 6
    with pytest.raises(SourceError, match="2 multi-frame files"):
        read_sources(tmp_path)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((5, 16, 12), (2, 0.75, 0.5)), ((6, 12, 16), (2, 0.75, 0.5)), ((6, 16, 12), (2, 0.5, 0.75))],
)
def test_masks_of_another_scan(shape, spacing, tmp_path):
    sources = read_sources(write(tmp_path, datasets()))
    assert on_sources(np.zeros((6, 16, 12)), (2, 0.75, 0.5), sources).shape == (6, 16, 12)
    with pytest.raises(SourceError, match="give the series that was analysed"):
        on_sources(np.zeros(shape), spacing, sources)
