# SPDX-License-Identifier: Apache-2.0
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from covid_monai.transforms import GreyToHU, LungWindow, estimate_hu_line

from .phantom import thorax

NOMINAL = (1500 / 255, -1350.0)
LUNGS = np.s_[:, 58:130, 36:156]


def through_window(hu: np.ndarray, level: float, width: float, stretch: bool = False) -> np.ndarray:
    """8-bit slice (1, H, W)."""
    seen = np.clip((hu - level) / width + 0.5, 0, 1)
    if stretch:
        seen = (seen - seen.min()) / (seen.max() - seen.min())
    return np.round(seen * 255).astype(np.uint8)[None]


def error(grey: np.ndarray, hu: np.ndarray, line: tuple[float, float] | None = None) -> float:
    """Mean error in HU within the lung window."""
    window = LungWindow()
    return 1500 * float(np.abs(window(GreyToHU(line)(grey)) - window(hu)).mean())


@pytest.mark.parametrize("diseased", [False, True])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("level, width", [(-600, 1500), (-500, 1400), (-600, 1200), (-450, 1500), (-650, 1700)])
def test_window_is_found(level: float, width: float, stretch: bool, crop: bool, diseased: bool) -> None:
    hu = thorax(diseased=diseased)[None]
    if crop:
        hu = hu[LUNGS]
    grey = through_window(hu[0], level, width, stretch)
    assert error(grey, hu) < 60


def test_it_beats_the_nominal_window_where_that_is_wrong() -> None:
    hu = thorax()
    grey = through_window(hu, -450, 1300)
    assert error(grey, hu[None]) < 0.3 * error(grey, hu[None], NOMINAL)


def test_text_arrow_and_black_frame_change_little() -> None:
    grey = through_window(thorax(), -550, 1500)
    marked = grey.copy()
    marked[:, :12] = marked[:, -12:] = marked[:, :, :6] = 0
    marked[:, 14:20, 10:60] = marked[:, 170:176, 100:160] = 255
    marked[:, 90:94, 50:64] = 0
    np.testing.assert_allclose(_ends(marked), _ends(grey), atol=30)


def _ends(image: np.ndarray | torch.Tensor, high: float = 255) -> list[float]:
    slope, intercept = estimate_hu_line(image)
    return [intercept, slope * high + intercept]


def test_it_is_deterministic_and_takes_any_type_and_range() -> None:
    grey = through_window(thorax(), -600, 1300, stretch=True)
    expected = _ends(grey)
    assert _ends(grey) == expected
    assert _ends(torch.as_tensor(grey)) == expected
    assert _ends(grey.astype(np.float32)) == expected
    np.testing.assert_allclose(_ends(grey / 255, high=1), expected, rtol=1e-9)
    np.testing.assert_allclose(_ends(grey.astype(np.int32) * 16, high=4080), expected, rtol=1e-9)


def test_mirrored_slice_has_the_same_line() -> None:
    grey = through_window(thorax(), -600, 1300)
    np.testing.assert_allclose(_ends(grey[:, ::-1, ::-1]), _ends(grey), atol=1)


def test_stack_is_measured_as_one() -> None:
    slices = [through_window(thorax(seed=seed, diseased=seed > 1), -500, 1400)[0] for seed in range(3)]
    stack = np.stack(slices, axis=-1)[None]
    ends = np.array([_ends(s[None]) for s in slices])
    assert np.all(np.array(_ends(stack)) >= ends.min(0) - 25)
    assert np.all(np.array(_ends(stack)) <= ends.max(0) + 25)
    same = np.repeat(slices[0][None, ..., None], 30, axis=-1)
    np.testing.assert_allclose(_ends(same), _ends(slices[0][None]), atol=1)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 32, 32), np.uint8),
        np.full((1, 32, 32), 255, np.uint8),
        np.full((1, 8, 8, 3), 0.3, np.float32),
        np.full((1, 1, 1), 1.0),
        np.random.default_rng(0).integers(0, 20, (1, 64, 64)),
    ],
    ids=["black", "white", "grey", "one pixel", "only air"],
)
def test_nothing_to_measure_gives_the_nominal_window(image: np.ndarray) -> None:
    assert estimate_hu_line(image) == NOMINAL


@given(arrays(np.uint8, (1, 16, 16), elements=st.sampled_from([0, 1, 60, 80, 128, 230, 254, 255])))
@settings(max_examples=60, deadline=None)
def test_any_picture_gives_a_usable_line(image: np.ndarray) -> None:
    slope, intercept = estimate_hu_line(image)
    assert np.isfinite([slope, intercept]).all()
    assert 1 < slope < 10
    assert -3000 < intercept < -600


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4)), "has shape"),
        (np.zeros((1, 0, 4)), "has shape"),
        (np.full((1, 4, 4), np.nan), "NaN"),
        (np.full((1, 4, 4), np.inf), "infinite"),
        (np.full((1, 4, 4), -1000), r"give the line \(1, 0\)"),
    ],
)
def test_image_that_has_no_grey_levels(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_hu_line(image)


def test_real_slices_of_known_hu(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("tcga_lung62_hu")
    names = [row["name"] for row in csv.DictReader((folder / "index.csv").open()) if row["has_lung"] == "1"][::8]
    slices = [np.asarray(Image.open(folder / "images" / f"{name}.png")).astype(np.float32) - 1024 for name in names]
    pairs = [(through_window(hu, -500, 1400), hu[None]) for hu in slices]
    found = np.median([error(grey, hu) for grey, hu in pairs])
    assert found < 40
    assert found < 0.4 * np.median([error(grey, hu, NOMINAL) for grey, hu in pairs])
