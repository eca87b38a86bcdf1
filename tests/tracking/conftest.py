# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient

from covid_monai.tracking import TrackedRun


@pytest.fixture(autouse=True)
def id_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that ids are hashed with, so that no test makes one in the user's folder."""
    monkeypatch.setenv("COVID_MONAI_ID_KEY", "key of the tests")
    return "key of the tests"


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri)


@pytest.fixture
def tracked(tracking_uri: str) -> Callable[..., TrackedRun]:
    """Make a run of the experiment ``lungs`` in the test's own store."""

    def make(name: str = "training", **options: Any) -> TrackedRun:
        return TrackedRun(tracking_uri, "lungs", name, **options)

    return make
