# SPDX-License-Identifier: Apache-2.0
"""Names that come with a request and become parts of paths: checked at the door and again in the datastores."""

from __future__ import annotations

import re

from covid_monai.label.faults import LabelError

__all__ = ["FINAL", "ORIGINAL", "check_name", "check_tag"]

FINAL, ORIGINAL = "final", "original"
"""Tags of MONAI Label: what a person saved, and what the model drew."""

_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,200}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(name: str) -> str:
    """Return the id of an image or a label, which must be the plain name of a file.

    Raises:
        LabelError: it begins with a dot, or holds a separator of folders or a control character.
    """
    if not _NAME.fullmatch(name):
        raise LabelError(f"{name[:80]!r} is no name of an image: give an id that GET /datastore/?output=all lists.")
    return name


def check_tag(tag: str) -> str:
    """Return the tag of a label, which names a folder.

    Raises:
        LabelError: it holds anything but letters, digits, _ and -.
    """
    if not _TAG.fullmatch(tag):
        raise LabelError(f"{tag[:80]!r} is no tag of a label: give {FINAL} or {ORIGINAL}.")
    return tag
