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


STARTED_FROM = "started_from"


def lineage(weights: str | os.PathLike, role: str = STARTED_FROM) -> dict[str, str]:
    """Tags that link a run to weights that it uses and to the run that made them.

    Args:
        weights: a file of weights. The run that made it is read from ``tracking.json`` beside it, see
            :meth:`covid_monai.tracking.TrackedRun.record_weights`; weights from elsewhere have none, nor have those
            that the record does not name by their SHA-256.
        role: what they are to the run, the beginning of the tags' names; by default what it started from.

    Returns:
        ``<role>_sha256``, and where the run is recorded its id as ``<role>_run``; with the default role also as
        ``mlflow.parentRunId``, under which MLflow shows runs nested.

    Raises:
        ValueError: when the weights cannot be read.
    """
    weights = Path(weights)
    try:
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"no weights at {weights} ({error.strerror}): train them, or name others.") from error
    run_id = recorded_run(weights.with_name(RECORD), sha256)
    tags = {f"{role}_sha256": sha256}
    if run_id is not None:
        tags[f"{role}_run"] = run_id
        if role == STARTED_FROM:
            tags[MLFLOW_PARENT_RUN_ID] = run_id
    return tags


def recorded_run(record: Path, weights_sha256: str | None = None) -> str | None:
    """Run id in a record file; None where there is none or it is torn, or it names other weights than asked for."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        run_id = content["run_id"]
        named = weights_sha256 is None or content.get("weights_sha256") == weights_sha256
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return run_id if named and isinstance(run_id, str) else None
