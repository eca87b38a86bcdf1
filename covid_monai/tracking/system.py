# SPDX-License-Identifier: Apache-2.0
"""Load of processor, memory, disk, network and GPU while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

__all__ = ["system_metrics"]

logger = logging.getLogger(__name__)


@contextmanager
def system_metrics(tracking_uri: str, run_id: str, resumed: bool) -> Iterator[None]:
    """Record MLflow's system metrics (``system/...``) every 10 s while the block runs, and once when it ends.

    They are figures of the whole machine: no name of a host, a process or a path is among them. What they are read from
    may be missing or out of reach; that is logged and never ends the block.

    Args:
        tracking_uri: where MLflow keeps its runs.
        run_id: the run to record in, which is RUNNING.
        resumed: go on after the steps that the run has.
    """
    try:
        monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=tracking_uri)
    except Exception as error:  # whatever a machine's counters raise
        logger.warning("system metrics are not recorded (%s)", type(error).__name__)
        yield
        return
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        try:  # the monitor itself drops what it collected since it last published: of a short run, everything
            monitor.collect_metrics()
            monitor.publish_metrics(monitor.aggregate_metrics())
            monitor.mlflow_logger.flush()
        except Exception as error:
            logger.warning("the last system metrics are not recorded (%s)", type(error).__name__)
