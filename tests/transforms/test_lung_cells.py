# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage

from covid_monai.transforms import LungWindow, cells_within

from .phantom import ellipse, thorax

LUNGS = ellipse((192, 192), (94, 62), (36, 26)) | ellipse((192, 192), (94, 130), (36, 26))
WINDPIPE = ellipse((192, 192), (80, 96), (5, 5))  # counts as lung
BODY = ellipse((192, 192), (96, 96), (56, 80))


def windowed(hu: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(LungWindow()(hu[None, None])).float()


def shares(mask: np.ndarray, cell: int) -> np.ndarray:
    """Share of each cell that a mask has, the slow way."""
    grid = [range(0, side, cell) for side in mask.shape]
    return np.array([[mask[y : y + cell, x : x + cell].mean() for x in grid[1]] for y in grid[0]])


def assert_cells(found: torch.Tensor, mask: np.ndarray, cell: int, share: float, tolerance: float = 0.12) -> None:
    """The cells of which the mask has the share; those near it may be either, and one of 200 is forgiven."""
    expected = shares(mask, cell)
    wrong = np.where(found.numpy(), expected < share - tolerance, expected > share + tolerance)
    assert wrong.mean() < 0.005


@pytest.mark.parametrize("cell", [4, 8, 16, 24])
@pytest.mark.parametrize("diseased", [False, True])
def test_cells_of_the_lungs_and_of_the_body(cell: int, diseased: bool) -> None:
    image = windowed(thorax(diseased=diseased))
    body = cells_within(image, "body", cell)
    lungs = cells_within(image, "lungs", cell)
    assert body.shape == lungs.shape == (1, 1, math.ceil(192 / cell), math.ceil(192 / cell))
    assert body.dtype == lungs.dtype == torch.bool
    assert_cells(body[0, 0], BODY, cell, 0.5)
    if not diseased:
        assert_cells(lungs[0, 0], LUNGS | WINDPIPE, cell, 0.3, 0.2)
    assert not lungs[~body].any()


def test_dense_lesions_inside_the_lung_lie_within() -> None:
    hu = thorax(noise=0)
    lesion = ellipse((192, 192), (100, 62), (16, 14))
    hu[lesion] = 40
    lungs = cells_within(windowed(hu), "lungs", 8)[0, 0].numpy()
    assert lungs[shares(lesion, 8) > 0].all()


def test_dense_lesions_in_a_bay_of_the_lung_lie_within() -> None:
    hu = thorax(noise=0)
    lesion = ellipse((192, 192), (94, 36), (10, 16)) & LUNGS  # from the chest wall inwards
    hu[lesion] = 40
    lungs = cells_within(windowed(hu), "lungs", 8)[0, 0].numpy()
    assert lungs[shares(lesion, 8) > 0.5].mean() > 0.8


def test_a_heart_that_dents_the_lung_lies_outside() -> None:
    hu = thorax(noise=0)
    heart = ellipse((192, 192), (100, 104), (16, 18))  # the left lung begins at column 104
    hu[heart] = 40
    lungs = cells_within(windowed(hu), "lungs", 8)[0, 0].numpy()
    assert not lungs[shares(heart, 8) > 0.8].any()


@pytest.mark.parametrize("angle", [-20, 15])
def test_turned_slices_with_corners_of_zeros(angle: float) -> None:
    image, dark = (
        ndimage.rotate(array, angle, reshape=False, order=1, cval=0.0)
        for array in (windowed(thorax())[0, 0].numpy(), (LUNGS | WINDPIPE).astype(float))
    )
    found = cells_within(torch.from_numpy(image)[None, None], "lungs", 8)[0, 0]
    assert_cells(found, dark > 0.5, 8, 0.3, 0.25)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_scaled_greys(factor: float) -> None:
    image = windowed(thorax())
    plain, scaled = (cells_within(each, "lungs", 16) for each in (image, image * factor))
    assert (plain != scaled).sum() <= 4


def test_lungs_that_touch_the_frame_are_no_outside() -> None:
    image = windowed(thorax())[..., 60:128, 40:150]  # no chest wall is left
    found = cells_within(image, "lungs", 8)[0, 0]
    assert_cells(found, (LUNGS | WINDPIPE)[60:128, 40:150], 8, 0.3, 0.25)


def test_every_slice_has_its_own_cells() -> None:
    images = torch.cat([windowed(thorax()), windowed(thorax()).roll(16, 3), torch.zeros(1, 1, 192, 192)])
    together = cells_within(images, "lungs", 16)
    for number, image in enumerate(images):
        assert torch.equal(together[number], cells_within(image[None], "lungs", 16)[0])
    assert torch.equal(together[0].roll(1, 2), together[1])


def test_without_lungs_the_body_and_without_a_body_the_slice() -> None:
    hu = np.full((96, 96), -1000.0)
    hu[32:64, 16:80] = 40
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 1:5] = True
    for within in ("lungs", "body"):
        assert torch.equal(cells_within(windowed(hu), within)[0, 0], expected)  # type: ignore[arg-type]
    for level in (0.0, 1.0):
        assert cells_within(torch.full((1, 1, 96, 96), level), "lungs").all()


def test_fewer_than_four_cells_are_none() -> None:
    hu = np.full((128, 128), -1000.0)
    hu[16:112, 16:112] = 40
    hu[32:64, 32:48] = -850  # two cells
    assert cells_within(windowed(hu), "lungs").sum() == 36
    hu[32:64, 32:64] = -850  # four
    found = cells_within(windowed(hu), "lungs")
    assert found.sum() == 4
    assert found[0, 0, 2:4, 2:4].all()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), cell=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_size_has_a_grid_that_covers_it(height: int, width: int, cell: int, seed: int) -> None:
    image = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))
    for within in ("lungs", "body", "slice"):
        cells = cells_within(image, within, cell)  # type: ignore[arg-type]
        assert cells.shape == (2, 1, math.ceil(height / cell), math.ceil(width / cell))
        assert cells.sum((1, 2, 3)).min() >= min(4, cells[0].numel())
        assert within != "slice" or cells.all()


def test_the_image_stays_and_its_kind_does_not_matter() -> None:
    image = windowed(thorax(64))
    before = image.clone()
    expected = cells_within(image)
    assert type(expected) is torch.Tensor
    for kind in (
        MetaTensor(image),
        image.clone().requires_grad_(),
        image.contiguous(memory_format=torch.channels_last),
    ):
        found = cells_within(kind)
        assert type(found) is torch.Tensor
        assert torch.equal(found, expected)
    assert torch.equal(image, before)


def test_misuse() -> None:
    image = torch.zeros(1, 1, 32, 32)
    with pytest.raises(ValueError, match="within is 'heart'; choose one of lungs, body, slice"):
        cells_within(image, "heart")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cell is 0; give 1 pixel or more"):
        cells_within(image, cell=0)
    for shape in ((1, 32, 32), (1, 2, 32, 32), (1, 1, 0, 32)):
        with pytest.raises(ValueError, match=r"image has shape \(1, .*\); give \(B, 1, H, W\)"):
            cells_within(torch.zeros(shape))
