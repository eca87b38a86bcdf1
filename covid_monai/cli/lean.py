# SPDX-License-Identifier: Apache-2.0
"""MONAI imported for prediction alone."""

from __future__ import annotations

import argparse
import gc
import os
import pkgutil
import sys

__all__ = ["import_lean_monai", "import_monai_to_predict"]

HIDDEN = (
    *("bs4", "ignite", "itk", "matplotlib", "mlflow", "pandas"),
    *("pydot", "scipy.signal", "skimage", "sklearn", "tifffile"),
)
"""Packages that MONAI, and torch, import in advance where they are installed, for what prediction has no use for."""


def import_monai_to_predict(options: argparse.Namespace) -> None:
    """Import MONAI lean where its process runs this command line alone, whose model does not come by MLflow.

    Threads of OpenMP that wait for work then leave their cores to others, which else they keep busy, unless
    ``OMP_WAIT_POLICY`` says otherwise; processes that are started by this one do the same.
    """
    if options.alone and not getattr(options, "model", None):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
        import_lean_monai()


def import_lean_monai() -> None:
    """Import of MONAI what prediction needs, as if :data:`HIDDEN` were not installed, in less than half the time.

    MONAI imports all of its modules in advance, and runs each of them twice (``monai.utils.load_submodules``); here it
    finds none that it could. They can be imported afterwards, and so can what was hidden, but what looked for a hidden
    package before, such as MONAI's ITK reader, cannot be used in this process any more. The many objects that are made,
    which stay, are not searched for garbage. Nothing is done where MONAI is imported already.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in HIDDEN if name not in sys.modules]
    walk = pkgutil.walk_packages
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: such an import fails at once
    pkgutil.walk_packages = lambda *_, **__: iter(())
    collects = gc.isenabled()
    gc.disable()
    try:
        import monai.apps  # first: MONAI's modules import each other in circles, which can be entered here
        import monai.inferers
        import monai.networks.nets  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()
        pkgutil.walk_packages = walk
        for name in hidden:
            del sys.modules[name]
