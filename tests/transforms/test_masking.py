# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd

from covid_monai.transforms import CropBody, CropBodyd, EdgeMapd, LungWindow, MaskLung, MaskLungd, body_box

from .phantom import ellipse, thorax

TRUNK = ((40, 153), (16, 177))
FULL = ((0, 192), (0, 192))


def windowed(hu: np.ndarray) -> np.ndarray:
    return np.asarray(LungWindow()(hu))


def assert_close(box: Any, expected: Any, tolerance: int = 4) -> None:
    assert np.abs(np.array(box) - np.array(expected)).max() <= tolerance, box


# lung masking


def test_outside_of_the_lung_is_filled() -> None:
    img = np.array([[[0.1, 0.2, 0.3]], [[0.4, 0.5, 0.6]]])
    mask = np.array([[[0, 1, 2]]])
    np.testing.assert_allclose(MaskLung()(img, mask), [[[0, 0.2, 0.3]], [[0, 0.5, 0.6]]])
    np.testing.assert_allclose(MaskLung(mask, fill=-1)(img), [[[-1, 0.2, 0.3]], [[-1, 0.5, 0.6]]])


def test_mask_of_each_channel() -> None:
    mask = torch.tensor([[[True, False]], [[False, True]]])
    assert MaskLung()(torch.ones(2, 1, 2), mask).tolist() == [[[1, 0]], [[0, 1]]]


def test_masked_dictionary() -> None:
    data = {"image": torch.ones(1, 1, 2), "label": torch.ones(1, 1, 2), "lung": np.array([[[0, 1]]])}
    out = MaskLungd("image", fill=0.5)(data)
    assert out["image"].tolist() == [[[0.5, 1]]]
    assert out["label"] is data["label"]


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 4, 4), (4, 4)])
def test_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="on the image's grid"):
        MaskLung()(np.ones((3, 4, 4)), np.ones(shape))


def test_no_mask() -> None:
    with pytest.raises(ValueError, match="no mask"):
        MaskLung()(np.ones((1, 4, 4)))


# body box


@pytest.mark.parametrize("diseased", [False, True])
def test_box_of_a_trunk(diseased: bool) -> None:
    assert_close(body_box(windowed(thorax(diseased=diseased))), TRUNK)


def test_box_in_512_pixels() -> None:
    box = body_box(torch.as_tensor(windowed(thorax(512))))
    assert_close(box, np.array(TRUNK) * 512 / 192, 8)
    assert all(isinstance(end, int) for ends in box for end in ends)


def test_what_lies_apart_does_not_count() -> None:
    hu = thorax()
    rows = np.arange(192)[:, None]
    shell = ellipse((192, 192), (100, 96), (72, 110)) & ~ellipse((192, 192), (100, 96), (69, 107)) & (rows > 160)
    hu[shell] = 200  # table
    hu[ellipse((192, 192), (100, 4), (14, 6))] = 40  # arm
    hu[ellipse((192, 192), (20, 96), (12, 60)) & ~ellipse((192, 192), (22, 96), (12, 60))] = -500  # blanket, gantry arc
    hu[4:10, 4:60:3] = hu[180:186, 120:180:2] = 3000  # text
    hu[168:171, 60:90] = 3000  # arrow
    assert_close(body_box(windowed(hu)), TRUNK)


def test_table_that_touches_the_back_adds_no_more_than_its_shell() -> None:
    hu = thorax()
    hu[152:155] = 100
    (y0, y1), (x0, x1) = body_box(windowed(hu))
    assert_close(((y0, y1), (x0, x1)), TRUNK)


def test_slice_cropped_to_the_lungs_is_left() -> None:
    lungs = windowed(thorax()[58:130, 36:156])
    assert body_box(lungs) == ((0, 72), (0, 120))


def test_lung_in_a_corner_is_no_air() -> None:
    corner = windowed(thorax()[70:130, 62:156])
    assert body_box(corner) == ((0, 60), (0, 94))


@pytest.mark.parametrize("hu", [-1000, -860, -100, 40, 3000])
def test_even_slice_gives_the_full_frame(hu: float) -> None:
    assert body_box(windowed(np.full((192, 192), hu))) == FULL


def test_air_with_a_table_only() -> None:
    hu = np.full((192, 192), -1000.0)
    hu[150:152] = 200
    assert body_box(windowed(hu)) == FULL


@given(st.integers(30, 100), st.integers(30, 100), st.integers(18, 40), st.integers(18, 60))
@settings(max_examples=40, deadline=None)
def test_box_follows_the_body(y: int, x: int, height: int, width: int) -> None:
    shape = (128, 150)
    image = np.where(ellipse(shape, (y, x), (height, width)), 0.93, 0.233)
    expected = np.clip([[y - height, y + height + 1], [x - width, x + width + 1]], 0, np.array([shape, shape]).T)
    # the opening takes the tips of the ellipse
    assert_close(body_box(image), expected, 6)


def test_stack_has_the_box_of_all_its_slices() -> None:
    low, high = np.full((2, 192, 192), -1000.0)
    low[20:60, 30:90], high[100:170, 80:180] = 40, 40
    stack = windowed(np.stack([low, high]))
    assert body_box(stack) == ((20, 170), (30, 180))
    assert body_box(stack[None, :, None]) == ((20, 170), (30, 180))


def test_margin_ends_at_the_frame() -> None:
    image = np.full((64, 64), 0.233)
    image[10:50, 20:60] = 0.93
    assert body_box(image) == ((10, 50), (20, 60))
    assert body_box(image, margin=8) == ((2, 58), (12, 64))


@pytest.mark.parametrize("shape", [(5,), (0, 4), (1, 4, 0)])
def test_box_of_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has shape"):
        body_box(np.zeros(shape))


def test_negative_margin() -> None:
    with pytest.raises(ValueError, match="margin is -1"):
        body_box(np.zeros((4, 4)), margin=-1)
    with pytest.raises(ValueError, match="margin is -1"):
        CropBody(margin=-1)


# body crop


def block(shape: tuple[int, ...] = (64, 80)) -> np.ndarray:
    """(1, *shape): tissue in rows 10..39 and columns 20..69."""
    image = np.full((1, *shape), 0.233, np.float32)
    image[:, 10:40, 20:70] = 0.93
    return image


def test_crop_and_its_inverse() -> None:
    image = MetaTensor(block())
    crop = CropBody(margin=2)
    out = crop(image)
    assert out.shape == (1, 34, 54)
    assert torch.equal(out, image[:, 8:42, 18:72])
    back = crop.inverse(out)
    assert back.shape == image.shape
    assert torch.equal(back[:, 8:42, 18:72], image[:, 8:42, 18:72])
    assert (back != 0).sum() == out.numel()
    assert not back.applied_operations


def test_volume_is_cropped_in_its_first_two_axes() -> None:
    volume = MetaTensor(block((64, 80, 5)))
    volume[..., 3:] = 0.233  # no body in the last slices
    assert CropBody()(volume).shape == (1, 30, 50, 5)


def test_affine_moves_with_the_crop() -> None:
    out = CropBody()(MetaTensor(block((64, 80, 2)), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))))
    assert out.affine[:3, 3].tolist() == [20, 60, 0]


def test_input_of_the_crop_is_kept() -> None:
    image = block()
    CropBody()(image)
    np.testing.assert_array_equal(image, block())


def test_all_keys_share_the_box_of_the_source() -> None:
    label = np.arange(64 * 80).reshape(1, 64, 80).astype(np.int32)
    data = {"image": block(), "label": label, "prior": block() * 0, "source": block()}
    out = CropBodyd(["image", "label", "prior"], source_key="source")(data)
    np.testing.assert_array_equal(out["label"], label[:, 10:40, 20:70])
    assert out["label"].dtype == torch.int32
    assert out["image"].shape == out["prior"].shape == (1, 30, 50)
    assert out["source"] is data["source"]


@pytest.mark.parametrize("lazy", [False, True])
def test_crop_within_a_pipeline_and_back(lazy: bool) -> None:
    keys = ["image", "label"]
    pipeline = Compose([Flipd(keys, 0), CropBodyd(keys), EdgeMapd("label")], lazy=lazy)
    data = {"image": MetaTensor(block()), "label": MetaTensor((block() > 0.5).astype(np.uint8))}
    out = pipeline(data)
    assert out["image"].shape == out["edge"].shape == (1, 30, 50)
    assert out["label"].all()
    back = pipeline.inverse(out)
    assert back["label"].shape == (1, 64, 80)
    np.testing.assert_array_equal(back["label"], data["label"])


def test_missing_key_of_the_crop() -> None:
    out = CropBodyd(["image", "label"], allow_missing_keys=True)({"image": block()})
    assert out["image"].shape == (1, 30, 50)


def test_keys_on_two_grids() -> None:
    with pytest.raises(ValueError, match="one grid"):
        CropBodyd(["image", "label"])({"image": block(), "label": np.zeros((1, 32, 40))})


def test_crop_without_channel() -> None:
    with pytest.raises(ValueError, match="has shape"):
        CropBody()(block()[0])
