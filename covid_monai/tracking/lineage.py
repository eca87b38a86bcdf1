# SPDX-License-Identifier: Apache-2.0
"""Which run made the weights that a run starts from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

__all__ = ["lineage", "recorded_run"]

RECORD = "tracking.json"


def lineage(weights: str | os.PathLike) -> dict[str, str]:
    """Tags that link a run to the weights it starts from and to the run that made them.

    Args:
        weights: a file of weights. The run that made it is read from ``tracking.json`` beside it, see the ``record`` of
            :class:`~covid_monai.tracking.TrackedRun`; weights from elsewhere have none.

    Returns:
        ``started_from_sha256``, and where the run is recorded its id as ``started_from_run`` and as
        ``mlflow.parentRunId``, under which MLflow shows runs nested.

    Raises:
        ValueError: when the weights cannot be read.
    """
    weights = Path(weights)
    try:
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"no weights at {weights} ({error.strerror}): train them, or name others.") from error
    run_id = recorded_run(weights.with_name(RECORD))
    run = {} if run_id is None else {MLFLOW_PARENT_RUN_ID: run_id, "started_from_run": run_id}
    return {**run, "started_from_sha256": sha256}


def recorded_run(record: Path) -> str | None:
    """Run id in a record file; None where there is no such file or it is torn."""
    try:
        run_id = json.loads(record.read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return run_id if isinstance(run_id, str) else None
