# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from covid_monai import ct
from covid_monai.ct import read_ct


def plane(k: int, shape=(5, 4)) -> np.ndarray:
    """A slice (H, W) of distinct grey levels; slice ``k`` is ``k`` brighter."""
    return (np.arange(np.prod(shape)).reshape(shape) * 10 + k).astype(np.uint8)


def test_folder_in_natural_order(tmp_path):
    for k in range(12):
        Image.fromarray(plane(k)).save(tmp_path / f"slice{k}.png")
    scan = read_ct(tmp_path)
    assert (scan.shape, scan.units, scan.spacing_known, scan.voxel_ml) == ((4, 5, 12), "grey", False, None)
    np.testing.assert_array_equal(scan.upright(), [plane(k) for k in range(12)])
    np.testing.assert_array_equal(scan.affine, np.diag([-1, -1, 1, 1]))
    assert scan.source == ct.SourceFacts("slice images", files=12)
    assert scan.warnings[0].startswith("Slice images carry no geometry: volumes in mL cannot be given")
    assert scan.warnings[1].startswith("The values (0 to 201) look like grey levels")


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "tif", "bmp"])
def test_single_slice(suffix, tmp_path):
    path = tmp_path / f"slice.{suffix}"
    Image.fromarray(np.full((16, 8), 90, dtype=np.uint8)).save(path)
    scan = read_ct(path)
    assert scan.shape == (8, 16, 1)
    np.testing.assert_allclose(scan.upright(), 90, atol=1)


def test_multi_page_tiff(tmp_path):
    pages = [Image.fromarray(plane(k)) for k in range(4)]
    pages[0].save(tmp_path / "stack.tiff", save_all=True, append_images=pages[1:])
    scan = read_ct(tmp_path / "stack.tiff")
    np.testing.assert_array_equal(scan.upright(), [plane(k) for k in range(4)])
    assert scan.source.files == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_in_colour_channels(mode, tmp_path):
    Image.fromarray(plane(0)).convert(mode).save(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_ct(tmp_path / "slice.png").upright(), [plane(0)])


def test_coloured_image(tmp_path):
    colours = np.stack([plane(0), plane(0), plane(50)], axis=-1)
    Image.fromarray(colours).save(tmp_path / "overlay.png")
    with pytest.raises(ct.UnsupportedImage, match=r"overlay\.png is a coloured image: give the slice in grey"):
        read_ct(tmp_path / "overlay.png")


def test_different_sizes(tmp_path):
    Image.fromarray(plane(0)).save(tmp_path / "a.png")
    Image.fromarray(plane(0, (6, 4))).save(tmp_path / "b.png")
    with pytest.raises(ct.InconsistentSlices, match=r"images of 4 x 5 \(a\.png\) and 4 x 6 pixels \(b\.png\)"):
        read_ct(tmp_path)


def test_pages_of_different_sizes(tmp_path):
    pages = [Image.fromarray(plane(0)), Image.fromarray(plane(0, (6, 4)))]
    pages[0].save(tmp_path / "stack.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ct.InconsistentSlices, match=r"4 x 5 .* and 4 x 6 pixels \(stack\.tiff, page 2\)"):
        read_ct(tmp_path / "stack.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_truncated_image(suffix, kept, tmp_path):
    path = tmp_path / f"slice.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ct.UnreadableFile, match=rf"slice\.{suffix} cannot be read as an image \(truncated or"):
        read_ct(path)


def test_signed_values_with_air_are_hu(tmp_path):
    for k in range(3):
        Image.fromarray(plane(k).astype(np.float32) * 5 - 1000).save(tmp_path / f"{k}.tif")
    scan = read_ct(tmp_path)
    assert scan.units == "HU"
    np.testing.assert_array_equal(scan.upright()[2], plane(2).astype(np.float32) * 5 - 1000)


def test_16_bit_of_unknown_scale(tmp_path):
    Image.fromarray(plane(0).astype(np.uint16) * 16).save(tmp_path / "slice.png")
    with pytest.raises(ct.ImplausibleValues, match=r"values from 0 to 3040, of no known relation to HU: give 8-bit"):
        read_ct(tmp_path / "slice.png")


def test_mask_instead_of_a_slice(tmp_path):
    Image.fromarray((plane(0) > 50).astype(np.uint8)).save(tmp_path / "slice.png")
    with pytest.raises(ct.ImplausibleValues, match="a mask or a rescaled image"):
        read_ct(tmp_path / "slice.png")


def test_not_finite(tmp_path):
    values = plane(0).astype(np.float32)
    values[1, 1] = np.nan
    Image.fromarray(values).save(tmp_path / "slice.tif")
    with pytest.raises(ct.ImplausibleValues, match=r"1 NaN or infinite values in slice\.tif"):
        read_ct(tmp_path / "slice.tif")


def test_other_files_and_subfolders_are_left_out(tmp_path):
    (tmp_path / "masks").mkdir()
    for name in ("1.png", "2.png", "masks/1.png"):
        Image.fromarray(plane(0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    scan = read_ct(tmp_path)
    assert scan.shape == (4, 5, 2)
    assert scan.warnings[-1] == "Files left out: 2."


def test_images_in_subfolders_only(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(plane(0)).save(tmp_path / "images" / "1.png")
    with pytest.raises(ct.NoScanFound, match="holds images in subfolders only: give the folder of one scan"):
        read_ct(tmp_path)
