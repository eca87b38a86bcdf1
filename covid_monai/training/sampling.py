# SPDX-License-Identifier: Apache-2.0
"""How often each training slice is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = ["balanced_weights", "take_fraction"]

Item = TypeVar("Item")


def take_fraction(items: Sequence[Item], fraction: float, seed: int) -> list[Item]:
    """A random share of the items, at least one, in their order; of one seed, smaller shares lie within larger ones.

    Args:
        items: a datalist's items.
        fraction: above 0 and at most 1; the number is rounded up.
        seed: of the draw.

    Raises:
        ValueError: if the fraction is out of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction is {fraction}: give a share above 0 and at most 1.")
    chosen = np.random.default_rng(seed).permutation(len(items))[: math.ceil(round(fraction * len(items), 6))]
    return [items[index] for index in sorted(chosen)]


def balanced_weights(
    items: Sequence[Mapping[str, Any]],
    keys: Sequence[str] = ("dataset", "lesion"),
    shares: Mapping[str, float] | None = None,
) -> list[float]:
    """Weights for a ``WeightedRandomSampler`` under which every group of items is drawn equally often.

    Args:
        items: a datalist's items.
        keys: what makes a group: items that agree in all of them; an item without a key groups under None.
        shares: how often the groups of a data set are drawn against 1 for those of others, by the data set's name.

    Returns:
        One weight an item, summing to 1; items of one group weigh the same.

    Raises:
        ValueError: if a share is not above 0.
    """
    shares = shares or {}
    if wrong := {name: share for name, share in shares.items() if not share > 0}:
        raise ValueError(f"draw_shares are {wrong}: give numbers above 0.")
    groups = [tuple(item.get(key) for key in keys) for item in items]
    sizes = Counter(groups)
    weights = [
        shares.get(item.get("dataset", ""), 1.0) / sizes[group] for item, group in zip(items, groups, strict=True)
    ]
    total = sum(weights)
    return [weight / total for weight in weights]
