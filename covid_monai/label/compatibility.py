# SPDX-License-Identifier: Apache-2.0
"""MONAI Label 0.8.5 beside pydicom 3."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from pydicom import uid

from covid_monai.label.faults import LabelError

__all__ = ["prepare_monailabel"]

MISSING = "pydicom._storage_sopclass_uids"
"""A private module of pydicom 2 that pydicom-seg 0.4.1, which MONAI Label imports, takes a UID from."""


def prepare_monailabel() -> None:
    """Make ``import monailabel`` work; call it before the first one, in the server and in its child processes.

    Raises:
        LabelError: when MONAI Label is not installed.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise LabelError("MONAI Label is not installed: run `make label-install`, see docs/guide/label.md.")
    if MISSING not in sys.modules:
        stand_in = ModuleType(MISSING)
        stand_in.__dict__.update({name: value for name, value in vars(uid).items() if isinstance(value, uid.UID)})
        sys.modules[MISSING] = stand_in
