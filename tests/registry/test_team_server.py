# SPDX-License-Identifier: Apache-2.0
"""The server of docs/guide/team_server.md: PostgreSQL, accounts, and artifacts that pass through the server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from covid_monai.inference import LesionSegmenter
from covid_monai.networks import weights_sha256
from covid_monai.registry import Registry, RegistryError
from tests.bundles.bundle import SINGLE
from tests.registry.postgres import cluster
from tests.registry.server import free_port, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FIRST, ADMIN = "the first password", "another password"
TRAINERS, READER = ("ada", "bob"), "cy"


def password(user: str) -> str:
    return ADMIN if user == "admin" else f"password of {user}"


def log_in(patch: pytest.MonkeyPatch, user: str, secret: str | None = None) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", secret or password(user))


@pytest.fixture(scope="module")
def team_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server with its administrator, two who register models, and one who only reads."""
    pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed: pip install 'mlflow[auth]'")
    from mlflow.server.auth.client import AuthServiceClient

    folder, port = tmp_path_factory.mktemp("team"), free_port()
    with cluster(["mlflow", "mlflow_auth"]) as database, pytest.MonkeyPatch.context() as patch:
        config = folder / "basic_auth.ini"
        lines = ["[mlflow]", "default_permission = READ", "admin_username = admin", "auth_cache_ttl_seconds = 60"]
        config.write_text("\n".join([*lines, f"database_uri = {database}/mlflow_auth"]))
        settings = {
            "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": FIRST,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret key of the tests",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        words = ["server", "--app-name", "basic-auth", "--artifacts-destination", str(folder / "artifacts")]
        words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
        with running(words, f"http://127.0.0.1:{port}", folder / "server.log", **settings) as address:
            patch.setenv("MLFLOW_TRACKING_URI", address)
            log_in(patch, "admin", FIRST)
            accounts = AuthServiceClient(address)
            accounts.update_user_password("admin", ADMIN, current_password=FIRST)
            log_in(patch, "admin")
            for user in (*TRAINERS, READER):
                accounts.create_user(user, password(user))
            for user in TRAINERS:
                for kind in ("experiment", "registered_model"):
                    accounts.grant_user_permission(user, kind, "*", "EDIT")
            yield address


@pytest.fixture(scope="module")
def registered_at_once(team_server: str, whole: Path) -> list[str]:
    """What two processes say that register the same bundle at once, each by its own account."""
    words = [sys.executable, "-m", "covid_monai.cli", "model", "register", str(whole)]
    both = []
    for user in TRAINERS:
        account = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password(user)}
        environment = {**os.environ, **account, "OMP_NUM_THREADS": "1"}
        both.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return [out for out, _ in said]


@pytest.mark.parametrize(("user", "secret"), [("ada", "not the password"), ("nobody", "not the password"), ("", "")])
def test_a_wrong_password_is_told_in_one_line(
    team_server: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
    user: str,
    secret: str,
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    assert run("model", "list") == (
        2,
        "",
        f"covid-monai: the models of {team_server} cannot be listed: the server does not know this user by this "
        "password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


def test_the_first_password_is_worth_nothing_once_it_was_changed(team_server: str, monkeypatch: pytest.MonkeyPatch):
    log_in(monkeypatch, "admin", FIRST)
    with pytest.raises(RegistryError, match="does not know this user by this password"):
        Registry(team_server).versions()


def test_two_who_register_at_once_lose_nothing(
    team_server: str,
    registered_at_once: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
):
    log_in(monkeypatch, READER)
    assert sorted(each.splitlines()[0].split()[1].rstrip(",") for each in registered_at_once) == [
        f"models:/{SINGLE}/{number}" for number in (1, 2)
    ]
    code, said, _ = run("model", "list")
    assert code == 0
    assert [f"models:/{SINGLE}/{number}" in said for number in (1, 2, 3)] == [True, True, False]
    assert said.count("challenger") == 1
    for number in (1, 2):
        code, said, fault = run("model", "pull", f"models:/{SINGLE}/{number}", tmp_path / str(number))
        assert code == 0, fault
        weights = tmp_path / str(number) / "models" / "model.pt"
        assert weights_sha256(weights) == weights_sha256(whole / "models" / "model.pt")
        LesionSegmenter.from_bundle(tmp_path / str(number), "cpu")
    runs = MlflowClient(team_server).search_runs(["1"])
    assert [(each.info.run_name, each.info.status) for each in runs] == [("registering", "FINISHED")] * 2


def test_who_only_reads_registers_nothing(
    team_server: str,
    registered_at_once: list[str],
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
):
    log_in(monkeypatch, READER)
    code, said, fault = run("model", "register", whole)
    assert (code, said) == (2, "")
    assert fault.startswith(f"covid-monai: {SINGLE} cannot be registered: the server does not allow it to this user")
    assert "\n" not in fault
    registry = Registry(team_server)
    assert [each.number for each in registry.versions()] == [1, 2]
    with pytest.raises(RegistryError, match=r"champion of .* cannot be set: the server does not allow it"):
        registry.point("champion", registry.find(f"models:/{SINGLE}/1"))
