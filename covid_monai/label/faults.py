# SPDX-License-Identifier: Apache-2.0
"""What the label server refuses, in one line for the client."""

__all__ = ["LabelError"]


class LabelError(ValueError):
    """A request, a label or a setting of the label server that cannot be used."""
