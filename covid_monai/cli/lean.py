# SPDX-License-Identifier: Apache-2.0
"""MONAI imported for prediction alone."""

from __future__ import annotations

import argparse
import pkgutil
import sys

__all__ = ["import_lean_monai", "import_monai_to_predict"]

HIDDEN = (
    *("bs4", "ignite", "itk", "matplotlib", "mlflow", "pandas"),
    *("pydot", "scipy.signal", "skimage", "sklearn", "tifffile"),
)
"""Packages that MONAI, and torch, import in advance where they are installed, for what prediction has no use for."""


def import_monai_to_predict(options: argparse.Namespace) -> None:
    """Import MONAI lean where its process runs this command line alone, whose model does not come by MLflow."""
    if options.alone and not getattr(options, "model", None):
        import_lean_monai()


def import_lean_monai() -> None:
    """Import of MONAI what prediction needs, as if :data:`HIDDEN` were not installed, in less than half the time.

    MONAI imports all of its modules in advance, and runs each of them twice (``monai.utils.load_submodules``); here it
    finds none that it could. They can be imported afterwards, and so can what was hidden, but what looked for a hidden
    package before, such as MONAI's ITK reader, cannot be used in this process any more. Nothing is done where MONAI is
    imported already.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in HIDDEN if name not in sys.modules]
    walk = pkgutil.walk_packages
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: such an import fails at once
    pkgutil.walk_packages = lambda *_, **__: iter(())
    try:
        import monai.apps  # first: MONAI's modules import each other in circles, which can be entered here
        import monai.inferers
        import monai.networks.nets  # noqa: F401
    finally:
        pkgutil.walk_packages = walk
        for name in hidden:
            del sys.modules[name]
