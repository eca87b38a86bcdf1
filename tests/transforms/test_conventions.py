# SPDX-License-Identifier: Apache-2.0
"""What all transforms of the folder keep: type, shape, float32, and the input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import covid_monai.transforms as ours

ARRAY_TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "LungWindow": ours.LungWindow(),
    "GreyToHU": ours.GreyToHU(),
    "GreyToHU known": ours.GreyToHU((2, -1000)),
    "MaskLung": lambda img: ours.MaskLung()(img, np.ones((1, *img.shape[1:]))),
    "RandCutout": ours.RandCutout(prob=1.0),
    "RandCutout idle": ours.RandCutout(prob=0.0),
    "EdgeMap": ours.EdgeMap(),
}
MAKERS: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda x: x,
    "tensor": torch.as_tensor,
    "MetaTensor": lambda x: MetaTensor(torch.as_tensor(x), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))),
}


@pytest.mark.parametrize("shape", [(2, 12, 9), (1, 12, 9, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("transform", ARRAY_TRANSFORMS.values(), ids=ARRAY_TRANSFORMS.keys())
def test_type_shape_and_input_are_kept(
    transform: Callable[[Any], Any], make: Callable[[np.ndarray], Any], dtype: type, shape: tuple[int, ...]
) -> None:
    values: np.ndarray = np.random.default_rng(1).integers(0, 256, shape).astype(dtype)
    img = make(values.copy())
    out = transform(img)
    assert type(out) is type(img)
    assert out.shape == img.shape
    assert out.dtype in (np.float32, torch.float32)
    np.testing.assert_array_equal(np.asarray(img), values)
    if isinstance(img, MetaTensor):
        assert torch.equal(out.affine, img.affine)
    out[...] = 7  # the output is no view of the input
    np.testing.assert_array_equal(np.asarray(img), values)


@pytest.mark.parametrize(
    "name", ["CropBody", "EdgeMap", "GreyToHU", "LungWindow", "MaskLung", "RandCellMask", "RandCutout"]
)
def test_dictionary_aliases_as_in_monai(name: str) -> None:
    assert getattr(ours, f"{name}d") is getattr(ours, f"{name}D") is getattr(ours, f"{name}Dict")


def test_missing_keys() -> None:
    data = {"other": 1}
    for make in (ours.LungWindowd, ours.GreyToHUd, ours.MaskLungd, ours.RandCutoutd, ours.EdgeMapd, ours.RandCellMaskd):
        assert make("image", allow_missing_keys=True)(data) == data
        with pytest.raises(KeyError):
            make("image")(data)
