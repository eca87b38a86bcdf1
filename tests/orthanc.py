# SPDX-License-Identifier: Apache-2.0
"""A real Orthanc on loopback with storage that is thrown away, for tests of what goes to an archive and back."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
import requests
from pydicom import Dataset, dcmread

PROGRAM = "Orthanc"
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CALLING = "COVID_MONAI"
START_SECONDS = 30


@dataclass(frozen=True)
class Orthanc:
    """Where a running Orthanc listens."""

    http_port: int
    dicom_port: int

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def dicom(self) -> str:
        return f"dicom://{CALLING}@ORTHANC@127.0.0.1:{self.dicom_port}"

    def instances(self) -> list[Dataset]:
        """All that is stored, as files give it back."""
        root = f"http://127.0.0.1:{self.http_port}/instances"
        found = requests.get(root, timeout=30).json()
        return [dcmread(BytesIO(requests.get(f"{root}/{name}/file", timeout=30).content)) for name in found]

    def delete(self, instance: str) -> None:
        """Delete one image, by its SOPInstanceUID."""
        root = f"http://127.0.0.1:{self.http_port}"
        (name,) = [each["ID"] for each in requests.post(f"{root}/tools/lookup", instance, timeout=30).json()]
        requests.delete(f"{root}/instances/{name}", timeout=30).raise_for_status()

    def clear(self) -> None:
        """Delete all that is stored."""
        root = f"http://127.0.0.1:{self.http_port}/patients"
        for name in requests.get(root, timeout=30).json():
            requests.delete(f"{root}/{name}", timeout=30).raise_for_status()


@contextmanager
def running_orthanc() -> Iterator[Orthanc]:
    """Start Orthanc and stop it; skips the test, with the reason, where Orthanc or its plugin is not installed."""
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin")
    if program is None or not DICOMWEB.exists():
        pytest.skip(f"Orthanc with DICOMweb is not installed (no {DICOMWEB if program else PROGRAM})")
    for _ in range(3):  # another process may take a port meanwhile
        with tempfile.TemporaryDirectory(prefix="orthanc-") as folder:
            server = Orthanc(*_free_ports())
            config = Path(folder, "orthanc.json")
            config.write_text(json.dumps(_configuration(server, folder)))
            log = Path(folder, "log")
            with log.open("wb") as stream:
                process = subprocess.Popen([program, str(config)], stdout=stream, stderr=stream, cwd=folder)
            try:
                if _answers(server, process):
                    yield server
                    return
            finally:
                process.terminate()
                process.wait(30)
            text = log.read_text(errors="replace")
    raise RuntimeError(f"Orthanc did not start:\n{text}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _configuration(server: Orthanc, folder: str) -> dict:
    """Only this machine may ask (HTTP) or store (DICOM, known AE title and address)."""
    return {
        "Name": "tests",
        "StorageDirectory": folder,
        "IndexDirectory": folder,
        "Plugins": [str(DICOMWEB)],
        "HttpPort": server.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": server.dicom_port,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"tests": [CALLING, "127.0.0.1", server.dicom_port]},
        "OverwriteInstances": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _answers(server: Orthanc, process: subprocess.Popen) -> bool:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if requests.get(f"{server.dicomweb}/studies", timeout=5).ok:
                return True
        except requests.ConnectionError:
            time.sleep(0.1)
    return False
