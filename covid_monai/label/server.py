# SPDX-License-Identifier: Apache-2.0
"""The server: MONAI Label with this app in it, on loopback."""

from __future__ import annotations

import contextlib
import importlib
import io
import ipaddress
import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from covid_monai.ct.exchange import PASSWORD, USER, check_address
from covid_monai.label.compatibility import prepare_monailabel
from covid_monai.label.faults import LabelError, archive_fault

__all__ = ["SERVER", "ServerSettings", "check_port", "serve"]

SERVER = "COVID_MONAI_LABEL_SERVER"
"""Environment variable with the number of the server's process, for those that it starts."""
APP_FOLDER = Path(__file__).parent / "app_folder"


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs.

    Attributes:
        studies: folder of NIfTI files, or root of a DICOMweb service.
        work: folder of what the server makes: trained weights, MLflow's database, what it fetched from the archive.
        host: address to listen at.
        port: port to listen at.
        bundle: folder of the MONAI bundle; None for the one that is shipped.
        device: cpu, cuda or cuda:N; None for CUDA when there is one.
    """

    studies: str
    work: Path
    host: str = "127.0.0.1"
    port: int = 8000
    bundle: Path | None = None
    device: str | None = None

    @property
    def remote(self) -> bool:
        """Whether the studies lie in an archive."""
        return self.studies.startswith(("http://", "https://"))

    def check(self) -> None:
        """Refuse what is unsafe or cannot work, before anything starts.

        Raises:
            LabelError: saying what to do.
        """
        if not _loopback(self.host):
            raise LabelError(
                f"{self.host} can be reached from other machines, and MONAI Label has no login that works: leave out "
                "--host, and reach it through an SSH tunnel (ssh -L PORT:127.0.0.1:PORT HOST)."
            )
        if self.remote:
            check_address(self.studies)
        elif not Path(self.studies).is_dir():
            raise LabelError(
                f"{self.studies} is no folder: give one with NIfTI files, or the address of a DICOMweb service."
            )
        check_port(self.host, self.port)


def check_port(host: str, port: int, remedy: str = "give another with --port.") -> None:
    """Refuse a port that another program listens at.

    Args:
        host: its address.
        port: the port.
        remedy: what to do, the end of the message.

    Raises:
        LabelError: it is not free, or no port.
    """
    if not 0 < port < 2**16:
        raise LabelError(f"{port} is no port: give 1 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LabelError(f"port {port} of {host} is not free: {remedy}") from error


def serve(settings: ServerSettings) -> None:
    """Run the server until it is interrupted.

    Raises:
        ValueError: the settings, the bundle or its weights cannot be used, or MONAI Label is not installed.
    """
    settings.check()
    os.umask(0o077)  # names of folders are UIDs of patients' series
    settings.work.mkdir(parents=True, exist_ok=True)
    settings.work.chmod(0o700)  # also what an earlier version made
    prepare_monailabel()
    os.environ.update(_environment(settings))
    uvicorn = importlib.import_module("uvicorn")
    guard = importlib.import_module("covid_monai.label.guard")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that every origin is allowed; the guard allows its own
        application = importlib.import_module("monailabel.app").app
    app = importlib.import_module("monailabel.interfaces.utils.app").app_instance()  # refused now, not by each request
    guard.tell_faults(application)
    importlib.import_module("covid_monai.label.ohif").complete_ohif(application)
    address = f"http://{settings.host}:{settings.port}"
    print(f"MONAI Label: {address}")
    if settings.remote:
        print(f"OHIF:        {address}/ohif/")
    if problem := _why_no_scans(app.datastore()):
        print(f"warning:     {problem}")
    print("research use only, not a medical device; stop with Ctrl-C", flush=True)
    # uploads that MONAI Label forgets go with the server; a deep folder would be too long for sockets of data loaders
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            uvicorn.run(guard.Guard(application), host=settings.host, port=settings.port, log_level="warning")
        finally:  # trainings and the like, for which this process would wait
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()


def _why_no_scans(datastore: Any) -> str | None:
    """What to tell somebody whose viewer will list no scan."""
    try:
        return None if datastore.list_images() else "no scan is there yet."
    except OSError as error:
        if fault := archive_fault(error):
            return fault
        raise


def _environment(settings: ServerSettings) -> dict[str, str]:
    """What MONAI Label's settings read, here and in its child processes."""
    conf = {"work": str(settings.work.resolve()), "device": settings.device or ""}
    if settings.bundle:
        conf["bundle"] = str(settings.bundle.resolve())
    studies = settings.studies if settings.remote else str(Path(settings.studies).resolve())
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    archive = {"MONAI_LABEL_DICOMWEB_USERNAME": user, "MONAI_LABEL_DICOMWEB_PASSWORD": password}
    return {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # which MONAI Label's child processes need to be there
        SERVER: str(os.getpid()),
        "MONAI_LABEL_APP_DIR": str(APP_FOLDER),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_APP_CONF": json.dumps(conf),
        "MONAI_LABEL_SERVER_PORT": str(settings.port),
        "MONAI_LABEL_SESSIONS": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # a label is scored when it is saved
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "true",
        **(archive if user and password else {}),  # type: ignore[dict-item]
    }


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
