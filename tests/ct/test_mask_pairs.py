# SPDX-License-Identifier: Apache-2.0
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from covid_monai.ct.masks import read_mask_pair

AFFINE = np.array([[0.7, 0, 0, -100], [0, 0.8, 0, -90], [0, 0, 1.5, -300], [0, 0, 0, 1]])


def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (6, 5, 4)).astype(np.uint8)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_two_masks_of_one_grid(tmp_path: Path):
    other = np.roll(codes(), 1, axis=0)
    found, true, spacing = read_mask_pair(save(tmp_path / "a.nii.gz", codes()), save(tmp_path / "b.nii", other))
    assert np.array_equal(found, codes())
    assert np.array_equal(true, other)
    assert found.dtype == true.dtype == np.uint8
    assert spacing == pytest.approx((0.7, 0.8, 1.5))


@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_a_reference_in_any_of_the_48_orientations_is_turned(axes: tuple, flips: tuple, tmp_path: Path):
    orientation = np.array([axes, flips]).T
    turned = apply_orientation(codes(), orientation)
    reference = save(tmp_path / "b.nii", turned, AFFINE @ inv_ornt_aff(orientation, codes().shape))
    found, true, spacing = read_mask_pair(save(tmp_path / "a.nii", codes()), reference)
    assert np.array_equal(found, codes())
    assert np.array_equal(true, codes())
    assert spacing == pytest.approx((0.7, 0.8, 1.5))


@pytest.mark.parametrize("array", [codes().astype(np.float32), codes().astype(np.int16), codes()[..., None]])
def test_whole_numbers_of_any_type_are_read(array: np.ndarray, tmp_path: Path):
    found, true, _ = read_mask_pair(save(tmp_path / "a.nii", array), save(tmp_path / "b.nii", codes()))
    assert np.array_equal(found, true)


def shifted(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


def test_rounding_of_the_affine_is_no_other_grid(tmp_path: Path):
    first, second = save(tmp_path / "a.nii", codes()), save(tmp_path / "b.nii", codes(), shifted(0.05))
    assert read_mask_pair(first, second)[2] == pytest.approx((0.7, 0.8, 1.5))


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (codes()[:-1], AFFINE, r"a\.nii lies on another grid than b\.nii \(6 x 5 x 4 and 5 x 5 x 4 voxels\)"),
        (codes(), shifted(0.2), r"another grid than b\.nii \(their corners lie 0\.2 mm apart\): resample"),
        (codes(), AFFINE @ np.diag([1.1, 1, 1, 1]), "their corners lie 0.3 mm apart"),
        (codes(), AFFINE @ np.diag([-1, 1, 1, 1]), "another grid"),  # mirrored, not turned
    ],
)
def test_masks_of_two_grids_are_refused(array: np.ndarray, affine: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        read_mask_pair(save(tmp_path / "a.nii", codes()), save(tmp_path / "b.nii", array, affine))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (codes() * np.float32(0.5), "values between whole numbers, as a probability map"),
        (codes().astype(np.int16) - 1, "values outside 0..255"),
        (np.full((6, 5, 4), np.nan, np.float32), "values outside 0..255"),
        (np.full((6, 5, 4), 256, np.int16), "values outside 0..255"),
        (np.zeros((6, 5, 4, 2), np.uint8), r"is 4-D of uint8 values: give one 3-D mask"),
        (np.zeros((6, 5, 4), np.complex64), r"is 3-D of complex64 values"),
    ],
)
def test_what_is_no_mask_of_codes_is_refused(array: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"b\.nii (holds )?{message}"):
        read_mask_pair(save(tmp_path / "a.nii", codes()), save(tmp_path / "b.nii", array))


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path):
    good = save(tmp_path / "a.nii.gz", codes())
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:-40])
    nib.save(nib.MGHImage(codes(), AFFINE.astype(np.float32)), tmp_path / "b.mgz")
    for name, message in (
        ("none.nii", r"none\.nii cannot be read as NIfTI \(missing"),
        ("cut.nii.gz", r"cut\.nii\.gz cannot be read as NIfTI"),
        ("b.mgz", r"b\.mgz is no NIfTI"),
    ):
        with pytest.raises(ValueError, match=message):
            read_mask_pair(good, tmp_path / name)
