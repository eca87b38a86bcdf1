# SPDX-License-Identifier: Apache-2.0
"""Files of a report: tables that several processes may bring up to date, written whole or not at all."""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from covid_monai.training.experiments.study import StudyError
from covid_monai.whole_files import write_whole

__all__ = ["is_number", "locked", "read_csv", "write_csv"]


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with the numbers of their lines; none where there is no file.

    Args:
        path: the file.
        needed: columns that it must have.

    Raises:
        StudyError: when it cannot be read, lacks a column, or has a row of another length than the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read ({error}): mend it, or move it away.") from error
    reader = csv.DictReader(io.StringIO(text))
    if lacking := [column for column in needed if column not in (reader.fieldnames or [])]:
        raise StudyError(f"{path} is not of a study, it lacks {', '.join(lacking)}: move it away.")
    for row in reader:
        if None in row or None in row.values():  # more or fewer cells than columns
            raise StudyError(f"line {reader.line_num} of {path} is torn: mend it, or take it out.")
        yield reader.line_num, row


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV file whole or not at all; what a row does not have is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: row[column] for column in columns if column in row} for row in rows)
    write_whole(path, text.getvalue().encode())


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that would hold it too; they wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
