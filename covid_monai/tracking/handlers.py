# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that record a MONAI trainer or evaluator in a :class:`~covid_monai.tracking.TrackedRun`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.visualize import blend_images

from covid_monai.tracking.identifiers import hashed_id
from covid_monai.tracking.runs import TrackedRun

__all__ = ["TrackCases", "TrackEvaluation", "TrackInpainting", "TrackSamples", "TrackTraining"]

GRID = 16  # masks in one picture


class TrackTraining:
    """Record the mean loss, the learning rate and the seconds of every epoch of a trainer, and end it on a signal.

    Every scalar ``name`` of the trainer's output becomes ``train_name``: its mean over those steps of the epoch that
    have it, since steps of one phase may lack the losses of another.

    Args:
        run: where to record.
        optimizer: whose learning rate is recorded.
    """

    def __init__(self, run: TrackedRun, optimizer: torch.optim.Optimizer) -> None:
        self.run = run
        self.optimizer = optimizer
        self._scalars: dict[str, list[Any]] = {}
        self._learning_rate = 0.0
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI trainer, whose output is a dictionary, or a list of such when it is decollated."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self.run.raise_if_interrupted)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)

    def _begin(self, engine: Engine) -> None:
        self._scalars.clear()
        self._learning_rate = self.optimizer.param_groups[0]["lr"]
        self._start = time.perf_counter()

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output  # each item of a decollated output has the scalars
        for name, value in first.items():
            if isinstance(value, torch.Tensor | int | float) and np.ndim(value) == 0:
                kept = value.detach() if isinstance(value, torch.Tensor) else value  # on the device: no step waits
                self._scalars.setdefault(str(name), []).append(kept)

    def _record(self, engine: Engine) -> None:
        metrics = {
            **{f"train_{name}": float(np.mean([float(v) for v in values])) for name, values in self._scalars.items()},
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
        """Listen to a MONAI evaluator whose output is a list of items with ``image`` (1, H, W), ``label`` and ``pred``.

        The masks are (1, H, W), or one-hot (C, H, W) with background first.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._record)

    def _collect(self, engine: Engine) -> None:
        if engine.state.epoch % self.every:
            return
        output: Any = engine.state.output
        for item in output:
            if len(self._panels) < self.count and _shades(item["label"]).any():
                self._panels.append(_panel(item))

    def _record(self, engine: Engine) -> None:
        for number, panel in enumerate(self._panels):
            self.run.log_image(panel, f"samples/epoch_{engine.state.epoch:04d}_{number}.png")
        self._panels.clear()


class TrackCases:
    """Record the metrics of every case as the artifact ``cases.json``: ``{metric: {hashed id: value}}``.

    A metric with one value a case keeps its name. Of one with a value for each class, class ``c`` is recorded as
    ``metric_c``, without the ``mean`` that such a name may hold: ``val_mean_dice`` becomes ``val_dice_c``. Values that
    are not finite are left out, such as the Dice of a class that is not there. What a handler has put into
    ``engine.state.case_details``, ``{metric: {id: value}}``, is recorded too: values of whole patients, say.

    Args:
        run: where to record.
        classes: names of the classes, in the order of the metrics' channels; without names, metrics with a value for
            each class are left out.
    """

    def __init__(self, run: TrackedRun, classes: Sequence[str] = ()) -> None:
        self.run = run
        self.classes = tuple(classes)
        self._ids: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI evaluator whose batches hold ``id``, and whose metrics keep their details."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self._ids.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._record)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        self._ids += batch["id"] if isinstance(batch, dict) else [item["id"] for item in batch]

    def _record(self, engine: Engine) -> None:
        if self.run.run_id is None:
            return
        ids = [hashed_id(each) for each in self._ids]
        cases: dict[str, dict[str, float]] = {}
        for metric, details in engine.state.metric_details.items():  # type: ignore[attr-defined]
            values = _plain(details).reshape(len(details), -1)
            if len(values) != len(ids):
                raise ValueError(
                    f"{metric} has {len(values)} cases, but the batches {len(ids)} ids: give each case one."
                )
            for name, column in zip(self._names(metric, values.shape[1]), values.T.tolist(), strict=False):
                cases[name] = {id_: value for id_, value in zip(ids, column, strict=True) if np.isfinite(value)}
        for name, of_cases in getattr(engine.state, "case_details", {}).items():
            cases[name] = {hashed_id(each): value for each, value in of_cases.items() if np.isfinite(value)}
        self.run.log_json(cases, "cases.json")

    def _names(self, metric: str, channels: int) -> list[str]:
        """What the channels of a metric are recorded as; nothing where its classes have no names."""
        if channels == 1:
            return [metric]
        if self.classes and len(self.classes) != channels:
            raise ValueError(f"{metric} has {channels} values a case, but classes are {self.classes}: name each.")
        return [f"{metric.replace('_mean_', '_')}_{name}" for name in self.classes]


class TrackInpainting:
    """Record what a pretext evaluator's first slices look like: pictures of the rebuilding, and the coach's masks.

    ``inpainting/epoch_0010_0.png`` shows image, erased image, reconstruction and absolute error side by side, under the
    random mask and below it under the coach's. ``coach_masks/epoch_0010.png`` shows the coach's masks of the first 16
    slices (white: kept), by which one sees over time what it learns to erase, and whether slices get different masks.

    Args:
        run: where to record.
        every: record at each so many epochs of the trainer.
        count: how many slices to show.
    """

    def __init__(self, run: TrackedRun, every: int = 10, count: int = 4) -> None:
        self.run = run
        self.every = every
        self.count = count
        self._panels: list[np.ndarray] = []
        self._masks: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Listen to a :class:`~covid_monai.training.PretextEvaluator`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self.run.raise_if_interrupted)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._record)

    def _begin(self, engine: Engine) -> None:
        self._panels.clear()
        self._masks.clear()

    def _collect(self, engine: Engine) -> None:
        if engine.state.epoch % self.every:
            return
        output: Any = engine.state.output
        kinds = [kind for kind in ("random", "coach") if f"{kind}_mask" in output]
        first = {key: _plain(value[: self.count - len(self._panels)]) for key, value in output.items()}
        for k, image in enumerate(first["image"]):
            rows = [_rebuilding(image, first[f"{kind}_mask"][k], first[f"{kind}_pred"][k]) for kind in kinds]
            self._panels.append(_uint8(torch.cat(rows)))
        if "coach_mask" in output:
            self._masks += _plain(output["coach_mask"][: GRID - len(self._masks)])

    def _record(self, engine: Engine) -> None:
        for number, panel in enumerate(self._panels):
            self.run.log_image(panel, f"inpainting/epoch_{engine.state.epoch:04d}_{number}.png")
        if self._masks:
            self.run.log_image(_uint8(_grid(self._masks)), f"coach_masks/epoch_{engine.state.epoch:04d}.png")


def _panel(item: dict[str, Any]) -> np.ndarray:
    """(H, 3 W, 3) uint8 picture of an item: image, and the masks over it, each class in its colour."""
    image = _plain(item["image"])
    masks = (_shades(item[key]) for key in ("label", "pred"))
    overlays = [blend_images(image, mask, alpha=0.5, cmap="hsv", rescale_arrays=False) for mask in masks]
    row = torch.cat([image.expand(3, -1, -1), *(torch.as_tensor(o) for o in overlays)], dim=-1)
    return _uint8(row.permute(1, 2, 0))


def _plain(array: Any) -> torch.Tensor:
    return torch.as_tensor(array).as_subclass(torch.Tensor).detach().cpu().float()


def _shades(mask: Any) -> torch.Tensor:
    """(1, H, W) with 0 for background and 1 for the last class, from such a mask or a one-hot one (C, H, W)."""
    mask = _plain(mask)
    return mask if len(mask) == 1 else mask.argmax(0, keepdim=True) / (len(mask) - 1)


def _rebuilding(image: torch.Tensor, mask: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
    """(H, 4 W): a slice, what the mask leaves of it, its reconstruction and the absolute error, each (1, H, W)."""
    return torch.cat([image, image * mask, pred, (pred - image).abs()], dim=-1)[0]


def _grid(masks: list[torch.Tensor]) -> torch.Tensor:
    """Masks (1, H, W) side by side in a square that fills up row by row, parted by grey lines."""
    columns = math.ceil(math.sqrt(len(masks)))
    cells = [F.pad(mask[0], (1, 1, 1, 1), value=0.5) for mask in masks]
    cells += [torch.full_like(cells[0], 0.5)] * (-len(cells) % columns)
    return torch.cat([torch.cat(cells[k : k + columns], dim=1) for k in range(0, len(cells), columns)])


def _uint8(picture: torch.Tensor) -> np.ndarray:
    return (picture.clamp(0, 1) * 255).byte().numpy()
