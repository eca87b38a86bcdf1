# SPDX-License-Identifier: Apache-2.0
"""What a study is: its file, its cells (arm, label fraction, seed) and the stages that each of them needs.

A study file is YAML::

    study: coach_pretraining                # name of the MLflow experiment
    bundle: lung_ct_infection_segmentation  # an installed bundle, or a folder relative to this file
    dataset_dir: ../data                    # folder of datalist.json, relative to this file
    metrics: [val_mean_dice]                # of the evaluation, to tabulate
    reference: supervised                   # the arm that the others are compared with
    fractions: [0.2, 1.0]                   # shares of the training slices that keep their labels
    seeds: [1, 2]
    budget:                                 # overrides of the bundle's keys, the same for every arm
      pretraining: {max_epochs: 20}
      training: {max_epochs: 40}            # of training and of fine-tuning
    arms:
      - title: supervised
        training: {augmentation: false}     # overrides of this arm alone; never of what the budget sets
      - title: coach
        pretraining: {masks: coach}         # left out or null: no pre-training
        training: {augmentation: false}
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

__all__ = ["STAGES", "Arm", "Cell", "Stage", "Study", "StudyError", "load_study"]

STAGES = {
    "pretraining": ("train.yaml", "pretrain.yaml"),
    "training": ("train.yaml",),
    "finetuning": ("train.yaml", "finetune.yaml"),
    "evaluating": ("train.yaml", "evaluate.yaml"),
}
"""Run id of each stage, and the bundle's configs that it is run with."""

RUNNER_KEYS = {
    "bundle_root", "ckpt_dir", "data_hash", "datalist", "dataset_dir", "experiment", "label_fraction", "output_dir",
    "pretrain_dir", "pretrained", "resume", "run_name", "seed", "side", "tracked", "tracking_uri", "weights",
}  # fmt: skip
"""Keys of the bundle that the runner sets itself."""

KEYS = {"study", "bundle", "dataset_dir", "metrics", "reference", "fractions", "seeds", "budget", "arms"}
DIGEST_LENGTH = 16

Overrides = dict[str, Any]


class StudyError(ValueError):
    """A study file cannot be used."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        title: name of the arm.
        pretraining: overrides of the pre-training; None: no pre-training.
        training: overrides of the training, or of the fine-tuning when there is a pre-training.
    """

    title: str
    pretraining: Overrides | None
    training: Overrides


@dataclass(frozen=True)
class Stage:
    """One stage of the bundle with all that defines it; stages of equal digest are one and the same.

    Args:
        kind: run id of the stage, a key of :data:`STAGES`.
        settings: every override that bears on the result.
        start: the stage whose weights it starts from.
        digest: hash over kind, settings, bundle, data and the digest of ``start``, in hexadecimal.
        title: what a person calls it, without kind and seed.
        tags: what tells it from others in MLflow: ``study``, ``seed``, ``stage``, ``cell`` (the digest) and, other than
            for a pre-training, which fractions and arms share, ``arm`` and ``fraction``.
    """

    kind: str
    settings: Overrides
    start: Stage | None
    digest: str
    title: str
    tags: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.kind}: {self.title}, seed {self.tags['seed']}"


@dataclass(frozen=True)
class Cell:
    """One evaluated training: an arm at a label fraction with a seed, and its stages in the order of their running."""

    arm: Arm
    fraction: float
    seed: int
    stages: tuple[Stage, ...]

    @property
    def evaluation(self) -> Stage:
        """The stage whose metrics count."""
        return self.stages[-1]


@dataclass(frozen=True)
class Study:
    """A study file, checked; see this module's text for the fields."""

    name: str
    bundle: Path
    dataset_dir: Path
    metrics: tuple[str, ...]
    reference: str
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    budget: dict[str, Overrides]
    arms: tuple[Arm, ...]

    def cells(self, data_hash: str) -> list[Cell]:
        """Every cell on data of this hash: all arms and fractions of the first seed, then of the next."""
        return [
            Cell(arm, fraction, seed, tuple(self._stages(arm, fraction, seed, data_hash)))
            for seed in self.seeds
            for fraction in self.fractions
            for arm in self.arms
        ]

    def _stages(self, arm: Arm, fraction: float, seed: int, data_hash: str) -> Iterable[Stage]:
        def stage(kind: str, settings: Overrides, start: Stage | None, title: str, **tags: str) -> Stage:
            content = {
                "bundle": self.bundle.name,
                "data": data_hash,
                "stage": kind,
                "settings": settings,
                "start": start and start.digest,
            }
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
            tags = {"study": self.name, **tags, "seed": str(seed), "stage": kind, "cell": digest}
            return Stage(kind, settings, start, digest, title, tags)

        start = None
        if arm.pretraining is not None:
            title = ", ".join(f"{key} {value}" for key, value in arm.pretraining.items()) or "as configured"
            start = stage("pretraining", {**self.budget["pretraining"], **arm.pretraining, "seed": seed}, None, title)
            yield start
        kind = "training" if start is None else "finetuning"
        settings = {**self.budget["training"], **arm.training, "seed": seed}
        title = f"{arm.title}, {100 * fraction:g} % of the labels"
        tags = {"arm": arm.title, "fraction": f"{fraction:g}"}
        trained = stage(kind, {**settings, "label_fraction": fraction}, start, title, **tags)
        yield trained
        yield stage("evaluating", settings, trained, title, **tags)


def load_study(path: str | os.PathLike, dataset_dir: str | os.PathLike | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the study file.
        dataset_dir: folder with the datalist instead of the one that the file names.

    Raises:
        StudyError: in one line what is wrong in the file, and what to do.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise StudyError(f"study file {path} cannot be read ({error.strerror}): name another.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"study file {path} is not YAML ({' '.join(str(error).split())}): mend it.") from error
    try:
        return _study(content, path.resolve().parent, None if dataset_dir is None else Path(dataset_dir))
    except StudyError as error:
        raise StudyError(f"study file {path}: {error}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once: PyYAML itself keeps the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _study(content: Any, folder: Path, dataset_dir: Path | None) -> Study:
    _check_keys("the file", content, needed=KEYS - {"dataset_dir"} if dataset_dir else KEYS, known=KEYS)
    budget = content["budget"]
    _check_keys("budget", budget, needed={"pretraining", "training"}, known={"pretraining", "training"})
    for kind, overrides in budget.items():
        _check_overrides(f"budget {kind}", overrides)
    arms = tuple(_arm(arm, number, budget) for number, arm in enumerate(_list("arms", content["arms"]), start=1))
    _check_arms(arms)
    reference = content["reference"]
    if reference not in [arm.title for arm in arms]:
        raise StudyError(f"reference {reference!r} is no arm: name one of {', '.join(arm.title for arm in arms)}.")
    fractions = _list("fractions", content["fractions"])
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise StudyError(f"fraction {fraction!r} is no share above 0 and at most 1.")
    seeds = _list("seeds", content["seeds"])
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise StudyError(f"seed {seed!r} is no whole number of 0..2^32-1.")
    return Study(
        name=_name("study", content["study"]),
        bundle=_bundle(_text("bundle", content["bundle"]), folder),
        dataset_dir=(dataset_dir or folder / _text("dataset_dir", content["dataset_dir"])).resolve(),
        metrics=tuple(_name("metric", metric) for metric in _list("metrics", content["metrics"])),
        reference=reference,
        fractions=tuple(float(fraction) for fraction in fractions),
        seeds=tuple(seeds),
        budget=budget,
        arms=arms,
    )


def _arm(content: Any, number: int, budget: Mapping[str, Overrides]) -> Arm:
    _check_keys(f"arm {number}", content, needed={"title", "training"}, known={"title", "pretraining", "training"})
    arm = Arm(_text(f"title of arm {number}", content["title"]), content.get("pretraining"), content["training"])
    parts = (
        {"training": arm.training}
        if arm.pretraining is None
        else {"pretraining": arm.pretraining, "training": arm.training}
    )
    for kind, overrides in parts.items():
        _check_overrides(f"{kind} of arm {arm.title}", overrides)
        if shared := sorted(set(overrides) & set(budget[kind])):
            raise StudyError(
                f"{kind} of arm {arm.title} sets {', '.join(shared)}, which the budget sets for every arm: "
                "take it out of one of them."
            )
    return arm


def _check_arms(arms: tuple[Arm, ...]) -> None:
    """Refuse titles that stand twice, and arms that are the same but for their title."""
    definitions: dict[str, str] = {}
    for arm in arms:
        if arm.title in definitions.values():
            raise StudyError(f"two arms have the title {arm.title!r}: give each its own.")
        other = definitions.setdefault(json.dumps([arm.pretraining, arm.training], sort_keys=True), arm.title)
        if other != arm.title:
            raise StudyError(f"arms {other!r} and {arm.title!r} are the same: take one out.")


def _check_keys(where: str, content: Any, needed: set[str], known: set[str]) -> None:
    if not isinstance(content, dict):
        raise StudyError(f"{where} is no mapping: it needs {', '.join(sorted(needed))}.")
    if unknown := sorted(str(key) for key in content.keys() - known):
        raise StudyError(f"{where} has the unknown key {', '.join(unknown)}: known are {', '.join(sorted(known))}.")
    if missing := sorted(needed - content.keys()):
        raise StudyError(f"{where} lacks {', '.join(missing)}.")


def _check_overrides(where: str, overrides: Any) -> None:
    if not isinstance(overrides, dict) or not all(isinstance(key, str) and key for key in overrides):
        raise StudyError(f"{where} is no mapping of the bundle's keys to values: write {{}} for none.")
    for key, value in overrides.items():
        if key.partition("#")[0] in RUNNER_KEYS:
            raise StudyError(f"{where} sets {key}, which the study sets itself: take it out.")
        _check_value(f"{where}: {key}", value)


def _check_value(where: str, value: Any) -> None:
    """Refuse what would not reach the bundle as it stands in the file."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_value(where, part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise StudyError(f"{where} is {value}: write it as an expression, such as \"$float('inf')\".")
    elif isinstance(value, str) and _is_number(value):
        raise StudyError(f"{where} is the text {value!r}: write a number with point and signed exponent, as 1.0e-3.")
    elif not isinstance(value, str | int | float | None):
        raise StudyError(f"{where} is a {type(value).__name__}: give a number, text, true, false, null, or a list.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _list(where: str, content: Any) -> list[Any]:
    if not isinstance(content, list) or not content:
        raise StudyError(f"{where} is no list, or an empty one: give at least one.")
    for number, entry in enumerate(content):
        if entry in content[:number] and where != "arms":
            raise StudyError(f"{where} has {entry} twice: take one out.")
    return content


def _text(where: str, content: Any) -> str:
    """A text that MONAI takes as it stands: # and @ begin a reference anywhere, $ and % an expression at the start."""
    if not isinstance(content, str) or not re.fullmatch(r"[^\s$%#@]([^#@\n]*[^\s#@])?", content):
        raise StudyError(f"{where} is {content!r}: give a text without # and @ and without $, % or space at its ends.")
    return content


def _name(where: str, content: Any) -> str:
    """A text that may name a file too."""
    if not re.fullmatch(r"\w[\w .-]*", _text(where, content)):
        raise StudyError(f"{where} is {content!r}: give letters, digits, and . _ - between them.")
    return content


def _bundle(name: str, folder: Path) -> Path:
    """Folder of an installed bundle by its name, else of one relative to the study file."""
    installed = Path(str(files("covid_monai.bundles"))) / name
    bundle = installed if Path(name).name == name and installed.is_dir() else (folder / name).resolve()
    if not (bundle / "configs" / "train.yaml").is_file():
        raise StudyError(f"bundle {name} is neither installed nor the folder {bundle}: name another.")
    return bundle
