# SPDX-License-Identifier: Apache-2.0
"""The server on a real DICOMweb archive."""

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from highdicom.seg import Segmentation
from pydicom import dcmread

from covid_monai.ct import read_ct
from covid_monai.ct.exchange import send
from covid_monai.reports.dicom_codes import FINDINGS
from tests.ct.test_exchange import dicomweb
from tests.label.conftest import voxels
from tests.label.server import LabelServer, array_of, running_server
from tests.orthanc import Orthanc, running_orthanc

pytestmark = pytest.mark.slow


@pytest.fixture
def orthanc(patients: list[Path]) -> Iterator[Orthanc]:
    with running_orthanc() as server:
        send(sorted((patients[0] / "dicom").iterdir()), server.dicomweb)
        yield server


@pytest.fixture
def server(orthanc: Orthanc, tmp_path: Path) -> Iterator[LabelServer]:
    with running_server(orthanc.dicomweb, tmp_path / "work") as server:
        yield server


@pytest.fixture(scope="session")
def series(patients: list[Path]) -> str:
    return dcmread(next((patients[0] / "dicom").iterdir()), stop_before_pixels=True).SeriesInstanceUID


def test_a_series_in_an_archive_gets_the_masks_of_analyse_and_gives_back_a_coded_segmentation(
    server: LabelServer,
    orthanc: Orthanc,
    series: str,
    patients: list[Path],
    analysed: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    lesions = voxels(analysed(patients[0] / "dicom") / "lesions.nii.gz")
    assert {1, 2} <= set(np.unique(lesions))
    assert server.ask("GET", "/datastore/").json()["total"] == 1
    _, file = server.mask("lesions", series)
    np.testing.assert_array_equal(array_of(file), lesions)
    ohif = server.infer("lesions", series, {"result_extension": ".nrrd", "result_compress": False}, output="image")
    np.testing.assert_array_equal(array_of(ohif.content, ".nrrd"), lesions)

    # what 3D Slicer downloads has the scan's own values
    image = server.ask("GET", "/datastore/image", params={"image": series})
    np.testing.assert_array_equal(array_of(image.content), read_ct(patients[0] / "dicom").array)

    label = tmp_path / "label.nii.gz"
    label.write_bytes(file)
    saved = server.save(series, label)
    assert saved.status_code == 200, saved.text
    assert saved.json()["dice"] == {"any lesion": 1, "ground glass": 1, "consolidation": 1}
    (stored,) = [found for found in orthanc.instances() if found.Modality == "SEG"]
    segmentation = Segmentation.from_dataset(stored)
    for number, name in enumerate(("ground glass", "consolidation"), start=1):
        segment = segmentation.get_segment_description(number)
        assert segment.segmented_property_type == FINDINGS[name]
        assert segment.segmented_property_category.value == "49755003"  # morphologically abnormal structure
        assert segment.algorithm_type.value == "SEMIAUTOMATIC"
    assert stored.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    found = segmentation.get_pixels_by_source_instance(
        [
            image.SOPInstanceUID
            for image in sorted(
                (dcmread(path) for path in (patients[0] / "dicom").iterdir()),
                key=lambda image: image.ImagePositionPatient[2],
            )
        ],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found.transpose(2, 1, 0), lesions)
    assert server.ask("GET", "/datastore/").json()["completed"] == 1

    # who takes all lesions out again sends that to the archive too
    nib.save(nib.Nifti1Image(np.zeros_like(lesions), nib.load(label).affine), label)
    assert server.save(series, label).ok
    newest = next(
        Segmentation.from_dataset(found)
        for found in orthanc.instances()
        if found.Modality == "SEG" and found.SOPInstanceUID != stored.SOPInstanceUID
    )
    assert [segment.SegmentLabel for segment in newest.SegmentSequence] == ["ground glass", "consolidation"]
    assert not newest.pixel_array.any()
    assert newest.ReferencedSeriesSequence[0].SeriesInstanceUID == series


def test_a_series_that_was_still_arriving_is_fetched_again(
    patients: list[Path], series: str, analysed: Callable[[Path], Path], tmp_path: Path
) -> None:
    files = sorted(
        (patients[0] / "dicom").iterdir(),
        key=lambda file: dcmread(file, stop_before_pixels=True).ImagePositionPatient[2],
    )
    with running_orthanc() as orthanc:
        send(files[:-2], orthanc.dicomweb)
        with running_server(orthanc.dicomweb, tmp_path / "work") as server:
            _, part = server.mask("lungs", series)
            assert array_of(part).shape[2] == len(files) - 2
            (tmp_path / "part.nii.gz").write_bytes(part)
            assert server.save(series, tmp_path / "part.nii.gz").ok
            send(files[-2:], orthanc.dicomweb)
            _, file = server.mask("lesions", series)
            assert server.ask("GET", "/datastore/").json()["label_tags"] == {"final": 1, "original": 1}  # none is lost
            np.testing.assert_array_equal(array_of(file), voxels(analysed(patients[0] / "dicom") / "lesions.nii.gz"))


def test_a_series_that_was_replaced_is_fetched_again(
    patients: list[Path], series: str, analysed: Callable[[Path], Path], tmp_path: Path
) -> None:
    """One of its images is damaged first; another one, of another UID, takes its place."""
    files = sorted((patients[0] / "dicom").iterdir())
    damaged = dcmread(files[3])
    damaged.SOPInstanceUID = damaged.file_meta.MediaStorageSOPInstanceUID = f"{damaged.SOPInstanceUID}.1"
    damaged.PixelData = damaged.PixelData[: len(damaged.PixelData) // 2]
    damaged.save_as(tmp_path / "damaged.dcm")
    with running_orthanc() as orthanc:
        send([*files[:3], tmp_path / "damaged.dcm", *files[4:]], orthanc.dicomweb)
        with running_server(orthanc.dicomweb, tmp_path / "work") as server:
            assert server.infer("lesions", series).status_code == 400
            orthanc.delete(damaged.SOPInstanceUID)
            send([files[3]], orthanc.dicomweb)
            _, file = server.mask("lesions", series)
            np.testing.assert_array_equal(array_of(file), voxels(analysed(patients[0] / "dicom") / "lesions.nii.gz"))


def test_series_that_were_not_fetched_yet_are_listed_and_queries_reach_the_archive(
    server: LabelServer, orthanc: Orthanc, series: str, patients: list[Path]
) -> None:
    assert list(server.ask("GET", "/datastore/", params={"output": "all"}).json()["objects"]) == [series]
    send(sorted((patients[1] / "dicom").iterdir()), orthanc.dicomweb)
    header = dcmread(next((patients[1] / "dicom").iterdir()), stop_before_pixels=True)
    found = server.ask("GET", "/proxy/dicom/studies", params={"StudyInstanceUID": header.StudyInstanceUID}).json()
    assert [study["0020000D"]["Value"] for study in found] == [[header.StudyInstanceUID]]
    assert len(server.ask("GET", "/proxy/dicom/studies").json()) == 2


def test_an_archive_that_refuses_is_told_with_its_status(tmp_path: Path) -> None:
    with dicomweb(*[401] * 20) as (url, _), running_server(url, tmp_path / "work") as server:
        answer = server.ask("GET", "/info/")
        assert "warning:     the archive refuses, HTTP status 401." in server.log.read_text()
        assert (tmp_path / "work").stat().st_mode & 0o077 == 0
    assert (answer.status_code, answer.json()["detail"]) == (502, "the archive refuses, HTTP status 401.")


def test_an_archive_that_is_gone_is_told_and_what_was_saved_stays(
    orthanc: Orthanc, series: str, tmp_path: Path
) -> None:
    """The archive goes away before and in the middle of the work, and comes back."""
    from tests.label.gate import Gate

    with Gate(orthanc.http_port) as gate, running_server(gate.dicomweb, tmp_path / "work") as server:
        gate.stop_after(200_000)  # bytes: in the middle of the series
        broken = server.infer("lesions", series)
        assert broken.status_code in (400, 502)
        told = ("broke off", "nothing is kept; fetch it again")  # by where the answer ended
        assert any(each in broken.json()["detail"] for each in told), broken.text
        gate.shut()
        gone = server.infer("lesions", series)
        assert gone.status_code == 502
        assert "the archive cannot be reached" in gone.json()["detail"]
        assert server.ask("GET", "/info/").status_code == 502
        gate.open()
        _, file = server.mask("lesions", series)
        label = tmp_path / "label.nii.gz"
        label.write_bytes(file)
        for close in (gate.shut, gate.refuse_posts):
            close()
            refused = server.save(series, label)
            assert refused.status_code == 400, refused.text
            assert "the label is kept here, but not in the archive" in refused.json()["detail"]
            (kept,) = (tmp_path / "work").rglob(f"labels/final/{series}.nii.gz")
            np.testing.assert_array_equal(voxels(kept), array_of(file))
            gate.open()
        assert server.save(series, label).ok
        assert [found.Modality for found in orthanc.instances()].count("SEG") == 1


def test_a_damaged_series_is_told_and_the_next_one_works(
    server: LabelServer, orthanc: Orthanc, series: str, patients: list[Path], tmp_path: Path
) -> None:
    files = sorted((patients[1] / "dicom").iterdir())
    damaged = dcmread(files[3])
    damaged.PixelData = damaged.PixelData[: len(damaged.PixelData) // 2]
    damaged.save_as(tmp_path / "damaged.dcm")
    send([*files[:3], tmp_path / "damaged.dcm", *files[4:]], orthanc.dicomweb)
    response = server.infer("lesions", damaged.SeriesInstanceUID)
    assert response.status_code == 400, response.text
    assert "damaged" in response.json()["detail"] or "cannot be" in response.json()["detail"]
    assert server.infer("lungs", series).ok
