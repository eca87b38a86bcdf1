# SPDX-License-Identifier: Apache-2.0
"""The life of a model, by the commands of the manual, against a real MLflow server."""

import base64
import io
import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covid_monai.datasets import prepare
from covid_monai.datasets.phantom import Phantom, upright
from covid_monai.networks import weights_sha256
from covid_monai.registry import Registry
from tests.bundles.bundle import SINGLE
from tests.conftest import BUNDLES
from tests.registry.server import WAIT_SECONDS, free_port, running
from tests.registry.test_contents import flip_a_byte

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def shipped_single(whole: Path, tmp_path: Path) -> Path:
    """The shipped single bundle, a trained network under the name of `whole`."""
    shutil.copytree(BUNDLES / SINGLE, tmp_path / "shipped" / SINGLE)
    return tmp_path / "shipped" / SINGLE


def asked(address: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a served model answers to rows of scans."""
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps({"dataframe_records": rows}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        return json.load(answer)["predictions"]


def check_served(champion: str, server: str, phantom: Phantom, phantom_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Serve a model by its alias and ask it for paths and arrays; the answer for the phantom's file."""
    port = free_port()
    words = ["models", "serve", "--model-uri", champion, "--env-manager", "local", "--host", "127.0.0.1"]
    address = f"http://127.0.0.1:{port}"
    with running([*words, "--port", str(port)], address, tmp_path / "serve.log", MLFLOW_TRACKING_URI=server):
        file = io.BytesIO()
        np.save(file, upright(phantom.hu))
        dx, dy, dz = (float(length) for length in np.abs(np.diag(phantom.affine))[:3])
        array = {"array": base64.b64encode(file.getvalue()).decode(), "dz": dz, "dy": dy, "dx": dx}
        rows = [{"path": str(phantom_folder / "image.nii.gz")}, {"path": str(phantom_folder / "none")}]
        by_path, bad = asked(address, rows)
        (by_array,) = asked(address, [array])
    assert by_path["error"] is None
    # weights for 256 x 320 pixels see little in a phantom of 96 x 96; that `analyse` gives the same comes below
    assert phantom.truth["lesion_ml"] / 2 < by_path["lesion_ml"] < phantom.truth["lung_ml"]
    assert by_array["lesion_ml"] == pytest.approx(by_path["lesion_ml"], rel=1e-3)
    assert by_array["weights_sha256"] == by_path["weights_sha256"]
    assert bad["lesion_ml"] is None
    assert "does not exist" in bad["error"]
    return by_path


def check_changed_byte(
    weights: Path, champion: str, phantom_folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Weights of which a byte was changed on the server are refused, and taken again when they are restored."""
    kept = weights.read_bytes()
    flip_a_byte(weights)
    code, _, fault = run("model", "pull", champion, tmp_path / "pulled")
    assert (code, (tmp_path / "pulled").exists()) == (2, False)
    assert "was changed: its SHA-256 is " in fault
    assert run("analyse", phantom_folder / "image.nii.gz", "--output", tmp_path / "no", "--model", champion)[0] == 2
    weights.write_bytes(kept)
    assert run("model", "pull", champion, tmp_path / "pulled")[0] == 0
    assert (tmp_path / "pulled" / "models" / "model.pt").read_bytes() == kept


def test_register_promote_serve_analyse_and_roll_back(
    server: str,
    artifacts: Path,
    whole: Path,
    shipped_single: Path,
    phantom: Phantom,
    phantom_folder: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
):
    registry = Registry(server)
    random, trained = (weights_sha256(folder / "models" / "model.pt") for folder in (whole, shipped_single))
    datalist = tmp_path / "data" / "datalist.json"
    prepare("phantom", None, datalist, seed=1, patients=6, slices=3, size=96, healthy=0.0, validation=0.0, testing=0.84)
    gate = (SINGLE, "--datalist", datalist)
    champion = f"models:/{SINGLE}@champion"

    def analysed(name: str) -> dict[str, Any]:
        words = ("analyse", phantom_folder / "image.nii.gz", "--output", tmp_path / name, "--model", champion)
        assert run(*words, "--no-ranges")[0] == 0
        return json.loads((tmp_path / name / "analysis.json").read_text())

    # a network that was not trained is the first champion, a trained one the better challenger
    code, said, _ = run("model", "register", whole)
    assert (code, said.splitlines()[0]) == (0, f"registered: models:/{SINGLE}/1, challenger")
    assert run("model", "promote", *gate)[0] == 0
    assert run("model", "register", shipped_single)[0] == 0
    code, said, fault = run("model", "promote", *gate)
    assert code == 0, fault
    assert f"models:/{SINGLE}/2 is the champion" in said
    assert registry.find(champion).tags["gate"] == "passed"

    by_path = check_served(champion, server, phantom, phantom_folder, tmp_path)
    assert by_path["weights_sha256"] == trained

    # analyse by the alias gives the same
    analysis = analysed("by_alias")
    assert analysis["method"]["model"]["weights_sha256"] == trained
    assert analysis["severity"]["whole"]["lesion_ml"] == pytest.approx(by_path["lesion_ml"])
    assert analysis["scan_id"] == by_path["scan_id"]

    # a worse version is refused
    code, _, fault = run("model", "promote", f"models:/{SINGLE}/1", *gate[1:])
    assert code == 2
    assert fault.startswith(f"covid-monai: models:/{SINGLE}/1 is refused: no gain beyond noise: Dice of the lesion ")
    assert registry.find(champion).number == 2
    assert registry.find(f"models:/{SINGLE}/1").tags["gate"] == "refused"

    (weights,) = [file for file in artifacts.rglob("model.pt") if weights_sha256(file) == trained]
    check_changed_byte(weights, champion, phantom_folder, tmp_path, run)

    # the one before is put back
    code, said, _ = run("model", "rollback", SINGLE, "--reason", "it was trained on phantoms")
    assert (code, said) == (0, f"models:/{SINGLE}/1 is the champion again\n")
    assert analysed("rolled_back")["method"]["model"]["weights_sha256"] == random
    code, said, _ = run("model", "list")
    assert "rolled back: it was trained on phantoms" in said
    assert f"models:/{SINGLE}/1  champion" in said
    assert all(each.info.status == "FINISHED" for each in registry.client.search_runs(["1"]))
