# SPDX-License-Identifier: Apache-2.0
"""Grey levels of CT: the lung window, and the way from 8-bit slices of unknown window to Hounsfield units."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, convert_to_tensor

from .harmonisation import estimate_hu_line

__all__ = [
    "GreyToHU",
    "GreyToHUD",
    "GreyToHUDict",
    "GreyToHUd",
    "LungWindow",
    "LungWindowD",
    "LungWindowDict",
    "LungWindowd",
]


class LungWindow(Transform):
    """Hounsfield units to [0, 1]: 0 below ``level - width / 2``, 1 above ``level + width / 2``, linear between.

    Args:
        level: centre of the window, HU.
        width: width of the window, HU.

    Raises:
        ValueError: ``width`` is not above 0, or one of the two is not finite.

    Example:
        >>> LungWindow()(np.array([[[-1350.0, -600.0, 150.0, 3000.0]]]))
        array([[[0. , 0.5, 1. , 1. ]]], dtype=float32)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, level: float = -600.0, width: float = 1500.0) -> None:
        if not (np.isfinite(level) and np.isfinite(width) and width > 0):
            raise ValueError(f"LungWindow: level is {level} and width {width}; give finite HU and a width above 0")
        self.level = level
        self.width = width

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Apply the window.

        Args:
            img: HU of any shape and number type; infinities are clipped.

        Returns:
            float32 array of the same type and shape, 0..1.

        Raises:
            ValueError: ``img`` has NaN.
        """
        x = convert_to_tensor(img, track_meta=False).to(torch.float32, copy=True)
        x.sub_(self.level - self.width / 2).div_(self.width).clamp_(0, 1)
        if x.sum().isnan():
            raise ValueError("LungWindow: image has NaN; replace it before the window")
        return convert_to_dst_type(x, img, dtype=torch.float32)[0]


class LungWindowd(MapTransform):
    """Dictionary-based version of :py:class:`LungWindow`.

    Args:
        keys: the images in HU.
        level: centre of the window, HU.
        width: width of the window, HU.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = LungWindow.backend

    def __init__(
        self, keys: KeysCollection, level: float = -600.0, width: float = 1500.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.window = LungWindow(level, width)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the window to each image of a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.window(d[key])
        return d


class GreyToHU(Transform):
    """Grey levels to approximate Hounsfield units, ``HU = slope * grey + intercept``.

    Args:
        line: ``(slope, intercept)`` when it is known, else it is estimated from each image as a whole
            by :py:func:`estimate_hu_line`. For an image in HU it is ``(1, 0)``.

    Raises:
        ValueError: ``line`` is not two finite numbers with a slope above 0.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, line: Sequence[float] | None = None) -> None:
        self.line = None if line is None else _checked_line(line)

    def __call__(self, img: NdarrayOrTensor, line: Sequence[float] | None = None) -> NdarrayOrTensor:
        """Convert.

        Args:
            img: grey levels, (C, H, W) or a stack (C, X, Y, Z), which is measured as one.
            line: takes the place of the line given at construction.

        Returns:
            HU, float32 array of the same type and shape.
        """
        slope, intercept = (self.line or estimate_hu_line(img)) if line is None else _checked_line(line)
        x = convert_to_tensor(img, track_meta=False).to(torch.float32, copy=True)
        return convert_to_dst_type(x.mul_(slope).add_(intercept), img, dtype=torch.float32)[0]


def _checked_line(line: Any) -> tuple[float, float]:
    """``(slope, intercept)`` as floats, from any pair of numbers."""
    pair = convert_to_numpy(line, dtype=np.float64, wrap_sequence=True).ravel()
    if pair.size != 2 or not np.isfinite(pair).all() or pair[0] <= 0:
        raise ValueError(f"GreyToHU: line is {line}; give (slope, intercept), finite, with a slope above 0")
    return float(pair[0]), float(pair[1])


class GreyToHUd(MapTransform):
    """Dictionary-based version of :py:class:`GreyToHU`.

    Args:
        keys: the images.
        line_key: where an item has its known line; an item without it (or with None there) is estimated.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = GreyToHU.backend

    def __init__(self, keys: KeysCollection, line_key: str = "hu_line", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.line_key = line_key
        self.grey_to_hu = GreyToHU()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert each image of a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.grey_to_hu(d[key], d.get(self.line_key))
        return d


GreyToHUD = GreyToHUDict = GreyToHUd
LungWindowD = LungWindowDict = LungWindowd
