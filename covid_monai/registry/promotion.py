# SPDX-License-Identifier: Apache-2.0
"""Who is the champion: challengers are compared with it, promoted past it, and taken back for the one before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from covid_monai.registry.evaluation import Figures, Split, evaluate
from covid_monai.registry.faults import GateError, answered
from covid_monai.registry.gate import FALSE_POSITIVES, Verdict, judge
from covid_monai.registry.versions import CHALLENGER, CHAMPION, Registry, Version

__all__ = ["Comparison", "compare", "promote", "rollback"]

BEFORE = "champion_before"


@dataclass(frozen=True)
class Comparison:
    """A challenger beside the champion.

    Attributes:
        challenger: the version.
        champion: the version; None when there is none yet.
        figures: what was measured of the challenger.
        verdict: what the gate says; None without a champion.
        notes: what a reader of the figures must know.
    """

    challenger: Version
    champion: Version | None
    figures: Figures
    verdict: Verdict | None
    notes: tuple[str, ...]


def compare(
    registry: Registry, challenger: Version, champion: Version | None, split: Split, lesion_free: Iterable[Path] = ()
) -> Comparison:
    """Measure two versions of a model on the same split and let the gate judge; nothing but the figures is recorded.

    Args:
        registry: where they are registered.
        challenger: the version that would become the champion.
        champion: the version it is measured against; None: the challenger is measured alone.
        split: what both are scored on.
        lesion_free: scans without lesions, beside the package's phantoms.

    Raises:
        GateError: when both are the same version, or cannot be compared.
    """
    if champion is not None and champion.uri == challenger.uri:
        raise GateError(f"{challenger.uri} would be measured against itself: name another version, or register one.")
    scans = tuple(lesion_free)
    figures = _measure(registry, challenger, split, scans)
    verdict = None if champion is None else judge(figures, _measure(registry, champion, split, scans))
    notes: tuple[str, ...] = ()
    if challenger.tags.get("data_hash") != split.data_hash:
        trained = challenger.tags.get("data_hash", "")[:12] or "unknown"
        notes = (
            f"the challenger was trained on the datalist {trained}, this one is {split.data_hash[:12]}: make sure that "
            f"no patient of its {split.side} side was in that training",
        )
    return Comparison(challenger, champion, figures, verdict, notes)


def promote(
    registry: Registry,
    challenger: Version,
    split: Split,
    lesion_free: Iterable[Path] = (),
    force: str | None = None,
) -> Comparison:
    """Make a version the champion if the gate lets it pass; the verdict is recorded with it either way.

    The first champion of a model has nothing to be compared with: it is measured, and passes.

    Args:
        registry: where it is registered.
        challenger: the version.
        split: what both are scored on.
        lesion_free: scans without lesions, beside the package's phantoms.
        force: reason to promote it although the gate refuses, which is recorded.

    Raises:
        GateError: when the gate refuses and no reason to force it is given, or another was promoted meanwhile.
    """
    _check_reason(force, "--force")
    champion = registry.champion(challenger.name)
    comparison = compare(registry, challenger, champion, split, lesion_free)
    verdict = comparison.verdict
    faults = verdict.faults if verdict else ()
    if verdict is None:
        gate = "first champion"
    elif not faults:
        gate = "passed"
    else:
        gate = "refused" if force is None else "forced"
    registry.tag(
        challenger,
        {
            "gate": gate,
            "gate_against": champion.number if champion else None,
            "gate_data_hash": split.data_hash,
            "gate_side": split.side,
            "gate_figures": json.dumps(verdict.rows()) if verdict else None,
            "gate_faults": "; ".join(faults) or None,
            "gate_reason": force if gate == "forced" else None,
        },
    )
    if gate == "refused":
        raise GateError(f"{challenger.uri} is refused: {'; '.join(faults)}")
    now = registry.champion(challenger.name)
    if (now and now.number) != (champion and champion.number):
        raise GateError(f"the champion of {challenger.name} has changed meanwhile: compare with the new one.")
    registry.tag(challenger, {BEFORE: champion.number if champion else None, "rolled_back": None})
    registry.point(CHAMPION, challenger)
    if CHALLENGER in registry.find(challenger.uri).aliases:  # another may have been registered meanwhile
        registry.unpoint(CHALLENGER, challenger)
    return comparison


def rollback(registry: Registry, name: str, reason: str) -> Version:
    """Put the champion before this one back; the reason is recorded with the version that is taken back.

    Raises:
        GateError: when there is no champion, or none before it.
    """
    _check_reason(reason, "--reason")
    champion = registry.champion(name)
    if champion is None or (before := champion.tags.get(BEFORE)) is None:
        raise GateError(f"{name} has no champion before {f'version {champion.number}' if champion else 'any'}: promote "
                        "the version that is wanted.")  # fmt: skip
    version = registry.find(f"models:/{name}/{before}")
    if "rolled_back" in version.tags:
        raise GateError(f"{version.uri} was taken back itself: promote the version that is wanted.")
    registry.tag(champion, {"rolled_back": reason})
    registry.point(CHAMPION, version)
    return registry.find(version.uri)


def _measure(registry: Registry, version: Version, split: Split, lesion_free: tuple[Path, ...]) -> Figures:
    """The figures of a version, whose means become tags of it."""
    tags = {
        "started_from_sha256": version.tags["weights_sha256"],
        "started_from_run": version.run_id,
        "mlflow.parentRunId": version.run_id,
    }
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        bundle = registry.pull(version, Path(folder, "bundle"))
        with answered(f"the evaluation of {version.uri} cannot be recorded"):
            figures = evaluate(bundle, split, lesion_free, registry.tracking_uri, version.name, tags)
    means = {f"{split.side}_{metric}": f"{fmean(values.values()):.4f}" for metric, values in figures.cases.items()}
    marked = {FALSE_POSITIVES: f"{fmean(figures.false_positives.values()):.4f}"}
    registry.tag(version, {**means, **marked, "measured_on": split.data_hash, "evaluation_run": figures.run_id})
    return figures


def _check_reason(reason: str | None, option: str) -> None:
    if reason is not None and not reason.strip():
        raise GateError(f"{option} is blank: say why, it is recorded.")
