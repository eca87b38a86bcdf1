# SPDX-License-Identifier: Apache-2.0
"""Random cutout: a rectangle of the image is erased, the mask is not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.utils import get_random_patch
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from .sizes import common_size

__all__ = ["RandCutout", "RandCutoutD", "RandCutoutDict", "RandCutoutd"]


class RandCutout(RandomizableTransform):
    """Erase rectangles whose sides are a fraction of the image's sides, at random places.

    A hole lies wholly inside the image, so the share one hole erases is always ``fraction`` to the power of the
    number of axes, with sides rounded to whole pixels (0.4 of 512 x 512: 205 x 205 pixels, 16 %); several holes may
    overlap. After DeVries and Taylor, arXiv:1708.04552, whose holes may hang over the border.

    Args:
        prob: probability of erasing anything.
        fraction: side of a hole over the side of the image, above 0 and at most 1.
        fill: value written into the hole.
        num_holes: how many holes, at least 1.

    Raises:
        ValueError: an argument outside its range.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, prob: float = 0.5, fraction: float = 0.4, fill: float = 0.0, num_holes: int = 1) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"RandCutout: prob is {prob}; give a probability, 0 to 1")
        super().__init__(prob)
        if not 0 < fraction <= 1:
            raise ValueError(f"RandCutout: fraction is {fraction}; give a share of the side above 0 and at most 1")
        if num_holes < 1:
            raise ValueError(f"RandCutout: num_holes is {num_holes}; give 1 or more")
        if not np.isfinite(fill):
            raise ValueError(f"RandCutout: fill is {fill}; give a finite value")
        self.fraction = fraction
        self.fill = fill
        self.num_holes = num_holes
        self.holes: list[tuple[slice, ...]] = []

    def randomize(self, spatial_size: Sequence[int]) -> None:
        """Draw whether to erase and where, for images of ``spatial_size``."""
        super().randomize(None)
        size = [max(1, round(self.fraction * side)) for side in spatial_size]
        count = self.num_holes if self._do_transform else 0
        self.holes = [(slice(None), *get_random_patch(spatial_size, size, self.R)) for _ in range(count)]

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Erase.

        Args:
            img: (C, H, W) or (C, X, Y, Z); every channel is erased alike. It is not changed.
            randomize: draw anew, or repeat the last draw.

        Returns:
            float32 array of the same type and shape.
        """
        if randomize:
            self.randomize(img.shape[1:])
        out = convert_to_tensor(img, dtype=torch.float32, track_meta=False).clone()
        for hole in self.holes:
            out[hole] = self.fill
        return convert_to_dst_type(out, img, dtype=torch.float32)[0]


class RandCutoutd(Randomizable, MapTransform):
    """Dictionary-based version of :py:class:`RandCutout`: the same holes for all ``keys``.

    Give image keys only: the network is to tell the lesion under the hole from what surrounds it, so the label stays.

    Args:
        keys: the images, all of one spatial size.
        prob: probability of erasing anything.
        fraction: side of a hole over the side of the image.
        fill: value written into the hole.
        num_holes: how many holes.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        ValueError: an argument outside its range; when called, images of different sizes.
    """

    backend = RandCutout.backend

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        fraction: float = 0.4,
        *,
        fill: float = 0.0,
        num_holes: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.cutout = RandCutout(prob, fraction, fill, num_holes)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandCutoutd:
        """Seed, or share, the random state."""
        super().set_random_state(seed, state)
        self.cutout.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Erase the same holes in each image of a copy of ``data``."""
        d = dict(data)
        present = list(self.key_iterator(d))
        if (size := common_size(self, d, present)) is not None:
            self.cutout.randomize(size)
        for key in present:
            d[key] = self.cutout(d[key], randomize=False)
        return d


RandCutoutD = RandCutoutDict = RandCutoutd
