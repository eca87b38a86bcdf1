# SPDX-License-Identifier: Apache-2.0
"""What ``make label`` starts: an Orthanc with a synthetic patient in it, and the label server on it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
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
    folder = folder.resolve()
    url = f"http://127.0.0.1:{orthanc_port}/dicom-web"
    settings = ServerSettings(url, folder / "label", port=port)
    settings.check()
    check_port("127.0.0.1", orthanc_port)  # else another Orthanc might answer
    store = folder / "orthanc"
    store.mkdir(parents=True, exist_ok=True)
    config = store / "orthanc.json"
    config.write_text(json.dumps(_configuration(store, orthanc_port), indent=1))
    with (store / "log").open("ab") as log:
        orthanc = subprocess.Popen([program, str(config)], stdout=log, stderr=log, cwd=store, start_new_session=True)
    try:
        _wait(url, orthanc, store / "log")
        _fill(url, folder)
        print(f"Orthanc:     http://127.0.0.1:{orthanc_port} (DICOMweb: {url})")
        serve(settings)
    finally:
        orthanc.terminate()
        try:
            orthanc.wait(30)
        except subprocess.TimeoutExpired:
            orthanc.kill()


def _configuration(store: Path, port: int) -> dict[str, object]:
    """Only this machine may ask, by HTTP alone."""
    return {
        "Name": "covid_monai",
        "StorageDirectory": str(store / "storage"),
        "IndexDirectory": str(store / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
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
