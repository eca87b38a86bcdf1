# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written in a folder of their own, and renamed when nothing more can fail."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["UNFINISHED", "replacing", "unfinished_folder", "write_whole"]

UNFINISHED = ".unfinished-"
"""How the names of folders begin that a killed process leaves behind."""


@contextmanager
def unfinished_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder within ``folder``, for what is moved out of it when it is whole; it goes with what is left in it.

    Args:
        folder: on the same disk as where the files go, so that renaming is all it takes; must be there.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as name:
        yield Path(name)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a file that takes the place of ``path`` when the block ends well, and goes when it does not.

    It has the name of ``path``, suffix included. Its folder must be there.
    """
    path = Path(path)
    with unfinished_folder(path.parent) as folder:
        unfinished = folder / path.name
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        unfinished.replace(path)


def write_whole(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file so that nobody ever finds half of it, and return its path."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return Path(path)
