# SPDX-License-Identifier: Apache-2.0
"""Settings of a config that choose one of several things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["choose"]


def choose(key: str, value: Any, options: Mapping[Any, Any]) -> Any:
    """What a setting chooses.

    Args:
        key: name of the setting.
        value: what it was set to.
        options: what each of its values stands for.

    Raises:
        ValueError: when it was set to something else.
    """
    if not isinstance(value, str | bool) or value not in options:
        raise ValueError(f"{key} is {value!r}: choose {' or '.join(map(str, options))}.")
    return options[value]
