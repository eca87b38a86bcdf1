# SPDX-License-Identifier: Apache-2.0
"""What ``make label`` starts: an Orthanc with a synthetic patient in it, and the label server on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import requests

from covid_monai.ct.exchange import send
from covid_monai.datasets.phantom import make_phantom
from covid_monai.label.faults import LabelError
from covid_monai.label.server import ServerSettings, check_port, serve

__all__ = ["run_demo"]

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SEEDS = (2026, 2027)
START_SECONDS = 60
LOOPBACK = "127.0.0.1"


def run_demo(folder: Path, port: int, orthanc_port: int) -> None:
    """Run both until Ctrl-C, and stop both; what they stored is found again by the next run.

    Args:
        folder: for everything.
        port: of the label server.
        orthanc_port: of Orthanc.

    Raises:
        LabelError: Orthanc is not installed or does not start.
        ValueError: as :func:`covid_monai.label.server.serve`.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.exists():
        raise LabelError("Orthanc with DICOMweb is not installed: bash .ci/system_packages installs Debian's.")
    for number, name in ((port, "LABEL_PORT"), (orthanc_port, "ORTHANC_PORT")):  # else another Orthanc might answer
        check_port(LOOPBACK, number, f"end what listens there, of an earlier run perhaps, or make label {name}=….")
    folder = folder.resolve()
    url = f"http://{LOOPBACK}:{orthanc_port}/dicom-web"
    os.umask(0o077)
    store = folder / "orthanc"
    store.mkdir(parents=True, exist_ok=True)
    config = store / "orthanc.json"
    config.write_text(json.dumps(_configuration(store, orthanc_port), indent=1))
    with (store / "log").open("ab") as log:
        orthanc = subprocess.Popen([program, str(config)], stdout=log, stderr=log, cwd=store, start_new_session=True)
    stopping = threading.Event()
    try:
        _wait(url, orthanc, store / "log")
        threading.Thread(target=_tell_end, args=(orthanc, stopping, store / "log"), daemon=True).start()
        _fill(url, folder)
        print(f"Orthanc:     http://{LOOPBACK}:{orthanc_port} (DICOMweb: {url})")
        serve(ServerSettings(url, folder / "label", port=port))
    finally:
        stopping.set()
        orthanc.terminate()
        try:
            orthanc.wait(30)
        except subprocess.TimeoutExpired:
            orthanc.kill()


def _tell_end(orthanc: subprocess.Popen, stopping: threading.Event, log: Path) -> None:
    """Say when Orthanc ends and was not meant to."""
    orthanc.wait()
    if not stopping.is_set():
        print(f"covid-monai: Orthanc has ended, see {log}: stop with Ctrl-C and start again.", file=sys.stderr)


def _configuration(store: Path, port: int) -> dict[str, object]:
    """Only this machine may ask, by HTTP alone.

    Debian's Orthanc 1.10 listens at every address all the same, and answers others with 401.
    """
    return {
        "Name": "covid_monai",
        "StorageDirectory": str(store / "storage"),
        "IndexDirectory": str(store / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "HttpBindAddresses": [LOOPBACK],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if requests.get(f"{url}/studies", timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise LabelError(f"Orthanc did not start, see {log}: is its port free?")


def _fill(url: str, folder: Path) -> None:
    """Store the synthetic patients, unless they are there from an earlier run."""
    if requests.get(f"{url}/studies", timeout=30).json():
        return
    for seed in SEEDS:
        patient = folder / f"patient_{seed}"
        if not patient.exists():
            make_phantom(seed).write_dicom(patient)
        send(sorted(patient.iterdir()), url)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that Orthanc is stopped too
    try:
        run_demo(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
    except (ValueError, OSError) as error:
        sys.exit(f"covid-monai: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
