# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL cluster that tests start for themselves."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.registry.server import WAIT_SECONDS, free_port


def _binaries() -> Path:
    """Debian keeps the server's programs off the path, a folder for each version."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def _user() -> dict[str, Any]:
    """PostgreSQL refuses root: who runs it in root's place."""
    if os.getuid() != 0:
        return {}
    known = {each.pw_name: each for each in pwd.getpwall()}
    other = known.get("postgres") or known["nobody"]
    return {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}


@contextmanager
def cluster(databases: list[str]) -> Iterator[str]:
    """A new cluster at a free port of this machine, with databases of the role ``mlflow``.

    Gives the URL of a database without its name, as SQLAlchemy wants it.
    """
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    binaries, user, port, password = _binaries(), _user(), free_port(), secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="covid-monai-"))  # pytest's own folders are closed to other users
    try:
        (folder / "password").write_text(password)
        if user:
            shutil.chown(folder, user["user"], user["group"])
            shutil.chown(folder / "password", user["user"], user["group"])
        made = [binaries / "initdb", "--pgdata", folder / "data", "--username", "postgres", "--no-sync"]
        made += ["--pwfile", folder / "password", "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"]
        subprocess.run(made, check=True, cwd=folder, capture_output=True, **user)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        words = [binaries / "postgres", "-D", folder / "data", "-p", str(port), *settings]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, **user)
        try:
            login = {"host": "127.0.0.1", "port": port, "user": "postgres", "password": password}
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                try:
                    with psycopg.connect(**login, autocommit=True) as connection:
                        connection.execute(f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'")
                        for name in databases:
                            connection.execute(f"CREATE DATABASE {name} OWNER mlflow")
                    break
                except psycopg.OperationalError:
                    log_text = (folder / "log").read_text()[-3000:]
                    assert process.poll() is None and time.monotonic() < deadline, log_text
                    time.sleep(0.2)
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # which ends its connections
            process.wait(60)
    finally:
        shutil.rmtree(folder)
