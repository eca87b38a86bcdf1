# SPDX-License-Identifier: Apache-2.0
"""How often each training slice is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["balanced_weights"]


def balanced_weights(items: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("dataset", "lesion")) -> list[float]:
    """Weights for a ``WeightedRandomSampler`` under which every group of items is drawn equally often.

    Args:
        items: a datalist's items.
        keys: what makes a group: items that agree in all of them; an item without a key groups under None.

    Returns:
        One weight an item, summing to 1; items of one group weigh the same.
    """
    groups = [tuple(item.get(key) for key in keys) for item in items]
    sizes = Counter(groups)
    return [1.0 / (len(sizes) * sizes[group]) for group in groups]
