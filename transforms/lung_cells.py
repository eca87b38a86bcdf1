# SPDX-License-Identifier: Apache-2.0
"""Which square cells of a slice lie within the lungs, or within the body."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage

from .masking import _AIR, _BOX_SIDE, _THIN, _TISSUE, _opening

__all__ = ["Within", "cells_within"]

Within = Literal["lungs", "body", "slice"]

# In the default lung window: what is darker is taken for lung within the body, much ground glass with it (-350 HU).
_LUNG = (-350 + 1350) / 1500
# Share of a cell that makes it one of the lungs, and one of the body.
_SHARES = {"lungs": 0.3, "body": 0.5}
# A piece of lung above this share of the frame takes in what is dense within and beside it.
_PIECE = 0.01
# With fewer cells there is no choosing among them.
_FEWEST = 4


def cells_within(image: torch.Tensor, within: Within = "lungs", cell: int = 16) -> torch.Tensor:
    """Find the cells of lung-windowed slices that lie within the lungs, or within the body.

    The body is the largest part of the frame without what is dark, has the level of air and touches the frame's
    border. The lungs are what is dark in the body, and what lies in the convex hull of a piece of it and outwards of
    it, seen from the body's middle: by that most dense lesions are in, unless they take up the lung's border over a
    long way, and the heart is not. Windpipe and gas of the bowel count as lung. A cell is of the lungs from 30 % of its
    pixels on, of the body from half of them on. Where fewer than four cells are found, those of the next wider region
    are taken: for lungs the body, for the body the slice.

    Made for batches in training: measured on every few pixels, on the CPU, in some milliseconds a slice. A slice may
    be cropped, turned, shifted or scaled in its greys, as augmentation does.

    Args:
        image: ``(B, 1, H, W)``, values 0..1 in the default lung window.
        within: ``"lungs"``, ``"body"``, or ``"slice"`` for all cells.
        cell: side of a cell in pixels. The grid starts at the first row and column; the last cells hang over where a
            side is no multiple of it.

    Returns:
        Booleans ``(B, 1, h, w)``, one a cell, on the image's device.

    Raises:
        ValueError: an unknown region, a cell below 1 pixel, or an image of another shape.

    Example:
        >>> cells_within(torch.zeros(2, 1, 70, 64), "slice").shape
        torch.Size([2, 1, 5, 4])
    """
    if within not in get_args(Within):
        raise ValueError(f"cells_within: within is {within!r}; choose one of {', '.join(get_args(Within))}")
    if cell < 1:
        raise ValueError(f"cells_within: cell is {cell}; give 1 pixel or more")
    if image.ndim != 4 or image.shape[1] != 1 or 0 in image.shape:
        raise ValueError(f"cells_within: image has shape {tuple(image.shape)}; give (B, 1, H, W)")
    height, width = image.shape[2:]
    grid = (-(-height // cell), -(-width // cell))
    cells = np.ones((len(image), *grid), dtype=bool)
    if within != "slice":
        step = min(cell, max(1, max(height, width) // _BOX_SIDE))
        small = torch.as_tensor(image)[:, 0, ::step, ::step].detach().cpu().float().numpy()
        rows, columns = (np.arange(0, side, step) // cell for side in (height, width))
        for number, part in enumerate(small):
            cells[number] = _slice_cells(part, within, rows, columns)
    return torch.from_numpy(cells)[:, None].to(image.device)


def _slice_cells(image: np.ndarray, within: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cells (h, w) of one small slice (H, W), whose rows and columns lie in the grid's as numbered."""
    body = _body(image)
    regions = [("lungs", _lungs(image, body))] if within == "lungs" else []
    for name, region in [*regions, ("body", body)]:
        cells = _shares(region, rows, columns) >= _SHARES[name]
        if cells.sum() >= _FEWEST:
            return cells
    return np.ones((rows[-1] + 1, columns[-1] + 1), dtype=bool)


def _body(image: np.ndarray) -> np.ndarray:
    """The body in a small slice: the largest part of what is not outside air."""
    dark, count = ndimage.label(~_opening(image > _TISSUE, 3))
    outside = np.zeros(count + 1, dtype=bool)
    outside[np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])] = True
    pixels = np.bincount(dark.ravel(), minlength=count + 1)
    outside &= 2 * np.bincount(dark.ravel(), image.ravel() < _AIR, count + 1) > pixels
    outside[0] = False
    labels, _ = ndimage.label(_opening(~outside[dark], round(_THIN * max(image.shape)) | 1))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (labels == sizes.argmax()) & (labels > 0)


def _lungs(image: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The lungs in a small slice: what is dark in the body, and dense places in larger pieces of it or beside them."""
    from skimage.morphology import convex_hull_image  # slow to import, and for pre-training alone

    pieces, _ = ndimage.label(_opening(body & (image < _LUNG), 3))
    lungs = pieces > 0
    middle = round(np.flatnonzero(body.any(0)).mean()) if lungs.any() else 0
    for label, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = pieces[box] == label
        if piece.sum() > _PIECE * image.size:
            left, right = np.split(piece, [min(max(middle - box[1].start, 0), piece.shape[1])], axis=1)
            outward = [np.maximum.accumulate(left[:, ::-1], 1)[:, ::-1], np.maximum.accumulate(right, 1)]
            lungs[box] |= convex_hull_image(piece) & np.concatenate(outward, 1)
    return lungs & body


def _shares(region: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Share of each cell (h, w) that a region (H, W) has."""
    first_rows, first_columns = (np.flatnonzero(np.diff(numbers, prepend=-1)) for numbers in (rows, columns))
    sums = np.add.reduceat(np.add.reduceat(region.astype(float), first_rows, 0), first_columns, 1)
    return sums / np.outer(np.bincount(rows), np.bincount(columns))
