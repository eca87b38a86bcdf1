# SPDX-License-Identifier: Apache-2.0
"""``cases.csv``: the figures of every case, on which arms are tested against each other.

A row is of one cell, side and metric; a column after these three is a case, by its hashed id. Ids are hashed with a key
(see :func:`covid_monai.tracking.hashed_id`): rows of several machines are comparable where they had the same key.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from covid_monai.training.experiments.files import is_number, read_csv, write_csv
from covid_monai.training.experiments.study import StudyError

__all__ = ["Cases", "cases_of_run", "read_cases", "write_cases"]

FILE = "cases.csv"
ARTIFACT = "cases.json"
FIRST = ["cell", "side", "metric"]


class Cases:
    """Figures by cell, side, metric and case."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    def put(self, cell: str, side: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Replace what there is of a cell on a side by values by metric and case."""
        self._values[cell, side] = {metric: dict(values) for metric, values in metrics.items() if values}

    def has(self, cell: str, side: str) -> bool:
        """Whether there is anything of a cell on a side."""
        return bool(self._values.get((cell, side)))

    def of(self, cell: str, side: str, metric: str) -> dict[str, float]:
        """Value of each case; empty where there is none."""
        return self._values.get((cell, side), {}).get(metric, {})

    def rows(self) -> list[tuple[str, str, str, dict[str, float]]]:
        """Cell, side, metric and values of everything."""
        return [
            (cell, side, metric, values)
            for (cell, side), metrics in self._values.items()
            for metric, values in metrics.items()
        ]


def read_cases(folder: Path) -> Cases:
    """Read the ``cases.csv`` of a folder; empty where there is no such file.

    Raises:
        StudyError: when the file is no cases of a study, or torn.
    """
    path = folder / FILE
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for number, row in read_csv(path, FIRST):
        values = {case: text for case, text in row.items() if case not in FIRST and text}
        if not all(is_number(text) for text in values.values()):
            raise StudyError(f"line {number} of {path} is torn: mend it, or take it out.")
        of_cell = found.setdefault((row["cell"], row["side"]), {})
        of_cell[row["metric"]] = {case: float(text) for case, text in values.items()}
    cases = Cases()
    for (cell, side), metrics in found.items():
        cases.put(cell, side, metrics)
    return cases


def write_cases(cases: Cases, folder: Path) -> None:
    """Write ``cases.csv``; where there are no cases, no file."""
    rows = cases.rows()
    ids = dict.fromkeys(case for *_, values in rows for case in values)
    if rows:
        texts = (
            {"cell": cell, "side": side, "metric": metric, **{case: f"{value:.4f}" for case, value in values.items()}}
            for cell, side, metric, values in rows
        )
        write_csv(folder / FILE, [*FIRST, *ids], texts)


def cases_of_run(client: MlflowClient, run: Run, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """What an evaluation recorded of these metrics by case, see :class:`covid_monai.tracking.TrackCases`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(run.info.run_id, ARTIFACT, folder))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (MlflowException, OSError, ValueError):
            return {}
    return {metric: content[metric] for metric in metrics if metric in content}
