# SPDX-License-Identifier: Apache-2.0
"""Training on what radiologists corrected, by the bundle's own fine-tuning."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import run
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from covid_monai.label.faults import LabelError
from covid_monai.label.models import ModelInUse
from covid_monai.label.server import SERVER
from covid_monai.label.slices import export_slices
from covid_monai.networks import load_weights, save_weights, weights_sha256

__all__ = ["FineTuning"]

log = logging.getLogger(__name__)

LIMITS = {"max_epochs": (2, 500), "samples_per_epoch": (8, 100_000)}
"""What a viewer may set, and between which values."""
DEFAULTS = {"max_epochs": 20, "samples_per_epoch": 200}


class FineTuning(TrainTask):
    """Fine-tune the model in use on all corrected labels; the next inference uses what comes out.

    The training starts from the weights in use, output heads included, and stops at the best mean Dice on the scans
    that it holds out. It is recorded in ``mlflow.db`` of the server's folder, and its weights are registered there as a
    challenger. One that was killed goes on where it stopped when it is asked for again with the same labels.

    Args:
        model: the model in use.
    """

    def __init__(self, model: ModelInUse) -> None:
        super().__init__("Fine-tune the model on the corrected labels")
        self.model = model

    def config(self) -> dict[str, Any]:
        """What a viewer may set."""
        return dict(DEFAULTS)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and put the new weights into use.

        Args:
            request: with what :meth:`config` lists.
            datastore: has the labels.

        Returns:
            SHA-256 of the weights before and after, and the version that was registered.

        Raises:
            LabelError: fewer than two scans have labels, or a setting is out of range.
        """
        if (server := os.getppid()) == int(os.environ.get(SERVER, "0")):  # in a process of its own
            threading.Thread(target=_end_with, args=(server,), daemon=True).start()
        settings = {name: _number(name, request.get(name, value)) for name, value in DEFAULTS.items()}
        before = self.model.segmenter.facts.weights_sha256
        data = export_slices(datastore, self.model.work / "training")
        folder = data.parent / f"{data.name}-{before[:12]}"
        weights = self._train(data, folder, settings)
        save_weights(load_weights(weights), self.model.trained)
        (weights.parent / "checkpoint.pt").unlink()  # of a training that is done: the next one begins anew
        return {"before": before, "after": weights_sha256(self.model.trained), "version": self._offer(weights)}

    def _train(self, data: Path, folder: Path, settings: Mapping[str, int]) -> Path:
        """Run the bundle's fine-tuning into a folder; path of the best weights."""
        bundle = self.model.bundle
        checkpoints = folder / "checkpoints"
        overrides: dict[str, Any] = {**settings, **_start(self.model.weights, folder / "start")}
        run(
            run_id="finetuning",
            init_id="initialize",
            config_file=[str(bundle / "configs" / f"{name}.yaml") for name in ("train", "finetune")],
            logging_file=None,
            bundle_root=str(bundle),
            dataset_dir=str(data),
            ckpt_dir=str(checkpoints),
            tracking_uri=self._tracking_uri,
            **overrides,
        )
        return checkpoints / "model.pt"

    @property
    def _tracking_uri(self) -> str:
        return f"sqlite:///{(self.model.work / 'mlflow.db').resolve()}"

    def _offer(self, weights: Path) -> str | None:
        """Register the new weights as a challenger; the training stands even where that fails."""
        from covid_monai.registry.versions import Registry

        try:
            return Registry(self._tracking_uri).register(self.model.bundle, weights).uri
        except (ValueError, OSError) as error:
            log.warning("the new weights are in use, but not registered: %s", error)
            return None


def _end_with(server: int) -> None:
    """End this process when the server that it works for is gone, killed perhaps; a later training goes on from it."""
    while os.getppid() == server:
        time.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)


def _number(name: str, value: Any) -> int:
    least, most = LIMITS[name]
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if not least <= number <= most:
        raise LabelError(f"{name} is {value!r}: give a whole number from {least} to {most}.")
    return number


def _start(weights: Path, folder: Path) -> dict[str, str]:
    """Settings of the bundle that make its fine-tuning start from these weights, output heads included."""
    state = load_weights(weights)
    shutil.rmtree(folder, ignore_errors=True)
    if not any(name.startswith("single.") for name in state):
        save_weights(state, folder / "model.pt")
        return {"pretrained": str(folder / "model.pt"), "initial": "$load_network(@network_def, @pretrained)"}
    for part in ("single", "multi"):
        prefix = f"{part}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        save_weights(own, folder / f"{part}.pt")
    return {
        "single_weights": str(folder / "single.pt"),
        "pretrained": str(folder / "multi.pt"),
        "multi": "$load_network(@multi_def, @pretrained)",
    }
