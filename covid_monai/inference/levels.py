# SPDX-License-Identifier: Apache-2.0
"""Lesions of a scan at several thresholds at once, and the mask at one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from covid_monai.inference.fast import FastNetwork
from covid_monai.severity.mask_slices import Reached

__all__ = ["LesionLevels"]


@dataclass(frozen=True, eq=False)
class LesionLevels:
    """Lesions of a scan at several thresholds at once.

    Attributes:
        thresholds: probabilities from which a pixel is lesion, ascending.
        values: (N, H, W) uint8, of the slices or slabs that were decided: twice the number of thresholds that the
            probability of lesion reaches, plus one where it reaches any and consolidation is more probable than ground
            glass. The last is empty, and stands for slices without lesion that were not looked at.
        standing: (Z,) for each slice of the scan the number of the one in ``values`` that stands for it.
        network: what predicted, for further passes over the same scan.
    """

    thresholds: tuple[float, ...]
    values: np.ndarray
    standing: np.ndarray
    network: FastNetwork

    def planes(self) -> Iterator[np.ndarray]:
        """(H, W) like ``values``, for every slice of the scan, not to be changed."""
        return (self.values[number] for number in self.standing)

    def lesions(self, threshold: float) -> Reached:
        """Where one of the thresholds is reached, (Z, H, W), without memory of its own."""
        return Reached(self.values, self._least(threshold), self.standing)

    def codes(self, threshold: float) -> np.ndarray:
        """Lesion mask (Z, H, W) uint8 at one of the thresholds, see :attr:`LesionSegmenter.classes`."""
        least = self._least(threshold)
        codes = np.empty((len(self.standing), *self.values.shape[1:]), dtype=np.uint8)
        for plane, values in zip(codes, self.planes(), strict=True):
            plane[:] = _codes(values, least)
        return codes

    def into_codes(self, threshold: float, within: Iterable[np.ndarray]) -> np.ndarray:
        """The mask of :meth:`codes` in the memory of ``values``, of which nothing else can be had any more.

        Args:
            threshold: of :attr:`thresholds`.
            within: slices (H, W), Z of them, non-zero where lesion counts.

        Raises:
            ValueError: some slices share their values, those of a slab in a mirrored pass.
        """
        if len(self.values) != len(self.standing) + 1:
            raise ValueError("several slices share their values: ask for codes, which makes a copy.")
        codes, least = self.values[:-1], self._least(threshold)
        for plane, place in zip(codes, within, strict=True):
            if plane.any():
                plane[:] = _codes(plane, least) * (place != 0)
        return codes

    def _least(self, threshold: float) -> int:
        """The lowest value that is lesion."""
        return 2 * (self.thresholds.index(threshold) + 1)


def _codes(plane: np.ndarray, least: int) -> np.ndarray:
    """Codes of a slice of values, of which so much is lesion."""
    return (plane >= least) * (1 + (plane & 1))
