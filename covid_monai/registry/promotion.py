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

BEFORE, ROLLED_BACK = "champion_before", "rolled_back"
MEASURED_ON = "measured_on"


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
        refusal = GateError(f"{challenger.uri} is refused: {'; '.join(faults)}")
        refusal.comparison = comparison
        raise refusal
    with registry.alone():
        _succeed(registry, champion, challenger)
        if CHALLENGER in registry.find(challenger.uri).aliases:  # another may have been registered meanwhile
            registry.unpoint(CHALLENGER, challenger)
    return comparison


def _succeed(registry: Registry, champion: Version | None, challenger: Version) -> None:
    """Make a version the champion after the one that it was compared with, if that one still is the champion.

    Processes that promote in a local store wait for each other here. MLflow's server has no request that sets an alias
    on a condition: the champion is read again in the request just before. Between these two another promotion can slip
    in; then the alias names the version that was pointed to last, whose ``champion_before`` is the champion that both
    were compared with, so that a rollback leads there.

    Raises:
        GateError: when the champion is another one by now; that is recorded with the version as its refusal.
    """
    earlier = registry.find(challenger.uri).tags
    registry.tag(challenger, {BEFORE: champion.number if champion else None, ROLLED_BACK: None})
    now = registry.champion(challenger.name)
    if (now and now.number) == (champion and champion.number):
        registry.point(CHAMPION, challenger)
        return
    if now is not None and now.number == challenger.number:
        raise GateError(f"{challenger.uri} has become the champion meanwhile: there is nothing left to do.")
    found = f"version {now.number}" if now else "none"
    fault = f"the champion of {challenger.name} has changed meanwhile, it is {found}"
    kept = {key: earlier.get(key) for key in (BEFORE, ROLLED_BACK)}
    registry.tag(challenger, {**kept, "gate": "refused", "gate_faults": fault, "gate_reason": None})
    raise GateError(f"{fault}: compare anew.")


def rollback(registry: Registry, name: str, reason: str) -> Version:
    """Put the champion before this one back; the reason is recorded with the version that is taken back.

    Raises:
        GateError: when there is no champion, or none before it.
    """
    _check_reason(reason, "--reason")
    with registry.alone():
        champion = registry.champion(name)
        if champion is None or (before := champion.tags.get(BEFORE)) is None:
            known = f"version {champion.number}" if champion else "any"
            raise GateError(f"{name} has no champion before {known}: promote the version that is wanted.")
        version = registry.find(f"models:/{name}/{before}")
        if ROLLED_BACK in version.tags:
            raise GateError(f"{version.uri} was taken back itself: promote the version that is wanted.")
        registry.tag(champion, {ROLLED_BACK: reason})
        registry.point(CHAMPION, version)
        return registry.find(version.uri)


def _measure(registry: Registry, version: Version, split: Split, lesion_free: tuple[Path, ...]) -> Figures:
    """The figures of a version, whose means become tags of it in place of those of another measurement."""
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
    with registry.alone():
        registry.tag(version, dict.fromkeys((MEASURED_ON, *registry.find(version.uri).figures)))
        registry.tag(version, {**means, **marked, "evaluation_run": figures.run_id, MEASURED_ON: split.data_hash})
    return figures


def _check_reason(reason: str | None, option: str) -> None:
    if reason is not None and not reason.strip():
        raise GateError(f"{option} is blank: say why, it is recorded.")
