# SPDX-License-Identifier: Apache-2.0
"""Run a 2-D network over upright slices: crop to the body, resize, predict in batches, put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep
from torch.nn.functional import interpolate, pad

from covid_monai.inference.precision import autocast
from covid_monai.inference.slabs import Slabs
from covid_monai.transforms import body_box

__all__ = ["Box", "UprightSliceInferer", "inside"]

Box = tuple[tuple[int, int], tuple[int, int]]
"""``((row_start, row_stop), (column_start, column_stop))`` in pixels."""

OUTSIDE_LOGIT = -20.0
"""Logit of lesion, and of every class of lesion against a background of 0, outside the body box: odds of 2e-9."""


class UprightSliceInferer(Inferer):
    """Predict lung-windowed, upright axial slices with a 2-D network, at the resolution they came in.

    Slices are cropped to the body, resized to ``size``, run through the network in batches, and the logits are resized
    and pasted back. It serves single slices (one body box for each) and whole volumes (one body box for the scan), so
    that training slices and scans are seen by the network at about one scale, and without padding, which would shift
    the statistics that batch normalisation has learnt.

    Of a volume whose slices lie at a known distance, the network sees slabs of thin slices, the mean of each, and its
    logits are smoothed along the patient's axis, see :class:`~covid_monai.inference.Slabs`.

    Args:
        size: rows and columns of what the network sees, or one number for both; multiples of 32 by preference.
        batch_size: slices, or slabs, in one forward pass, at most.
        amp: use automatic mixed precision where the device has it, see :func:`~covid_monai.inference.autocast`; for
            scans by a segmenter also 8-bit integers, see :meth:`~covid_monai.inference.FastNetwork.quantised`.
        margin: pixels kept around the body.
        slab: mm, thickness of what the network sees of thin slices; None for slices alone.
        smoothing: mm, standard deviation of the smoothing along the axis; None for none.

    Raises:
        ValueError: if ``size``, ``batch_size``, ``margin``, ``slab`` or ``smoothing`` is out of range.
    """

    def __init__(
        self,
        size: Sequence[int] | int = (192, 256),
        batch_size: int = 8,
        amp: bool = True,
        margin: int = 4,
        slab: float | None = None,
        smoothing: float | None = None,
    ) -> None:
        super().__init__()
        self.size: tuple[int, int] = ensure_tuple_rep(size, 2)
        if min(self.size) < 32 or batch_size < 1 or margin < 0:
            raise ValueError(
                f"size must be at least 32, batch_size 1 and margin 0; got {size}, {batch_size} and {margin}."
            )
        self.batch_size = batch_size
        self.amp = amp
        self.margin = margin
        self.slab = slab
        self.smoothing = smoothing
        self.slabs((0, 1), 1, 1.0)  # refuses lengths that are out of range

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits for slices or volumes.

        Args:
            inputs: windowed intensities in [0, 1], ``(B, C, H, W)`` slices or ``(B, C, H, W, D)`` volumes whose last
                axis runs over slices; rows from anterior to posterior, columns from the patient's right to left
                (MONAI's ``Orientation("PLS")``). The distance of the slices is that of a ``MetaTensor``'s affine; that
                of other tensors is not known.
            network: maps ``(N, C, h, w)`` to logits ``(N, K, h, w)``: of lesion where K is 1, else of K classes for a
                softmax, the first of them background.
            args: passed to the network.
            kwargs: passed to the network.

        Returns:
            Float32 logits, ``(B, K, H, W)`` or ``(B, K, H, W, D)``; background outside the body box. A ``MetaTensor``
            keeps its metadata.

        Raises:
            ValueError: if ``inputs`` has neither four nor five dimensions.
        """
        if inputs.ndim == 4:
            return torch.cat([self.predict(x[None], self.box(x), network, *args, **kwargs) for x in inputs])
        if inputs.ndim != 5:
            raise ValueError(
                f"expected (B, C, H, W) slices or (B, C, H, W, D) volumes, got shape {tuple(inputs.shape)}."
            )
        logits = torch.stack([self._volume(x.movedim(-1, 0), network, *args, **kwargs) for x in inputs])
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

    def _volume(
        self, slices: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        distance = float(slices.affine[:3, 2].norm()) if isinstance(slices, MetaTensor) else None
        slices = slices.as_tensor() if isinstance(slices, MetaTensor) else slices
        box, slabs = self.box(slices), self.slabs((0, len(slices)), len(slices), distance)
        body = inside(slices, box)
        batches = [*self.batches(len(slabs))]
        seen = torch.cat(
            [self.look(slabs.means(body[slabs.span(*batch)], *batch), network, *args, **kwargs) for batch in batches]
        )
        found = [
            _put_back(self.enlarge(logits, body.shape[-2:]), box, slices.shape[-2:])
            for batch in batches
            for logits in slabs.smooth(seen[slabs.around(*batch)], *batch).split(self.batch_size)
        ]
        return torch.cat(found).movedim(0, -1)

    def batches(self, count: int, most: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield ``(start, stop)`` of each batch of ``count`` slices, of at most ``most`` where that is given."""
        size = self.batch_size if most is None else min(most, self.batch_size)
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def box(self, windowed: torch.Tensor) -> Box:
        """Body box of windowed slices ``(..., H, W)``: one box for all of them."""
        return body_box(windowed, margin=self.margin)

    def slabs(self, slices: tuple[int, int], count: int, distance: float | None, every_slice: bool = True) -> Slabs:
        """The :class:`Slabs` of some slices of so many, which lie so many mm apart, None where that is not known."""
        return Slabs(slices, count, distance, self.slab, self.smoothing, every_slice)

    def predict(
        self, windowed: torch.Tensor, box: Box, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits ``(N, K, H, W)`` of one batch of windowed slices ``(N, C, H, W)``, background outside a body box."""
        body = inside(torch.as_tensor(windowed), box)
        found = self.enlarge(self.look(body, network, *args, **kwargs), body.shape[-2:])
        return _put_back(found, box, windowed.shape[-2:])

    def look(self, body: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits ``(N, K, *size)`` of one batch of windowed bodies ``(N, C, h, w)``, as the network sees them."""
        resized = self.resize(body)
        with autocast(resized.device, self.amp):
            logits = network(resized.contiguous(memory_format=torch.channels_last), *args, **kwargs)
        return logits.float().contiguous()

    def resize(self, body: torch.Tensor) -> torch.Tensor:
        """Windowed bodies ``(N, C, h, w)`` at the size that the network sees."""
        return interpolate(body.float(), size=self.size, mode="bilinear", antialias=True)

    def enlarge(self, logits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Logits ``(N, K, *size)`` at the resolution of the body ``(h, w)``."""
        shrinks = shape[0] < self.size[0] or shape[1] < self.size[1]  # else the filter would only cost time
        if not shrinks:
            logits = logits.contiguous(memory_format=torch.channels_last)  # in which it takes half of the time
        return interpolate(logits, size=tuple(shape), mode="bilinear", antialias=shrinks).contiguous()


def inside(planes: Any, box: Box) -> Any:
    """What of an array or tensor ``(..., H, W)`` lies inside a box, a view."""
    (top, bottom), (left, right) = box
    return planes[..., top:bottom, left:right]


def _put_back(found: torch.Tensor, box: Box, shape: Sequence[int]) -> torch.Tensor:
    """Logits of bodies in slices of a shape, background around them."""
    (top, bottom), (left, right) = box
    edges = (left, shape[1] - right, top, shape[0] - bottom)
    logits = pad(found, edges, value=OUTSIDE_LOGIT)
    if found.shape[1] > 1:
        logits[:, 0] = pad(found[:, 0], edges)
    return logits
