# SPDX-License-Identifier: Apache-2.0
"""``covid-monai study``: compare ways of training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from covid_monai.cli.shell import OK, SOME_FAILED, Help, add_command, complain, without_progress_bars

__all__ = ["add_study"]


def add_study(commands: Any) -> None:
    """Add ``study`` and its subcommands."""
    study = commands.add_parser("study", help="compare ways of training under one budget", formatter_class=Help)
    kinds = study.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = add_command(
        kinds, "run", "train and evaluate what MLflow does not hold yet; goes on where it stopped", _study_run
    )
    table = add_command(kinds, "table", "means over seeds, paired tests and pictures, from MLflow alone", _study_table)
    for command in (run, table):
        command.add_argument("study", type=Path, metavar="STUDY", help="study file (YAML)")
        command.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the study")
        command.add_argument(
            "--report", type=Path, metavar="DIR", help="folder of results.csv, table and pictures (default: --output)"
        )
        command.add_argument("--tracking_uri", metavar="URI", help="MLflow store (default: mlflow.db in --output)")
    run.add_argument("--dataset_dir", type=Path, metavar="DIR", help="folder of datalist.json instead of the study's")
    run.add_argument("--network", metavar="NAME", help="run the cells of this network alone, single or cascade")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="stages that run at once (default 1)")
    run.add_argument("--dry-run", action="store_true", help="only show what would run")


def _study_run(options: argparse.Namespace) -> int:
    from covid_monai.training.experiments import Runner, load_study

    without_progress_bars()
    study = load_study(options.study, options.dataset_dir)
    runner = Runner(
        study, options.output, options.tracking_uri, options.jobs, report=options.report, network=options.network
    )
    if options.dry_run:
        print(runner.describe())
        return OK
    failed = runner.run()
    print(f"{runner.finished_cells()} of {len(runner.cells)} cells are finished: {runner.report / 'results.csv'}")
    if failed:
        complain(f"{len(failed)} stages failed; the same command runs them again:")
        for name, fault in failed.items():
            print(f"  {name}: {fault}", file=sys.stderr)
    return SOME_FAILED if failed else OK


def _study_table(options: argparse.Namespace) -> int:
    from covid_monai.training.experiments import default_tracking_uri, load_study, write_table

    without_progress_bars()
    uri = options.tracking_uri or default_tracking_uri(options.output)
    study = load_study(options.study, dataset_dir=options.output)  # the table needs no data
    report = options.report or options.output
    paths = write_table(study, report, uri)
    print((report / "table.md").read_text(encoding="utf-8"))
    print(f"written: {', '.join(map(str, paths))}")
    return OK
