# SPDX-License-Identifier: Apache-2.0
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covid_monai import cli
from covid_monai.registry import Registry, Version
from tests.bundles.bundle import SINGLE
from tests.conftest import BUNDLES
from tests.registry.server import free_port, running


@pytest.fixture(scope="session", autouse=True)
def id_key() -> Iterator[None]:
    """The key that ids are hashed with, so that no test makes one in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVID_MONAI_ID_KEY", "key of the tests")
        yield


@pytest.fixture(scope="session")
def whole(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bundle` with its documents and licence, and a folder of data beside them; only to read."""
    folder = tmp_path_factory.mktemp("whole") / SINGLE
    shutil.copytree(tiny_bundle, folder)
    shutil.copytree(BUNDLES / SINGLE / "docs", folder / "docs")
    shutil.copy(BUNDLES / SINGLE / "LICENSE", folder)
    (folder / "data").mkdir()
    (folder / "data" / "slice.png").write_bytes(b"a patient's")
    return folder


@pytest.fixture(scope="session")
def registered(whole: Path, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A store in which `whole` is registered as version 1; only to read."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}")
    registry.register(whole)
    return registry


@pytest.fixture
def registry(tracking_uri: str) -> Registry:
    """A store of its own for a test, without models."""
    return Registry(tracking_uri)


@pytest.fixture
def add_version(registry: Registry) -> Callable[..., Version]:
    """Add the next version of the model ``lungs``, the challenger: its tags alone, with no model behind them."""

    def add(**tags: str) -> Version:
        if not registry.client.search_registered_models():
            registry.client.create_registered_model("lungs")
        made = registry.client.create_model_version(
            "lungs", "file:///nowhere", tags={"weights_sha256": "0" * 64, **tags}
        )
        registry.point("challenger", registry.find(f"models:/lungs/{made.version}"))
        return registry.find(f"models:/lungs/{made.version}")

    return add


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where the server keeps the models."""
    return tmp_path / "artifacts"


@pytest.fixture
def server(tracking_uri: str, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    words = ["server", "--backend-store-uri", tracking_uri, "--artifacts-destination", str(artifacts), "--workers", "1"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # processes that are not needed here
    with running(words, f"http://127.0.0.1:{port}", tmp_path / "server.log", **jobs) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, output, and the lines of faults."""

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        faults = [line for line in captured.err.splitlines() if line.startswith("covid-monai: ")]
        return code, captured.out, "\n".join(faults)

    return call
