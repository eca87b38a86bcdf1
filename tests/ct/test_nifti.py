# SPDX-License-Identifier: Apache-2.0
import gzip

import nibabel as nib
import numpy as np
import pytest

from covid_monai import ct
from covid_monai.ct import CTScan, SourceFacts, read_ct, write_mask

AFFINE = np.array([[-0.7, 0, 0, 100], [0, -0.7, 0, 90], [0, 0, 1.5, -300], [0, 0, 0, 1]])


def hu(shape=(6, 5, 4)) -> np.ndarray:
    """Distinct values from -1000 on, in steps of 10."""
    return (np.arange(np.prod(shape)).reshape(shape) * 10 - 1000).astype(np.int16)


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "CT.NII.GZ"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_volume(name, image_class, tmp_path):
    nib.save(image_class(hu(), AFFINE), tmp_path / "ct.nii.gz" if name.endswith("GZ") else tmp_path / name)
    if name.endswith("GZ"):
        (tmp_path / "ct.nii.gz").rename(tmp_path / name)
    scan = read_ct(tmp_path / name)
    np.testing.assert_array_equal(scan.volume[0], hu())
    np.testing.assert_allclose(scan.affine, AFFINE, rtol=1e-6)
    assert (scan.units, scan.spacing_known, scan.warnings) == ("HU", True, ())
    assert scan.source == SourceFacts("NIfTI", files=1)
    assert scan.voxel_ml == pytest.approx(0.000735)  # 0.7 x 0.7 x 1.5 mm3


def test_scaled_values(tmp_path):
    image = nib.Nifti1Image(hu().astype(np.float64) * 0.5, AFFINE, dtype=np.int16)
    nib.save(image, tmp_path / "ct.nii.gz")  # stored as int16 with slope and intercept
    np.testing.assert_allclose(read_ct(tmp_path / "ct.nii.gz").volume[0], hu() * 0.5, atol=0.02)


def test_trailing_dimensions_of_one(tmp_path):
    scan = read_ct(save(tmp_path / "ct.nii.gz", hu()[..., None, None]))
    np.testing.assert_array_equal(scan.volume[0], hu())


def test_padding_becomes_air(tmp_path):
    array = hu()
    array[0, 0, 0], array[1, 0, 0] = -3024, -2000
    scan = read_ct(save(tmp_path / "ct.nii.gz", array))
    assert scan.volume[0, 0, 0, 0] == scan.volume[0, 1, 0, 0] == scan.volume.min() == -1024


def test_no_path_in_the_scan(tmp_path):
    scan = read_ct(save(tmp_path / "JaneDoe.nii.gz", hu()))
    assert "JaneDoe" not in repr((scan.source, scan.warnings, scan.volume.meta))


@pytest.mark.parametrize(
    ("shape", "fault", "message"),
    [
        ((6, 5, 4, 2), ct.UnsupportedImage, r"ct\.nii\.gz is 4-D \(6 x 5 x 4 x 2\): save the one volume wanted"),
        ((6, 5, 4, 1, 3), ct.UnsupportedImage, r"is 5-D \(6 x 5 x 4 x 1 x 3\)"),
        ((6, 5), ct.TooFewSlices, "has 1 slice, a volume needs at least 3"),
        ((6, 5, 1), ct.TooFewSlices, "has 1 slice, "),
        ((6, 2, 4), ct.TooFewSlices, "has 2 slices, "),
    ],
)
def test_wrong_dimensions(shape, fault, message, tmp_path):
    with pytest.raises(fault, match=message):
        read_ct(save(tmp_path / "ct.nii.gz", hu(shape)))


def test_rgb(tmp_path):
    colours = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ct.UnsupportedImage, match="holds RGB values: give the CT in HU"):
        read_ct(save(tmp_path / "ct.nii.gz", colours))


def test_complex(tmp_path):
    with pytest.raises(ct.UnsupportedImage, match="holds complex values"):
        read_ct(save(tmp_path / "ct.nii.gz", hu().astype(np.complex64)))


def test_no_orientation(tmp_path):
    with pytest.raises(ct.MissingGeometry, match=r"sform and qform codes are 0\), so left and right cannot be told"):
        read_ct(save(tmp_path / "ct.nii.gz", hu(), affine=None))


def test_sheared_affine(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 1.5 * np.tan(np.radians(10))
    with pytest.raises(ct.TiltedGantry, match=r"ct\.nii\.gz has a grid sheared by 10\.0 degrees"):
        read_ct(save(tmp_path / "ct.nii.gz", hu(), affine))


def test_singular_affine(tmp_path):
    path = save(tmp_path / "ct.nii", hu())
    data = bytearray(path.read_bytes())
    data[312:328] = bytes(16)  # srow_z of the sform
    path.write_bytes(data)
    with pytest.raises(ct.MissingGeometry, match=r"ct\.nii has an affine that is not finite or not invertible"):
        read_ct(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value, tmp_path):
    array = hu().astype(np.float32)
    array[2, 3, 1] = value
    with pytest.raises(ct.ImplausibleValues, match=r"holds 1 NaN or infinite values in slice 2: export the scan again"):
        read_ct(save(tmp_path / "ct.nii.gz", array))


@pytest.mark.parametrize("kept", [0, 50, 500, -20, -9])
def test_truncated_gzip(kept, tmp_path):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "ct.nii.gz", rng.integers(-1000, 1000, (16, 15, 14)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ct.UnreadableFile, match=r"ct\.nii\.gz cannot be read as NIfTI \(truncated"):
        read_ct(path)


@pytest.mark.parametrize("kept", [0, 100, 360, -100, -1])
def test_truncated_plain(kept, tmp_path):
    path = save(tmp_path / "ct.nii", hu())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ct.UnreadableFile, match=r"ct\.nii cannot be read as NIfTI"):
        read_ct(path)


@pytest.mark.parametrize("place", range(20, 400, 20))
def test_gzip_with_a_damaged_block(place, tmp_path):
    values = np.random.default_rng(0).integers(-1000, -990, (16, 15, 14)).astype(np.int16)
    path = save(tmp_path / "ct.nii.gz", values)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ct.CTReadError, match=r"ct\.nii\.gz"):
        read_ct(path)


def test_gzip_with_a_wrong_checksum(tmp_path):
    path = save(tmp_path / "ct.nii.gz", hu())
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))  # level 0: stored as it is
    data[-40] ^= 1  # a voxel
    path.write_bytes(data)
    with pytest.raises(ct.UnreadableFile, match="cannot be read as NIfTI"):
        read_ct(path)


def test_encrypted(tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ct.UnreadableFile, match=r"\(truncated, encrypted or damaged\): copy or export it again"):
        read_ct(tmp_path / "ct.nii.gz")


GREY_OR_NOT = [(0, 255, "grey"), (-50, 300, "grey"), (-51, 300, "HU"), (0, 301, "HU")]


@pytest.mark.parametrize(("low", "high", "units"), GREY_OR_NOT)
def test_grey_levels(low, high, units, tmp_path):
    array = np.full((6, 5, 4), 100, dtype=np.int16)
    array[0, 0, 0], array[1, 0, 0] = low, high
    scan = read_ct(save(tmp_path / "ct.nii.gz", array))
    assert scan.units == units
    start = f"The values ({low} to {high}) look like grey levels" if units == "grey" else "No air in the scan"
    assert len(scan.warnings) == 1 and scan.warnings[0].startswith(start)


@pytest.mark.parametrize(
    "array", [np.eye(6)[:, :5, None] * np.ones(4), np.zeros((6, 5, 4)), 2 * np.eye(6)[:, :5, None] * np.ones(4)]
)
def test_a_mask_is_no_scan(array, tmp_path):
    with pytest.raises(ct.ImplausibleValues, match=r"values from 0 to [012] only, a mask or a rescaled image"):
        read_ct(save(tmp_path / "ct.nii.gz", array.astype(np.uint8)))


def test_warns_where_sform_and_qform_disagree(tmp_path):
    image = nib.Nifti1Image(hu(), AFFINE)
    image.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), 1)
    image.set_sform(AFFINE, 1)
    nib.save(image, tmp_path / "ct.nii.gz")
    scan = read_ct(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(scan.affine, AFFINE, rtol=1e-6)
    assert "check left and right" in scan.warnings[0]


def test_warns_of_coarse_slices_along_any_axis(tmp_path):
    affine = np.diag([1.0, 4.0, 1.0, 1.0])  # 4 mm from front to back: coronal slices
    assert "coronal" in read_ct(save(tmp_path / "ct.nii.gz", hu(), affine)).warnings[0]
    affine = np.diag([0.7, 0.7, 6.0, 1.0])
    assert read_ct(save(tmp_path / "ct.nii.gz", hu(), affine)).warnings[0].startswith("Slices are 6 mm thick")


@pytest.mark.parametrize("thin", [0.5, 0.625])
def test_thin_axial_slices_are_not_taken_for_sagittal_ones(thin, tmp_path):
    affine = np.diag([0.977, 0.977, thin, 1.0])
    assert read_ct(save(tmp_path / "ct.nii.gz", hu(), affine)).warnings == ()


def test_a_grid_larger_than_any_patient(tmp_path):
    affine = np.diag([500.0, 500.0, 500.0, 1.0])  # micrometres
    with pytest.raises(ct.MissingGeometry, match=r"ct\.nii\.gz is 3\.0 m long, with voxels of 500 x 500 x 500 mm"):
        read_ct(save(tmp_path / "ct.nii.gz", hu(), affine))


# ---------------------------------------------------------------- write_mask


@pytest.fixture
def scan() -> CTScan:
    return CTScan(hu(), AFFINE, SourceFacts("DICOM", files=4))


def test_mask_file(scan, tmp_path):
    mask = np.zeros(scan.shape, dtype=np.int64)
    mask[1, 2, 3], mask[0, 0, 0] = 2, 1
    write_mask(mask, scan, tmp_path / "mask.nii.gz", labels={1: "ground-glass opacity", 2: "consolidation"})
    image = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(image.dataobj, mask)
    assert image.get_data_dtype() == np.uint8
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_sform(), AFFINE, rtol=1e-6)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["descrip"].item() == b"mask; research use only"
    assert image.header.extensions[0].get_content() == b"1 = ground-glass opacity; 2 = consolidation"
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_equal_masks_are_equal_files(scan, tmp_path):
    files = [tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"]
    for file in files:
        write_mask(np.ones(scan.shape, dtype=np.uint8), scan, file)
    content = files[0].read_bytes()
    assert content == files[1].read_bytes()
    assert content[3:8] == bytes(5)  # of gzip: no name, no time


def test_uncompressed_boolean_mask(scan, tmp_path):
    write_mask(scan.array > 0, scan, str(tmp_path / "mask.nii"))
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").dataobj, hu() > 0)


def test_mask_of_slice_images_says_that_lengths_are_nominal(tmp_path):
    scan = CTScan(hu(), np.diag([-1.0, -1, 1, 1]), SourceFacts("slice images", 4), spacing_known=False)
    write_mask(np.zeros(scan.shape, dtype=np.uint8), scan, tmp_path / "mask.nii.gz")
    image = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(image.affine, np.diag([-1, -1, 1, 1]))
    assert image.header["descrip"].item() == b"mask; voxel size unknown, 1 mm is nominal; research use only"
    assert image.header["sform_code"] == 2


@pytest.mark.parametrize(
    ("mask", "name", "message"),
    [
        (np.zeros((4, 5, 6), dtype=np.uint8), "m.nii.gz", r"has shape \(4, 5, 6\), the scan \(6, 5, 4\)"),
        (np.zeros((1, 6, 5, 4), dtype=np.uint8), "m.nii.gz", r"has shape \(1, 6, 5, 4\)"),
        (np.zeros((6, 5, 4)), "m.nii.gz", "holds float64 values: give integers"),
        (np.full((6, 5, 4), 256), "m.nii.gz", "values from 256 to 256: give integers 0..255"),
        (np.full((6, 5, 4), -1), "m.nii.gz", "values from -1 to -1"),
        (np.zeros((6, 5, 4), dtype=np.uint8), "m.mha", r"as m\.mha: give a name that ends in \.nii\.gz or \.nii"),
        (np.full((6, 5, 4), 3), "m.nii.gz", r"the values \[3\], which labels does not name"),
    ],
)
def test_wrong_masks_write_nothing(mask, name, message, scan, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_mask(mask, scan, tmp_path / name, labels={1: "lesion"})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(scan, tmp_path, monkeypatch):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"old")

    def fail(image, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask(np.zeros(scan.shape, dtype=np.uint8), scan, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
