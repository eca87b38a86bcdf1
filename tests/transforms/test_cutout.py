# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Compose

from covid_monai.transforms import RandCutout, RandCutoutd

SIDE = st.integers(1, 40)


@given(SIDE, SIDE, st.floats(0.05, 1), st.integers(0, 1000))
def test_erased_share_is_exact_and_a_rectangle(height: int, width: int, fraction: float, seed: int) -> None:
    cutout = RandCutout(prob=1.0, fraction=fraction, fill=0.25)
    cutout.set_random_state(seed)
    img = np.arange(2 * height * width, dtype=np.float32).reshape(2, height, width) + 1
    out = cutout(img)
    erased = out != img
    assert np.array_equal(erased[0], erased[1])
    y, x = np.flatnonzero(erased[0].any(1)), np.flatnonzero(erased[0].any(0))
    assert len(y) == max(1, round(fraction * height))
    assert len(x) == max(1, round(fraction * width))
    assert np.all(out[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1] == 0.25)
    assert erased[0].sum() == len(y) * len(x)


def test_share_of_the_default() -> None:
    out = RandCutout(prob=1.0)(np.ones((1, 100, 200)))
    assert (out == 0).sum() == 40 * 80


def test_volume() -> None:
    out = RandCutout(prob=1.0, fraction=0.5)(torch.ones(1, 8, 8, 8))
    assert (out == 0).sum() == 4**3


def test_holes_reach_every_corner() -> None:
    cutout = RandCutout(prob=1.0, fraction=0.5)
    cutout.set_random_state(0)
    outs = [cutout(np.ones((1, 4, 4)))[0] for _ in range(60)]
    assert all(any(out[corner] == 0 for out in outs) for corner in [(0, 0), (0, 3), (3, 0), (3, 3)])


def test_number_of_holes() -> None:
    cutout = RandCutout(prob=1.0, fraction=0.1, num_holes=3)
    cutout.set_random_state(3)
    assert 25 < (cutout(np.ones((1, 50, 50))) == 0).sum() <= 75


def test_probability() -> None:
    cutout = RandCutout(prob=0.3)
    cutout.set_random_state(0)
    changed = sum((cutout(np.ones((1, 10, 10))) == 0).any() for _ in range(400))
    assert 90 < changed < 150


def test_same_seed_same_holes_and_the_last_draw_can_be_repeated() -> None:
    img = np.random.default_rng(0).random((1, 30, 30)) + 1
    one, two = RandCutout(1.0), RandCutout(1.0)
    one.set_random_state(5)
    two.set_random_state(5)
    first = one(img)
    np.testing.assert_array_equal(first, two(img))
    np.testing.assert_array_equal(first, one(img, randomize=False))
    assert not np.array_equal(first, one(img))


def test_dictionary_erases_images_alike_and_leaves_the_label() -> None:
    data = {"image": torch.ones(1, 20, 20), "prior": np.ones((3, 20, 20)), "label": np.ones((1, 20, 20))}
    out = RandCutoutd(["image", "prior"], prob=1.0, fill=0.5)(data)
    assert (out["image"] == 0.5).sum() == 64
    assert np.array_equal(out["image"][0] == 0.5, out["prior"][2] == 0.5)
    assert out["label"] is data["label"]
    assert np.all(np.asarray(data["image"]) == 1)


def test_compose_seeds_the_dictionary_transform() -> None:
    data = {"image": torch.ones(1, 40, 40)}
    outs = [Compose([RandCutoutd("image", 1.0)]).set_random_state(seed)(data)["image"] for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    "wrong, name",
    [
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.2}, "fraction"),
        ({"fraction": np.nan}, "fraction"),
        ({"num_holes": 0}, "num_holes"),
        ({"fill": np.nan}, "fill"),
        ({"prob": 1.5}, "prob"),
    ],
)
def test_misuse(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RandCutout(**wrong)
    with pytest.raises(ValueError, match=name):
        RandCutoutd("image", **wrong)


def test_images_of_two_sizes() -> None:
    with pytest.raises(ValueError, match="one size"):
        RandCutoutd(["a", "b"])({"a": np.ones((1, 4, 4)), "b": np.ones((1, 4, 5))})
