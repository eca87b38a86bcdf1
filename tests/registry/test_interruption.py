# SPDX-License-Identifier: Apache-2.0
"""A training that is killed, resumed and registered, against a real MLflow server."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from covid_monai.datasets import prepare
from covid_monai.networks import weights_sha256
from covid_monai.registry import Registry
from tests.bundles.bundle import SINGLE, TINY, Bundle, copy_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bundle(tmp_path: Path, empty_mlflow_database: Path) -> Bundle:
    """The single bundle with small slices of phantoms, labelled ones and others."""
    shares = {"validation": 0.25, "testing": 0.0, "unlabelled_share": 0.25}
    datalist = tmp_path / "data" / "datalist.json"
    prepare("phantom", None, datalist, seed=1, patients=4, slices=4, size=64, healthy=0.0, **shares)
    own = copy_bundle(SINGLE, tmp_path / "own", datalist.parent, empty_mlflow_database, tmp_path / "none")
    (own.folder / "mlflow.db").unlink()  # all is recorded by the server
    return own


def kill(bundle: Bundle, words: list[str], checkpoint: Path, number: int) -> None:
    """Begin a stage, and send it a signal when it has written a checkpoint."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    with bundle.begin(*words) as process:
        try:
            deadline = time.monotonic() + 300
            while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(120) != 0
        finally:
            process.kill()


def test_what_was_killed_resumes_and_is_registered_under_the_same_lineage(
    bundle: Bundle, server: str, run: Callable[..., tuple[int, str, str]]
):
    """Killed softly, then by force, a fine-tuning goes on in its run, below its pre-training; nothing stays RUNNING."""
    client = MlflowClient(server)
    bundle.run("pretraining", **{**TINY, "max_epochs": 1}, tracking_uri=server)
    (pretraining,) = client.search_runs(["1"])
    folder = bundle.folder / "models" / "finetuned"
    checkpoint, record, weights = (folder / name for name in ("checkpoint.pt", "tracking.json", "model.pt"))
    long = {**TINY, "max_epochs": 200, "patience": 200, "val_interval": 1, "ckpt_dir": str(folder)}

    words = bundle.words("finetuning", tracking_uri=server, **long)

    def statuses() -> list[str]:
        found = client.search_runs(["1"], order_by=["start_time"])
        return [f"{each.info.run_name} {each.info.status}" for each in found]

    kill(bundle, words, checkpoint, signal.SIGTERM)
    assert statuses() == ["pretraining FINISHED", "finetuning KILLED"]
    (stopped,) = client.search_runs(["1"], "attributes.status = 'KILLED'")
    assert not list(folder.glob(".*"))  # no half-written file

    kill(bundle, words, checkpoint, signal.SIGKILL)
    assert statuses() == ["pretraining FINISHED", "finetuning RUNNING"]
    epoch = bundle.checkpoint("finetuned")["epoch"]
    output = bundle.run("finetuning", **{**long, "max_epochs": epoch + 1}, tracking_uri=server)
    assert f"resuming after epoch {epoch}" in output
    assert statuses() == ["pretraining FINISHED", "finetuning FINISHED"]

    code, _, fault = run("model", "register", bundle.folder, "--weights", weights)
    assert code == 0, fault
    (version,) = Registry(server).versions()
    resumed = client.get_run(stopped.info.run_id)
    assert version.run_id == resumed.info.run_id
    assert record.read_text().count(resumed.info.run_id) == 1
    sha256 = weights_sha256(weights)
    assert version.tags["weights_sha256"] == resumed.data.tags["weights_sha256"] == sha256
    origin = {
        "started_from_run": pretraining.info.run_id,
        "started_from_sha256": pretraining.data.tags["weights_sha256"],
    }
    assert origin.items() <= version.tags.items()
    assert {**origin, "mlflow.parentRunId": pretraining.info.run_id}.items() <= resumed.data.tags.items()
    assert {key for key in resumed.data.tags if key.startswith("resumed_")} <= {"resumed_git_commit"}  # of a checkout
    assert statuses() == ["pretraining FINISHED", "finetuning FINISHED"]
