# SPDX-License-Identifier: Apache-2.0
"""Lungs from HU alone: the built-in way to find them, without a network."""

from __future__ import annotations

import numpy as np

from covid_monai.severity.air_spaces import air_spaces
from covid_monai.severity.blocks import any_in_blocks, block_means, block_steps, interpolate_codes
from covid_monai.severity.filling import CLOSING_MM, REACH_ALONG_MM, fill_sides, islands_in_lesions, with_lesions
from covid_monai.severity.in_plane import bounding_box
from covid_monai.severity.lung_checks import SHIFTED_UP, TOO_DARK, added_by_lesions, check_lungs
from covid_monai.severity.lungs import (
    LungFinder,
    Lungs,
    LungSearch,
    Spacing,
    check_lesions,
    check_scan,
    slices_around,
    take_lesions,
)
from covid_monai.severity.mask_slices import MaskSlices
from covid_monai.severity.sides import right_half, split_sides

__all__ = ["ThresholdLungs"]

SHIFT_HU = 1024
DARK_HU = -500.0
"""A scan whose 99th percentile is lower shows no body."""

LOOK_MM = (5.0, 3.0, 3.0)
"""Distance of the slices, and size of the blocks, of the first look."""


class ThresholdLungs(LungFinder):
    """Lungs from HU alone, without a network.

    Air of the lungs, told from air outside, in airways and in bowel (`air_spaces`); right and left (`split_sides`);
    closed towards pleura and mediastinum (`fill_sides`); united with the lesions that belong to them (`with_lesions`).
    It works on blocks of voxels of about 1.5 mm, of up to 2 mm across slices; the first look, on some of the slices, on
    coarser ones.
    """

    def begin(self, hu: np.ndarray, spacing: Spacing) -> LungSearch:
        """See `LungFinder`."""
        check_scan(hu, spacing)
        return _ThresholdSearch(hu, spacing)


class _ThresholdSearch(LungSearch):
    """See `ThresholdLungs`."""

    def __init__(self, hu: np.ndarray, spacing: Spacing) -> None:
        self.hu, self.spacing = hu, spacing
        (every, rows, columns), grid = block_steps(spacing, LOOK_MM)
        air, islands, _ = air_spaces(block_means(hu[::every], (1, rows, columns)), grid)
        self.slices = slices_around(_slices_with(air | islands, every, len(hu)), spacing)

    def search(self) -> slice:
        self.steps, self.grid = block_steps(self.spacing)
        blocks = block_means(self.hu, self.steps)
        air, islands, gas = air_spaces(blocks, self.grid)
        self._found = blocks, air, islands, gas
        return slices_around(_slices_with(air | islands, self.steps[0], len(self.hu)), self.spacing, REACH_ALONG_MM)

    def finish(self, lesions: MaskSlices) -> Lungs:
        hu, steps = self.hu, self.steps
        check_lesions(lesions, hu)
        codes, warnings = self._united(any_in_blocks(lesions, steps))
        if codes is None:
            mask = np.zeros(hu.shape, dtype=np.uint8)
            return Lungs(mask, "threshold", warnings=(*check_lungs(mask, hu, lesions), *warnings))
        mask = interpolate_codes(codes, steps, hu.shape)
        take_lesions(mask, lesions, codes, steps)
        return Lungs.checked(mask, "threshold", hu, lesions, warnings=warnings)

    def _united(self, lesions: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Codes of the blocks, those of lesions among them, None where there is no lung, and warnings.

        What was found goes with it, for it takes much memory.
        """
        blocks, air, islands, gas = self._found
        del self._found
        if not air.any():
            return None, _why_none(blocks, self.grid)
        right = right_half(blocks, lesions, self.grid)
        box = (slice(None), *bounding_box((air | islands | lesions).any(axis=0), 2 * CLOSING_MM, self.grid[1:]))
        spaces = air[box] | islands_in_lesions(islands[box], lesions[box])
        sides = fill_sides(split_sides(spaces, right[box]), self.grid)
        united = with_lesions(sides, lesions[box], islands[box], right[box], blocks[box], self.grid)
        codes = np.zeros(blocks.shape, dtype=np.uint8)
        codes[box] = fill_sides(united, self.grid, slices=(united != sides).any(axis=(1, 2)))
        codes[gas] = 0
        return codes, added_by_lesions(sides, united)


def _slices_with(mask: np.ndarray, step: int, count: int) -> np.ndarray:
    """Which of so many slices a mask (Z, H, W) is in, whose layers are ``step`` slices apart; bool (count,)."""
    return np.repeat(mask.any(axis=(1, 2)), step)[:count]


def _why_none(blocks: np.ndarray, grid: Spacing) -> tuple[str, ...]:
    """Why there may be no lung."""
    if np.percentile(blocks, 99) < DARK_HU:
        return (TOO_DARK,)
    return (SHIFTED_UP,) if air_spaces(blocks - SHIFT_HU, grid)[0].any() else ()
