# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from covid_monai.tracking import TrackedRun, lineage

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ELSEWHERE = "0123456789abcdef0123456789abcdef"  # a run of another store

RECORD = {"experiment": "lungs", "run_id": ELSEWHERE, "weights_sha256": SHA256}

Make = Callable[..., TrackedRun]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights in a folder of their own, without a record of the run that made them."""
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def test_weights_are_named_by_their_run_and_their_hash(weights: Path):
    weights.with_name("tracking.json").write_text(json.dumps(RECORD))
    assert lineage(weights) == {
        "mlflow.parentRunId": ELSEWHERE,
        "started_from_run": ELSEWHERE,
        "started_from_sha256": SHA256,
    }


def test_weights_in_another_role_are_no_parent(weights: Path):
    weights.with_name("tracking.json").write_text(json.dumps(RECORD))
    assert lineage(weights, "single") == {"single_run": ELSEWHERE, "single_sha256": SHA256}


def test_a_record_of_other_weights_names_no_run(weights: Path):
    weights.with_name("tracking.json").write_text(json.dumps(RECORD))
    other = weights.with_name("single.pt")
    other.write_bytes(b"other weights")
    assert lineage(other) == {"started_from_sha256": hashlib.sha256(b"other weights").hexdigest()}


@pytest.mark.parametrize(
    "record",
    [None, json.dumps({"run_id": ELSEWHERE}), '{"run_id": "0123', "{}", "[]", '{"run_id": null}', '{"run_id": 3}'],
)
def test_without_a_record_of_their_run_the_hash_is_left(weights: Path, record: str | None):
    if record is not None:
        weights.with_name("tracking.json").write_text(record)
    assert lineage(str(weights)) == {"started_from_sha256": SHA256}


def test_weights_that_are_not_there_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^no weights at .*model\.pt \(No such file or directory\)"):
        lineage(tmp_path / "model.pt")


def test_runs_stand_nested_from_pretraining_to_evaluation(
    tracked: Make, client: MlflowClient, weights: Path, tmp_path: Path
):
    first = tracked("pretraining", record=weights.with_name("tracking.json"))
    first.execute(lambda: first.record_weights(SHA256))
    second = tracked("finetuning", tags=lineage(weights), record=tmp_path / "tuned" / "tracking.json")
    tuned = hashlib.sha256(b"tuned").hexdigest()
    second.execute(lambda: (tmp_path / "tuned" / "model.pt").write_bytes(b"tuned") and second.record_weights(tuned))
    third = tracked("evaluating", tags=lineage(tmp_path / "tuned" / "model.pt"))
    third.execute(lambda: None)

    experiment = client.get_experiment_by_name("lungs")
    assert experiment is not None
    for parent, child, content in ((first, second, CONTENT), (second, third, b"tuned")):
        query = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        (found,) = client.search_runs([experiment.experiment_id], query)
        assert found.info.run_id == child.run_id
        assert found.data.tags["started_from_run"] == parent.run_id
        assert found.data.tags["started_from_sha256"] == hashlib.sha256(content).hexdigest()
        assert client.get_run(parent.run_id or "").data.tags["weights_sha256"] == hashlib.sha256(content).hexdigest()


def test_a_parent_in_another_store_is_left_out_and_told(
    tracked: Make, client: MlflowClient, weights: Path, caplog: pytest.LogCaptureFixture
):
    weights.with_name("tracking.json").write_text(json.dumps(RECORD))
    run = tracked(tags=lineage(weights))
    with caplog.at_level(logging.WARNING, "covid_monai"):
        run.execute(lambda: None)
    found = client.get_run(run.run_id or "")
    assert found.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in found.data.tags
    assert found.data.tags["started_from_run"] == ELSEWHERE
    assert found.data.tags["started_from_sha256"] == SHA256
    assert [record.message for record in caplog.records if ELSEWHERE in record.message] == [
        f"the weights are of run {ELSEWHERE}, which this tracking store does not know: no parent run"
    ]


def test_a_resumed_run_keeps_its_parent_and_names_the_new_one_beside_it(
    tracked: Make, client: MlflowClient, weights: Path, tmp_path: Path
):
    record = tmp_path / "tuned" / "tracking.json"
    parents = [tracked("pretraining", record=weights.with_name("tracking.json")) for _ in range(2)]
    for parent in parents:
        parent.execute(partial(parent.record_weights, SHA256))
        run = tracked("finetuning", tags=lineage(weights), record=record, resume=True)
        run.execute(lambda: None)
    tags = client.get_run(run.run_id or "").data.tags
    assert tags["mlflow.parentRunId"] == tags["started_from_run"] == parents[0].run_id
    assert tags["resumed_mlflow.parentRunId"] == tags["resumed_started_from_run"] == parents[1].run_id
    assert "resumed_started_from_sha256" not in tags
