# SPDX-License-Identifier: Apache-2.0
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose

from covid_monai.transforms import LungWindow, RandCellMask, RandCellMaskd, cells_within

from .phantom import thorax

SIDE = st.integers(1, 60)


@given(SIDE, SIDE, st.floats(0.01, 1), st.integers(1, 20), st.integers(0, 1000))
def test_kept_share_is_exact_and_of_whole_cells(height: int, width: int, keep: float, cell: int, seed: int) -> None:
    mask = RandCellMask(keep, cell).set_random_state(seed)(np.zeros((2, height, width), np.float32))
    assert mask.shape == (1, height, width)
    cells = mask[0, ::cell, ::cell]
    assert cells.shape == (ceil(height / cell), ceil(width / cell))
    assert cells.sum() == round(keep * cells.size)
    assert set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(mask[0], np.kron(cells, np.ones((cell, cell)))[:height, :width])


def test_share_of_the_default() -> None:
    mask = RandCellMask()(torch.zeros(1, 64, 96))
    assert mask.mean() == 0.75
    assert torch.equal(mask[0, :16, :16].unique(), mask[0, 0, :1])


def test_every_cell_is_as_likely_as_any_other() -> None:
    transform = RandCellMask(0.75, 1).set_random_state(0)
    share = np.mean([transform(np.zeros((1, 3, 4))) for _ in range(2000)], axis=0)
    # 2000 draws of 3/4: standard deviation 0.0097
    assert np.abs(share - 0.75).max() < 0.04


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_type_and_geometry_of_the_image(dtype: type) -> None:
    values: np.ndarray = np.arange(2 * 20 * 20).reshape(2, 20, 20).astype(dtype)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    transform = RandCellMask()
    assert type(transform(values)) is np.ndarray
    assert transform(values).dtype == np.float32
    assert type(transform(torch.from_numpy(values))) is torch.Tensor
    mask = transform(MetaTensor(torch.from_numpy(values), affine=affine))
    assert isinstance(mask, MetaTensor)
    assert mask.dtype == torch.float32
    assert torch.equal(mask.affine, affine.to(mask.affine))
    np.testing.assert_array_equal(values, np.arange(2 * 20 * 20).reshape(2, 20, 20).astype(dtype))


def test_same_seed_same_mask_and_the_last_draw_can_be_repeated() -> None:
    img = np.zeros((1, 64, 64))
    one, two = RandCellMask().set_random_state(5), RandCellMask().set_random_state(5)
    first = one(img)
    np.testing.assert_array_equal(first, two(img))
    again = one(img, randomize=False)
    np.testing.assert_array_equal(first, again)
    again[:] = 7  # the mask is no view of the draw
    np.testing.assert_array_equal(first, one(img, randomize=False))
    assert not np.array_equal(first, one(img))


@pytest.mark.parametrize("within", ["lungs", "body"])
def test_cells_outside_the_region_are_kept(within: str) -> None:
    image = torch.as_tensor(LungWindow()(thorax()[None]))
    allowed = cells_within(image[None], within, 8)[0, 0]
    transform = RandCellMask(0.6, 8, within).set_random_state(4)
    masks = torch.stack([transform(torch.cat([image, 1 - image]))[0, ::8, ::8] for _ in range(60)])
    assert (masks[:, ~allowed] == 1).all()
    assert set(masks[:, allowed].sum(1).tolist()) == {round(0.6 * int(allowed.sum()))}
    assert (masks[:, allowed].mean(0) < 1).all()  # each is erased once
    d = RandCellMaskd("image", 0.6, 8, within).set_random_state(4)({"image": image})
    assert torch.equal(d["mask"][0, ::8, ::8], masks[0])


def test_a_schedule_may_change_the_share() -> None:
    transform = RandCellMask()
    transform.keep_fraction = 0.5
    assert transform(np.zeros((1, 64, 64))).mean() == 0.5


def test_dictionary_adds_one_mask_and_leaves_the_images() -> None:
    data = {"image": torch.zeros(1, 32, 64), "prior": np.zeros((3, 32, 64))}
    out = RandCellMaskd(["image", "prior"], 0.5, mask_key="holes")(data)
    assert out["image"] is data["image"] and out["prior"] is data["prior"]
    assert set(out) == {"image", "prior", "holes"}
    assert "holes" not in data
    assert isinstance(out["holes"], torch.Tensor)
    assert out["holes"].shape == (1, 32, 64)
    assert out["holes"].mean() == 0.5
    assert set(RandCellMaskd("image")(data)) == {"image", "prior", "mask"}


def test_compose_seeds_the_dictionary_transform() -> None:
    data = {"image": torch.zeros(1, 64, 64)}
    masks = [Compose([RandCellMaskd("image")]).set_random_state(seed)(data)["mask"] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    "wrong", [{"keep_fraction": 0}, {"keep_fraction": 1.2}, {"keep_fraction": np.nan}, {"cell": 0}, {"within": "heart"}]
)
def test_misuse(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"RandCellMask: {name} is"):
        RandCellMask(**wrong)
    with pytest.raises(ValueError, match=f"RandCellMask: {name} is"):
        RandCellMaskd("image", **wrong)


def test_other_images_are_refused() -> None:
    transform = RandCellMask()
    with pytest.raises(ValueError, match=r"image has shape \(1, 8, 8, 8\); give \(C, H, W\)"):
        transform(np.zeros((1, 8, 8, 8)))
    with pytest.raises(ValueError, match="no mask of 8 x 8 pixels; draw anew"):
        transform(np.zeros((1, 8, 8)), randomize=False)
    with pytest.raises(ValueError, match="one size"):
        RandCellMaskd(["a", "b"])({"a": np.ones((1, 4, 4)), "b": np.ones((1, 4, 5))})
