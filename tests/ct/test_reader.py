# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from covid_monai import ct
from covid_monai.ct import faults, read_ct
from tests.ct.series import datasets, write


def test_path_that_does_not_exist(tmp_path):
    with pytest.raises(ct.NoScanFound, match=r"nowhere does not exist: give a DICOM folder, a NIfTI file"):
        read_ct(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with pytest.raises(ct.NoScanFound, match="is an empty folder: give a DICOM folder"):
        read_ct(tmp_path)


def test_folder_without_ct(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ct.NoScanFound, match=r"holds no CT among its files \(1\)"):
        read_ct(tmp_path)


def test_folder_of_nifti(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ct.NoScanFound, match=r"is a folder of NIfTI files \(1\): give one of them, e\.g\. a\.nii\.gz"):
        read_ct(tmp_path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.zip", "scan.hdr", "scan"])
def test_unknown_kind(name, tmp_path):
    (tmp_path / name).write_bytes(b"some bytes")
    with pytest.raises(ct.UnsupportedImage, match=f"{name} is of a kind that is not read: give a DICOM folder"):
        read_ct(tmp_path / name)


def test_series_of_something_else(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ct.SeriesChoiceError, match=r"a\.png is no DICOM, so there is no series 2 to choose"):
        read_ct(tmp_path / "a.png", series=2)


def test_path_as_text(tmp_path):
    assert read_ct(str(write(tmp_path, datasets()))).shape == (12, 16, 6)


def test_every_fault_is_a_ct_read_error_and_public():
    found = {name for name, kind in vars(faults).items() if isinstance(kind, type) and issubclass(kind, ValueError)}
    assert found <= set(ct.__all__)
    assert all(issubclass(getattr(faults, name), ct.CTReadError) for name in found)
