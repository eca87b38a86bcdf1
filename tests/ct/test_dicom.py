# SPDX-License-Identifier: Apache-2.0
import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, MediaStorageDirectoryStorage, RLELossless

from covid_monai import ct
from covid_monai.ct import read_ct, write_mask
from tests.ct.series import AXIAL, PIXEL_SPACING, SPACING, datasets, enhanced, hu_at, write

TILT = np.radians(20)
ORIENTATIONS = {
    "head first supine": AXIAL,
    "prone": (-1, 0, 0, 0, -1, 0),
    "mirrored rows": (1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (np.cos(TILT), np.sin(TILT), 0, -np.sin(TILT), np.cos(TILT), 0),
}


def assert_values_lie_where_they_belong(scan):
    """Every voxel's HU is the one of its position in the patient."""
    x, y, z = np.meshgrid(*map(np.arange, scan.shape), indexing="ij")
    ras = np.stack([x, y, z], axis=-1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    np.testing.assert_allclose(scan.volume[0], hu_at(ras * [-1, -1, 1]), atol=1)  # 1: rounding of oblique positions


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_geometry(name, tmp_path):
    scan = read_ct(write(tmp_path, datasets(orientation=ORIENTATIONS[name])))
    assert scan.shape == (12, 16, 6)  # columns, rows, slices
    assert scan.spacing == pytest.approx((PIXEL_SPACING[1], PIXEL_SPACING[0], SPACING))
    assert scan.voxel_ml == pytest.approx(0.00075)
    assert (scan.units, scan.spacing_known) == ("HU", True)
    assert_values_lie_where_they_belong(scan)


def test_feet_first_slices_run_the_other_way(tmp_path):
    """The order of acquisition does not matter; what is written is the position in the patient."""
    scan = read_ct(write(tmp_path, datasets(step=(0, 0, -SPACING), origin=(-4, -6, 10))))
    np.testing.assert_allclose(scan.affine, [[-0.5, 0, 0, 4], [0, -0.75, 0, 6], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert_values_lie_where_they_belong(scan)


def test_upright_of_an_axial_scan(tmp_path):
    scan = read_ct(write(tmp_path, datasets(orientation=(-1, 0, 0, 0, -1, 0))))  # prone: rows and columns run backwards
    upright = scan.upright()
    assert upright.shape == (6, 16, 12)
    assert (np.diff(upright, axis=0) == 40).all()  # 20 HU a mm to superior
    assert (np.diff(upright, axis=1) == 6).all()  # 8 HU a mm to posterior
    assert (np.diff(upright, axis=2) == 2).all()  # 4 HU a mm to the left


def test_values_below_air_are_padding(tmp_path):
    slices = datasets()
    raw = np.frombuffer(slices[0].PixelData, "<i2").copy()
    raw[:5] = -2000
    slices[0].PixelPaddingValue = -2000
    slices[0].PixelData = raw.tobytes()
    scan = read_ct(write(tmp_path, slices))
    assert scan.volume.min() == -1024
    assert (scan.volume[0, :5, 0, 0] == -1024).all()


def test_rescale_is_each_slice_s_own(tmp_path):
    slices = datasets()
    slices[2].RescaleSlope, slices[2].RescaleIntercept = 2, -900
    plain = read_ct(write(tmp_path / "plain", datasets())).volume
    scan = read_ct(write(tmp_path / "rescaled", slices)).volume
    np.testing.assert_array_equal(scan[..., 2], (plain[..., 2] + 1000) * 2 - 900)
    np.testing.assert_array_equal(scan[..., 3], plain[..., 3])


def test_facts_without_patient_data(tmp_path):
    slices = datasets()
    scan = read_ct(write(tmp_path, slices))
    assert scan.source == ct.SourceFacts("DICOM", 6, 2.0, "B70f", "ACME", "Ring 64", 120.0, contrast=None)
    assert scan.warnings == ()
    told = repr((scan.source, scan.warnings, scan.volume.meta)).lower()
    assert not any(secret in told for secret in ("doe", "jane", "pid4711", "1950", "2020", str(tmp_path).lower()))


def test_folder_with_any_names_and_stray_files(tmp_path):
    write(tmp_path / "DICOM" / "A1", datasets()[:3], "IM{:04d}".format)
    write(tmp_path / "DICOM" / "B", datasets()[3:], "I{}.with.dots".format)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "logo.png").write_bytes(b"no image")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    directory = datasets()[0]
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    report = Dataset()
    report.file_meta = datasets()[0].file_meta
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID, report.Modality, report.SeriesInstanceUID = "1.5", "SR", "1.6"
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    scan = read_ct(tmp_path)
    assert scan.shape == (12, 16, 6)
    assert scan.warnings == ("Files left out: 1 DICOM directory, 2 not DICOM, 1 DICOM without image.",)
    assert_values_lie_where_they_belong(scan)


def test_enhanced_multi_frame(tmp_path):
    single = read_ct(write(tmp_path / "single", datasets()))
    shuffled = [datasets()[k] for k in (3, 0, 5, 1, 4, 2)]
    enhanced(shuffled).save_as(tmp_path / "ct", enforce_file_format=True)
    scan = read_ct(tmp_path / "ct")
    np.testing.assert_array_equal(scan.volume, single.volume)
    np.testing.assert_allclose(scan.affine, single.affine)
    assert scan.source.slice_thickness == 2.0


def test_a_mask_of_a_series_lies_on_it(tmp_path):
    scan = read_ct(write(tmp_path / "ct", datasets(orientation=ORIENTATIONS["coronal"])))
    write_mask(scan.from_upright(scan.upright() > 0), scan, tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-6)
    np.testing.assert_array_equal(mask.get_fdata(), scan.volume[0] > 0)


# ---------------------------------------------------------------- refusals: series


def test_several_series_are_listed_and_chosen(tmp_path):
    soft, lung, scout = datasets(), datasets(slices=7, series="1.2.4"), datasets(slices=1, series="1.2.5")
    for one in lung:
        one.SeriesNumber, one.SeriesDescription = 4, "Lung 09-03-2020\nB70"
    for one in soft:
        one.SeriesDescription = "CT of Jane"
    scout[0].SeriesNumber, scout[0].ImageType = 1, ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(tmp_path / "a", soft), write(tmp_path / "b", lung), write(tmp_path / "c", scout)
    with pytest.raises(ct.SeriesChoiceError) as fault:
        read_ct(tmp_path)
    assert str(fault.value) == (
        f"{tmp_path} holds 3 series: [1] localiser 'CHEST 1.0' (series number 1), 1 slice; "
        "[2] CT (series number 3), 6 slices; [3] CT 'Lung ... B70' (series number 4), 7 slices. "
        "Choose one by its number in [] or its SeriesInstanceUID: --series, in Python series=."
    )
    for choice in (3, "3", "1.2.4"):
        assert read_ct(tmp_path, series=choice).shape == (12, 16, 7)
    for choice in (4, 0, "1.2.99"):
        with pytest.raises(ct.SeriesChoiceError, match=f"holds 3 series, none of them is {choice}: .1. localiser"):
            read_ct(tmp_path, series=choice)


def test_missing_series_in_a_folder_of_one(tmp_path):
    write(tmp_path, datasets())
    assert read_ct(tmp_path, series=1).shape == (12, 16, 6)
    with pytest.raises(ct.SeriesChoiceError, match=r"holds 1 series, none of them is 2: \[1\] CT 'CHEST 1.0'"):
        read_ct(tmp_path, series=2)


def test_localiser_series(tmp_path):
    slices = datasets()
    for one in slices:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with pytest.raises(ct.NotCT, match=r"is a localiser \(6 images\).*give the CT series itself"):
        read_ct(write(tmp_path, slices))


def test_stray_localiser_is_set_aside(tmp_path):
    stray = datasets(slices=1, orientation=ORIENTATIONS["coronal"], origin=(0, 99, 0))[0]
    stray.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scan = read_ct(write(tmp_path, [*datasets(), stray]))
    assert scan.shape == (12, 16, 6)
    assert scan.warnings == ("Localiser images within the series set aside: 1.",)
    assert scan.source.files == 6


# ---------------------------------------------------------------- refusals: geometry


def test_one_missing_slice(tmp_path):
    slices = datasets()
    del slices[2]
    message = r"^1 slice is missing, first between \d+.dcm and \d+.dcm \(2\.00 and 6\.00 mm, spacing 2 mm\)"
    with pytest.raises(ct.MissingSlices, match=message):
        read_ct(write(tmp_path, slices))


def test_missing_slices_in_a_short_series(tmp_path):
    slices = datasets(slices=7)
    del slices[4:6], slices[1]  # left: 0, 4, 6, 12 mm
    with pytest.raises(ct.MissingSlices, match=r"^3 slices are missing, .*\(0\.00 and 4\.00 mm"):
        read_ct(write(tmp_path, slices))


def test_duplicate_positions(tmp_path):
    message = r"Duplicate slices: \d+.dcm and \d+.dcm both lie at 4\.00 mm \(such pairs: 1\): remove copies"
    with pytest.raises(ct.DuplicateSlices, match=message):
        read_ct(write(tmp_path, [*datasets(), datasets()[2]]))


def test_irregular_spacing(tmp_path):
    slices = datasets()
    slices[3].ImagePositionPatient = [-4, -6, 6.3]
    with pytest.raises(ct.IrregularSpacing, match=r"unevenly spaced, 1\.70 to 2\.30 mm, first between"):
        read_ct(write(tmp_path, slices))


def test_positions_rounded_by_the_scanner_are_even(tmp_path):
    slices = datasets(slices=9, step=(0, 0, 0.625))
    for one in slices:
        one.ImagePositionPatient[2] = round(float(one.ImagePositionPatient[2]), 2)
    assert read_ct(write(tmp_path, slices)).spacing[2] == pytest.approx(0.625)


def test_directions_rounded_by_the_scanner_are_at_right_angles(tmp_path):
    slices = datasets(orientation=ORIENTATIONS["oblique"])
    for one in slices:
        one.ImageOrientationPatient = [round(float(cosine), 3) for cosine in one.ImageOrientationPatient]
    assert_values_lie_where_they_belong(read_ct(write(tmp_path, slices)))


def test_shear_of_a_tilted_gantry(tmp_path):
    slices = datasets(step=(0, 2 * np.tan(np.radians(15)), 2))
    with pytest.raises(ct.TiltedGantry, match=r"not stacked along their normal \(by 15\.0 degrees, up to 2\.7 mm"):
        read_ct(write(tmp_path, slices))


def test_a_slice_moved_sideways(tmp_path):
    slices = datasets()
    slices[3].ImagePositionPatient = [-1, -6, 6]
    with pytest.raises(ct.TiltedGantry, match=r"up to 3\.0 mm sideways"):
        read_ct(write(tmp_path, slices))


def test_stated_tilt(tmp_path):
    slices = datasets()
    for one in slices:
        one.GantryDetectorTilt = -12.5
    with pytest.raises(ct.TiltedGantry, match=r"gantry tilted by -12\.5 degrees: give a series reconstructed without"):
        read_ct(write(tmp_path, slices))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_slices(count, tmp_path):
    with pytest.raises(ct.TooFewSlices, match=rf"has {count} slices?, a volume needs at least 3"):
        read_ct(write(tmp_path, datasets(slices=count)))


def test_single_file_of_a_series(tmp_path):
    write(tmp_path, datasets())
    with pytest.raises(ct.TooFewSlices, match=r"003\.dcm has 1 slice, .* give the whole series"):
        read_ct(tmp_path / "003.dcm")


@pytest.mark.parametrize(
    ("keyword", "value", "what"),
    [
        ("PixelSpacing", [0.8, 0.5], "pixel spacing"),
        ("ImageOrientationPatient", [0, 1, 0, -1, 0, 0], "orientation"),
    ],
)
def test_slices_that_differ(keyword, value, what, tmp_path):
    slices = datasets()
    setattr(slices[3], keyword, value)
    with pytest.raises(ct.InconsistentSlices, match=f"mixes slices of different {what}: .* of one reconstruction"):
        read_ct(write(tmp_path, slices))


def test_slices_of_different_size(tmp_path):
    slices = datasets()
    slices[3].Rows, slices[3].PixelData = 8, slices[3].PixelData[: 8 * 12 * 2]
    with pytest.raises(ct.InconsistentSlices, match=r"different rows: (16.0 in .*, 8.0|8.0 in .*, 16.0)"):
        read_ct(write(tmp_path, slices))


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(keyword, tmp_path):
    slices = datasets()
    del slices[3][keyword]
    with pytest.raises(ct.MissingGeometry, match=rf"\.dcm has no usable {keyword}: give the original CT series"):
        read_ct(write(tmp_path, slices))


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "an orientation without right angles"),
        ("PixelSpacing", [0, 0.5], "a pixel spacing that is not above 0"),
    ],
)
def test_impossible_geometry(keyword, value, message, tmp_path):
    slices = datasets()
    for one in slices:
        setattr(one, keyword, value)
    with pytest.raises(ct.MissingGeometry, match=message):
        read_ct(write(tmp_path, slices))


# ---------------------------------------------------------------- refusals: kind and values


@pytest.mark.parametrize(
    ("keyword", "value", "fault", "message"),
    [
        ("Modality", "MR", ct.NotCT, "has modality MR, not CT: give a CT series"),
        ("Modality", "", ct.NotCT, "has modality unknown, not CT"),
        ("SamplesPerPixel", 3, ct.NotCT, "is a colour image"),
        ("RescaleType", "Z_EFF", ct.NotCT, "holds values of type Z_EFF, not HU"),
        ("RescaleSlope", None, ct.MissingRescale, "no rescale slope and intercept, so its values are not HU"),
        ("RescaleSlope", 0, ct.MissingRescale, "no rescale slope and intercept"),
        ("RescaleIntercept", None, ct.MissingRescale, "no rescale slope and intercept"),
        ("NumberOfFrames", 6, ct.MissingGeometry, "frames without positions"),
        ("Rows", None, ct.UnreadableFile, "states no image size"),
    ],
)
def test_no_ct_in_hu(keyword, value, fault, message, tmp_path):
    slices = datasets()
    if value is None:
        del slices[3][keyword]
    else:
        setattr(slices[3], keyword, value)
    with pytest.raises(fault, match=rf"\d+\.dcm .*{message}"):
        read_ct(write(tmp_path, slices))


def test_grey_levels_as_dicom(tmp_path):
    slices = datasets()
    for one in slices:
        one.RescaleIntercept = 0
        one.PixelData = np.tile(np.arange(16, dtype="<i2") * 17, 12).tobytes()
    scan = read_ct(write(tmp_path, slices))
    assert scan.units == "grey"
    assert scan.warnings[0].startswith("The values (0 to 255) look like grey levels")


# ---------------------------------------------------------------- refusals: damaged files


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (0, "is named like DICOM but is none"),
        (100, "is named like DICOM but is none"),
        (140, "has a damaged header"),
        (400, "is truncated, it ends before the pixel data"),
        (-300, "has pixel data that cannot be decoded"),
        (-2, "has pixel data that cannot be decoded"),
    ],
)
def test_truncated_file(kept, message, tmp_path):
    write(tmp_path, datasets())
    file = tmp_path / "002.dcm"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ct.UnreadableFile, match=rf"^002\.dcm {message}.*: copy or export the series again"):
        read_ct(tmp_path)


def test_pixel_data_shorter_than_stated(tmp_path):
    slices = datasets()
    slices[2].PixelData = slices[2].PixelData[:-24]
    with pytest.raises(ct.UnreadableFile, match="pixel data that cannot be decoded"):
        read_ct(write(tmp_path, slices))


def test_encrypted_file(tmp_path):
    write(tmp_path, datasets())
    (tmp_path / "002.dcm").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(ct.UnreadableFile, match=r"002\.dcm is named like DICOM but is none \(truncated or encrypted\)"):
        read_ct(tmp_path)


def test_compressed_series(tmp_path):
    plain = read_ct(write(tmp_path / "plain", datasets()))
    slices = datasets()
    for one in slices:
        one.compress(RLELossless, generate_instance_uid=False)
    scan = read_ct(write(tmp_path / "rle", slices))
    np.testing.assert_array_equal(scan.volume, plain.volume)
    file = tmp_path / "rle" / "004.dcm"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ct.UnreadableFile, match=r"004\.dcm has pixel data that cannot be decoded"):
        read_ct(tmp_path / "rle")


def test_only_a_directory_file(tmp_path):
    directory = datasets()[0]
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(ct.NoScanFound, match=r"holds no DICOM image \(1 DICOM directory\)"):
        read_ct(tmp_path)


# ---------------------------------------------------------------- warnings


def warned(tmp_path, **values) -> str:
    slices = datasets(orientation=values.pop("orientation", AXIAL), step=values.pop("step", None))
    for one in slices:
        for keyword, value in values.items():
            setattr(one, keyword, value)
    (warning,) = read_ct(write(tmp_path, slices)).warnings
    return warning


def test_warns_of_contrast_agent(tmp_path):
    assert warned(tmp_path, ContrastBolusAgent="Iomeprol 400").startswith("Contrast agent was given")


def test_agent_none_is_no_contrast(tmp_path):
    slices = datasets()
    slices[0].ContrastBolusAgent = "NONE"
    scan = read_ct(write(tmp_path, slices))
    assert (scan.source.contrast, scan.warnings) == (False, ())


def test_warns_of_thick_slices(tmp_path):
    text = "Slices are 8 mm thick or apart, more than 5 mm: small lesions may be missed."
    assert warned(tmp_path, step=(0, 0, 8), SliceThickness=8) == text


def test_warns_of_unseen_space(tmp_path):
    assert warned(tmp_path, step=(0, 0, 5), SliceThickness=1).startswith("Slices of 1 mm lie 5 mm apart")


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_warns_of_reformats(plane, tmp_path):
    assert warned(tmp_path, orientation=ORIENTATIONS[plane]).startswith(f"The slices are {plane}, not axial")


def test_warns_of_oblique_slices(tmp_path):
    orientation = (1, 0, 0, 0, np.cos(TILT), np.sin(TILT))
    assert warned(tmp_path, orientation=orientation).startswith("The slices are 20 degrees off the axial plane")


def test_warns_of_implausible_lengths(tmp_path):
    text = "Voxels of 50 x 50 x 2 mm are implausible for a chest CT"
    assert warned(tmp_path, PixelSpacing=[50, 50]).startswith(text)


def test_a_grid_larger_than_any_patient(tmp_path):
    with pytest.raises(ct.MissingGeometry, match=r"m long, with voxels of 700 x 700 x 2 mm"):
        warned(tmp_path, PixelSpacing=[700, 700])


# ---------------------------------------------------------------- real data


def test_jpeg_lossless_series(shared_data, tmp_path):
    folder = shared_data("ricord1a_000082_hu15")
    scan, reference = read_ct(folder / "dicom"), read_ct(folder / "image_hu.nii.gz")
    assert scan.shape == (512, 512, 15)
    np.testing.assert_array_equal(scan.volume, reference.volume)
    np.testing.assert_allclose(scan.affine, reference.affine, atol=1e-5)
    assert scan.warnings == ()

    shutil.copytree(folder / "dicom", tmp_path / "cut")
    file = tmp_path / "cut" / "1-040.dcm"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1000])
    with pytest.raises(ct.UnreadableFile, match=r"1-040\.dcm has pixel data that cannot be decoded"):
        read_ct(tmp_path / "cut")
