# SPDX-License-Identifier: Apache-2.0
"""The ROC curve of a score, drawn, and the files that an evaluation leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from covid_monai.analysis import NOTICE
from covid_monai.reports.results import ResultsError
from covid_monai.severity.evaluate import Evaluation, Proportion, evaluate, read_scores
from covid_monai.whole_files import unfinished_folder

__all__ = ["FILES", "SCHEMA", "evaluate_table", "save_roc"]

SCHEMA = "covid_monai/evaluation/1"
FILES = ("roc.png", "evaluation.json")


def evaluate_table(
    table: str | os.PathLike,
    score: str,
    outcome: str,
    positive: Collection[str],
    folder: str | os.PathLike,
    cut_off: float | None = None,
    negative: Collection[str] | None = None,
    confidence: float = 0.95,
) -> Evaluation:
    """Evaluate the scores of a table, and write ``evaluation.json`` and ``roc.png``; what ``evaluate-scores`` does.

    Both files are made under temporary names first. An earlier ``evaluation.json`` is taken away first and the new one
    comes last: where it lies, both belong together. Of the table they hold the distinct scores, as points of the curve.

    Args:
        table: CSV file, see :func:`covid_monai.severity.evaluate.read_scores`.
        score: name of the column of scores.
        outcome: name of the column of outcomes.
        positive: outcomes that count as positive.
        folder: where to write; made when missing.
        cut_off: scores from here on are called positive.
        negative: outcomes that count as negative; the rest of iCTCF's when None.
        confidence: level of the intervals.

    Raises:
        ValueError: as :func:`covid_monai.severity.evaluate.read_scores` and
            :func:`covid_monai.severity.evaluate.evaluate` do, before anything is written.
        ResultsError: when the folder cannot be written.
    """
    scores, outcomes = read_scores(Path(table), score, outcome)
    evaluation = evaluate(scores, outcomes, positive, cut_off, confidence, negative)
    record = {"schema": SCHEMA, "notice": NOTICE, "score": score, "outcome": outcome, **asdict(evaluation)}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as unfinished:
            (unfinished / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            save_roc(evaluation, unfinished / "roc.png", score)
            (folder / "evaluation.json").unlink(missing_ok=True)
            for file in FILES:
                (unfinished / file).replace(folder / file)
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error
    return evaluation


def save_roc(evaluation: Evaluation, path: str | os.PathLike, score: str = "score") -> None:
    """Draw the ROC curve with its area, and the cut-off with the intervals of both rates.

    Args:
        evaluation: what to draw.
        path: file to write, by its suffix ``.png`` or ``.svg``.
        score: name of the score, for the title.

    Raises:
        ValueError: when ``path`` has another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"a curve cannot be drawn as {Path(path).name}: give a name that ends in .png or .svg.")
    figure = Figure(figsize=(6, 6.6))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 0.19, 0.84, 0.72))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="no better than chance")
    false_alarms = [1 - point.specificity for point in evaluation.roc]
    label = f"area {evaluation.auc:.3f}{_interval(evaluation.auc_low, evaluation.auc_high)}"
    axes.plot(false_alarms, [point.sensitivity for point in evaluation.roc], color="tab:blue", linewidth=2, label=label)
    if (at := evaluation.at_cut_off) is not None:
        rates = f"sensitivity {_percent(at.sensitivity)}\nspecificity {_percent(at.specificity)}"
        down, up = _reach(at.sensitivity)
        right, left = _reach(at.specificity)  # a lower specificity lies further right
        axes.errorbar(
            1 - at.specificity.value,
            at.sensitivity.value,
            xerr=[[left], [right]],
            yerr=[[down], [up]],
            color="tab:red",
            marker="o",
            capsize=3,
            label=f"cut-off {at.cut_off:g}\n{rates}",
        )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_title(f"{score}: {evaluation.positives} positive, {evaluation.negatives} negative", fontsize=11)
    axes.legend(loc="lower right", fontsize=9)
    about = (
        f"Positive: {', '.join(evaluation.positive)}. Negative: {', '.join(evaluation.negative)}.\n"
        f"{100 * evaluation.confidence:g} % intervals (DeLong, Wilson)"
        f"{f'; {evaluation.dropped} without score left out' if evaluation.dropped else ''}.\n{NOTICE}"
    )
    figure.text(0.12, 0.02, about, fontsize=8, color="0.35", va="bottom")
    figure.savefig(path, dpi=120, format=suffix[1:])


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"


def _reach(proportion: Proportion) -> tuple[float, float]:
    """How far the interval goes below and above the share; rounding may put it beyond its own interval."""
    return max(0.0, proportion.value - proportion.low), max(0.0, proportion.high - proportion.value)


def _percent(proportion: Proportion) -> str:
    return f"{100 * proportion.value:.0f} % ({100 * proportion.low:.0f} to {100 * proportion.high:.0f})"
