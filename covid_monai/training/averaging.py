# SPDX-License-Identifier: Apache-2.0
"""Averaged weights: when they are taken, and the statistics of batch normalisation that belong to them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from ignite.engine import CallableEventWithFilter, Engine, Events
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MeasureNorm", "optimiser_steps"]


def optimiser_steps(accumulation_steps: int) -> CallableEventWithFilter:
    """The event of an optimiser step of MONAI's ``SupervisedTrainer``, after which a moving average takes its weights.

    The trainer counts batches from the beginning of each epoch, and steps after the last one too.

    Args:
        accumulation_steps: of the trainer: batches whose gradients make one step.
    """

    def stepped(engine: Engine, iteration: int) -> bool:
        length = engine.state.epoch_length or iteration
        return iteration % length == 0 or (iteration % length) % accumulation_steps == 0

    return Events.ITERATION_COMPLETED(event_filter=stepped)


class MeasureNorm:
    """Measure the statistics of batch normalisation that belong to a moving average of the weights.

    The average of several networks' statistics is not what the network of the averaged weights shows: its features
    vary less, and normalised by too wide a spread it predicts too little, or nothing. So they are measured anew on the
    last batches of the epoch (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI
    2018, section 3.2). Attach it before the validation.

    Args:
        average: the network of averaged weights; the statistics of all in it are measured.
        network: what is called on the images to pass them through ``average``; ``average`` itself when not given.
        interval: measure after every so many epochs, and after the last one.
        batches: how many batches to measure on.
        inferer: calls the network, such as :class:`covid_monai.inference.AutocastInferer`.

    Raises:
        ValueError: if ``interval`` or ``batches`` is below 1.
    """

    def __init__(
        self,
        average: nn.Module,
        network: nn.Module | None = None,
        interval: int = 1,
        batches: int = 25,
        inferer: Inferer | None = None,
    ) -> None:
        if interval < 1 or batches < 1:
            raise ValueError(f"MeasureNorm: interval is {interval} and batches {batches}; give 1 or more")
        self.average = average
        self.network = network or average
        self.interval = interval
        self.inferer = inferer or SimpleInferer()
        self.images: deque[torch.Tensor] = deque(maxlen=batches)

    def attach(self, engine: Engine) -> None:
        """Follow a trainer whose batches, as prepared, are an image and its target."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure, if it is the epoch for it."""
        images = list(self.images)
        self.images.clear()
        epoch = engine.state.epoch
        if epoch % self.interval and epoch != engine.state.max_epochs:
            return
        norms = [module for module in self.average.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # every batch counts the same
        self.network.train()
        with torch.no_grad():
            for image in images:
                self.inferer(image, self.network)
        self.network.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _keep(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.images.append(output["image"])
