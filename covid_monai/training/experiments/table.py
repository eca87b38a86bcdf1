# SPDX-License-Identifier: Apache-2.0
"""What a study has found, read from MLflow alone: results.csv, table.md, and one plot a metric."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import urlparse

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from scipy.stats import wilcoxon

from covid_monai.training.experiments.study import Arm, Cell, Study, StudyError

__all__ = ["Comparison", "Finished", "compare", "finished_runs", "holm", "write_results", "write_table"]

Finished = Mapping[str, Sequence[Run]]
"""Finished runs by their tag ``cell``, the newest first."""

CASES = "cases.json"
PAGE = 1000
NOTICE = "For research use only, not a medical device."


@dataclass(frozen=True)
class Comparison:
    """A paired test of an arm against the reference arm.

    Args:
        cases: number of cases that both have.
        median: median over the cases of arm minus reference.
        p: two-sided p-value of the Wilcoxon signed-rank test; 1 when no case differs.
    """

    cases: int
    median: float
    p: float


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


def compare(arm: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]) -> Comparison | None:
    """Compare two arms case by case, every case averaged over the seeds.

    Args:
        arm: value of each case by its id, one mapping a seed.
        reference: the same of the reference arm, for the same seeds.

    Returns:
        None when no case has a finite value in all of them.
    """
    everything = [*arm, *reference]
    ids = (
        [key for key in everything[0] if all(_is_finite(values.get(key)) for values in everything)]
        if everything
        else []
    )
    if not ids:
        return None
    means = [np.mean([[values[key] for key in ids] for values in side], axis=0) for side in (arm, reference)]
    differences = means[0] - means[1]
    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return Comparison(len(ids), float(np.median(differences)), p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scand J Statist 1979; 6:65-70), in the order they are given."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def write_results(study: Study, cells: Sequence[Cell], finished: Finished, output: Path) -> Path:
    """Write ``results.csv``: a row a cell in the study's order, with empty metrics where it is missing.

    Returns:
        Path of the file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "fraction", "seed", "state", *study.metrics, "run_id", "cell"])
    for cell in cells:
        digest = cell.evaluation.digest
        run = _newest(finished, cell)
        values = ["" if run is None else run.data.metrics.get(metric, "") for metric in study.metrics]
        state, run_id = ("missing", "") if run is None else ("finished", run.info.run_id)
        writer.writerow([cell.arm.title, f"{cell.fraction:g}", cell.seed, state, *values, run_id, digest])
    return _write(output / "results.csv", text.getvalue().encode())


def write_table(study: Study, output: Path, tracking_uri: str) -> list[Path]:
    """Write ``results.csv``, ``table.md`` and a plot ``<metric>.png`` for each metric.

    Where runs are of different data, those on the data of the newest evaluation count.

    Args:
        study: the study; its data and weights need not be there.
        output: folder to write into; made when missing.
        tracking_uri: where MLflow keeps the study's runs.

    Returns:
        Paths of the files.

    Raises:
        StudyError: when MLflow holds no evaluation of this study.
    """
    finished = finished_runs(tracking_uri, study.name)
    evaluations = [run for runs in finished.values() for run in runs if run.data.tags.get("stage") == "evaluating"]
    if not evaluations:
        raise StudyError(f"{tracking_uri} holds no finished evaluation of study {study.name}: run the study first.")
    data_hash = max(evaluations, key=lambda run: run.info.end_time).data.tags.get("data_hash", "")
    cells = study.cells(data_hash)
    output.mkdir(parents=True, exist_ok=True)
    paths = [write_results(study, cells, finished, output)]
    held = [run for cell in cells if (run := _newest(finished, cell)) is not None]
    lines = [
        f"# {study.name}",
        "",
        f"{len(held)} of {len(cells)} cells are finished. Seeds: {', '.join(map(str, study.seeds))}. "
        f"Data: `{data_hash[:12]}`. Code: {_versions(held)}.",
    ]
    cases = _Cases(MlflowClient(tracking_uri))
    for metric in study.metrics:
        table = _Metric(study, metric, {(c.arm.title, c.fraction, c.seed): _newest(finished, c) for c in cells}, cases)
        lines += ["", *table.lines()]
        paths.append(_write(output / f"{metric}.png", table.plot()))
    lines += ["", NOTICE, ""]
    return [*paths, _write(output / "table.md", "\n".join(lines).encode())]


class _Cases:
    """The artifacts ``cases.json`` of evaluation runs, each read once."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self._read: dict[str, dict[str, dict[str, float]]] = {}

    def of(self, run: Run, metric: str) -> dict[str, float]:
        """Value of each case by its hashed id; empty when the run has none of this metric."""
        run_id = run.info.run_id
        if run_id not in self._read:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    path = Path(self.client.download_artifacts(run_id, CASES, folder))
                    self._read[run_id] = json.loads(path.read_text(encoding="utf-8"))
                except (MlflowException, OSError, ValueError):
                    self._read[run_id] = {}
        return self._read[run_id].get(metric, {})


class _Metric:
    """One metric of a study: means over seeds, tests against the reference arm, and a plot."""

    def __init__(
        self, study: Study, metric: str, runs: Mapping[tuple[str, float, int], Run | None], cases: _Cases
    ) -> None:
        self.study = study
        self.metric = metric
        self.runs = runs
        self.cases = cases

    def values(self, arm: Arm, fraction: float) -> list[float]:
        """The metric of every finished seed."""
        runs = [self.runs[arm.title, fraction, seed] for seed in self.study.seeds]
        return [run.data.metrics[self.metric] for run in runs if run is not None and self.metric in run.data.metrics]

    def lines(self) -> list[str]:
        """Markdown: the table of means, the plot, and the table of tests."""
        fractions = sorted(self.study.fractions)
        return [
            f"## {self.metric}",
            "",
            "Mean ± standard deviation over the seeds, by share of the training slices that keep their labels.",
            "",
            *_markdown(
                ["arm", *(_percent(fraction) for fraction in fractions)],
                [[arm.title, *(self._mean(arm, fraction) for fraction in fractions)] for arm in self.study.arms],
            ),
            "",
            f"![{self.metric} against the label fraction]({self.metric}.png)",
            "",
            *self._tests(),
        ]

    def plot(self) -> bytes:
        """PNG: the mean over seeds against the label fraction, a line an arm, with its standard deviation."""
        figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        fractions = sorted(self.study.fractions)
        for number, arm in enumerate(self.study.arms):
            shift = 0.8 * (number - (len(self.study.arms) - 1) / 2)  # percent, so that bars do not hide each other
            points = [(100 * f + shift, v) for f in fractions if (v := self.values(arm, f))]
            axes.errorbar(
                [x for x, _ in points],
                [fmean(v) for _, v in points],
                yerr=[stdev(v) if len(v) > 1 else 0.0 for _, v in points],
                label=arm.title if points else f"{arm.title} (missing)",
                marker="o", markersize=4, capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_xticks([100 * fraction for fraction in fractions])
        axes.set(xlabel="labelled share of the training slices (%)", ylabel=f"{self.metric}, mean ± s.d. over seeds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()

    def _mean(self, arm: Arm, fraction: float) -> str:
        values, seeds = self.values(arm, fraction), len(self.study.seeds)
        if not values:
            return "missing"
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        partial = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
        return f"{fmean(values):.3f}{spread}{partial}"

    def _tests(self) -> list[str]:
        rows: list[tuple[str, float, int, Comparison | None]] = []
        for fraction in sorted(self.study.fractions):
            for arm in self.study.arms:
                if arm.title != self.study.reference:
                    pairs = self._pairs(arm, fraction)
                    comparison = compare([a for a, _ in pairs], [b for _, b in pairs])
                    rows.append((arm.title, fraction, len(pairs), comparison))
        if not rows:
            return []
        adjusted = iter(holm([comparison.p for *_, comparison in rows if comparison is not None]))
        count = sum(comparison is not None for *_, comparison in rows)
        return [
            f"Each arm against {self.study.reference}, case by case: Wilcoxon signed-rank test, two-sided, on the "
            "values averaged over the seeds that both arms have; the difference is arm minus reference. p (Holm) is "
            f"adjusted for the {count} tests of this table. The test is over cases: it does not say how other seeds "
            "would come out.",
            "",
            *_markdown(
                ["arm", "labels", "seeds", "cases", "median difference", "p", "p (Holm)"],
                [
                    [title, _percent(fraction), str(seeds), *["missing"] * 4]
                    if comparison is None
                    else [
                        title, _percent(fraction), str(seeds), str(comparison.cases), f"{comparison.median:+.3f}",
                        f"{comparison.p:.2g}", f"{next(adjusted):.2g}",
                    ]
                    for title, fraction, seeds, comparison in rows
                ],
            ),
        ]  # fmt: skip

    def _pairs(self, arm: Arm, fraction: float) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Values by case of the arm and of the reference, for every seed of which both have them."""
        pairs = []
        for seed in self.study.seeds:
            runs = self.runs[arm.title, fraction, seed], self.runs[self.study.reference, fraction, seed]
            if runs[0] is not None and runs[1] is not None:
                pair = self.cases.of(runs[0], self.metric), self.cases.of(runs[1], self.metric)
                if all(pair):
                    pairs.append(pair)
        return pairs


def _newest(finished: Finished, cell: Cell) -> Run | None:
    """The newest finished evaluation of a cell."""
    return next(iter(finished.get(cell.evaluation.digest, [])), None)


def _versions(runs: Sequence[Run]) -> str:
    """The commits that the runs are of, and how many each."""
    counts = Counter(run.data.tags.get("git_commit", "unknown") for run in runs)
    return ", ".join(f"`{_short(commit)}` ({count} cells)" for commit, count in counts.most_common()) or "none"


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return f"{name[:10]}{dash}{dirty}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            temporary.chmod(0o644)
            return temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
