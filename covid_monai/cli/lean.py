# SPDX-License-Identifier: Apache-2.0
"""MONAI imported for prediction alone."""

from __future__ import annotations

import sys

__all__ = ["import_lean_monai"]

HIDDEN = (
    *("bs4", "ignite", "itk", "matplotlib", "mlflow", "pandas"),
    *("pydot", "scipy.signal", "skimage", "sklearn", "tifffile"),
)
"""Packages that MONAI, and torch, import in advance where they are installed, for what prediction has no use for."""


def import_lean_monai() -> None:
    """Import MONAI as if :data:`HIDDEN` were not installed, in less than half the time.

    They can be imported afterwards, but MONAI's own engines, handlers, plots and ITK reader cannot be used in this
    process any more. Nothing is done where MONAI is imported already.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: such an import fails at once
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
