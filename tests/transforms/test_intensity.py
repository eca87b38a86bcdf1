# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import ScaleIntensityRange

from covid_monai.transforms import GreyToHU, GreyToHUd, LungWindow, LungWindowd, estimate_hu_line

from .phantom import thorax

HU = st.floats(-4000, 4000, width=32)


def test_default_window() -> None:
    hu = np.array([[[-3000, -1350, -975, -600, -225, 150, 2000]]])
    np.testing.assert_allclose(LungWindow()(hu), [[[0, 0, 0.25, 0.5, 0.75, 1, 1]]], atol=1e-7)


def test_another_window() -> None:
    hu = torch.tensor([[[-200.0, -160.0, 40.0, 140.0, 240.0, 300.0]]])  # mediastinal, 40/400
    torch.testing.assert_close(LungWindow(40, 400)(hu), torch.tensor([[[0, 0, 0.5, 0.75, 1, 1]]]))


def test_infinite_values_are_clipped() -> None:
    assert LungWindow()(np.array([[[-np.inf, np.inf]]])).tolist() == [[[0, 1]]]


@given(st.lists(HU, min_size=1, max_size=20), st.floats(-1000, 200), st.floats(1, 4000))
def test_window_is_monais_scaling_with_clip(values: list[float], level: float, width: float) -> None:
    hu = torch.tensor([[values]])
    expected = ScaleIntensityRange(level - width / 2, level + width / 2, 0, 1, clip=True)(hu)
    torch.testing.assert_close(LungWindow(level, width)(hu), torch.as_tensor(expected), atol=1e-5, rtol=0)


@given(HU, HU)
def test_window_keeps_order_and_range(a: float, b: float) -> None:
    low, high = LungWindow()(np.array([[sorted([a, b])]], np.float32)).ravel()
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("level, width", [(-600, 0), (-600, -1500), (-600, np.nan), (np.inf, 1500)])
def test_window_that_is_none(level: float, width: float) -> None:
    with pytest.raises(ValueError, match="give finite HU and a width above 0"):
        LungWindow(level, width)


def test_window_refuses_nan() -> None:
    with pytest.raises(ValueError, match="image has NaN"):
        LungWindow()(np.array([[[0.0, np.nan]]]))


def test_window_of_a_dictionary_takes_its_keys_only() -> None:
    data = {"image": np.full((1, 2, 2), -600), "label": np.full((1, 2, 2), 2)}
    out = LungWindowd("image")(data)
    assert np.all(out["image"] == 0.5)
    assert out["label"] is data["label"]
    assert np.all(data["image"] == -600)


def test_known_line() -> None:
    grey = np.array([[[0, 100, 255]]], np.uint8)
    assert GreyToHU((4, -1000))(grey).tolist() == [[[-1000, -600, 20]]]
    assert GreyToHU((4, -1000))(grey, line=(2, 10)).tolist() == [[[10, 210, 520]]]


def test_unknown_line_is_estimated() -> None:
    grey = np.clip((thorax() + 1350) / 1500 * 255, 0, 255)[None]
    slope, intercept = estimate_hu_line(grey)
    np.testing.assert_allclose(GreyToHU()(grey), slope * grey + intercept, atol=1e-2)


@pytest.mark.parametrize("line", [[4, -1000], (4.0, -1000.0), np.array([4, -1000]), torch.tensor([4.0, -1000.0])])
def test_line_of_a_dictionary_item(line: object) -> None:
    out = GreyToHUd("image")({"image": torch.full((1, 2, 2), 100, dtype=torch.uint8), "hu_line": line})
    assert torch.equal(out["image"], torch.full((1, 2, 2), -600.0))


def test_image_in_hu_stays() -> None:
    hu = np.array([[[-1024, 0, 3071]]], np.int16)
    np.testing.assert_array_equal(GreyToHUd("image")({"image": hu, "hu_line": (1.0, 0.0)})["image"], hu)


@pytest.mark.parametrize("item", [{}, {"hu_line": None}])
def test_dictionary_item_without_line_is_estimated(item: dict[str, None]) -> None:
    grey = np.round(np.clip((thorax() + 1200) / 1400 * 255, 0, 255))[None]
    out = GreyToHUd("image")({"image": grey, **item})
    np.testing.assert_array_equal(out["image"], GreyToHU()(grey))


@pytest.mark.parametrize("line", [(0, -1000), (-1, 0), (1, np.nan), (np.inf, 0), (1,), (1, 0, 0)])
def test_line_that_is_none(line: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \(slope, intercept\)"):
        GreyToHU(line)
