# SPDX-License-Identifier: Apache-2.0
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from covid_monai.ct import CTScan, MissingGeometry, SourceFacts, TiltedGantry, read_ct, write_mask

# All 48 ways to lay right/left, anterior/posterior and superior/inferior on three axes.
ORIENTATIONS = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]
SOURCE = SourceFacts("NIfTI", files=1)


def reference_upright() -> nib.Nifti1Image:
    """An asymmetric upright volume (Z, H, W) = (5, 4, 3) with spacing (2.5, 0.75, 0.5), each voxel another value."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = 2.5, -0.75, -0.5  # axes to superior, posterior, left
    affine[:, 3] = 10, 20, -30, 1
    return nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3) * 10 - 1000, affine)


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_mask_lies_on_the_scan_in_every_orientation(codes, tmp_path):
    upright = reference_upright()
    original = reoriented(upright, codes)
    assert nib.aff2axcodes(original.affine) == tuple(codes)
    nib.save(original, tmp_path / "ct.nii.gz")
    scan = read_ct(tmp_path / "ct.nii.gz")

    np.testing.assert_array_equal(scan.upright(), upright.get_fdata())
    assert scan.upright_spacing == pytest.approx((2.5, 0.75, 0.5))

    mask = np.zeros((5, 4, 3), dtype=np.uint8)
    mask[4, 0, 1], mask[1, 2, 0], mask[0, 3, 2] = 1, 2, 3  # no two share a plane
    write_mask(scan.from_upright(mask), scan, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(written.affine, original.affine)
    for value, expected in ((1, -1000 + 490), (2, -1000 + 180), (3, -1000 + 110)):
        assert original.get_fdata()[written.get_fdata() == value].tolist() == [expected]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    codes=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-15, 15)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
)
def test_upright_and_back_is_the_scan_itself(shape, codes, angles, spacing):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    affine = inv_ornt_aff(axcodes2ornt(codes), shape)  # 1 mm RAS, reordered
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3] * spacing
    scan = CTScan(array, affine, SOURCE)

    upright = scan.upright()
    np.testing.assert_array_equal(scan.from_upright(upright), array)
    assert np.shares_memory(scan.from_upright(upright), array)  # views all the way
    assert scan.spacing == pytest.approx(spacing)
    assert scan.voxel_ml == pytest.approx(np.prod(spacing) / 1000)
    assert sorted(scan.upright_spacing) == pytest.approx(sorted(spacing))

    # going on along an upright axis goes superior, posterior, left: the axes' positions found by their voxels' values
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = where @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    for axis, (component, sign) in enumerate(((2, 1), (1, -1), (0, -1))):
        coordinate = CTScan(world[..., component].astype(np.float32), affine, SOURCE).upright()
        assert (np.diff(coordinate, axis=axis) * sign > 0).all()


def test_facts_of_the_grid():
    scan = CTScan(np.zeros((4, 3, 2)), np.diag([-0.5, -0.75, 2.0, 1.0]), SOURCE)
    assert scan.shape == (4, 3, 2)
    assert scan.spacing == (0.5, 0.75, 2.0)
    assert scan.voxel_ml == pytest.approx(0.00075)  # 0.5 x 0.75 x 2 mm = 0.75 mm3
    assert scan.upright().shape == (2, 3, 4)
    assert scan.upright_spacing == (2.0, 0.75, 0.5)
    assert scan.volume.shape == (1, 4, 3, 2) and scan.volume.dtype == torch.float32
    np.testing.assert_array_equal(scan.volume.affine, np.diag([-0.5, -0.75, 2.0, 1.0]))


def test_scan_shares_memory_with_its_array():
    array = np.zeros((4, 3, 2), dtype=np.float32, order="F")
    scan = CTScan(array, np.eye(4), SOURCE)
    array[1, 2, 0] = 7
    assert scan.volume[0, 1, 2, 0] == 7
    assert np.shares_memory(scan.upright(), array)


def test_lengths_unknown_no_volume():
    scan = CTScan(np.zeros((4, 3, 2)), np.eye(4), SOURCE, spacing_known=False)
    assert scan.voxel_ml is None


def test_upright_array_of_another_shape_is_refused():
    scan = CTScan(np.zeros((4, 3, 2)), np.diag([-1.0, -1, 1, 1]), SOURCE)
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2\), the upright scan \(2, 3, 4\): give \(Z, H, W\)"):
        scan.from_upright(np.zeros((4, 3, 2)))


@pytest.mark.parametrize(
    ("shape", "units", "message"),
    [((1, 4, 3, 2), "HU", r"array has shape \(1, 4, 3, 2\): give \(X, Y, Z\)"), ((4, 3, 2), "mGy", "units is 'mGy'")],
)
def test_wrong_members_are_refused(shape, units, message):
    with pytest.raises(ValueError, match=message):
        CTScan(np.zeros(shape), np.eye(4), SOURCE, units=units)


def test_what_torch_does_not_take_is_copied():
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    scan = CTScan(array[::-1], np.eye(4), SOURCE)
    np.testing.assert_array_equal(scan.volume[0], array[::-1].copy())


def test_affine_is_the_scans_own():
    affine = np.eye(4)
    scan = CTScan(np.zeros((4, 3, 2)), affine, SOURCE)
    affine[0, 0] = 2
    assert scan.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        scan.affine[0, 0] = 2


def test_sheared_affine_is_refused():
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.radians(12))
    with pytest.raises(TiltedGantry, match=r"sheared by 12\.0 degrees"):
        CTScan(np.zeros((4, 3, 2)), affine, SOURCE)


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 0, 1]), np.diag([1.0, 1, np.nan, 1])])
def test_unusable_affine_is_refused(affine):
    with pytest.raises(MissingGeometry, match="not finite or not invertible"):
        CTScan(np.zeros((4, 3, 2)), affine, SOURCE)
