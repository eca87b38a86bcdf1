# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from covid_monai.training.experiments import Runner, Study, StudyError, runner
from tests.training.experiments.studies import FakeStages

SLEEPER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.default_int_handler)
try:
    Path("ready").touch()
    time.sleep(60)
except KeyboardInterrupt:
    Path("closed").touch()
    sys.exit(1)
"""


@pytest.fixture
def sleeping(study: Study, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner of two stages at once that sleep until they are asked to end."""
    own = Runner(study, tmp_path / "out", tracking_uri, jobs=2)
    monkeypatch.setattr(own, "_command", lambda stage: [sys.executable, "-c", SLEEPER, "listening"])
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    yield own


def signal_when_ready(output: Path, number: int) -> threading.Thread:
    """Send this process a signal when two stages are ready for it."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while len(list(output.glob("*/*/ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_stages(sleeping: Runner, number: int):
    before = signal.getsignal(signal.SIGTERM)
    thread = signal_when_ready(sleeping.output, number)
    with pytest.raises(KeyboardInterrupt):
        sleeping.run()
    thread.join()
    assert len(list(sleeping.output.glob("*/*/closed"))) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    with runner._only_one(sleeping.output):  # no stage is left that holds it
        pass


def test_a_stage_that_does_not_listen_is_killed(sleeping: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sleeping, "_command", lambda stage: [sys.executable, "-c", SLEEPER, "deaf"])
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.2)
    thread = signal_when_ready(sleeping.output, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sleeping.run()
    thread.join()
    assert not list(sleeping.output.glob("*/*/closed"))
    with runner._only_one(sleeping.output):
        pass


def test_a_folder_is_not_run_twice_at_once(study: Study, tmp_path: Path, tracking_uri: str, stages: FakeStages):
    out = tmp_path / "out"
    out.mkdir()
    with runner._only_one(out), pytest.raises(StudyError, match=r"^.*/out is in use by another run of a study"):
        Runner(study, out, tracking_uri).run()
    assert stages.started == []


def test_a_stage_that_outlived_its_runner_keeps_the_folder(tmp_path: Path):
    with runner._only_one(tmp_path) as lock:
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock])
    try:
        with pytest.raises(StudyError, match="or by a stage it left"), runner._only_one(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()
    with runner._only_one(tmp_path):
        pass
