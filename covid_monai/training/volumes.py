# SPDX-License-Identifier: Apache-2.0
"""Figures of whole volumes, and of patients, from a slice-wise evaluation."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ignite.engine import Engine, Events

from covid_monai.training.metrics import classes_are_guessed

__all__ = ["VolumeMetrics", "volume_of"]

DICE, SHARE_ERROR = "val_volume_dice", "val_share_error"


def volume_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """Patient and volume of a datalist item.

    The volume is the item's id without its last part: ``medseg_radiopaedia9/2`` of ``medseg_radiopaedia9/2/012``, a
    scan of the patient ``medseg_radiopaedia9/2+3``. A slice whose patient is not known is a volume and a patient of
    its own, named by its id.
    """
    if item.get("patient") is None:
        return item["id"], item["id"]
    return item["patient"], item["id"].rpartition("/")[0]


@dataclass
class _Overlap:
    """Pixels that prediction and reference share, and those of each."""

    both: int = 0
    predicted: int = 0
    reference: int = 0

    def add(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Count boolean masks of one slice."""
        self.both += int((prediction & reference).sum())
        self.predicted += int(prediction.sum())
        self.reference += int(reference.sum())

    @property
    def dice(self) -> float:
        """Dice, 1 where neither has any pixel."""
        total = self.predicted + self.reference
        return 2 * self.both / total if total else 1.0


@dataclass
class _Volume:
    """What is counted of a volume: all its lesions, those of each class where it is known, and those in its lungs."""

    slices: int = 0
    lesion: _Overlap = field(default_factory=_Overlap)
    classes: dict[str, _Overlap] = field(default_factory=dict)
    within_lungs: _Overlap = field(default_factory=_Overlap)
    lung: int | None = 0  # None: a slice has no lung mask

    def values(self) -> dict[str, float]:
        """The volume's metrics, without those that it has no reference for."""
        found = {DICE: self.lesion.dice}
        found |= {f"{DICE}_{name}": counts.dice for name, counts in self.classes.items() if counts.reference}
        if shares := self.shares():
            found[SHARE_ERROR] = abs(shares[0] - shares[1])
        return found

    def shares(self) -> tuple[float, float] | None:
        """Predicted and reference lesion share of the lungs in percent; None without a lung mask of every slice."""
        if not self.lung:
            return None
        return 100 * self.within_lungs.predicted / self.lung, 100 * self.within_lungs.reference / self.lung


class VolumeMetrics:
    """Score whole volumes in an evaluation of slices, and average them over patients.

    Pixels are summed over the slices of a volume first, see :func:`volume_of`, so that a slice weighs by its lesion
    and no slice is empty by itself. A patient's volumes are averaged, and then the patients:

    - ``val_volume_dice``: hard Dice of the lesion, of whatever class; 1 where a volume has none and none is predicted.
    - ``val_volume_dice_<class>``: of one class, over the volumes that have it in the reference; slices whose classes
      are guessed are left out of the sums.
    - ``val_share_error``: absolute difference between predicted and reference share of the lungs that is lesion, in
      percentage points. What is predicted outside the lungs does not count here. Of volumes with a lung mask for every
      slice.

    A metric that no volume can give is absent. The patients' values become ``engine.state.case_details``:
    ``{metric: {patient: value}}``.

    Args:
        items: the datalist items that are evaluated, with ``id`` and, where known, ``patient`` and ``class_source``.
        classes: names of the classes after background where the masks are one-hot; without, only the lesion is scored.
        save_dir: where to write ``volumes.csv``, a row for each volume.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        classes: Sequence[str] = (),
        save_dir: str | os.PathLike | None = None,
    ) -> None:
        self.items = {item["id"]: item for item in items}
        self.classes = tuple(classes)
        self.save_dir = None if save_dir is None else Path(save_dir)
        self._volumes: dict[tuple[str, str], _Volume] = {}

    @property
    def names(self) -> list[str]:
        """Names of the metrics."""
        return [DICE, *(f"{DICE}_{name}" for name in self.classes), SHARE_ERROR]

    def attach(self, engine: Engine) -> None:
        """Listen to a MONAI evaluator that decollates; attach before the handlers that print or save its metrics.

        Its batch is a list of items with ``id`` and, where known, the lung mask ``lung`` (1, H, W), above 0 in the
        lungs, lesions included. Its output is a list of such with the masks ``pred`` and ``label``: both (1, H, W), or
        both one-hot (C, H, W) with background first.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:
        self._volumes.clear()
        for name in self.names:
            engine.state.metrics.pop(name, None)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise ValueError("volumes are counted slice by slice: let the evaluator decollate its batches.")
        for item, result in zip(batch, output, strict=True):
            self._add(item, *(_plain(result[key]) > 0.5 for key in ("pred", "label")))

    def _add(self, item: Mapping[str, Any], prediction: torch.Tensor, reference: torch.Tensor) -> None:
        known = self.items.get(item["id"])
        if known is None:
            raise ValueError("a slice that is evaluated is not among the items: give all items of the evaluated side.")
        channels = len(self.classes) + 1 if self.classes else len(reference)
        if prediction.shape != reference.shape or len(reference) != channels:
            raise ValueError(
                f"prediction is {tuple(prediction.shape)} and reference {tuple(reference.shape)}: both must be "
                f"({channels}, H, W)."
            )
        volume = self._volumes.setdefault(volume_of(known), _Volume())
        volume.slices += 1
        masks = [mask[0] if len(mask) == 1 else ~mask[0] for mask in (prediction, reference)]
        volume.lesion.add(*masks)
        if not classes_are_guessed(known):
            for channel, name in enumerate(self.classes, 1):
                volume.classes.setdefault(name, _Overlap()).add(prediction[channel], reference[channel])
        if item.get("lung") is None:
            volume.lung = None
        elif volume.lung is not None:
            lung = _plain(item["lung"])[0].to(masks[0].device) > 0
            if lung.shape != masks[0].shape:
                raise ValueError(f"lung mask is {tuple(lung.shape)} and prediction {tuple(masks[0].shape)} (H, W).")
            volume.lung += int(lung.sum())
            volume.within_lungs.add(*(mask & lung for mask in masks))

    def _finish(self, engine: Engine) -> None:
        patients: dict[str, list[dict[str, float]]] = {}
        for (patient, _), volume in self._volumes.items():
            patients.setdefault(patient, []).append(volume.values())
        details: dict[str, dict[str, float]] = {}
        for name in self.names:
            of_volumes = {who: [each[name] for each in them if name in each] for who, them in patients.items()}
            if of_patients := {who: fmean(values) for who, values in of_volumes.items() if values}:
                details[name] = of_patients
                engine.state.metrics[name] = fmean(of_patients.values())
        engine.state.case_details = details  # type: ignore[attr-defined]
        if self.save_dir is not None:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            with (self.save_dir / "volumes.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._rows())

    def _rows(self) -> Iterator[list[Any]]:
        """Header and volumes, in the order in which they came; no entry where a volume cannot give a figure."""
        yield ["volume", "patient", "slices", *self.names, "predicted_share", "reference_share"]
        for (patient, name), volume in self._volumes.items():
            values, shares = volume.values(), volume.shares() or ("", "")
            yield [name, patient, volume.slices, *(values.get(each, "") for each in self.names), *shares]


def _plain(array: Any) -> torch.Tensor:
    return torch.as_tensor(array).as_subclass(torch.Tensor)
