# SPDX-License-Identifier: Apache-2.0
"""One MLflow run that is owned: begun, reopened on resume, and ended as FINISHED, FAILED or KILLED whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunInfo
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from covid_monai import __version__
from covid_monai.tracking.identifiers import hashed_id
from covid_monai.tracking.lineage import recorded_run
from covid_monai.tracking.system import system_metrics

__all__ = ["TrackedRun", "git_commit"]

logger = logging.getLogger(__name__)

DIGEST_LENGTH = 36  # MLflow's limit


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
    the stage. A small record file lets a resumed stage reopen its run. The load of the machine is recorded meanwhile.

    Args:
        tracking_uri: where MLflow keeps its runs; a database as ``sqlite:///mlflow.db`` (MLflow refuses file stores).
        experiment: name of the experiment; made when it does not exist.
        name: name of the run.
        params: what to record as parameters; no path and nothing that identifies a patient.
        tags: what to record as tags, None values are left out; also a parent run that this store does not know, which
            is of weights from elsewhere, see :func:`~covid_monai.tracking.lineage`.
        record: JSON file that keeps the run's id. A run recorded there is reopened when ``resume`` is set; else it is
            ended as KILLED if it still counts as RUNNING, since its process left no checkpoint to go on from.
        resume: continue the recorded run instead of beginning a new one.
        enabled: False makes every method do nothing but :meth:`execute` its stage (processes other than the first).
        data: the datalist items of each side that the stage uses. Each side is recorded as an MLflow data set named by
            its data sets and side, whose digest is the beginning of the tag ``data_hash``; the artifact ``data.json``
            lists the slices of each side by :func:`~covid_monai.tracking.hashed_id`.

    Raises:
        ValueError: when ``data`` is given without the tag ``data_hash``.
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
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.name = name
        self.params = dict(params or {})
        self.tags = {"git_commit": git_commit(), "covid_monai": __version__, **(tags or {})}
        self.record = None if record is None else Path(record)
        self.resume = resume
        self.enabled = enabled
        self.data = dict(data or {})
        if self.data and self.tags.get("data_hash") is None:
            raise ValueError("data is given without the tag data_hash: add it to tags, data sets are named by it.")
        self.run_id: str | None = None
        self._client: MlflowClient | None = None
        self._interrupted = threading.Event()

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
            with signals_as_interrupts() as self._interrupted:
                run_id, resumed = self._begin()
                with system_metrics(self.tracking_uri, run_id, resumed):
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

    def raise_if_interrupted(self) -> None:
        """Raise the KeyboardInterrupt of a signal that came while the stage started processes, which Python dropped."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt

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

    def log_json(self, content: dict[str, Any], name: str) -> None:
        """Record JSON as the artifact ``name``."""
        if self.run_id is not None:
            self.client.log_dict(self.run_id, content, name)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Record tags; None values are left out."""
        if self.run_id is not None:
            for key, value in tags.items():
                if value is not None:
                    self.client.set_tag(self.run_id, key, str(value))

    def _begin(self) -> tuple[str, bool]:
        """Begin a run or reopen the recorded one: its id, and whether it was reopened."""
        recorded = self._recorded()
        resumed = self.resume and recorded is not None
        self.run_id = recorded.run_id if recorded is not None and resumed else None
        if self.run_id is None:
            if recorded is not None and recorded.status == "RUNNING":
                with suppress(MlflowException):  # one of another user, perhaps
                    self.client.set_terminated(recorded.run_id, "KILLED")
            self.run_id = self.client.create_run(self.experiment_id(), run_name=self.name).info.run_id
            params = [Param(key, str(value)) for key, value in self.params.items()]
            self.client.log_batch(self.run_id, params=params)
            self._log_data(self.run_id)
        else:
            self.client.update_run(self.run_id, status="RUNNING")
            if "error" in self.client.get_run(self.run_id).data.tags:  # of the attempt that failed
                self.client.delete_tag(self.run_id, "error")
            logger.info("continuing the MLflow run %s", self.run_id)
        self._log_new_tags(self.run_id)
        if not resumed:
            self._write_record({})
        return self.run_id, resumed

    def record_weights(self, sha256: str) -> None:
        """Record the weights that the run has written, so that :func:`lineage` knows them for the run's."""
        if self.run_id is not None:
            self.log_tags({"weights_sha256": sha256})
            self._write_record({"weights_sha256": sha256})

    def _write_record(self, more: dict[str, str]) -> None:
        if self.record is not None:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.record.with_name(f".{self.record.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"experiment": self.experiment, "run_id": self.run_id, **more}) + "\n")
            temporary.replace(self.record)

    def _log_data(self, run_id: str) -> None:
        """Record which slices the run uses, by hashes alone: MLflow's own data sets would record their paths."""
        if not self.data:
            return
        data_hash = str(self.tags["data_hash"])
        source = json.dumps({"data_hash": data_hash})
        inputs = []
        for side, items in self.data.items():
            name = f"{'+'.join(sorted({item['dataset'] for item in items}))}/{side}"
            tags = [InputTag(MLFLOW_DATASET_CONTEXT, side), InputTag("slices", str(len(items)))]
            inputs.append(DatasetInput(Dataset(name, data_hash[:DIGEST_LENGTH], "datalist", source), tags))
        self.client.log_inputs(run_id, inputs)
        self.log_json(
            {side: [hashed_id(item["id"]) for item in items] for side, items in self.data.items()}, "data.json"
        )

    def _log_new_tags(self, run_id: str) -> None:
        """Record the tags; those of a reopened run stay, and what has changed since is recorded beside them."""
        there = self.client.get_run(run_id).data.tags
        new = {key: value for key, value in self.tags.items() if value is not None and there.get(key) != str(value)}
        if (parent := new.get(MLFLOW_PARENT_RUN_ID)) is not None and self._info(parent) is None:
            logger.warning("the weights are of run %s, which this tracking store does not know: no parent run", parent)
            del new[MLFLOW_PARENT_RUN_ID]
        self.log_tags({f"resumed_{key}" if key in there else key: value for key, value in new.items()})

    def _end(self, status: str) -> None:
        if self.run_id is not None:
            self.client.set_terminated(self.run_id, status)

    def _recorded(self) -> RunInfo | None:
        """The run in the record file when it is one of this experiment in this tracking store."""
        run_id = None if self.record is None else recorded_run(self.record)
        info = None if run_id is None else self._info(run_id)
        return info if info is not None and info.experiment_id == self.experiment_id() else None

    def _info(self, run_id: str) -> RunInfo | None:
        """What the tracking store knows of a run; None where it knows no such run."""
        try:
            return self.client.get_run(run_id).info
        except MlflowException:
            return None

    def experiment_id(self) -> str:
        """Id of the experiment, which is made when it does not exist, as is the store."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return experiment.experiment_id
        try:
            return self.client.create_experiment(self.experiment, artifact_location=self._artifact_location())
        except MlflowException:
            experiment = self.client.get_experiment_by_name(self.experiment)  # another process may have made it
            if experiment is None:
                raise
            return experiment.experiment_id

    def _artifact_location(self) -> str | None:
        """Artifacts of a local database lie beside it, not in whatever folder the command ran from."""
        parsed = urlparse(self.tracking_uri)
        if parsed.scheme != "sqlite":
            return None
        return (Path(parsed.path.removeprefix("/")).resolve().parent / "mlruns" / self.experiment).as_uri()


@contextmanager
def signals_as_interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt inside the block, so that what runs there can close what it holds.

    Gives an event that is set then. Python drops what a signal raises while the process forks, as a data loader does to
    start its workers: a loop that forks asks the event too. SIGINT that the process ignores, because a shell started it
    in the background, stays ignored. Outside the main thread, which alone gets signals, nothing is changed.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(number: int, frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt(f"signal {number}")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if number != signal.SIGINT or handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
