# SPDX-License-Identifier: Apache-2.0
"""Keeping the network's eyes on the patient: the lung mask and the body's bounding box."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import Crop, Cropd, MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, convert_to_tensor
from scipy import ndimage

__all__ = [
    "BOX_SLICES",
    "CropBody",
    "CropBodyD",
    "CropBodyDict",
    "CropBodyd",
    "MaskLung",
    "MaskLungD",
    "MaskLungDict",
    "MaskLungd",
    "body_box",
]

Box = tuple[tuple[int, int], tuple[int, int]]

# body_box works on slices of about this many pixels a side, and on at most so many slices.
_BOX_SIDE = 128
BOX_SLICES = 24
# In the default lung window: between air and fat (-550 HU), and between outside air and lung (-915 HU).
_TISSUE = (-550 + 1350) / 1500
_AIR = (-915 + 1350) / 1500
# What is thinner than this share of the frame's side is no body: blankets, tubes, text.
_THIN = 0.05


class MaskLung(Transform):
    """Set everything outside the lung to one value.

    Args:
        mask: the lung, values above 0, when it is the same for all images.
        fill: the value outside; 0 is the floor of the lung window.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, mask: NdarrayOrTensor | None = None, fill: float = 0.0) -> None:
        self.mask = mask
        self.fill = fill

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> NdarrayOrTensor:
        """Mask.

        Args:
            img: (C, H, W) or (C, X, Y, Z).
            mask: (1 or C, ...) of the same spatial size, values above 0 are lung; in place of the mask given at
                construction.

        Returns:
            float32 array of the type and shape of ``img``.

        Raises:
            ValueError: there is no mask, or its shape does not fit.
        """
        mask = self.mask if mask is None else mask
        if mask is None:
            raise ValueError("MaskLung: no mask; give it at construction or with the image")
        if mask.shape[1:] != img.shape[1:] or mask.shape[0] not in (1, img.shape[0]):
            raise ValueError(
                f"MaskLung: mask has shape {tuple(mask.shape)} and image {tuple(img.shape)}; "
                "give a mask of one channel, or the image's, on the image's grid"
            )
        x = convert_to_tensor(img, dtype=torch.float32, track_meta=False)
        lung = convert_to_tensor(mask, track_meta=False, device=x.device) > 0
        return convert_to_dst_type(x.where(lung, self.fill), img, dtype=torch.float32)[0]


class MaskLungd(MapTransform):
    """Dictionary-based version of :py:class:`MaskLung`.

    Args:
        keys: the images.
        mask_key: the lung mask.
        fill: the value outside.
        allow_missing_keys: do not raise when an image is missing.
    """

    backend = MaskLung.backend

    def __init__(
        self, keys: KeysCollection, mask_key: str = "lung", fill: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.mask_lung = MaskLung(fill=fill)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Mask each image of a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.mask_lung(d[key], d[self.mask_key])
        return d


def body_box(image: NdarrayOrTensor, margin: int = 0) -> Box:
    """Bounding box of the patient's trunk in lung-windowed slices.

    Outside is what is dark, is connected to a corner of the frame and has the level of air; lines such as the
    table's shell, gantry arcs, arrows and text do not bound it. The largest part of the rest, after an opening by 5 %
    of the side, is the body: arms that lie apart are left out. A slice cropped to the lungs has no outside, and lung
    that touches the frame, even in a corner, is not taken for it. The work is done on every few pixels and slices, so
    the box is right to about 1/128 of the side.

    Args:
        image: (..., H, W), values 0..1 in the default lung window; all leading axes share one box.
        margin: pixels added on each side, up to the frame.

    Returns:
        ``((y0, y1), (x0, x1))``, half-open, on the last two axes; the full frame where there is no body.

    Raises:
        ValueError: fewer than two axes, no pixels, or a negative margin.
    """
    if image.ndim < 2 or 0 in image.shape:
        raise ValueError(f"body_box: image has shape {tuple(image.shape)}; give (..., H, W)")
    if margin < 0:
        raise ValueError(f"body_box: margin is {margin}; give 0 or more pixels")
    height, width = image.shape[-2:]
    step = max(1, max(height, width) // _BOX_SIDE)
    small = image[..., ::step, ::step]
    stack = small.reshape(-1, *small.shape[-2:])
    stack = convert_to_numpy(stack[:: -(-len(stack) // BOX_SLICES)])
    boxes = [box for part in stack if (box := _slice_box(part))]
    if not boxes:
        return (0, height), (0, width)
    (y0, x0), (y1, x1) = np.min(boxes, axis=0)[:, 0] * step - margin, np.max(boxes, axis=0)[:, 1] * step + margin
    return (max(0, int(y0)), min(height, int(y1))), (max(0, int(x0)), min(width, int(x1)))


def _slice_box(image: np.ndarray) -> Box | None:
    """Box of the body in one small slice (H, W), or None."""
    tissue = _opening(image > _TISSUE, 3)
    if not tissue.any():
        return None
    dark, _ = ndimage.label(~tissue)
    body = np.ones_like(tissue)
    for corner in {dark[0, 0], dark[0, -1], dark[-1, 0], dark[-1, -1]} - {0}:
        part = dark == corner
        if np.median(image[part]) < _AIR:
            body &= ~part
    labels, count = ndimage.label(_opening(body, round(_THIN * max(image.shape)) | 1))
    if count == 0:
        return None
    y, x = ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    return (y.start, y.stop), (x.start, x.stop)


def _opening(mask: np.ndarray, size: int) -> np.ndarray:
    """Opening by a square; the frame's border pixels go on beyond the frame."""
    padded = np.pad(mask, size, mode="edge").astype(np.uint8)
    opened = ndimage.maximum_filter(ndimage.minimum_filter(padded, size), size)
    return opened[size:-size, size:-size] > 0


class CropBody(Crop):
    """Crop to the body's bounding box, see :py:func:`body_box`.

    The first two spatial axes are cropped: (C, H, W), or (C, X, Y, Z) with the slices along the last axis, one box
    for all. Traced and invertible as every MONAI crop, which gives back the frame filled with zeros.

    Args:
        margin: pixels added on each side, up to the frame.
        lazy: execute lazily, see :py:class:`monai.transforms.Crop`.
    """

    def __init__(self, margin: int = 0, lazy: bool = False) -> None:
        super().__init__(lazy)
        if margin < 0:
            raise ValueError(f"CropBody: margin is {margin}; give 0 or more pixels")
        self.margin = margin

    @property
    def requires_current_data(self) -> bool:
        """The box is measured on the pixels."""
        return True

    def body_slices(self, img: NdarrayOrTensor) -> tuple[slice, ...]:
        """Slices of the first two spatial axes of ``img``, (C, H, W) or (C, X, Y, Z), that hold the body."""
        if img.ndim not in (3, 4):
            raise ValueError(f"CropBody: image has shape {tuple(img.shape)}; give (C, H, W) or (C, X, Y, Z)")
        x = convert_to_tensor(img, track_meta=False)
        return tuple(slice(*ends) for ends in body_box(x if x.ndim == 3 else x.moveaxis(-1, 1), self.margin))

    def __call__(
        self, img: torch.Tensor, slices: tuple[slice, ...] | None = None, lazy: bool | None = None
    ) -> torch.Tensor:
        """Crop ``img``, channel-first and in [0, 1], to ``slices`` or to its own body."""
        return super().__call__(img, self.body_slices(img) if slices is None else slices, lazy)


class CropBodyd(Cropd):
    """Dictionary-based version of :py:class:`CropBody`: the box of ``source_key`` for all ``keys``.

    Args:
        keys: image, label, prior, edge: all that lies on one grid.
        source_key: the lung-windowed image in [0, 1] whose body is boxed.
        margin: pixels added on each side.
        allow_missing_keys: do not raise when a key is missing.
        lazy: execute lazily.

    Raises:
        ValueError: when called, a key has another spatial size than the source.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: str = "image",
        margin: int = 0,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        super().__init__(keys, CropBody(margin, lazy), allow_missing_keys, lazy)
        self.source_key = source_key

    @property
    def requires_current_data(self) -> bool:
        """The box is measured on the pixels."""
        return True

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Crop each key of a copy of ``data``."""
        self.cropper: CropBody
        d = dict(data)
        source = d[self.source_key]
        slices = self.cropper.body_slices(source)
        for key in self.key_iterator(d):
            if d[key].shape[1:] != source.shape[1:]:
                raise ValueError(
                    f"CropBodyd: {key!r} has spatial size {tuple(d[key].shape[1:])} and {self.source_key!r} "
                    f"{tuple(source.shape[1:])}; bring them to one grid first"
                )
            d[key] = self.cropper(d[key], slices, lazy=self.lazy if lazy is None else lazy)
        return d


CropBodyD = CropBodyDict = CropBodyd
MaskLungD = MaskLungDict = MaskLungd
