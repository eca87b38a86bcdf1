# SPDX-License-Identifier: Apache-2.0
"""The report of a study: results.csv and cases.csv from MLflow, and of them table.md and its pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from mlflow import MlflowClient
from scipy.stats import wilcoxon

from covid_monai.training.experiments.pictures import coach_masks, metric_panels
from covid_monai.training.experiments.results import (
    Finished,
    Results,
    evaluated,
    finished_runs,
    read_results,
    write_results,
)
from covid_monai.training.experiments.study import CASCADE, SINGLE, Arm, Cell, Network, Study, StudyError
from covid_monai.whole_files import write_whole

__all__ = ["Comparison", "compare", "holm", "write_table"]

NOTICE = "For research use only, not a medical device."
TITLES = {SINGLE: "Single network", CASCADE: "Cascade"}
PICTURES = "coach_masks_"


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


def write_table(study: Study, report: Path, tracking_uri: str) -> list[Path]:
    """Bring ``results.csv`` and ``cases.csv`` up to date from MLflow, and write the table and its pictures.

    These are ``table.md``, ``<network>_<side>.png`` with the metrics, and ``coach_masks_<arm>.png`` for each
    pre-training with a coach that MLflow holds. Cells of which MLflow knows nothing count as the files hold them. Where
    runs are of different data, those on the data of the newest evaluation count.

    Args:
        study: the study; its data and weights need not be there.
        report: folder to write into; made when missing.
        tracking_uri: where MLflow keeps the study's runs.

    Returns:
        Paths of the files.

    Raises:
        StudyError: when neither MLflow nor the report holds an evaluation of this study, or a file that is there is not
            of a study.
    """
    finished = finished_runs(tracking_uri, study.name)
    data_hash = _data_hash(finished, report)
    if data_hash is None:
        raise StudyError(f"{tracking_uri} holds no finished evaluation of study {study.name}: run the study first.")
    cells = study.cells(data_hash)
    report.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri) if finished else None
    results = write_results(study, cells, finished, client, report)
    paths = [report / "results.csv"]
    paths += [report / "cases.csv"] if (report / "cases.csv").exists() else []
    lines = [f"# {study.name}", "", *_head(study, cells, results, data_hash)]
    for network in study.networks:
        lines += ["", f"## {TITLES[network.name]}"]
        own = [cell for cell in cells if cell.network is network]
        for side in study.evaluate_on:
            part = _Side(study, network, side, own, results)
            lines += ["", f"### Side {side}", "", *part.lines()]
            if part.metrics:
                paths.append(write_whole(report / part.picture, part.panels()))
    pictures = dict(_coach_pictures(client, cells, finished, report)) if client else {}
    paths += [write_whole(report / name, content) for name, content in pictures.items()]
    lines += [*_coach_section(report), "", NOTICE, ""]
    return [*paths, write_whole(report / "table.md", "\n".join(lines).encode())]


def _data_hash(finished: Finished, report: Path) -> str | None:
    """Hash of the data of the newest evaluation in MLflow, else of the first row in the report that has one."""
    evaluations = [run for runs in finished.values() for run in runs if run.data.tags.get("stage") == "evaluating"]
    if evaluations:
        return max(evaluations, key=lambda run: run.info.end_time).data.tags.get("data_hash", "")
    return next((row["data_hash"] for row in read_results(report).values() if row["data_hash"]), None)


def _head(study: Study, cells: Sequence[Cell], results: Results, data_hash: str) -> list[str]:
    """What the table is of, and what is missing in it."""
    finished = [cell for cell in cells if all(evaluated(results.rows[cell.digest], side) for side in cell.evaluations)]
    counts = Counter(cell.network.name for cell in finished)
    totals = Counter(cell.network.name for cell in cells)
    parts = ", ".join(f"{TITLES[name].lower()} {counts[name]} of {total}" for name, total in totals.items())
    commits = Counter(row["git_commit"] for row in results.rows.values() if row.get("git_commit"))
    code = ", ".join(f"`{_short(commit)}` ({count} cells)" for commit, count in commits.most_common()) or "none"
    lines = [
        f"{len(finished)} of {len(cells)} cells are finished{f' ({parts})' if len(totals) > 1 else ''}. "
        f"Seeds: {', '.join(map(str, study.seeds))}. Data: `{data_hash[:12]}`. Code: {code}.",
        "",
        "Means ± standard deviations over the seeds, by share of the training slices that keep their labels. Below "
        f"them each arm is tested against {study.reference}, case by case: Wilcoxon signed-rank test, two-sided, on "
        "the values averaged over the seeds that both arms have; the difference is arm minus reference; p (Holm) is "
        "adjusted for the number of tests in its table. The tests are over cases: they do not say how other seeds "
        "would come out.",
    ]
    if results.others:
        lines += ["", f"{len(results.others)} rows of `results.csv` are of other data or settings: not in this table."]
    return lines


class _Side:
    """One network on one side of the datalist: means over seeds, tests against the reference arm, and a picture."""

    def __init__(self, study: Study, network: Network, side: str, cells: Sequence[Cell], results: Results) -> None:
        self.study = study
        self.network = network
        self.side = side
        self.cells = {cell.key: cell for cell in cells}
        self.results = results
        self.fractions = sorted(network.fractions)
        self.metrics = [metric for metric in network.metrics if any(self._value(c, metric) is not None for c in cells)]
        self.picture = f"{network.name}_{side}.png"

    def lines(self) -> list[str]:
        """Markdown: the picture, and for each metric the table of means and that of tests."""
        if not self.metrics:
            return ["No cell is evaluated on this side yet."]
        lines = [f"![Metrics of the {TITLES[self.network.name].lower()} on side {self.side}]({self.picture})"]
        if absent := [metric for metric in self.network.metrics if metric not in self.metrics]:
            lines += ["", f"Not measured on this side: {', '.join(absent)}."]
        for metric in self.metrics:
            lines += [
                "", f"#### {metric}", "",
                *_markdown(
                    ["arm", *(_percent(fraction) for fraction in self.fractions)],
                    [
                        [arm.title, *(self._mean(arm, fraction, metric) for fraction in self.fractions)]
                        for arm in self.network.arms
                    ],
                ),
                *self._tests(metric),
            ]  # fmt: skip
        return lines

    def panels(self) -> bytes:
        """PNG: a panel a metric."""
        return metric_panels(
            [
                (
                    metric,
                    [
                        (arm.title, [(fraction, self._values(arm, fraction, metric)) for fraction in self.fractions])
                        for arm in self.network.arms
                    ],
                )
                for metric in self.metrics
            ],
            self.fractions,
        )

    def _cells(self, arm: Arm, fraction: float) -> list[Cell]:
        """The cells of every seed."""
        return [self.cells[self.network.name, arm.title, fraction, seed] for seed in self.study.seeds]

    def _value(self, cell: Cell, metric: str) -> float | None:
        return self.results.value(cell, self.side, metric)

    def _values(self, arm: Arm, fraction: float, metric: str) -> list[float]:
        """The metric of every finished seed."""
        values = (self._value(cell, metric) for cell in self._cells(arm, fraction))
        return [value for value in values if value is not None]

    def _mean(self, arm: Arm, fraction: float, metric: str) -> str:
        values, seeds = self._values(arm, fraction, metric), len(self.study.seeds)
        if not values:
            return "missing"
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        partial = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
        return f"{fmean(values):.3f}{spread}{partial}"

    def _tests(self, metric: str) -> list[str]:
        rows: list[tuple[str, float, int, Comparison | None]] = []
        for fraction in self.fractions:
            for arm in self.network.arms:
                if arm.title != self.study.reference:
                    pairs = self._pairs(arm, fraction, metric)
                    comparison = compare([a for a, _ in pairs], [b for _, b in pairs])
                    rows.append((arm.title, fraction, len(pairs), comparison))
        tests = [comparison.p for *_, comparison in rows if comparison is not None]
        if not tests:
            return []
        adjusted = iter(holm(tests))
        return [
            "",
            *_markdown(
                [
                    f"against {self.study.reference}", "labels", "seeds", "cases", "median difference", "p",
                    f"p (Holm, {len(tests)} tests)",
                ],
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

    def _pairs(self, arm: Arm, fraction: float, metric: str) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Values by case of the arm and of the reference, for every seed of which both have them."""
        pairs = []
        for cell in self._cells(arm, fraction):
            reference = self.cells[self.network.name, self.study.reference, fraction, cell.seed]
            pair = (
                self.results.cases.of(cell.digest, self.side, metric),
                self.results.cases.of(reference.digest, self.side, metric),
            )
            if all(pair):
                pairs.append(pair)
        return pairs


def _coach_pictures(
    client: MlflowClient, cells: Sequence[Cell], finished: Finished, report: Path
) -> Iterator[tuple[str, bytes]]:
    """Name and content of a picture for each arm with a coach's masks; arms that share a pre-training have one."""
    done: set[tuple[str, str]] = set()
    for cell in cells:
        stage = next((stage for stage in cell.own_stages if stage.kind == "pretraining"), None)
        if stage is None or (cell.network.name, cell.arm.title) in done:
            continue
        for run in finished.get(stage.digest, [])[:1]:
            if (content := coach_masks(client, run)) is not None:
                same = [c for c in cells if stage.digest in [s.digest for s in c.own_stages]]
                done |= {c.key[:2] for c in same}
                prefix = f"{CASCADE}_" if cell.network.name == CASCADE else ""
                yield f"{PICTURES}{prefix}{_file_name(cell.arm.title)}.png", content


def _coach_section(report: Path) -> list[str]:
    """Markdown of the pictures that lie in the report, of whichever run they are."""
    files = sorted(report.glob(f"{PICTURES}*.png"))
    if not files:
        return []
    lines = ["", "## What the coach erased", "", "Slices that were not trained on; erased cells are tinted."]
    for file in files:
        lines += ["", f"![{file.stem}]({file.name})"]
    return lines


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "_", title).strip("_").lower()


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
