# SPDX-License-Identifier: Apache-2.0
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from covid_monai.tracking import TrackedRun, system

CPU = "system/cpu_utilization_percentage"

Make = Callable[..., TrackedRun]


def watched() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_a_short_stage_has_one_sample_of_each(tracked: Make, client: MlflowClient):
    run = tracked()
    during = run.execute(watched)
    assert len(during) == 1
    assert watched() == []
    metrics = client.get_run(run.run_id or "").data.metrics
    for name in (CPU, "system/system_memory_usage_percentage", "system/disk_usage_percentage"):
        assert 0 <= metrics[name] <= 100
        assert [metric.step for metric in client.get_metric_history(run.run_id or "", name)] == [0]
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_a_longer_stage_has_more(tracked: Make, client: MlflowClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run = tracked()
    run.execute(lambda: time.sleep(0.6))
    steps = [metric.step for metric in client.get_metric_history(run.run_id or "", CPU)]
    assert len(steps) >= 3
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("fault", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_watching_ends_whatever_happens(tracked: Make, client: MlflowClient, fault: type[BaseException]):
    def stage() -> None:
        assert len(watched()) == 1
        raise fault

    run = tracked()
    with pytest.raises(fault):
        run.execute(stage)
    assert watched() == []
    found = client.get_run(run.run_id or "")
    assert found.info.status == ("FAILED" if fault is ZeroDivisionError else "KILLED")
    assert CPU in found.data.metrics


def test_a_resumed_run_goes_on_after_its_samples(tracked: Make, client: MlflowClient, tmp_path: Path):
    for _ in range(3):
        run = tracked(record=tmp_path / "tracking.json", resume=True)
        run.execute(lambda: None)
    history = client.get_metric_history(run.run_id or "", CPU)
    assert [metric.step for metric in history] == [0, 1, 2]


@pytest.mark.parametrize("method", ["__init__", "collect_metrics", "publish_metrics"])
def test_counters_out_of_reach_do_not_end_the_stage(
    tracked: Make,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
):
    def fail(self: SystemMetricsMonitor, *args: object, **options: object) -> None:
        raise PermissionError("/proc/net/dev")

    monkeypatch.setattr(SystemMetricsMonitor, method, fail)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # of the monitor's own thread
    run = tracked()
    with caplog.at_level(logging.WARNING, system.__name__):
        assert run.execute(lambda: "result") == "result"
    assert watched() == []
    found = client.get_run(run.run_id or "")
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {}
    (line,) = [record.message for record in caplog.records if record.name == system.__name__]
    assert "not recorded (PermissionError)" in line


def test_a_disabled_run_is_not_watched(tmp_path: Path):
    run = TrackedRun(f"sqlite:///{tmp_path}/mlflow.db", "lungs", "training", enabled=False)
    assert run.execute(watched) == []
