# SPDX-License-Identifier: Apache-2.0
"""What the label server refuses, in one line for the client."""

from __future__ import annotations

import requests

__all__ = ["LabelError", "archive_fault"]


class LabelError(ValueError):
    """A request, a label or a setting of the label server that cannot be used."""


def archive_fault(error: Exception) -> str | None:
    """What an archive did wrong, None where it was not the archive."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the archive refuses, HTTP status {error.response.status_code}."
    if isinstance(error, requests.RequestException):
        return f"the archive cannot be reached ({type(error).__name__}): is it up?"
    return None
