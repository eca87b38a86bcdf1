# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole."""

from __future__ import annotations

import argparse
import gc
import traceback
from collections.abc import Sequence
from pathlib import Path

from covid_monai import __version__
from covid_monai.cli.analyse import add_analyse
from covid_monai.cli.data import add_data
from covid_monai.cli.label import add_label
from covid_monai.cli.lean import import_monai_to_predict
from covid_monai.cli.model import add_model
from covid_monai.cli.severity import add_severity
from covid_monai.cli.shell import EXIT_CODES, INTERRUPTED, OK, UNUSABLE, Help, add_command, complain, one_line
from covid_monai.cli.study import add_study

__all__ = ["main"]

DESCRIPTION = """\
From a chest CT to a lesion map, a severity score and a report, and from labelled slices to the model that draws it.
Research use only, not a medical device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None for those of the process, which then does nothing else, see
            :func:`~covid_monai.cli.lean.import_monai_to_predict`.
    """
    options = _parser().parse_args(arguments)
    options.alone = arguments is None
    try:
        with one_line():
            return options.run(options)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if options.traceback:
            traceback.print_exc()
        complain(str(error))
        return UNUSABLE
    finally:
        if options.alone:
            gc.freeze()  # else Python looks for cycles among all that is left before it ends, for more than a second


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("covid-monai", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"covid-monai {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_analyse(commands)
    add_severity(commands)
    demo = add_command(
        commands,
        "demo",
        "analyse a synthetic CT with the model that is shipped, and compare with its known truth",
        _demo,
    )
    demo.add_argument("--output", required=True, type=Path, metavar="DIR", help="empty or new folder for everything")
    add_data(commands)
    add_study(commands)
    add_model(commands)
    add_label(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    import_monai_to_predict(options)
    from covid_monai.demo import run

    run(options.output.resolve())
    return OK
