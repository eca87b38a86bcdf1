# SPDX-License-Identifier: Apache-2.0
"""Slabs of thin slices that a 2-D network sees as one, and its logits smoothed along the patient's axis."""

from __future__ import annotations

import math

import numpy as np
import torch

__all__ = ["REACH", "Slabs"]

REACH = 3.0
"""Standard deviations of the smoothing beyond which a slab does not count."""


class Slabs:
    """The slices of a scan, or of a part of it, in slabs, and how the slabs' logits give those of the slices.

    A 2-D network sees a slice without its neighbours: noise and whatever lies in one slice alone go into its answer
    unchecked. The logits of a slice are therefore the mean of those of the slabs around it, weighted by a Gaussian of
    their distance (Nadaraya, "On Estimating Regression", 1964): smoothed and interpolated at once.

    Args:
        slices: first slice and end of the part; widened to whole slabs, which are counted from the scan's first slice.
        count: slices of the scan.
        distance: mm from slice to slice; None where it is not known: every slice is then seen, and decided, alone.
        thickness: mm, what a slab of several slices has at most; None to see every slice.
        smoothing: standard deviation of the Gaussian in mm; None for none: slices get the logits of their own slab.
        every_slice: each slice gets logits of its own; else each slab has those of its middle, for all its slices.

    Attributes:
        slabs: the slices of each, ascending and without a gap.
        standing: (count,) for each slice of the scan the row of logits that is its own, its number where each has one;
            -1 outside the part.

    Raises:
        ValueError: if a length is not positive and finite.
    """

    def __init__(
        self,
        slices: tuple[int, int],
        count: int,
        distance: float | None = None,
        thickness: float | None = None,
        smoothing: float | None = None,
        every_slice: bool = True,
    ) -> None:
        for name, length in (("distance", distance), ("thickness", thickness), ("smoothing", smoothing)):
            if length is not None and not 0 < length < math.inf:
                raise ValueError(f"{name} of slices is {length} mm: it must be positive and finite, or None.")
        every = 1 if distance is None or thickness is None else max(1, int(thickness / distance + 1e-3))
        first, end = slices
        starts = range(first // every * every, end if end > first else 0, every)
        self.slabs = [slice(start, min(start + every, count)) for start in starts]
        self.standing = np.full(count, -1)
        for number, slab in enumerate(self.slabs):
            self.standing[slab] = np.arange(slab.start, slab.stop) if every_slice else number
        self._middles = np.array([(slab.start + slab.stop - 1) / 2 for slab in self.slabs])
        self._every_slice = every_slice
        self._scale = None if distance is None or smoothing is None else distance / smoothing
        self._reach = 0 if self._scale is None else int(min(count, REACH / (self._scale * every))) + 1

    def __len__(self) -> int:
        return len(self.slabs)

    def around(self, start: int, stop: int) -> range:
        """The slabs that bear on the logits of those from ``start`` to ``stop``."""
        return range(max(0, start - self._reach), min(len(self), stop + self._reach))

    def span(self, start: int, stop: int) -> slice:
        """The slices of the slabs from ``start`` to ``stop``."""
        return slice(self.slabs[start].start, self.slabs[stop - 1].stop)

    def rows(self, start: int, stop: int) -> slice:
        """The rows of logits of the slabs from ``start`` to ``stop``, see :attr:`standing`."""
        span = self.span(start, stop)
        return slice(int(self.standing[span.start]), int(self.standing[span.stop - 1]) + 1)

    def means(self, slices: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """What the network sees of the slabs from ``start`` to ``stop``: (slabs, ...) from their slices (n, ...)."""
        counts = [slab.stop - slab.start for slab in self.slabs[start:stop]]
        return torch.stack([each.mean(0) for each in slices.split(counts)])

    def smooth(self, seen: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The rows of logits of the slabs from ``start`` to ``stop``.

        Args:
            seen: (slabs, ...) the logits of the slabs :meth:`around`.
            start: first slab.
            stop: end of them.

        Returns:
            (rows, ...), float32.
        """
        if self._scale is None:
            counts = [slab.stop - slab.start if self._every_slice else 1 for slab in self.slabs[start:stop]]
            return seen.repeat_interleave(torch.tensor(counts, device=seen.device), 0)
        span = self.span(start, stop)
        places = np.arange(span.start, span.stop) if self._every_slice else self._middles[start:stop]
        apart = np.abs(places[:, None] - self._middles[self.around(start, stop)]) * self._scale
        nearest = apart.min(1, keepdims=True)
        weights = np.exp((nearest**2 - apart**2) / 2) * (apart <= np.maximum(nearest, REACH))
        weights /= weights.sum(1, keepdims=True)
        return torch.tensordot(torch.from_numpy(weights).to(seen), seen, 1)
