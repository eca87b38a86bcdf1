# SPDX-License-Identifier: Apache-2.0
"""``covid-monai analyse`` over many scans: in several processes, on a cluster, stopped and resumed."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from covid_monai import cli
from covid_monai.cli.scans import Analyser
from covid_monai.datasets.phantom import make_phantom
from covid_monai.reports import FILES

COUNT = 5


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Different scans of three slices."""
    folders = [tmp_path_factory.mktemp(f"scan{number}") for number in range(COUNT)]
    return [make_phantom(20 + k, (64, 64, 3)).write_nifti(folder) for k, folder in enumerate(folders)]


@pytest.fixture
def command(tiny_bundle: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words of ``covid-monai analyse`` with the tiny bundle into ``results``."""

    def words(*more: object) -> list[str]:
        fixed = ["analyse", "--output", tmp_path / "results", "--bundle", tiny_bundle, "--device", "cpu"]
        return [str(word) for word in (*fixed, *more)]

    return words


def start(words: list[str]) -> subprocess.Popen:
    """A process of its own, with its workers in one group."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "covid_monai.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows(results: Path) -> dict[str, dict[str, str]]:
    with (results / "cohort.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len({row["name"] for row in found}) == len(found)
    return {row["name"]: row for row in found}


def whole(results: Path) -> dict[str, int]:
    """Folders with all files of a scan, and when its last file was written."""
    folders = [path for path in results.iterdir() if path.is_dir()]
    return {
        folder.name: (folder / "analysis.json").stat().st_mtime_ns
        for folder in folders
        if {path.name for path in folder.iterdir()} == set(FILES)
    }


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# resuming ------------------------------------------------------------------------------------------------------------


def test_finished_scans_are_left_alone(
    command: Callable[..., list[str]],
    scans: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(command(*scans[:2])) == 0
    before, table = whole(tmp_path / "results"), rows(tmp_path / "results")
    analysed = []
    monkeypatch.setattr(Analyser, "__call__", lambda *args: analysed.append(args) or 1 / 0)
    capsys.readouterr()
    assert cli.main(command(*scans[:2], "--resume")) == 0
    assert capsys.readouterr().out.count("results of an earlier run, left as they are") == 2
    assert (whole(tmp_path / "results"), rows(tmp_path / "results"), analysed) == (before, table, [])
    assert cli.main(command(*scans[:2])) == 1  # without it, they are made again
    assert len(analysed) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        ["--no-ranges"],
        ["--floor-ml", "3"],
        "a file is gone",
        "no figures",
        "another version",
        "no row",
        "a row of other figures",
    ],
)
def test_scans_made_otherwise_or_in_part_are_made_again(
    change: list[str] | str, command: Callable[..., list[str]], scans: list[Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert cli.main(command(*scans[:2])) == 0
    before = whole(results)
    folder = results / next(iter(before))
    if change == "a file is gone":
        (folder / "lungs.nii.gz").unlink()
    elif change == "no figures":
        (folder / "analysis.json").write_text("{")
    elif change == "another version":
        text = (folder / "analysis.json").read_text()
        (folder / "analysis.json").write_text(text.replace('"covid_monai": "', '"covid_monai": "0.0.'))
    elif change == "no row":  # stopped between the results and the table
        text = (results / "cohort.csv").read_text().splitlines(keepends=True)
        (results / "cohort.csv").write_text("".join(line for line in text if not line.startswith(folder.name)))
    elif change == "a row of other figures":  # of other weights, before a run that was stopped there
        text, weights = (results / "cohort.csv").read_text(), json.loads((folder / "analysis.json").read_text())
        lines = text.splitlines(keepends=True)
        sha = weights["method"]["model"]["weights_sha256"]
        lines = [line.replace(sha, "0" * 64) if line.startswith(folder.name) else line for line in lines]
        (results / "cohort.csv").write_text("".join(lines))
    options = change if isinstance(change, list) else []
    assert cli.main(command(*scans[:2], "--resume", "--overwrite", *options)) == 0
    after = whole(results)
    again = {name for name in before if after[name] != before[name]}
    assert again == (set(before) if isinstance(change, list) else {folder.name})
    assert set(rows(results)) == set(before)


# misuse --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--workers", "0"], "--workers is a number of processes"),
        (["--workers", "2", "--ray", "local"], "does not go with --ray"),
        (["--ray", "local", "--model", "models:/x@champion"], "needs files that all its machines see"),
        (["--resume", "--dicom"], "--resume is for lungs by threshold, and not with --dicom or --send"),
        (["--ray", "127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1 (Connection refused): give HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str],
    fault: str,
    command: Callable[..., list[str]],
    scans: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "127.0.0.1:1" in words:
        pytest.importorskip("ray")
    assert cli.main(command(*scans[:2], *words)) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_inputs_of_one_name_cannot_keep_it(
    command: Callable[..., list[str]], scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(*scans[:2], "--keep-names")) == 2
    assert "2 inputs are called image" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


# several processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_find_what_one_finds(
    command: Callable[..., list[str]], scans: list[Path], tmp_path: Path
) -> None:
    inputs = [*scans, tmp_path / "missing.nii.gz"]
    assert cli.main(command(*inputs)) == 1
    alone = rows(tmp_path / "results")
    (tmp_path / "results").rename(tmp_path / "alone")
    beside = start(command(*inputs, "--workers", 2))
    out, err = beside.communicate(timeout=300)
    assert beside.returncode == 1
    assert rows(tmp_path / "results") == alone
    assert sorted(line for line in out.splitlines() if line.startswith("[")) == [
        f"[{number}/6] {path}" for number, path in enumerate(inputs, start=1)
    ]
    assert err.count("does not exist") == 2  # when it fails, and in the list at the end


@pytest.mark.slow
def test_a_cohort_that_was_killed_goes_on(command: Callable[..., list[str]], scans: list[Path], tmp_path: Path) -> None:
    results = tmp_path / "results"
    killed = start(command(*scans, "--workers", 2))
    until(lambda: results.is_dir() and (results / "cohort.csv").exists())
    workers = psutil.Process(killed.pid).children()
    killed.kill()
    killed.communicate()
    until(lambda: not any(worker.is_running() for worker in workers))
    done = rows(results)
    before = {name: moment for name, moment in whole(results).items() if name in done}
    assert 0 < len(before) < COUNT
    resumed = start(command(*scans, "--workers", 2, "--resume"))
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert out.count("left as they are") == len(before)
    after = whole(results)
    assert len(after) == COUNT
    assert {name: after[name] for name in before} == before
    assert set(rows(results)) == set(after)


@pytest.mark.slow
def test_a_process_that_dies_is_told(command: Callable[..., list[str]], scans: list[Path], tmp_path: Path) -> None:
    running = start(command(*scans, "--workers", 2))
    until((tmp_path / "results" / "cohort.csv").exists)
    workers = [child for child in psutil.Process(running.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "its process died, for want of memory perhaps: try fewer --workers, with --resume." in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interruption_is_130_and_soon(command: Callable[..., list[str]], scans: list[Path], tmp_path: Path) -> None:
    running = start(command(*scans, *(scan.parent for scan in scans), "--workers", 2))  # the folders are refused
    until((tmp_path / "results" / "cohort.csv").exists)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert err.splitlines()[-1] == "covid-monai: interrupted"
    assert len(whole(tmp_path / "results")) < COUNT
    assert set(rows(tmp_path / "results")) <= set(whole(tmp_path / "results"))
    assert not list((tmp_path / "results").rglob(".unfinished-*"))


# a cluster -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Ray cluster of two workers on this machine."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    folder = tmp_path_factory.mktemp("r")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    words = ["start", "--head", "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false"]
    words += ["--node-ip-address", "127.0.0.1", "--temp-dir", str(folder), "--block"]
    head = subprocess.Popen(
        [*ray, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    address = f"127.0.0.1:{port}"
    until(lambda: _answers(port))
    yield address
    members = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    head.communicate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_cluster_loses_and_doubles_nothing_when_a_worker_dies(
    cluster: str, command: Callable[..., list[str]], scans: list[Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    running = start(command(*scans, "--ray", cluster))

    def workers() -> list[psutil.Process]:
        found = psutil.process_iter(["cmdline"])
        return [each for each in found if "".join(each.info["cmdline"] or ()).startswith("ray::_in_worker")]

    until(lambda: bool(workers()))
    workers()[0].kill()
    out, err = running.communicate(timeout=400)
    assert running.returncode == 0, err
    assert sorted(line for line in out.splitlines() if line.startswith("[")) == [
        f"[{number}/{COUNT}] {path}" for number, path in enumerate(scans, start=1)
    ]
    assert set(rows(results)) == set(whole(results))
    assert len(whole(results)) == COUNT
    assert not any(row["error"] for row in rows(results).values())
    assert all(json.loads((results / name / "analysis.json").read_text())["scan_id"] == name for name in whole(results))
    assert not list(results.rglob(".unfinished-*"))
