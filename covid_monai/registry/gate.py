# SPDX-License-Identifier: Apache-2.0
"""The gate in front of the champion: a gain beyond noise, and no guard that loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from covid_monai.registry.evaluation import CLASS_METRICS, METRIC, Figures
from covid_monai.registry.faults import GateError

__all__ = ["LEVEL", "TOLERANCE_ML", "Paired", "Verdict", "judge", "paired"]

LEVEL = 0.05
"""A difference with a smaller one-sided p-value is beyond noise."""
FEW_CASES_LOSS = 0.05
"""By how much a guard may fall where so few cases have it that no loss could be beyond noise."""
TOLERANCE_ML = 0.5
"""By how much the mean false-positive volume of a lesion-free scan may grow: the noise floor of a place."""
FALSE_POSITIVES = "false_positive_ml"
RESAMPLES = 9999
NAMES = {
    METRIC: "Dice of the lesion",
    CLASS_METRICS[0]: "Dice of ground glass",
    CLASS_METRICS[1]: "Dice of consolidation",
    FALSE_POSITIVES: "false positives in mL",
}


@dataclass(frozen=True)
class Paired:
    """A figure of challenger and champion on the same cases.

    Attributes:
        metric: its name.
        cases: number of cases.
        champion: mean over the cases.
        challenger: the same of the challenger.
        p_gain: one-sided p-value of the challenger's mean being higher: paired permutation test, which changes the
            signs of the differences.
        p_loss: of its being lower.
    """

    metric: str
    cases: int
    champion: float
    challenger: float
    p_gain: float
    p_loss: float

    @property
    def name(self) -> str:
        """The figure in words."""
        return NAMES.get(self.metric, self.metric)

    @property
    def difference(self) -> float:
        """Challenger minus champion."""
        return self.challenger - self.champion


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        gain: the figure that must gain.
        guards: those that must not lose; the last are the false positives.
        faults: why the challenger is refused, one sentence each; empty when it passes.
    """

    gain: Paired
    guards: tuple[Paired, ...]
    faults: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Every figure as plain values."""
        return [asdict(each) for each in (self.gain, *self.guards)]


def judge(challenger: Figures, champion: Figures) -> Verdict:
    """Let the challenger pass or not.

    It passes when the mean Dice of the lesion is higher with p under :data:`LEVEL`, the Dice of ground glass and of
    consolidation, each where it is known, are not lower with such a p, and the mean volume that is marked in
    lesion-free scans has not grown by more than :data:`TOLERANCE_ML`.

    Raises:
        GateError: when both were not measured on the same cases.
    """
    gain = paired(METRIC, challenger.cases[METRIC], champion.cases[METRIC])
    classes = [each for each in CLASS_METRICS if each in challenger.cases or each in champion.cases]
    guards = [paired(each, challenger.cases.get(each, {}), champion.cases.get(each, {})) for each in classes]
    marked = paired(FALSE_POSITIVES, challenger.false_positives, champion.false_positives)
    faults = []
    if gain.difference <= 0 or gain.p_gain >= LEVEL:
        faults.append(
            f"no gain beyond noise: {gain.name} {gain.champion:.4f} to {gain.challenger:.4f}, p {gain.p_gain:.3f} over "
            f"{gain.cases} patients"
        )
        if _blind(gain.cases):
            faults.append(f"{gain.cases} patients can show no gain beyond noise: name a split with 5 or more")
    faults += [
        f"loss of a guard: {guard.name} {guard.champion:.4f} to {guard.challenger:.4f}, p {guard.p_loss:.3f}"
        for guard in guards
        if guard.difference < 0
        and (guard.p_loss < LEVEL or (_blind(guard.cases) and guard.difference < -FEW_CASES_LOSS))
    ]
    if marked.difference > TOLERANCE_ML:
        faults.append(
            f"loss of a guard: {marked.champion:.2f} to {marked.challenger:.2f} mL are marked in a lesion-free scan, "
            f"more than {TOLERANCE_ML:g} mL more"
        )
    return Verdict(gain, (*guards, marked), tuple(faults))


def paired(metric: str, challenger: Mapping[str, float], champion: Mapping[str, float]) -> Paired:
    """Compare two models case by case.

    Args:
        metric: name of the figure.
        challenger: value of each case by its id.
        champion: the same of the champion.

    Raises:
        GateError: when they are not of the same cases, or there is none.
    """
    if not champion or challenger.keys() != champion.keys():
        raise GateError(
            f"{metric} has {len(challenger)} cases of the challenger and {len(champion)} of the champion, not the same "
            "ones: measure both on one split, by one key of ids."
        )
    ids = sorted(champion)
    values = [np.array([side[key] for key in ids]) for side in (challenger, champion)]
    differences = values[0] - values[1]

    def p(alternative: str) -> float:
        if len(ids) == 1:  # which SciPy refuses: one difference has its sign by chance in half of all cases
            as_asked = differences[0] > 0 if alternative == "greater" else differences[0] < 0
            return 0.5 if as_asked else 1.0
        found = permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, alternative=alternative, rng=0
        )
        return float(found.pvalue)

    return Paired(metric, len(ids), fmean(values[1]), fmean(values[0]), p("greater"), p("less"))


def _blind(cases: int) -> bool:
    """Whether so few cases cannot show a difference, as even all of one sign are not rarer than the level."""
    return 0.5**cases >= LEVEL
