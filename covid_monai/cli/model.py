# SPDX-License-Identifier: Apache-2.0
"""``covid-monai model``: register models in MLflow, let the better one be the champion, take them out again."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_monai.cli.shell import EXIT_CODES, OK, Help, add_command, complain, without_progress_bars

if TYPE_CHECKING:
    from covid_monai.registry import Comparison, Registry, Split, Version

__all__ = ["add_model"]

REGISTER = """\
Register a bundle as the next version of the model that its metadata name, and make it the challenger.

SOURCE is a bundle's folder, or the id of the MLflow run that trained it, whose tag weights_sha256 must be that of the
weights. Of a folder the run is found by tracking.json beside the weights. Registered are configs, docs, licence and
weights, and the network as torch.export; no data, checkpoint or result that lies in the folder."""

PROMOTE = """\
Make the challenger the champion, if it passes the gate. Challenger and champion are scored by the same code on the same
side of a datalist that was not changed since it was prepared, and on scans without lesions. The challenger passes if

  its mean Dice of the lesion over patients is higher, one-sided paired permutation test p < 0.05,
  the Dice of ground glass and of consolidation, each where it is known, are not lower with such a p,
  and the mean volume marked in a lesion-free scan has not grown by more than 0.5 mL.

The first champion is measured, and passes. What was found is recorded with the version, a refusal too."""

MODEL = "NAME, models:/NAME@ALIAS or models:/NAME/NUMBER"


def add_model(commands: Any) -> None:
    """Add ``model`` and its subcommands."""
    model = commands.add_parser("model", help="registered models: versions, gate, champion", formatter_class=Help)
    kinds = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    register = add_command(kinds, "register", "put a bundle into the registry, as challenger", _register)
    register.description, register.epilog = REGISTER, EXIT_CODES
    register.add_argument("source", metavar="SOURCE", help="bundle's folder, or id of the training's run")
    register.add_argument("--bundle", type=Path, metavar="DIR", help="bundle that the run trained")
    register.add_argument("--weights", type=Path, metavar="FILE", help="weights of a training (default: the bundle's "
                          "models/training/model.pt for a run, models/model.pt for a folder)")  # fmt: skip
    listing = add_command(kinds, "list", "versions, their aliases, figures and licences", _list)
    compare = add_command(kinds, "compare", "measure a challenger and the champion, and judge", _compare)
    promote = add_command(kinds, "promote", "make the challenger the champion, if it is better", _promote)
    promote.description, promote.epilog = PROMOTE, EXIT_CODES
    for command in (compare, promote):
        command.add_argument("model", metavar="MODEL", help=f"{MODEL} (of a NAME: its challenger)")
        command.add_argument("--datalist", required=True, type=Path, metavar="FILE", help="made by `covid-monai data "
                             "prepare`")  # fmt: skip
        command.add_argument("--side", default="testing", metavar="SIDE", help="of it (default testing)")
        command.add_argument("--lesion-free", nargs="+", default=[], type=Path, metavar="SCAN", help="scans without "
                             "lesions, beside three phantoms")  # fmt: skip
    compare.add_argument("--against", metavar="MODEL", help="another version (default: the champion)")
    promote.add_argument("--force", metavar="REASON", help="promote it although the gate refuses; the reason is "
                         "recorded")  # fmt: skip
    rollback = add_command(kinds, "rollback", "put the champion before this one back", _rollback)
    rollback.add_argument("name", metavar="NAME", help="name of the model")
    rollback.add_argument("--reason", required=True, metavar="REASON", help="why; it is recorded")
    pull = add_command(kinds, "pull", "write a version's whole bundle, checked and ready to be used offline", _pull)
    pull.add_argument("model", metavar="MODEL", help=f"{MODEL} (of a NAME: its champion)")
    pull.add_argument("folder", type=Path, metavar="DIR", help="new folder")
    export = add_command(kinds, "export", "write a version's network as TorchScript, ONNX or torch.export", _export)
    export.add_argument("model", metavar="MODEL", help=f"{MODEL} (of a NAME: its champion)")
    export.add_argument("file", type=Path, metavar="FILE", help="new file; its suffix names the form: .ts, .onnx, .pt2")
    for command in (register, listing, compare, promote, rollback, pull, export):
        command.add_argument("--tracking-uri", metavar="URI", help="MLflow server or store (default: "
                             "MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)")  # fmt: skip


def _register(options: argparse.Namespace) -> int:
    registry = _registry(options)
    source = Path(options.source)
    if source.is_dir():
        if options.bundle:
            raise ValueError("--bundle is of a run: give the folder alone.")
        version = registry.register(source, options.weights)
    else:
        if not options.bundle:
            raise ValueError(f"{source} is no folder; if it is a run, name the bundle that it trained with --bundle.")
        weights = options.weights or options.bundle / "models" / "training" / "model.pt"
        version = registry.register(options.bundle, weights, options.source)
    print(f"registered: {version.uri}, {', '.join(version.aliases)}")
    print(f"  weights {version.tags['weights_sha256']}")
    print(f"  licence of the weights: {version.tags['licence']}")
    if version.tags["licence"] == "not stated":
        complain("warning: docs/data_license.txt has no line `Licence: …`: say there what the weights may be used for.")
    return OK


def _list(options: argparse.Namespace) -> int:
    for version in _registry(options).versions():
        tags = version.tags
        print(f"{version.uri}  {', '.join(version.aliases)}".rstrip())
        print(f"  weights {tags['weights_sha256'][:12]}, data {tags.get('data_hash', 'unknown')[:12]}, run "
              f"{version.run_id}")  # fmt: skip
        print(f"  licence of the weights: {tags.get('licence', 'not stated')}")
        if figures := [f"{key} {value}" for key, value in version.figures.items()]:
            print(f"  {', '.join(figures)} (data {tags.get('measured_on', 'unknown')[:12]})")
        for key in ("gate", "gate_reason", "gate_faults", "rolled_back"):
            if key in tags:
                print(f"  {key.replace('_', ' ')}: {tags[key]}")
    return OK


def _compare(options: argparse.Namespace) -> int:
    from covid_monai.registry import compare

    registry = _registry(options)
    challenger = registry.find(options.model, "challenger")
    against = registry.find(options.against) if options.against else registry.champion(challenger.name)
    _show(compare(registry, challenger, against, _split(options), options.lesion_free))
    return OK


def _promote(options: argparse.Namespace) -> int:
    from covid_monai.registry import GateError, promote

    registry = _registry(options)
    challenger = registry.find(options.model, "challenger")
    try:
        _show(promote(registry, challenger, _split(options), options.lesion_free, options.force))
    except GateError as error:
        if error.comparison is not None:
            _show(error.comparison)
        raise
    print(f"{challenger.uri} is the champion")
    return OK


def _rollback(options: argparse.Namespace) -> int:
    from covid_monai.registry import rollback

    print(f"{rollback(_registry(options), options.name, options.reason).uri} is the champion again")
    return OK


def _pull(options: argparse.Namespace) -> int:
    registry = _registry(options)
    version = registry.find(options.model)
    print(f"written: {registry.pull(version, options.folder)}, of {version.uri}")
    print(f"licence of the weights: {version.tags.get('licence', 'not stated')}")
    return OK


def _export(options: argparse.Namespace) -> int:
    from covid_monai.registry import export

    registry = _registry(options)
    version: Version = registry.find(options.model)
    print(f"written: {export(registry, version, options.file)}, of {version.uri}")
    return OK


def _registry(options: argparse.Namespace) -> Registry:
    """The registry that was asked for, with MLflow's own messages and bars silenced."""
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    from covid_monai.registry import Registry

    for name in ("mlflow", "ignite"):
        logging.getLogger(name).setLevel(logging.ERROR)
    without_progress_bars()
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
    return Registry(options.tracking_uri)


def _split(options: argparse.Namespace) -> Split:
    from covid_monai.registry import Split

    return Split(options.datalist, options.side)


def _show(comparison: Comparison) -> None:
    """Print the table of a comparison, what the gate says, and the notes."""
    from statistics import fmean

    challenger, champion, verdict = comparison.challenger, comparison.champion, comparison.verdict
    if verdict is None or champion is None:
        print(f"{challenger.uri}, with no champion to compare with:")
        for metric, values in (*comparison.figures.cases.items(), ("mL", comparison.figures.false_positives)):
            name = "false positives in mL" if metric == "mL" else metric
            print(f"  {name:30}{fmean(values.values()):10.4f}  of {len(values)}")
    else:
        head = f"version {champion.number}", f"version {challenger.number}", "difference", "p gain", "p loss", "cases"
        print(f"{challenger.name:30}" + "".join(f"{word:>12}" for word in head))
        for row in (verdict.gain, *verdict.guards):
            figures = f"{row.champion:12.4f}{row.challenger:12.4f}{row.difference:+12.4f}{row.p_gain:12.3f}"
            print(f"{row.name:30}{figures}{row.p_loss:12.3f}{row.cases:12}")
        print("gate: " + ("; ".join(verdict.faults) or "passes"))
    for note in comparison.notes:
        print(f"note: {note}")
