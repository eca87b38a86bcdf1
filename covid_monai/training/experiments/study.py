# SPDX-License-Identifier: Apache-2.0
"""What a study is: its networks and arms, its cells (network, arm, label fraction, seed) and the stages each needs.

A study file is YAML::

    study: reproduction                     # name of the MLflow experiment
    bundle: lung_ct_infection_segmentation  # an installed bundle, or a folder relative to this file
    dataset_dir: ../data                    # folder of datalist.json, relative to this file
    evaluate_on: [testing, validation]      # sides of the datalist; left out: testing alone
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
    cascade:                                # left out: the single network alone
      bundle: lung_ct_ggo_consolidation_segmentation
      metrics: [val_mean_dice, val_dice_ggo]
      fractions: [1.0]                      # some of the study's
      arms: [supervised, coach]             # some of the study's by title; left out: all
      budget: {pretraining: {max_epochs: 20}, training: {max_epochs: 40}}

The multi network of a cascade's cell stands on the single network that the same arm, fraction and seed trained in this
study: its prediction is the prior in pre-training, in training and in evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CASCADE", "SINGLE", "STAGES", "Arm", "Cell", "Network", "Stage", "Study", "StudyError"]

STAGES = {
    "pretraining": ("train.yaml", "pretrain.yaml"),
    "training": ("train.yaml",),
    "finetuning": ("train.yaml", "finetune.yaml"),
    "evaluating": ("train.yaml", "evaluate.yaml"),
}
"""Run id of each stage, and the bundle's configs that it is run with."""

SINGLE, CASCADE = "single", "cascade"
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
class Network:
    """One network that a study trains in each of its arms.

    Args:
        name: ``single``, or ``cascade`` for one that stands on the single network of the same arm, fraction and seed.
        bundle: folder of the bundle that trains it.
        metrics: of its evaluation, to tabulate.
        fractions: shares of the training slices that keep their labels.
        budget: overrides of the bundle's keys by stage, ``pretraining`` and ``training``, the same for every arm.
        arms: the study's arms that it is trained in.
    """

    name: str
    bundle: Path
    metrics: tuple[str, ...]
    fractions: tuple[float, ...]
    budget: dict[str, Overrides]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of a bundle with all that defines it; stages of equal digest are one and the same.

    Args:
        bundle: folder of the bundle.
        kind: run id of the stage, a key of :data:`STAGES`.
        settings: every override that bears on the result, other than weights.
        start: the stage whose weights it starts from, or that it evaluates.
        single: the stage whose weights make the priors; None for a stage that needs none, or has them in ``start``.
        digest: hash over bundle, kind, settings, data and the digests of ``start`` and ``single``, in hexadecimal.
        title: what a person calls it, without kind and seed.
        tags: what tells it from others in MLflow: ``study``, ``network``, ``seed``, ``stage``, ``cell`` (the digest)
            and, other than for a pre-training that fractions and arms share, ``arm`` and ``fraction``; ``side`` of an
            evaluation.
    """

    bundle: Path
    kind: str
    settings: Overrides
    start: Stage | None
    single: Stage | None
    digest: str
    title: str
    tags: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.kind}: {self.title}, seed {self.tags['seed']}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages whose weights it reads."""
        return tuple(stage for stage in (self.single, self.start) if stage is not None)


@dataclass(frozen=True)
class Cell:
    """One model of a study, evaluated: a network in an arm at a label fraction with a seed.

    Args:
        network: which network.
        arm: which arm.
        fraction: share of the training slices that keep their labels.
        seed: of everything random.
        stages: what trains it, in the order of running; those of a cascade begin with those of its single network.
        evaluations: what evaluates it, by side of the datalist.
    """

    network: Network
    arm: Arm
    fraction: float
    seed: int
    stages: tuple[Stage, ...]
    evaluations: dict[str, Stage]

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """What trains the network itself, without the single network that it stands on."""
        return tuple(stage for stage in self.stages if stage.bundle == self.network.bundle)

    @property
    def trained(self) -> Stage:
        """The stage that leaves the model."""
        return self.stages[-1]

    @property
    def digest(self) -> str:
        """What the model is: digest of the stage that leaves it."""
        return self.trained.digest

    @property
    def key(self) -> tuple[str, str, float, int]:
        """Which cell of the study it is: network, title of the arm, fraction, seed."""
        return self.network.name, self.arm.title, self.fraction, self.seed


@dataclass(frozen=True)
class Study:
    """A study file, checked; see this module's text for the fields.

    Args:
        name: of the study and of its MLflow experiment.
        dataset_dir: folder of ``datalist.json``.
        evaluate_on: sides of the datalist, each of which evaluates every model.
        reference: title of the arm that the others are compared with.
        seeds: every arm is run with each.
        networks: the single network, then the cascade where the study has one.
    """

    name: str
    dataset_dir: Path
    evaluate_on: tuple[str, ...]
    reference: str
    seeds: tuple[int, ...]
    networks: tuple[Network, ...]

    def cells(self, data_hash: str) -> list[Cell]:
        """Every cell on data of this hash: all networks, fractions and arms of the first seed, then of the next."""
        return [cell for seed in self.seeds for cell in self._cells_of(seed, data_hash)]

    def _cells_of(self, seed: int, data_hash: str) -> Iterator[Cell]:
        single: dict[tuple[str, float], tuple[Stage, ...]] = {}
        for network in self.networks:
            maker = _StageMaker(self.name, network, seed, data_hash)
            for fraction in network.fractions:
                for arm in network.arms:
                    before = single[arm.title, fraction] if network.name == CASCADE else ()
                    stages = before + maker.training(arm, fraction, before[-1] if before else None)
                    if network.name == SINGLE:
                        single[arm.title, fraction] = stages
                    sides = self.evaluate_on
                    evaluations = {side: maker.evaluation(stages[-1], arm, fraction, side) for side in sides}
                    yield Cell(network, arm, fraction, seed, stages, evaluations)


@dataclass(frozen=True)
class _StageMaker:
    """Makes the stages of one network with one seed."""

    study: str
    network: Network
    seed: int
    data_hash: str

    def training(self, arm: Arm, fraction: float, single: Stage | None) -> tuple[Stage, ...]:
        """What trains the network in an arm: a training, or a pre-training and a fine-tuning."""
        title, tags = _named(arm, fraction)
        settings = {**self.network.budget["training"], **arm.training, "label_fraction": fraction}
        if arm.pretraining is None:
            return (self._stage("training", settings, title, tags, single=single),)
        own = {**self.network.budget["pretraining"], **arm.pretraining}
        if single is None:  # one for all arms and fractions that pre-train so; a cascade's priors differ with them
            shared = ", ".join(f"{key} {value}" for key, value in arm.pretraining.items()) or "as configured"
            pretraining = self._stage("pretraining", own, shared, {})
        else:
            pretraining = self._stage("pretraining", own, title, tags, single=single)
        return pretraining, self._stage("finetuning", settings, title, tags, start=pretraining, single=single)

    def evaluation(self, trained: Stage, arm: Arm, fraction: float, side: str) -> Stage:
        """The evaluation of a trained network on a side of the datalist."""
        title, tags = _named(arm, fraction)
        settings = {**self.network.budget["training"], **arm.training, "side": side}
        return self._stage("evaluating", settings, f"{title}, {side}", {**tags, "side": side}, start=trained)

    def _stage(
        self,
        kind: str,
        settings: Overrides,
        title: str,
        tags: dict[str, str],
        start: Stage | None = None,
        single: Stage | None = None,
    ) -> Stage:
        settings = {**settings, "seed": self.seed}
        content = {
            "bundle": self.network.bundle.name,
            "data": self.data_hash,
            "stage": kind,
            "settings": settings,
            "start": start and start.digest,
            "single": single and single.digest,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
        title = f"{CASCADE}, {title}" if self.network.name == CASCADE else title
        own = {"study": self.study, "network": self.network.name, "seed": str(self.seed), "stage": kind, "cell": digest}
        return Stage(self.network.bundle, kind, settings, start, single, digest, title, {**own, **tags})


def _named(arm: Arm, fraction: float) -> tuple[str, dict[str, str]]:
    """Title and tags of what is of one arm and fraction."""
    return f"{arm.title}, {100 * fraction:g} % of the labels", {"arm": arm.title, "fraction": f"{fraction:g}"}
