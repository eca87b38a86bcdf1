# SPDX-License-Identifier: Apache-2.0
"""The label server as users start it, on a free port, and what a viewer asks it."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests

START_SECONDS = 180
TIMEOUT = 300


@dataclass
class LabelServer:
    """A running server.

    Attributes:
        port: where it listens.
        process: it.
        log: what it printed so far.
        work: its folder.
    """

    port: int
    process: subprocess.Popen
    log: Path
    work: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return requests.request(method, f"{self.url}{path}", timeout=TIMEOUT, **more)

    def infer(
        self, model: str, image: str, params: Mapping[str, Any] | None = None, output: str = "all"
    ) -> requests.Response:
        """As MONAI Label's client, which 3D Slicer uses, asks."""
        form = {"params": (None, json.dumps(params or {}))}
        return self.ask("POST", f"/infer/{model}", params={"image": image, "output": output}, files=form)

    def mask(self, model: str, image: str, params: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], bytes]:
        """Figures and the bytes of the mask."""
        from requests_toolbelt import MultipartDecoder  # comes with MONAI Label

        response = self.infer(model, image, params)
        assert response.status_code == 200, response.text
        figures, file = MultipartDecoder.from_response(response).parts
        return json.loads(figures.text), file.content

    def save(self, image: str, file: Path, tag: str = "final", params: Any = None) -> requests.Response:
        """As MONAI Label's client saves a label."""
        with file.open("rb") as stream:
            files = {"label": (file.name, stream), "params": (None, json.dumps(params or {}))}
            return self.ask("PUT", "/datastore/label", params={"image": image, "tag": tag}, files=files)

    def wait(self, task: str, seconds: float = 600) -> dict[str, Any]:
        """The last task of a kind (``train``, ``batch/infer``, ``scoring``), when it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.ask("GET", f"/{task}/" if task != "batch/infer" else f"/{task}").json()
            if found.get("status") not in ("SUBMITTED", "RUNNING"):
                return found
            time.sleep(0.5)
        raise AssertionError(f"{task} did not end")


@contextmanager
def running_server(studies: object, work: Path, *words: object, **environment: str) -> Iterator[LabelServer]:
    """Start the server and stop it with Ctrl-C; skips the test where MONAI Label is not installed."""
    if importlib.util.find_spec("monailabel") is None:
        pytest.skip("MONAI Label is not installed (make label-install)")
    with tempfile.TemporaryDirectory(prefix="label-server-") as folder:
        port = free_port()
        log = Path(folder, "log")
        line = [sys.executable, "-m", "covid_monai.cli", "label", studies, "--work", work, "--port", port, *words]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                list(map(str, line)),
                stdout=stream,
                stderr=stream,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
            )
        server = LabelServer(port, process, log, work)
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(server):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the label server did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.2)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def array_of(content: bytes, suffix: str = ".nii.gz") -> Any:
    """Voxels (X, Y, Z) of a mask's bytes."""
    import SimpleITK

    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(BytesIO(content).getvalue())
        file.flush()
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file.name)).transpose()


def _answers(server: LabelServer) -> bool:
    try:
        return requests.get(f"{server.url}/openapi.json", timeout=30).ok
    except requests.ConnectionError:
        return False
