# SPDX-License-Identifier: Apache-2.0
"""Read and check a study file; :mod:`covid_monai.training.experiments.study` tells what stands in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from covid_monai.training.experiments.study import CASCADE, SINGLE, Arm, Network, Study, StudyError

__all__ = ["load_study"]

RUNNER_KEYS = {
    "bundle_root", "ckpt_dir", "data_hash", "datalist", "dataset_dir", "experiment", "label_fraction", "output_dir",
    "pretrain_dir", "pretrained", "resume", "run_name", "seed", "side", "single", "single_weights", "tracked",
    "tracking_uri", "weights",
}  # fmt: skip
"""Keys of the bundle that the runner sets itself."""

NEEDED = {"study", "bundle", "dataset_dir", "metrics", "reference", "fractions", "seeds", "budget", "arms"}
OPTIONAL = {"evaluate_on", "cascade"}
CASCADE_NEEDED = {"bundle", "fractions", "metrics", "budget"}
SIDES = ("testing", "validation")


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
    _check_keys("the file", content, NEEDED - {"dataset_dir"} if dataset_dir else NEEDED, NEEDED | OPTIONAL)
    arms = tuple(_arm(arm, number) for number, arm in enumerate(_list("arms", content["arms"]), start=1))
    _check_arms(arms)
    single = _network(SINGLE, "", content, arms, folder)
    networks = [single]
    if content.get("cascade") is not None:
        networks.append(_cascade(content["cascade"], single, folder))
    reference = content["reference"]
    for network in networks:
        titles = [arm.title for arm in network.arms]
        if reference not in titles:
            where = "arm" if network is single else "arm of the cascade"
            raise StudyError(f"reference {reference!r} is no {where}: name one of {', '.join(titles)}.")
    seeds = _list("seeds", content["seeds"])
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise StudyError(f"seed {seed!r} is no whole number of 0..2^32-1.")
    sides = _list("evaluate_on", content.get("evaluate_on", ["testing"]))
    if unknown := [side for side in sides if side not in SIDES]:
        raise StudyError(f"evaluate_on names {unknown[0]!r}: choose of {', '.join(SIDES)}.")
    return Study(
        name=_name("study", content["study"]),
        dataset_dir=(dataset_dir or folder / _text("dataset_dir", content["dataset_dir"])).resolve(),
        evaluate_on=tuple(sides),
        reference=reference,
        seeds=tuple(seeds),
        networks=tuple(networks),
    )


def _network(name: str, where: str, content: Mapping[str, Any], arms: tuple[Arm, ...], folder: Path) -> Network:
    """The entries of a network; ``where`` says which part of the file they stand in, such as "cascade's "."""
    budget = content["budget"]
    _check_keys(f"{where}budget", budget, needed={"pretraining", "training"}, known={"pretraining", "training"})
    for kind, overrides in budget.items():
        _check_overrides(f"{where}budget {kind}", overrides)
    for arm in arms:
        for kind, overrides in (("pretraining", arm.pretraining or {}), ("training", arm.training)):
            if shared := sorted(set(overrides) & set(budget[kind])):
                raise StudyError(
                    f"{kind} of arm {arm.title} sets {', '.join(shared)}, which the {where}budget sets for every arm: "
                    "take it out of one of them."
                )
    fractions = _list(f"{where}fractions", content["fractions"])
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise StudyError(f"{where}fraction {fraction!r} is no share above 0 and at most 1.")
    return Network(
        name=name,
        bundle=_bundle(_text(f"{where}bundle", content["bundle"]), folder),
        metrics=tuple(_name(f"{where}metric", metric) for metric in _list(f"{where}metrics", content["metrics"])),
        fractions=tuple(float(fraction) for fraction in fractions),
        budget=budget,
        arms=arms,
    )


def _cascade(content: Any, single: Network, folder: Path) -> Network:
    """The cascade, each of whose cells stands on one of the single network's."""
    _check_keys("cascade", content, CASCADE_NEEDED, CASCADE_NEEDED | {"arms"})
    known = {arm.title: arm for arm in single.arms}
    titles = _list("cascade's arms", content.get("arms", list(known)))
    if unknown := [title for title in titles if title not in list(known)]:
        raise StudyError(f"cascade's arms name {unknown[0]!r}, which is no arm: name some of {', '.join(known)}.")
    cascade = _network(CASCADE, "cascade's ", content, tuple(known[title] for title in titles), folder)
    if alone := sorted(set(cascade.fractions) - set(single.fractions)):
        raise StudyError(
            f"cascade's fractions have {alone[0]:g}, at which no single network is trained: add it to fractions too."
        )
    return cascade


def _arm(content: Any, number: int) -> Arm:
    _check_keys(f"arm {number}", content, needed={"title", "training"}, known={"title", "pretraining", "training"})
    arm = Arm(_text(f"title of arm {number}", content["title"]), content.get("pretraining"), content["training"])
    if arm.pretraining is not None:
        _check_overrides(f"pretraining of arm {arm.title}", arm.pretraining)
    _check_overrides(f"training of arm {arm.title}", arm.training)
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
        if entry in content[:number] and not isinstance(entry, dict):
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
