# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that record a MONAI trainer or evaluator in a :class:`~covid_monai.tracking.TrackedRun`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.visualize import blend_images

from covid_monai.tracking.runs import TrackedRun

__all__ = ["TrackEvaluation", "TrackSamples", "TrackTraining"]


class TrackTraining:
    """Record the mean loss, the learning rate and the seconds of every epoch of a trainer.

    Args:
        run: where to record.
        optimizer: whose learning rate is recorded.
    """

    def __init__(self, run: TrackedRun, optimizer: torch.optim.Optimizer) -> None:
        self.run = run
        self.optimizer = optimizer
        self._losses: list[float] = []
        self._learning_rate = 0.0
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI trainer, whose output holds ``loss``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)

    def _begin(self, engine: Engine) -> None:
        self._losses.clear()
        self._learning_rate = self.optimizer.param_groups[0]["lr"]
        self._start = time.perf_counter()

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output  # each item of a decollated output has the loss
        self._losses.append(float(torch.as_tensor(first["loss"]).detach()))

    def _record(self, engine: Engine) -> None:
        metrics = {
            "train_loss": float(np.mean(self._losses)),
            "learning_rate": self._learning_rate,
            "epoch_seconds": time.perf_counter() - self._start,
        }
        self.run.log_metrics(metrics, engine.state.epoch)


class TrackEvaluation:
    """Record every metric of an evaluator when it completes.

    Args:
        run: where to record. The step is the evaluator's epoch, which a ``ValidationHandler`` sets to the trainer's.
    """

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._record)

    def _record(self, engine: Engine) -> None:
        scalars = {key: float(value) for key, value in engine.state.metrics.items() if np.ndim(value) == 0}
        self.run.log_metrics(scalars, engine.state.epoch)


class TrackSamples:
    """Record pictures of an evaluator's first images: image, reference and prediction side by side.

    Args:
        run: where to record.
        every: record at each so many epochs of the trainer.
        count: how many images with a lesion to record.
    """

    def __init__(self, run: TrackedRun, every: int = 10, count: int = 4) -> None:
        self.run = run
        self.every = every
        self.count = count
        self._panels: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI evaluator whose output is a list of items with ``image``, ``label`` and ``pred``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._record)

    def _collect(self, engine: Engine) -> None:
        if engine.state.epoch % self.every:
            return
        output: Any = engine.state.output
        for item in output:
            if len(self._panels) < self.count and item["label"].any():
                self._panels.append(_panel(item))

    def _record(self, engine: Engine) -> None:
        for number, panel in enumerate(self._panels):
            self.run.log_image(panel, f"samples/epoch_{engine.state.epoch:04d}_{number}.png")
        self._panels.clear()


def _panel(item: dict[str, Any]) -> np.ndarray:
    """(H, 3 W, 3) uint8 picture of an item whose entries are (1, H, W)."""
    image, label, pred = (
        torch.as_tensor(item[key]).as_subclass(torch.Tensor).detach().cpu().float()
        for key in ("image", "label", "pred")
    )
    overlays = [blend_images(image, mask, alpha=0.5, cmap="hsv", rescale_arrays=False) for mask in (label, pred)]
    row = torch.cat([image.expand(3, -1, -1), *(torch.as_tensor(o) for o in overlays)], dim=-1)
    return (row.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
