# SPDX-License-Identifier: Apache-2.0
"""Identifiers of slices and cases as they may be recorded: keyed hashes that only the key's owner can tell apart."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

__all__ = ["KEY_VARIABLE", "hashed_id"]

KEY_VARIABLE = "COVID_MONAI_ID_KEY"


def hashed_id(identifier: str) -> str:
    """First 16 hexadecimal digits of the HMAC-SHA256 of an identifier.

    The key is the environment variable ``COVID_MONAI_ID_KEY``; where it is not set, a random one that first use writes
    to ``covid_monai/id_key`` in the user's configuration folder (``$XDG_CONFIG_HOME``, else ``~/.config``), readable
    by the user alone. The same key gives the same hashes: set the variable to compare runs of several users.

    Raises:
        ValueError: when the key file is empty, cannot be read or cannot be made.
    """
    key = os.environ.get(KEY_VARIABLE, "").encode() or _key_of_user()
    return hmac.new(key, identifier.encode(), hashlib.sha256).hexdigest()[:16]


def _key_of_user() -> bytes:
    try:
        path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "covid_monai", "id_key")
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise ValueError(
            f"no key to hash ids with: {getattr(error, 'strerror', None) or error}; set {KEY_VARIABLE} to a secret"
        ) from error
    if not key:
        raise ValueError(f"{path} is empty: restore it to get the hashes of before, or delete it to get new ones")
    return key


def _make_key(path: Path) -> None:
    """Write a random key whole or not at all; the first of several processes wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
