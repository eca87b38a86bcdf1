# SPDX-License-Identifier: Apache-2.0
"""Random cell mask: which square cells of a slice are kept, and which erased, before it is painted back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from .lung_cells import Within, cells_within
from .sizes import common_size

__all__ = ["RandCellMask", "RandCellMaskD", "RandCellMaskDict", "RandCellMaskd"]


class RandCellMask(Randomizable, Transform):
    """Draw a mask that keeps a fixed share of square cells, each set of cells as likely as any other.

    Of the cells ``within`` a region exactly ``round(keep_fraction * cells)`` are kept, and all outside it. The grid
    starts at the first row and column; the last cells hang over where a side is no multiple of ``cell``, and are
    cropped.

    Args:
        keep_fraction: share of kept cells, above 0 and at most 1. A plain attribute that a schedule may change.
        cell: side of a cell in pixels, at least 1.
        within: where cells may be erased: ``"slice"`` is everywhere; ``"lungs"`` and ``"body"`` are found on the first
            channel, a lung-windowed slice in [0, 1], see :func:`cells_within`.

    Raises:
        ValueError: an argument outside its range.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012

    def __init__(self, keep_fraction: float = 0.75, cell: int = 16, within: Within = "slice") -> None:
        if not 0 < keep_fraction <= 1:
            raise ValueError(f"RandCellMask: keep_fraction is {keep_fraction}; give a share above 0 and at most 1")
        if cell < 1:
            raise ValueError(f"RandCellMask: cell is {cell}; give 1 pixel or more")
        if within not in get_args(Within):
            raise ValueError(f"RandCellMask: within is {within!r}; choose one of {', '.join(get_args(Within))}")
        self.keep_fraction = keep_fraction
        self.cell = cell
        self.within = within
        self.cells = np.ones((0, 0), dtype=np.float32)

    def randomize(self, allowed: np.ndarray) -> None:
        """Draw the kept cells among the ``allowed`` ones, booleans (h, w); the others are kept."""
        self.cells = np.ones(allowed.shape, dtype=np.float32)
        (numbers,) = np.nonzero(allowed.ravel())
        kept = round(self.keep_fraction * len(numbers))
        self.cells.flat[self.R.permutation(numbers)[kept:]] = 0

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Make a mask for ``img``.

        Args:
            img: (C, H, W). It is not changed.
            randomize: draw anew, or repeat the last draw.

        Returns:
            float32 mask (1, H, W) of the type of ``img``, 1 = kept, 0 = erased; with its geometry, if it has one.

        Raises:
            ValueError: ``img`` has another number of axes or no pixels, or the last draw was for another size.
        """
        if img.ndim != 3:
            raise ValueError(f"RandCellMask: image has shape {tuple(img.shape)}; give (C, H, W)")
        height, width = img.shape[1:]
        if randomize:
            first = convert_to_tensor(img, track_meta=False)[None, :1]
            self.randomize(cells_within(first, self.within, self.cell)[0, 0].cpu().numpy())
        mask = self.cells.repeat(self.cell, 0).repeat(self.cell, 1)[None, :height, :width]
        if mask.shape[1:] != (height, width):
            raise ValueError(f"RandCellMask: the last draw has no mask of {height} x {width} pixels; draw anew")
        return convert_to_dst_type(np.ascontiguousarray(mask), img, dtype=torch.float32)[0]


class RandCellMaskd(Randomizable, MapTransform):
    """Dictionary-based version of :py:class:`RandCellMask`: one mask for all ``keys``, which stay as they are.

    Args:
        keys: the images, all of one spatial size; the mask has the type of the first.
        keep_fraction: share of kept cells.
        cell: side of a cell in pixels.
        within: where cells may be erased, found on the first of the images.
        mask_key: where the mask is put.
        allow_missing_keys: do not raise when an image is missing; without any, no mask is added.

    Raises:
        ValueError: an argument outside its range; when called, images of different sizes.
    """

    backend = RandCellMask.backend

    def __init__(
        self,
        keys: KeysCollection,
        keep_fraction: float = 0.75,
        cell: int = 16,
        within: Within = "slice",
        *,
        mask_key: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.cell_mask = RandCellMask(keep_fraction, cell, within)
        self.mask_key = mask_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandCellMaskd:
        """Seed, or share, the random state."""
        super().set_random_state(seed, state)
        self.cell_mask.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add a mask to a copy of ``data``."""
        d = dict(data)
        present = list(self.key_iterator(d))
        if common_size(self, d, present) is not None:
            d[self.mask_key] = self.cell_mask(d[present[0]])
        return d


RandCellMaskD = RandCellMaskDict = RandCellMaskd
