# SPDX-License-Identifier: Apache-2.0
"""Best weights, the last full state, early stopping, and a resume that continues all three."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism

from covid_monai.networks import save_atomically, save_weights

__all__ = ["Checkpoints", "SeedEpochs"]

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything with a state, as networks, optimisers and schedulers have it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Checkpoints:
    """Keep the best weights and the last state of a training, stop it when it no longer improves, resume it.

    After every epoch ``checkpoint.pt`` holds all of ``state`` with the epoch, the best score and how long it stands;
    ``model.pt`` holds the network weights of the best epoch. MONAI's ``CheckpointSaver`` with ``EarlyStopHandler`` is
    not used because it writes in place and forgets best score and patience on resume.

    Args:
        folder: where both files lie.
        network: whose weights are the result: the trained network or its moving average.
        state: what a resumed training needs besides it: trained network, optimiser, scheduler, by name.
        evaluator: MONAI evaluator that a ``ValidationHandler`` of the trainer runs; None keeps the last weights.
        metric: name of the evaluator's metric to maximise.
        patience: epochs without improvement after which the training stops; None never stops.
        identity: what makes this training another than the next (data, seed, network): a checkpoint in which any of it
            differs is refused rather than continued.
        resume: continue from ``checkpoint.pt`` when it is there.
        saved: called with the SHA-256 of ``model.pt`` each time it was written.
        write: False on processes other than the first, which load but do not write.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        network: torch.nn.Module,
        state: Mapping[str, Stateful],
        evaluator: Engine | None = None,
        metric: str = "val_mean_dice",
        patience: int | None = None,
        identity: Mapping[str, Any] | None = None,
        resume: bool = True,
        saved: Callable[[str], Any] | None = None,
        write: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.network = network
        self.state: dict[str, Stateful] = {"result": network, **state}
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.identity = {key: str(value) for key, value in (identity or {}).items()}
        self.resume = resume
        self.saved = saved
        self.write = write
        self.best_score = float("-inf")
        self.best_epoch = 0

    @property
    def last_path(self) -> Path:
        """File of the last full state."""
        return self.folder / "checkpoint.pt"

    @property
    def best_path(self) -> Path:
        """File of the best network weights."""
        return self.folder / "model.pt"

    def run(self, trainer: Engine) -> None:
        """Run the trainer from where its last checkpoint stands, or from the beginning.

        Checkpoints are written after all handlers that the trainer already has, so after its ``ValidationHandler``.

        Raises:
            ValueError: when the checkpoint is damaged or of another training, an epoch has no batch, or none a score.
        """
        if self.resume and self.last_path.exists():
            epoch = self._load(trainer)
            logger.info("resuming after epoch %d (best %.4f at %d)", epoch, self.best_score, self.best_epoch)
            if epoch >= (trainer.state.max_epochs or 0) or self._patience_is_over(epoch):
                logger.info("nothing left to do: raise max_epochs or patience, or set resume to false")
                return
        if trainer.state.epoch_length == 0:
            raise ValueError("an epoch has no batch: draw at least batch_size slices an epoch in each process.")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.run()
        if self.best_epoch == 0:
            raise ValueError(
                f"no epoch has a {self.metric}: the validation side needs slices that it can be measured on."
            )

    def check(self) -> None:
        """Refuse a checkpoint that :meth:`run` would refuse, before anything is begun.

        Raises:
            ValueError: when the checkpoint is damaged or of another training.
        """
        if self.resume and self.last_path.exists():
            self._read(mmap=True)

    def _read(self, mmap: bool = False) -> dict[str, Any]:
        """The last checkpoint, which is of this training; with ``mmap`` its tensors stay in the file."""
        try:
            saved = torch.load(self.last_path, map_location="cpu", weights_only=True, mmap=mmap)
            known = saved["identity"]
            other = [key for key in {**self.identity, **known} if self.identity.get(key) != known.get(key)]
        except Exception as error:  # whatever foreign bytes lead to
            raise self._foreign(error) from error
        if other:
            raise ValueError(
                f"{self.last_path} is of another training ({', '.join(other)} differ): "
                "choose another folder, or set resume to false to begin anew."
            )
        return saved

    def _load(self, trainer: Engine) -> int:
        """Restore everything from the last checkpoint and return its epoch."""
        saved = self._read()
        try:
            for name, part in self.state.items():
                part.load_state_dict(saved["state"][name])
            self.best_score, self.best_epoch = saved["best_score"], saved["best_epoch"]
            trainer.state.epoch, trainer.state.iteration = saved["epoch"], saved["iteration"]
        except Exception as error:  # whatever another network's state leads to
            raise self._foreign(error) from error
        return saved["epoch"]

    def _foreign(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.last_path} is no checkpoint of this training ({type(error).__name__}): "
            "choose another folder, or set resume to false to begin anew."
        )

    def _epoch_completed(self, trainer: Engine) -> None:
        epoch = trainer.state.epoch
        score = self._score(trainer)
        if score is not None and score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            if self.write:
                digest = save_weights(self.network.state_dict(), self.best_path)
                if self.saved is not None:
                    self.saved(digest)
        if self.write:
            save_atomically(
                {
                    "state": {name: part.state_dict() for name, part in self.state.items()},
                    "epoch": epoch,
                    "iteration": trainer.state.iteration,
                    "best_score": self.best_score,
                    "best_epoch": self.best_epoch,
                    "identity": self.identity,
                },
                self.last_path,
            )
        if score is not None and self._patience_is_over(epoch):
            logger.info("no better %s since epoch %d: stopping", self.metric, self.best_epoch)
            trainer.terminate()

    def _score(self, trainer: Engine) -> float | None:
        """Score of this epoch, None when it was not validated; the last epoch always is."""
        epoch = trainer.state.epoch
        if self.evaluator is None:
            return float(epoch)
        if self.evaluator.state.epoch != epoch:
            if epoch != trainer.state.max_epochs:
                return None
            self.evaluator.run(epoch)  # type: ignore[arg-type]  # MONAI's evaluators take the epoch
        return float(self.evaluator.state.metrics[self.metric])

    def _patience_is_over(self, epoch: int) -> bool:
        return self.patience is not None and epoch - self.best_epoch >= self.patience


class SeedEpochs:
    """Seed every epoch from the run's seed and its number, so that a resumed run draws what an unbroken one draws.

    Args:
        seed: seed of the run.
        transform: random transform of the training data set, when it runs in this process.
    """

    def __init__(self, seed: int, transform: Any = None) -> None:
        self.seed = seed
        self.transform = transform

    def attach(self, engine: Engine) -> None:
        """Listen to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        seed = self.seed + 100_003 * engine.state.epoch
        set_determinism(seed)
        if self.transform is not None:
            self.transform.set_random_state(seed)
