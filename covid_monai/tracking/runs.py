# SPDX-License-Identifier: Apache-2.0
"""One MLflow run that is owned: begun, reopened on resume, and ended as FINISHED, FAILED or KILLED whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from covid_monai import __version__

__all__ = ["TrackedRun", "git_commit"]

logger = logging.getLogger(__name__)


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with ``-dirty`` after changes; None outside a checkout."""
    here = Path(__file__).parent
    own = ["ls-files", "--error-unmatch", Path(__file__).name]  # not of a repository that only surrounds an environment
    try:
        _, commit, changes = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (own, ["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


class TrackedRun:
    """An MLflow run around a stage of work, see :meth:`execute`.

    MONAI's own handler leaves a crashed run RUNNING, and the next run without a name joins it; here the run ends with
    the stage. A small record file lets a resumed stage reopen its run.

    Args:
        tracking_uri: where MLflow keeps its runs; a database as ``sqlite:///mlflow.db`` (MLflow refuses file stores).
        experiment: name of the experiment; made when it does not exist.
        name: name of the run.
        params: what to record as parameters; no path and nothing that identifies a patient.
        tags: what to record as tags, None values are left out.
        record: JSON file that keeps the run's id. A run recorded there is reopened when ``resume`` is set.
        resume: continue the recorded run instead of beginning a new one.
        enabled: False makes every method do nothing but :meth:`execute` its stage (processes other than the first).
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        record: str | os.PathLike | None = None,
        resume: bool = False,
        enabled: bool = True,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.name = name
        self.params = dict(params or {})
        self.tags = {"git_commit": git_commit(), "covid_monai": __version__, **(tags or {})}
        self.record = None if record is None else Path(record)
        self.resume = resume
        self.enabled = enabled
        self.run_id: str | None = None
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The MLflow client, made at first use."""
        if self._client is None:
            self._client = MlflowClient(tracking_uri=self.tracking_uri)
        return self._client

    def execute(self, stage: Callable[[], Any]) -> Any:
        """Run ``stage`` inside the run and return what it returns.

        The run ends as FINISHED; as KILLED on Ctrl-C, SIGTERM or exit; as FAILED on any other exception, which is
        recorded by its type and raised again.
        """
        if not self.enabled:
            return stage()
        try:
            with _terminate_as_interrupt():
                self._begin()
                result = stage()
        except (KeyboardInterrupt, SystemExit):
            self._end("KILLED")
            raise
        except BaseException as error:
            self.log_tags({"error": type(error).__name__})
            self._end("FAILED")
            raise
        self._end("FINISHED")
        return result

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record scalar metrics at a step; values that are not finite are left out."""
        if self.run_id is not None:
            now = get_current_time_millis()
            kept = [Metric(k, float(v), now, step) for k, v in metrics.items() if np.isfinite(v)]
            self.client.log_batch(self.run_id, metrics=kept)

    def log_image(self, image: np.ndarray, name: str) -> None:
        """Record a picture, (H, W) or (H, W, 3) uint8, as the artifact ``name``."""
        if self.run_id is not None:
            self.client.log_image(self.run_id, image, name)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Record tags; None values are left out."""
        if self.run_id is not None:
            for key, value in tags.items():
                if value is not None:
                    self.client.set_tag(self.run_id, key, str(value))

    def _begin(self) -> None:
        self.run_id = self._recorded() if self.resume else None
        if self.run_id is None:
            run = self.client.create_run(self._experiment_id(), run_name=self.name)
            self.run_id = run.info.run_id
            params = [Param(key, str(value)) for key, value in self.params.items()]
            self.client.log_batch(self.run_id, params=params)
        else:
            self.client.update_run(self.run_id, status="RUNNING")
            if "error" in self.client.get_run(self.run_id).data.tags:  # of the attempt that failed
                self.client.delete_tag(self.run_id, "error")
            logger.info("continuing the MLflow run %s", self.run_id)
        self._log_new_tags()
        if self.record is not None:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.record.write_text(json.dumps({"experiment": self.experiment, "run_id": self.run_id}) + "\n")

    def _log_new_tags(self) -> None:
        """Record the tags; those of a reopened run stay, and what has changed since is recorded beside them."""
        there = self.client.get_run(self.run_id or "").data.tags
        new = {key: value for key, value in self.tags.items() if value is not None and there.get(key) != str(value)}
        self.log_tags({f"resumed_{key}" if key in there else key: value for key, value in new.items()})

    def _end(self, status: str) -> None:
        if self.run_id is not None:
            self.client.set_terminated(self.run_id, status)

    def _recorded(self) -> str | None:
        """Run id in the record file when this tracking store knows it."""
        if self.record is None or not self.record.exists():
            return None
        try:
            info = self.client.get_run(json.loads(self.record.read_text())["run_id"]).info
        except (ValueError, TypeError, KeyError, MlflowException):  # torn by a kill, or of another store
            return None
        return info.run_id if info.experiment_id == self._experiment_id() else None

    def _experiment_id(self) -> str:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return experiment.experiment_id
        return self.client.create_experiment(self.experiment, artifact_location=self._artifact_location())

    def _artifact_location(self) -> str | None:
        """Artifacts of a local database lie beside it, not in whatever folder the command ran from."""
        parsed = urlparse(self.tracking_uri)
        if parsed.scheme != "sqlite":
            return None
        return (Path(parsed.path.removeprefix("/")).resolve().parent / "mlruns" / self.experiment).as_uri()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside the block, so that what runs there can close what it holds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
