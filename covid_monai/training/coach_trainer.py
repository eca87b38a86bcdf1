# SPDX-License-Identifier: Apache-2.0
"""Pre-training without labels: a trainer, and the pretext tasks it runs.

Fung et al. 2020 (J Transl Med 2021), Algorithm 1: a coach network learns which cells of a slice to erase so that
rebuilding them is hard, and the segmentation network learns to rebuild them. Singh et al., BMVC 2018.

A pretext task is a class with a ``step``, see :class:`PretextTask`; :class:`PretextTrainer` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from monai.engines import Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.optim import Optimizer

from covid_monai.losses import CoachLoss, InpaintingLoss
from covid_monai.networks import CoachNet, InfNet, MultiInfNet
from covid_monai.transforms import RandCellMask, cells_within

__all__ = [
    "CoachSchedule",
    "Inpainting",
    "KeepFraction",
    "PretextStep",
    "PretextTask",
    "PretextTrainer",
    "random_masks_like",
]

Phase = Literal["random", "coach", "network"]


@dataclass(frozen=True)
class PretextStep:
    """One step of a pretext task: what is to be lowered, and whose parameters may move.

    Attributes:
        loss: scalar with a gradient.
        optimizer: of the parameters that the step trains.
        scalars: figures to record.
    """

    loss: torch.Tensor
    optimizer: Optimizer
    scalars: dict[str, float] = field(default_factory=dict)


class PretextTask(Protocol):
    """What a network can learn from slices without labels."""

    def step(self, inputs: torch.Tensor, epoch: int, step: int) -> PretextStep:
        """Compute the loss of one batch.

        Args:
            inputs: slices (B, C, H, W) in [0, 1]; the first channel is the image.
            epoch: number of the epoch, from 1.
            step: number of the batch in its epoch, from 0.
        """
        ...


class PretextTrainer(Trainer):
    """Train by a pretext task, in the manner of MONAI's ``GanTrainer``.

    The output of each iteration holds ``loss`` and the task's scalars. The gradient scaler is given, not made inside,
    so that a checkpoint can hold it and a resumed run goes on as an unbroken one.

    Args:
        device: where to train.
        max_epochs: epochs in all.
        train_data_loader: batches that ``prepare_batch`` understands.
        task: what is trained, and how.
        prepare_batch: called with batch, device and ``non_blocking``; returns the task's inputs (B, C, H, W).
        scaler: of gradients in float16; None for none.
        train_handlers: ignite handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Any,
        task: PretextTask,
        prepare_batch: Callable[..., torch.Tensor],
        scaler: torch.amp.GradScaler | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            prepare_batch=prepare_batch,
            handlers=train_handlers,
            decollate=False,
        )
        self.task = task
        self.gradient_scaler = scaler or torch.amp.GradScaler("cuda", enabled=False)

    def _iteration(self, engine: Any, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        inputs = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        step = engine.task.step(inputs, engine.state.epoch, (engine.state.iteration - 1) % engine.state.epoch_length)
        step.optimizer.zero_grad(set_to_none=True)
        engine.gradient_scaler.scale(step.loss).backward()
        engine.gradient_scaler.step(step.optimizer)
        engine.gradient_scaler.update()
        return {"loss": step.loss.detach(), **step.scalars}


@dataclass(frozen=True)
class CoachSchedule:
    """When the coach learns and when the network does, after a warm-up with random masks.

    Algorithm 1 trains both in every epoch, first the coach: ``CoachSchedule(20, 80, unit="steps")`` over epochs of 100
    batches. The authors' code trains in blocks: ``CoachSchedule(2, 8, warm_up=10, unit="epochs")``.

    Attributes:
        coach: length of a coach block.
        network: length of a network block.
        warm_up: epochs in which the network learns from random masks before the coach comes in.
        unit: whether blocks are counted in steps, anew in each epoch, or in epochs.

    Raises:
        ValueError: if a length is negative, a block of the network is empty, or the unit is unknown.
    """

    coach: int = 1
    network: int = 4
    warm_up: int = 0
    unit: Literal["steps", "epochs"] = "epochs"

    def __post_init__(self) -> None:
        if self.coach < 0 or self.network < 1 or self.warm_up < 0:
            raise ValueError(
                f"CoachSchedule: coach {self.coach}, network {self.network}, warm_up {self.warm_up}; "
                "give at least 0, 1 and 0"
            )
        if self.unit not in ("steps", "epochs"):
            raise ValueError(f"CoachSchedule: unit is {self.unit!r}; choose steps or epochs")

    def phase(self, epoch: int, step: int) -> Phase:
        """What the batch ``step`` (from 0) of an epoch (from 1) is for."""
        if epoch <= self.warm_up:
            return "random"
        position = step if self.unit == "steps" else epoch - 1 - self.warm_up
        return "coach" if position % (self.coach + self.network) < self.coach else "network"


@dataclass(frozen=True)
class KeepFraction:
    """Share of the cells that masks keep, of those that may be erased; constant or changing linearly over the epochs.

    Attributes:
        start: in the first epoch, between 0 and 1.
        end: from the epoch ``epochs`` on; None keeps the start.
        epochs: how long the change takes.

    Raises:
        ValueError: if a share is not between 0 and 1.
    """

    start: float = 0.75
    end: float | None = None
    epochs: int = 1

    def __post_init__(self) -> None:
        for share in (self.start, self.end):
            if share is not None and not 0 < share < 1:
                raise ValueError(f"KeepFraction: {share} is no share between 0 and 1")

    def at(self, epoch: int) -> float:
        """Share in an epoch (from 1)."""
        if self.end is None:
            return self.start
        progress = min(1.0, (epoch - 1) / max(1, self.epochs - 1))
        return self.start + progress * (self.end - self.start)


class Inpainting:
    """Rebuild what a mask erased; the mask is random, or a coach's that learns to make rebuilding hard.

    In a coach step the network stands still, batch statistics too: the coach lowers ``1 - L_rec(x * M)`` (Eq. 1) with
    a soft mask. In a network step the coach stands still and its mask is nearly binary.

    Random masks and the coach's erase cells of one size within one region of the slices, as ``random_masks`` says; the
    error over erased pixels is so counted within it, too.

    Args:
        network: with inpainting heads, see :func:`covid_monai.networks.with_inpainting_heads`.
        optimizer: of the network.
        random_masks: makes the masks of the warm-up, and all masks when there is no coach. Its ``within`` and ``cell``
            hold for the coach's masks as well.
        coach: None for random masks throughout.
        coach_optimizer: of the coach.
        schedule: of coach and network; without coach every step is a network step.
        keep_fraction: share of the cells within the region that is kept.
        loss: of the reconstruction.
        coach_loss: of the coach.
        alpha: steepness of the coach's mask in network steps; ``math.inf`` is binary.
        sample: whether network steps draw the coach's latent or take its mean.
        detach: True lets the coach's gradient flow through the erased image only, not through the loss's weights.
        inferer: runs the networks, such as :class:`covid_monai.inference.AutocastInferer`.

    Raises:
        ValueError: if a coach has no optimiser, or cells of another size than the random masks.
    """

    def __init__(
        self,
        network: InfNet | MultiInfNet,
        optimizer: Optimizer,
        random_masks: RandCellMask,
        coach: CoachNet | None = None,
        coach_optimizer: Optimizer | None = None,
        schedule: CoachSchedule | None = None,
        keep_fraction: KeepFraction | None = None,
        loss: InpaintingLoss | None = None,
        coach_loss: CoachLoss | None = None,
        alpha: float = math.inf,
        sample: bool = True,
        detach: bool = False,
        inferer: Inferer | None = None,
    ) -> None:
        if coach is not None and coach_optimizer is None:
            raise ValueError("Inpainting: the coach has no optimiser; give coach_optimizer")
        if coach is not None and coach.cell != random_masks.cell:
            raise ValueError(
                f"Inpainting: the coach's cells have {coach.cell} pixels and those of the random masks "
                f"{random_masks.cell}; give both the same"
            )
        self.network = network
        self.optimizer = optimizer
        self.random_masks = random_masks
        self.coach = coach
        self.coach_optimizer = coach_optimizer
        self.schedule = schedule or CoachSchedule()
        self.keep_fraction = keep_fraction or KeepFraction(random_masks.keep_fraction)
        self.loss = loss or InpaintingLoss()
        self.coach_loss = coach_loss or CoachLoss()
        self.alpha = alpha
        self.sample = sample
        self.detach = detach
        self.inferer = inferer or SimpleInferer()

    def step(self, inputs: torch.Tensor, epoch: int, step: int) -> PretextStep:
        """One coach step or one network step, as the schedule has it."""
        share = self.keep_fraction.at(epoch)
        self.random_masks.keep_fraction = share
        if self.coach is None:
            return self._network_step(inputs, random_masks_like(inputs, self.random_masks), share)
        self.coach.keep_fraction = share
        phase = self.schedule.phase(epoch, step)
        if phase == "coach":
            return self._coach_step(inputs, self.coach, self.allowed(inputs), share)
        if phase == "random":
            return self._network_step(inputs, random_masks_like(inputs, self.random_masks), share)
        allowed = self.allowed(inputs)
        mask = self.inferer(inputs, self.coach.masks, alpha=self.alpha, sample=self.sample, allowed=allowed)
        return self._network_step(inputs, mask, share)

    def allowed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Find the cells of slices (B, C, H, W) that masks may erase: booleans (B, 1, h, w)."""
        return cells_within(inputs[:, :1], self.random_masks.within, self.random_masks.cell)

    def _network_step(self, inputs: torch.Tensor, mask: torch.Tensor, share: float) -> PretextStep:
        self.network.train()
        loss = self.loss(self.inferer(inputs * mask, self.network), inputs[:, :1], mask)
        return PretextStep(loss, self.optimizer, {"network_loss": float(loss.detach()), "erased_share": 1 - share})

    def _coach_step(self, inputs: torch.Tensor, coach: CoachNet, allowed: torch.Tensor, share: float) -> PretextStep:
        coach.train()
        mask, mean, log_variance = self.inferer(inputs, coach, allowed=allowed)
        with _still(self.network):
            maps = self.inferer(inputs * mask, self.network.maps)
        reconstruction = self.loss(maps, inputs[:, :1], mask.detach() if self.detach else mask)
        loss = self.coach_loss(reconstruction, mean, log_variance)
        assert self.coach_optimizer is not None
        return PretextStep(loss, self.coach_optimizer, {"coach_loss": float(loss.detach()), "erased_share": 1 - share})


def random_masks_like(inputs: torch.Tensor, masks: RandCellMask) -> torch.Tensor:
    """A random mask for each slice: (B, 1, H, W), 1 kept and 0 erased, on the slices' device."""
    return torch.stack([torch.as_tensor(masks(x)) for x in inputs.cpu()]).to(inputs.device)


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """Inside, the network passes gradients to its input but neither its parameters nor its statistics change."""
    training, trainable = network.training, [p for p in network.parameters() if p.requires_grad]
    network.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
