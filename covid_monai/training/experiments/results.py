# SPDX-License-Identifier: Apache-2.0
"""What a study has found, in two files that can be kept without MLflow: ``results.csv`` and ``cases.csv``.

Both are brought up to date from MLflow, and keep what it does not know: cells that ran on another machine, or whose
runs are gone. ``cases.csv`` is told in :mod:`covid_monai.training.experiments.cases`. ``results.csv`` has a row for
each cell. Its columns are network, arm, fraction, seed and state of the cell; for each side of the datalist that
evaluates it the metrics (``testing_val_mean_dice``) and the id of the run (``testing_run_id``); then the commit of the
code, the data's hash, and ``cell``, the digest of the stage that leaves the model, by which a row is known again. The
state is finished, partial (not yet evaluated on all sides) or missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import Run

from covid_monai.training.experiments.cases import Cases, cases_of_run, read_cases, write_cases
from covid_monai.training.experiments.files import is_number, locked, read_csv, write_csv
from covid_monai.training.experiments.study import Cell, Study, StudyError

__all__ = ["MISSING", "Finished", "Results", "Row", "evaluated", "finished_runs", "read_results", "write_results"]

Finished = Mapping[str, Sequence[Run]]
"""Finished runs by their tag ``cell``, the newest first."""

Row = dict[str, str]

FILE = "results.csv"
FINISHED, PARTIAL, MISSING = "finished", "partial", "missing"
FIRST = ["network", "arm", "fraction", "seed", "state"]
LAST = ["git_commit", "data_hash", "cell"]
PAGE = 1000


@dataclass(frozen=True)
class Results:
    """The rows of ``results.csv``.

    Args:
        columns: in their order.
        rows: of the study's cells, in its order, by the cell's digest.
        others: rows with figures that are of no cell of the study as it is now: of other data or settings.
        cases: figures of every case.
    """

    columns: list[str]
    rows: dict[str, Row]
    others: list[Row]
    cases: Cases

    def value(self, cell: Cell, side: str, metric: str) -> float | None:
        """A metric of a cell on a side; None where there is none."""
        text = self.rows[cell.digest].get(f"{side}_{metric}", "")
        return float(text) if text else None


def finished_runs(tracking_uri: str, study: str) -> dict[str, list[Run]]:
    """Read the finished runs of a study, by their tag ``cell`` and the newest first; none where there is no store yet.

    Args:
        tracking_uri: where MLflow keeps its runs.
        study: name of the study and of its experiment.
    """
    parsed = urlparse(tracking_uri)
    if parsed.scheme == "sqlite" and not Path(parsed.path.removeprefix("/")).exists():
        return {}  # MLflow would make it
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return {}
    found: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=PAGE, page_token=token,
            order_by=["attributes.end_time DESC"],
        )  # fmt: skip
        for run in page:
            if "cell" in run.data.tags:
                found.setdefault(run.data.tags["cell"], []).append(run)
        if not (token := page.token):
            return found


def read_results(folder: Path) -> dict[str, Row]:
    """Rows of the ``results.csv`` in a folder by the digest of their cell; none where there is no such file.

    Raises:
        StudyError: when the file is no results of a study, or torn.
    """
    path = folder / FILE
    rows: dict[str, Row] = {}
    for number, row in read_csv(path, FIRST + LAST):
        if not _is_whole(row):
            raise StudyError(f"line {number} of {path} is torn: mend it, or take it out.")
        if row["cell"] in rows:
            raise StudyError(f"{path} has the cell {row['cell']} twice: take one out.")
        rows[row["cell"]] = row
    return rows


def evaluated(row: Mapping[str, str], side: str) -> bool:
    """Whether a row has the figures of a side."""
    return bool(row.get(f"{side}_run_id"))


def write_results(
    study: Study, cells: Sequence[Cell], finished: Finished, client: MlflowClient | None, folder: Path
) -> Results:
    """Bring ``results.csv`` and ``cases.csv`` in a folder up to date; other writers of them wait.

    What MLflow holds of a cell on a side replaces what its row says of that side; the rest of the row stays. Rows with
    figures that are of no cell of this study stay too, after those of the study.

    Args:
        study: the study.
        cells: all its cells.
        finished: finished runs in MLflow.
        client: of that MLflow; None where it holds nothing.
        folder: where both files lie or are to lie.

    Raises:
        StudyError: when a file that is there is not of a study, or torn.
    """
    with locked(folder):
        before = read_results(folder)
        results = _merge(study, cells, finished, before, read_cases(folder))
        for cell in cells:
            for side in cell.evaluations:
                run = newest(finished, cell, side)
                known = before.get(cell.digest, {}).get(f"{side}_run_id")
                if client is None or run is None:
                    continue
                if run.info.run_id != known or not results.cases.has(cell.digest, side):
                    results.cases.put(cell.digest, side, cases_of_run(client, run, cell.network.metrics))
        write_cases(results.cases, folder)
        write_csv(folder / FILE, results.columns, [*results.rows.values(), *results.others])
    return results


def newest(finished: Finished, cell: Cell, side: str) -> Run | None:
    """The newest finished evaluation of a cell on a side."""
    return next(iter(finished.get(cell.evaluations[side].digest, [])), None)


def _merge(study: Study, cells: Sequence[Cell], finished: Finished, before: Mapping[str, Row], cases: Cases) -> Results:
    metrics = list(dict.fromkeys(metric for network in study.networks for metric in network.metrics))
    figures = [f"{side}_{metric}" for side in study.evaluate_on for metric in metrics]
    run_ids = [f"{side}_run_id" for side in study.evaluate_on]
    rows = {cell.digest: _row(cell, finished, before.get(cell.digest, {})) for cell in cells}
    others = [row for digest, row in before.items() if digest not in rows and row["state"] != MISSING]
    held = dict.fromkeys(column for row in (*rows.values(), *others) for column, text in row.items() if text)
    extra = [column for column in held if column not in {*FIRST, *figures, *run_ids, *LAST}]  # of the study before
    return Results([*FIRST, *figures, *run_ids, *extra, *LAST], rows, others, cases)


def _row(cell: Cell, finished: Finished, before: Mapping[str, str]) -> Row:
    """The row of a cell: what MLflow holds, over what the row held before."""
    row = {
        **before,
        "network": cell.network.name,
        "arm": cell.arm.title,
        "fraction": f"{cell.fraction:g}",
        "seed": str(cell.seed),
        "cell": cell.digest,
    }
    for side in cell.evaluations:
        if (run := newest(finished, cell, side)) is not None:
            figures = {metric: run.data.metrics.get(metric) for metric in cell.network.metrics}
            row |= {f"{side}_{name}": "" if value is None else f"{value:.6g}" for name, value in figures.items()}
            row |= {
                f"{side}_run_id": run.info.run_id,
                "git_commit": run.data.tags.get("git_commit", "unknown"),
                "data_hash": run.data.tags.get("data_hash", ""),
            }
    there = [evaluated(row, side) for side in cell.evaluations]
    row["state"] = FINISHED if all(there) else PARTIAL if any(there) else MISSING
    return row


def _is_whole(row: Row) -> bool:
    """Whether the row names its cell, and its figures are numbers."""
    words = {*FIRST, *LAST}
    figures = [text for column, text in row.items() if column not in words and not column.endswith("_run_id")]
    return bool(row["cell"]) and all(is_number(text) for text in figures if text)
