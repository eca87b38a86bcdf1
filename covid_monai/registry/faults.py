# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a registry, in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

__all__ = ["GateError", "RegistryError", "answered"]


class RegistryError(ValueError):
    """A registry cannot be asked, has no such model, or holds another thing than it recorded."""


class GateError(RegistryError):
    """A version may not become the champion."""


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turn what MLflow raises into one line.

    Args:
        what: what was asked of it, as the beginning of the line.

    Raises:
        RegistryError: for MLflow's own exceptions.
    """
    try:
        yield
    except MlflowException as error:
        reason = str(error.message or error).strip().splitlines()[0]
        raise RegistryError(f"{what}: MLflow says: {reason[:300]}") from error
