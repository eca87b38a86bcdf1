# SPDX-License-Identifier: Apache-2.0
"""What all commands share: exit codes, the look of their help, and how they complain."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "EXIT_CODES",
    "INTERRUPTED",
    "OK",
    "SOME_FAILED",
    "UNUSABLE",
    "Help",
    "add_command",
    "check_output",
    "complain",
    "one_line",
    "without_progress_bars",
]

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

EXIT_CODES = """\
exit codes:
  0    all was done
  1    at least one input could not be used; the others were done, and each fault is one line
  2    the command line, an input, the bundle or its weights cannot be used; nothing was done
  130  interrupted"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written, and room for the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def add_command(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a subcommand whose description is its summary; ``run`` takes its options and returns the exit code."""
    command = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=Help
    )
    command.add_argument("--traceback", action="store_true", help="show where in the code a fault was raised")
    command.set_defaults(run=run)
    return command


def check_output(folder: Path) -> None:
    """Refuse a folder for results that cannot be one, before anything takes minutes.

    Raises:
        ValueError: it, or what it would lie in, is no folder or cannot be written to.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if _is_there(each))
        if not there.is_dir():
            raise ValueError(f"{there} is no folder: give --output a new folder or one for the results.")
    except OSError as error:  # a name that is too long, or within a folder that is closed
        raise ValueError(f"{folder} cannot be made ({error.strerror}): give --output another folder.") from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} cannot be written to: give --output another folder.")


def _is_there(path: Path) -> bool:
    """Whether a name is taken, be it by a link to nothing; unlike `Path.exists` it raises where that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def without_progress_bars() -> None:
    """Read MLflow's artifacts in silence."""
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)


def complain(line: str) -> None:
    """Print one line to the standard error."""
    print(f"covid-monai: {line}", file=sys.stderr)


@contextmanager
def one_line() -> Iterator[None]:
    """Warnings as one line each, those of libraries not at all: they may quote what a file holds."""
    logging.getLogger("monai").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(monai|torch|pydicom|highdicom)\b")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
        yield
