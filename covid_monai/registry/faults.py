# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a registry, in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException

__all__ = ["GateError", "RegistryError", "answered"]

REFUSALS = {
    401: "the server does not know this user by this password: set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD.",
    403: "the server does not allow it to this user, or has no such thing: look at the name, or ask its administrator "
    "for a permission.",
}
"""What a server with accounts means, by the HTTP status of its answer."""


class RegistryError(ValueError):
    """A registry cannot be asked, has no such model, or holds another thing than it recorded."""


class GateError(RegistryError):
    """A version may not become the champion.

    Attributes:
        comparison: what was measured before it was refused, a :class:`~covid_monai.registry.Comparison`; None when
            nothing was.
    """

    comparison: Any = None


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
        if refusal := REFUSALS.get(error.get_http_status_code()):
            raise RegistryError(f"{what}: {refusal}") from error
        reason = str(error.message or error).strip().splitlines()[0]
        raise RegistryError(f"{what}: MLflow says: {reason[:300]}") from error
