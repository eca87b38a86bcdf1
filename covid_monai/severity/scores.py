# SPDX-License-Identifier: Apache-2.0
"""Scores of masks."""

from __future__ import annotations

import numpy as np

__all__ = ["dice"]


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity coefficient ``2 |R and S| / (|R| + |S|)`` (the paper's Eq. 6).

    Args:
        mask: array of any shape, non-zero for foreground.
        reference: array of the same shape.

    Returns:
        0..1, and 1.0 when both are empty.

    Raises:
        ValueError: when the shapes differ.
    """
    if mask.shape != reference.shape:
        raise ValueError(
            f"the mask has shape {mask.shape} and the reference {reference.shape}: they must lie on one grid."
        )
    found, true = mask != 0, reference != 0
    total = int(np.count_nonzero(found)) + int(np.count_nonzero(true))
    return 2 * int(np.count_nonzero(found & true)) / total if total else 1.0
