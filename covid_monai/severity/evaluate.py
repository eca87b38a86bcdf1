# SPDX-License-Identifier: Apache-2.0
"""How well a score tells outcomes apart: area under the ROC curve, and sensitivity and specificity at a cut-off."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ICTCF_OUTCOMES", "AtCutOff", "Evaluation", "Proportion", "RocPoint", "evaluate", "read_scores"]

ICTCF_OUTCOMES = ("control", "mild", "regular", "severe", "critically ill")
"""Outcomes of iCTCF (Ning et al. 2020, Nat Biomed Eng 4:1197-1207), from the best to the worst."""


@dataclass(frozen=True)
class Proportion:
    """A share of cases with its confidence interval (Wilson 1927, without continuity correction).

    Attributes:
        value: ``hits / cases``, 0..1.
        low: lower end of the interval.
        high: upper end of the interval.
        hits: cases that were called right.
        cases: all cases.
    """

    value: float
    low: float
    high: float
    hits: int
    cases: int


@dataclass(frozen=True)
class AtCutOff:
    """What a cut-off makes of the scores: positive is a score that reaches it.

    Attributes:
        cut_off: the cut-off.
        sensitivity: share of the positive cases whose score reaches it.
        specificity: share of the negative cases whose score does not.
    """

    cut_off: float
    sensitivity: Proportion
    specificity: Proportion


@dataclass(frozen=True)
class RocPoint:
    """A point of the ROC curve: what calling scores from ``cut_off`` on positive gives.

    Attributes:
        cut_off: one of the scores; None for the start of the curve, where no case is called positive.
        sensitivity: 0..1.
        specificity: 0..1.
    """

    cut_off: float | None
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Evaluation:
    """How well a score tells positive from negative outcomes.

    Attributes:
        positive: outcomes that count as positive, in lower case.
        negative: outcomes that count as negative, in lower case.
        positives: number of positive cases.
        negatives: number of negative cases.
        dropped: cases left out because they have no score.
        auc: area under the ROC curve; ties count half.
        auc_low: lower end of its confidence interval; None where its variance cannot be had: fewer than two cases on
            a side, scores that part the two sides entirely, or one score for all.
        auc_high: upper end.
        confidence: level of all intervals.
        at_cut_off: sensitivity and specificity at the cut-off; None when none was given.
        roc: the curve from (0 sensitivity, 1 specificity) to (1, 0).
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positives: int
    negatives: int
    dropped: int
    auc: float
    auc_low: float | None
    auc_high: float | None
    confidence: float
    at_cut_off: AtCutOff | None
    roc: tuple[RocPoint, ...]


def evaluate(
    scores: Sequence[Any],
    outcomes: Sequence[Any],
    positive: Collection[str],
    cut_off: float | None = None,
    confidence: float = 0.95,
    negative: Collection[str] | None = None,
) -> Evaluation:
    """Tell how well a score parts positive from negative outcomes.

    A higher score speaks for a positive outcome. The area is the share of pairs of a positive and a negative case in
    which the positive one has the higher score, its interval the normal one with the variance of DeLong et al. 1988
    (Biometrics 44:837-845), cut to 0..1. Intervals take the cases to be independent: give one row a patient.

    Args:
        scores: a number for each case, or text of one; None, NaN and blank text are missing, and dropped.
        outcomes: the outcome of each case; case, and space around it, do not matter.
        positive: outcomes that count as positive.
        cut_off: scores from here on are called positive; None for no sensitivity and specificity.
        confidence: level of the intervals, between 0 and 1.
        negative: outcomes that count as negative; when None, the rest of :data:`ICTCF_OUTCOMES`.

    Raises:
        ValueError: when the lengths differ, a score is no number, an outcome is neither positive nor negative, one is
            both, one side has no case with a score, or the cut-off or the level is out of range.

    Example:
        >>> evaluate([3, 30, 12, 22], ["Control", "Severe", "Mild", "Critically ill"], ["severe", "critically ill"]).auc
        1.0
    """
    if len(scores) != len(outcomes):
        raise ValueError(f"there are {len(scores)} scores and {len(outcomes)} outcomes: give one of each for a case.")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence level is {confidence}: give a number between 0 and 1, such as 0.95.")
    if cut_off is not None and not math.isfinite(cut_off):
        raise ValueError(f"the cut-off is {cut_off}: give a finite number.")
    wanted = _sides(positive, negative)
    values: dict[bool, list[float]] = {True: [], False: []}
    dropped = 0
    for row, (score, outcome) in enumerate(zip(scores, outcomes, strict=True), start=1):
        side = wanted.get(name := _name(outcome))
        if side is None:
            raise ValueError(
                f"case {row} has the outcome {name!r}, expected one of {', '.join(wanted)}: correct it, leave the case "
                "out, or name the outcome as positive or negative."
            )
        value = _number(score, row)
        if value is None:
            dropped += 1
        else:
            values[side].append(value)
    above, below = (np.sort(np.array(values[side])) for side in (True, False))
    sides = {side: tuple(name for name, of in wanted.items() if of == side) for side in (True, False)}
    for side, found in ((True, above), (False, below)):
        if not len(found):
            raise ValueError(
                f"no case with a score has the outcome {' or '.join(sides[side])}: two sides are needed to compare."
            )
    auc, low, high = _auc(above, below, confidence)
    return Evaluation(
        positive=sides[True],
        negative=sides[False],
        positives=len(above),
        negatives=len(below),
        dropped=dropped,
        auc=auc,
        auc_low=low,
        auc_high=high,
        confidence=confidence,
        at_cut_off=None if cut_off is None else _at(cut_off, above, below, confidence),
        roc=_roc(above, below),
    )


def read_scores(path: str | Path, score: str, outcome: str) -> tuple[list[str], list[str]]:
    """Read the scores and the outcomes of a table.

    Args:
        path: CSV file with a head line, UTF-8, separated by commas, semicolons or tabs.
        score: name of the column of scores.
        outcome: name of the column of outcomes.

    Returns:
        Both columns as text.

    Raises:
        ValueError: when the file cannot be read as such a table, has no rows, or lacks a column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ValueError(f"{path.name} cannot be read ({reason}): give a CSV file.") from error
    head = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        columns, rows = list(table.fieldnames or ()), list(table)
    except csv.Error as error:
        raise ValueError(f"{path.name} is no table ({error}): give a CSV file.") from error
    for name in (score, outcome):
        if name not in columns:
            raise ValueError(f"{path.name} has no column {name!r}: its columns are {', '.join(columns) or 'none'}.")
    if not rows:
        raise ValueError(f"{path.name} has a head line and no rows: give a table of scores and outcomes.")
    return [row[score] or "" for row in rows], [row[outcome] or "" for row in rows]


def _name(outcome: Any) -> str:
    return " ".join(str(outcome).lower().split())


def _sides(positive: Collection[str], negative: Collection[str] | None) -> dict[str, bool]:
    """Whether each outcome is positive."""
    if isinstance(positive, str) or isinstance(negative, str):
        raise ValueError(
            f"give outcomes as a list, not as the text {positive if isinstance(positive, str) else negative!r}."
        )
    yes = [_name(outcome) for outcome in positive]
    if negative is None and (unknown := [name for name in yes if name not in ICTCF_OUTCOMES]):
        raise ValueError(
            f"the positive outcome {unknown[0]!r} is none of {', '.join(ICTCF_OUTCOMES)}: name one of these, or name "
            "the negative outcomes too."
        )
    no = [_name(outcome) for outcome in (ICTCF_OUTCOMES if negative is None else negative)]
    if negative is None:
        no = [name for name in no if name not in yes]
    if both := sorted(set(yes) & set(no)):
        raise ValueError(f"the outcome {both[0]!r} is named as positive and as negative: choose one.")
    if not yes or not no:
        raise ValueError(f"there is no {'negative' if yes else 'positive'} outcome: name at least one on each side.")
    return {**dict.fromkeys(yes, True), **dict.fromkeys(no, False)}


def _number(score: Any, row: int) -> float | None:
    """The score, or None when it is missing."""
    if score is None or (isinstance(score, str) and not score.strip()):
        return None
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise ValueError(
            f"case {row} has the score {score!r}, which is no number: correct it, or leave it blank."
        ) from None
    if math.isinf(value):
        raise ValueError(f"case {row} has an infinite score: correct it, or leave it blank.")
    return None if math.isnan(value) else value


def _auc(above: np.ndarray, below: np.ndarray, confidence: float) -> tuple[float, float | None, float | None]:
    """Area under the curve and its interval, from sorted scores of positive and negative cases."""
    # For each case, the share of the other side that lies on the right side of it; ties count half.
    wins = (np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")) / (2 * len(below))
    losses = 1 - (np.searchsorted(above, below, "left") + np.searchsorted(above, below, "right")) / (2 * len(above))
    auc = float(wins.mean())
    if min(len(above), len(below)) < 2:
        return auc, None, None
    error = math.sqrt(wins.var(ddof=1) / len(above) + losses.var(ddof=1) / len(below))
    if not error:
        return auc, None, None
    from scipy import stats  # takes a third of a second, which others need not wait for

    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return auc, max(0.0, auc - reach), min(1.0, auc + reach)


def _at(cut_off: float, above: np.ndarray, below: np.ndarray, confidence: float) -> AtCutOff:
    right = (int(np.count_nonzero(above >= cut_off)), len(above)), (int(np.count_nonzero(below < cut_off)), len(below))
    sensitivity, specificity = (_proportion(hits, cases, confidence) for hits, cases in right)
    return AtCutOff(cut_off, sensitivity, specificity)


def _proportion(hits: int, cases: int, confidence: float) -> Proportion:
    from scipy import stats

    interval = stats.binomtest(hits, cases).proportion_ci(confidence, method="wilson")
    return Proportion(hits / cases, float(interval.low), float(interval.high), hits, cases)


def _roc(above: np.ndarray, below: np.ndarray) -> tuple[RocPoint, ...]:
    """The curve, one point a distinct score from the highest to the lowest, after the start."""
    cut_offs = np.unique(np.concatenate([above, below]))[::-1]
    sensitivity = 1 - np.searchsorted(above, cut_offs, "left") / len(above)
    specificity = np.searchsorted(below, cut_offs, "left") / len(below)
    points = zip(cut_offs.tolist(), sensitivity.tolist(), specificity.tolist(), strict=True)
    return (RocPoint(None, 0.0, 1.0), *(RocPoint(*point) for point in points))
