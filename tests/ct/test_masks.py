# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from covid_monai.ct import (
    CTScan,
    ImplausibleValues,
    SourceFacts,
    UnreadableFile,
    UnsupportedImage,
    names_of_codes,
    read_mask,
    write_mask,
)

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.7, 0, 0, 100], [0, -0.8, 0, 90], [0, 0, 1.5, -300], [0, 0, 0, 1]])  # upright but for the order
CODES = (np.arange(120) % 7).reshape(SHAPE).astype(np.uint8)


def scan(affine: np.ndarray = AFFINE) -> CTScan:
    hu = np.arange(120).reshape(SHAPE) * 10 - 1000
    return CTScan(hu.astype(np.float32), affine, SourceFacts("NIfTI", 1))


def save(path: Path, array: np.ndarray = CODES, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_a_mask_in_nifti_2_has_no_names_either(tmp_path: Path):
    nib.save(nib.Nifti2Image(CODES, AFFINE), tmp_path / "mask.nii.gz")
    assert names_of_codes(tmp_path / "mask.nii.gz") == {}


def test_names_of_codes_are_those_that_were_written(tmp_path: Path):
    names = {1: "right lung", 2: "left lung"}
    write_mask(np.ones(SHAPE, np.uint8), scan(), tmp_path / "ours.nii.gz", names)
    assert names_of_codes(tmp_path / "ours.nii.gz") == names
    assert names_of_codes(save(tmp_path / "other.nii.gz")) == {}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_a_mask_on_the_scans_grid_comes_upright(kind: type, tmp_path: Path):
    found = read_mask(save(tmp_path / "mask.nii.gz", CODES.astype(kind)), scan())
    assert found.dtype == np.uint8
    assert np.array_equal(found, CODES.T)
    assert np.array_equal(scan().from_upright(found), CODES)


axes = st.permutations(["RL", "AP", "IS"]).flatmap(lambda pairs: st.tuples(*[st.sampled_from(pair) for pair in pairs]))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of_scan=axes, of_mask=axes)
def test_axes_may_be_in_another_order_or_turned_round(of_scan: tuple, of_mask: tuple, tmp_path: Path):
    image = nib.Nifti1Image(CODES, AFFINE)

    def turned(codes: tuple) -> nib.Nifti1Image:
        return image.as_reoriented(ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes)))

    nib.save(turned(of_mask), tmp_path / "mask.nii")
    own = turned(of_scan)
    hu = np.asarray(own.dataobj).astype(np.float32) * 100 - 1000
    ct = CTScan(hu, own.affine, SourceFacts("NIfTI", 1))
    assert np.array_equal(read_mask(tmp_path / "mask.nii", ct), CODES.T)


def test_the_rounding_of_an_affine_is_forgiven_and_no_more(tmp_path: Path):
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.05
    far[0, 3] += 0.1  # of voxels 0.7 mm wide
    assert np.array_equal(read_mask(save(tmp_path / "near.nii", affine=near), scan()), CODES.T)
    with pytest.raises(
        ValueError, match=r"far\.nii lies on another grid than the scan \(their corners lie 0\.1 mm apart\)"
    ):
        read_mask(save(tmp_path / "far.nii", affine=far), scan())


@pytest.mark.parametrize(
    ("array", "affine", "how"),
    [
        (CODES[:5], AFFINE, r"5 x 5 x 4 and 6 x 5 x 4 voxels"),
        (CODES.transpose(1, 0, 2), AFFINE, r"5 x 6 x 4 and 6 x 5 x 4 voxels"),
        (CODES, np.diag([-1.0, -1, 2, 1]) @ AFFINE, "their corners lie"),  # mirrored in place
        (CODES, AFFINE @ np.diag([1.1, 1, 1, 1]), "their corners lie"),
    ],
)
def test_other_grids_are_refused(array: np.ndarray, affine: np.ndarray, how: str, tmp_path: Path):
    with pytest.raises(
        ValueError, match=rf"mask\.nii lies on another grid than the scan \(.*{how}.*\): resample it onto"
    ):
        read_mask(save(tmp_path / "mask.nii", array, affine), scan())


def test_a_damaged_header_is_refused(tmp_path: Path):
    file = save(tmp_path / "mask.nii", np.zeros((6, 5, 4), np.uint8), np.eye(4))
    data = bytearray(file.read_bytes())
    data[70] ^= 0x10  # in the code of the voxels' type
    file.write_bytes(data)
    with pytest.raises(UnreadableFile, match=r"mask\.nii cannot be read as NIfTI"):
        read_mask(file, scan())


def test_files_that_are_no_mask_are_refused(tmp_path: Path):
    with pytest.raises(UnreadableFile, match=r"gone\.nii cannot be read as NIfTI"):
        read_mask(tmp_path / "gone.nii", scan())
    with pytest.raises(UnsupportedImage, match="is 4-D"):
        read_mask(save(tmp_path / "four.nii", np.stack([CODES, CODES], axis=-1)), scan())
    with pytest.raises(ImplausibleValues, match="between whole numbers"):
        read_mask(save(tmp_path / "soft.nii", CODES / 7), scan())
    with pytest.raises(ImplausibleValues, match=r"outside 0\.\.255"):
        read_mask(save(tmp_path / "hu.nii", CODES.astype(np.int16) - 1000), scan())


def test_nothing_of_the_path_but_the_name_is_told(tmp_path: Path):
    (tmp_path / "Doe^Jane").mkdir()
    with pytest.raises(ValueError, match="another grid") as caught:
        read_mask(save(tmp_path / "Doe^Jane" / "mask.nii", CODES[:5]), scan())
    assert "Jane" not in str(caught.value)
