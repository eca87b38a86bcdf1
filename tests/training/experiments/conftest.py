# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from covid_monai.training.experiments import Study, load_study, runner
from tests.training.experiments.studies import CASCADE, CONFIGS, STUDY, FakeStages


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write :data:`STUDY` with some entries changed, beside bundles of hardly more than their keys."""
    for name in ("bundle", "cascade_bundle"):
        configs = tmp_path / name / "configs"
        configs.mkdir(parents=True)
        for config, content in CONFIGS.items():
            more = {"single_weights": "single.pt"} if (name, config) == ("cascade_bundle", "train.yaml") else {}
            (configs / config).write_text(yaml.safe_dump({**content, **more}))

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return path

    return write


@pytest.fixture
def study(write: Callable[..., Path]) -> Study:
    return load_study(write())


@pytest.fixture
def both(write: Callable[..., Path]) -> Study:
    """The study with a cascade, and with two sides to evaluate on."""
    return load_study(write(cascade=CASCADE, evaluate_on=["testing", "validation"]))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fake = FakeStages()
    monkeypatch.setattr(runner, "Popen", fake)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    return fake


@pytest.fixture(autouse=True)
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data are read: their hash is ``first``."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(runner, "data_hash", lambda path: "first")
