# SPDX-License-Identifier: Apache-2.0
"""Scans of a command line, analysed one after the other, in several processes, or on a Ray cluster."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_monai.cli.lean import import_lean_monai
from covid_monai.cli.shell import INTERRUPTED, one_line, without_progress_bars

if TYPE_CHECKING:
    from covid_monai.analysis import Analysis
    from covid_monai.ct import CTScan
    from covid_monai.inference import LesionSegmenter
    from covid_monai.severity import LungFinder, NoiseFloor

__all__ = [
    "Analyser",
    "Job",
    "Outcome",
    "begin_reading",
    "bundle_of",
    "fault_of",
    "in_processes",
    "in_turn",
    "lines_of",
    "name_of",
    "on_ray",
]


class Analyser:
    """The model and the settings of a command line, ready for scan after scan.

    Args:
        options: with those of :func:`covid_monai.cli.analyse.add_model_options`.

    Raises:
        ValueError: when the bundle, its weights or a setting cannot be used.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from covid_monai.inference import LesionSegmenter

        self.floor: NoiseFloor = _floor(options)
        self.ranges: bool = not options.no_ranges
        with bundle_of(options) as bundle:
            self.segmenter: LesionSegmenter = LesionSegmenter.from_bundle(bundle, options.device, options.weights)

    @property
    def model(self) -> str:
        """Name and version of the bundle, and the beginning of its weights' SHA-256."""
        facts = self.segmenter.facts
        return f"{facts.name} {facts.version}, weights {facts.weights_sha256[:12]}"

    def __call__(self, scan: CTScan, lungs: LungFinder | None = None) -> Analysis:
        """Analyse a scan, with a bar where a person watches."""
        from tqdm import tqdm

        from covid_monai.analysis import analyse

        total = len(scan.upright()) * (2 if self.ranges else 1)
        with tqdm(total=total, unit="slice", leave=False, disable=not sys.stderr.isatty()) as bar:
            return analyse(scan, self.segmenter, lungs, self.floor, self.ranges, bar.update)

    def made(self, folder: Path, scan_id: str, row: Mapping[str, str]) -> bool:
        """Whether a folder holds the whole results of a scan, found by threshold lungs with this model and settings.

        Args:
            folder: of the results.
            scan_id: of the scan.
            row: of the cohort's table, which must tell the same.
        """
        from covid_monai import __version__
        from covid_monai.analysis import method_of
        from covid_monai.reports import FILES, tells

        try:
            found = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
            same = (
                found["scan_id"] == scan_id
                and found["software"]["covid_monai"] == __version__
                and found["method"]["lungs"] == "threshold"
                and found["severity"]["floor"] == asdict(self.floor)
                and (found["spread"] is not None) == self.ranges
                and method_of(self.segmenter).items() <= found["method"].items()
                and tells(row, found)
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False
        return same and all((folder / name).is_file() for name in FILES)


@dataclass(frozen=True)
class Job:
    """An input of a command line.

    Attributes:
        number: of the input, from 1.
        path: of the scan.
        options: of the command line.
        rows: of the cohort's table, by name, before this run.
    """

    number: int
    path: Path
    options: argparse.Namespace
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """What the input is called on the screen."""
        return str(self.options.dicomweb or self.path)


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        job: the input.
        folder: of its results; None when it failed.
        lines: to be printed.
        files: that were written, or lay there already.
        figures: its row of the cohort's table; None when the table has it, or the input failed.
        fault: one line, when it failed.
        kind: type of the fault.
    """

    job: Job
    folder: Path | None = None
    lines: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    figures: Mapping[str, Any] | None = None
    fault: str | None = None
    kind: str = ""


Announce = Callable[[Job], Any]


def begin_reading(path: Path, options: argparse.Namespace) -> Future[CTScan]:
    """Read a scan while MONAI is imported and the model is loaded."""
    importlib.import_module("covid_monai.ct")  # here, for imports of two threads may miss what lean ones hide
    scan: Future[CTScan] = Future()

    def work() -> None:
        try:
            scan.set_result(_read(path, options))
        except BaseException as error:
            scan.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # an interrupted process does not wait for it
    return scan


def in_turn(jobs: Sequence[Job], analyser: Analyser, announce: Announce, first: Future[CTScan]) -> Iterator[Outcome]:
    """Analyse inputs one after the other, in this process; what writes results is imported during the first.

    Args:
        jobs: the inputs.
        analyser: made of their options.
        announce: called before each.
        first: what :func:`begin_reading` gave for the first of them.
    """
    threading.Thread(target=importlib.import_module, args=("covid_monai.reports",), daemon=True).start()
    reading = [first]
    del first
    for job in jobs:
        announce(job)
        yield _outcome(job, analyser, reading.pop() if reading else None)


def in_processes(jobs: Sequence[Job], workers: int, announce: Announce) -> Iterator[Outcome]:
    """Analyse inputs in several processes, as they get done.

    A process that dies, killed for want of memory for instance, ends all: what was not done yet has failed.

    Args:
        jobs: the inputs.
        workers: how many processes; the cores are shared out among them.
        announce: called when one is done.
    """
    workers = min(workers, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting: list[Job] = list(reversed(jobs))
    running: dict[Future[Outcome], Job] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare_worker, (threads,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more, so that nothing is begun after an interruption
                    job = waiting.pop()
                    running[_submitted(pool, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        fault = "its process died, for want of memory perhaps: try fewer --workers, with --resume."
                        outcome = Outcome(job, fault=fault, kind="BrokenProcessPool")
                    announce(job)
                    yield outcome
        except BaseException:
            for process in active_children():
                process.terminate()
            raise


def _submitted(pool: ProcessPoolExecutor, job: Job) -> Future[Outcome]:
    """The job under way, or its fault where the pool is broken already."""
    try:
        return pool.submit(_in_worker, job)
    except BrokenProcessPool as error:
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future


def on_ray(jobs: Sequence[Job], address: str, announce: Announce) -> Iterator[Outcome]:
    """Analyse inputs on a Ray cluster, as they get done, each on one core.

    All machines must see the inputs and the output folder under the same paths. An input whose worker dies is begun
    again, three times at most.

    Args:
        jobs: the inputs.
        address: of the cluster, or ``"local"`` to start one here.
        announce: called when one is done.

    Raises:
        ValueError: ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        raise ValueError("ray is not installed: pip install 'covid_monai[ray]', or use --workers.") from error
    _reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error).partition("\n")[0]) from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(_in_worker)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                fault = f"its worker died again and again ({type(error).__name__}): try it alone."
                outcome = Outcome(job, fault=fault, kind=type(error).__name__)
            announce(job)
            yield outcome
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Try the cluster's door first, before which ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _no_cluster(address, str(error.strerror or error)) from error


def _no_cluster(address: str, reason: str) -> ValueError:
    return ValueError(f"there is no Ray cluster at {address} ({reason}): give HOST:PORT of its head.")


_ready: list[tuple[argparse.Namespace, Analyser]] = []
"""The analyser of this worker, made with its first job."""


def _in_worker(job: Job) -> Outcome:
    with one_line():
        return _by_this_worker(job)


def _by_this_worker(job: Job) -> Outcome:
    if not _ready or vars(_ready[0][0]) != vars(job.options):
        import_lean_monai()
        try:
            _ready[:] = [(job.options, Analyser(job.options))]
        except Exception as error:
            return Outcome(job, fault=fault_of(error, job.options), kind=type(error).__name__)
    return _outcome(job, _ready[0][1])


def _prepare_worker(threads: int) -> None:
    """Limit a process to its share of the cores, and let it tidy up when its parent ends it."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and sees to it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone, killed perhaps: nobody would give it work any more."""
    if (parent := parent_process()) is not None:
        parent.join()
        while True:  # the first may only end its job, the second meets it waiting for work
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            time.sleep(2)


def _outcome(job: Job, analyser: Analyser, reading: Future[CTScan] | None = None) -> Outcome:
    """Analyse one input; whatever happens, the others must not suffer."""
    try:
        return _analysed(job, analyser, _read(job.path, job.options) if reading is None else reading.result())
    except Exception as error:
        return Outcome(job, fault=fault_of(error, job.options), kind=type(error).__name__)


def _read(path: Path, options: argparse.Namespace) -> CTScan:
    from covid_monai.ct import read_ct

    return read_ct(path, _series(options))


def _series(options: argparse.Namespace) -> str | None:
    """Which series to read; of what was fetched from a server there is one."""
    return None if options.dicomweb else options.series


def _analysed(job: Job, analyser: Analyser, scan: CTScan) -> Outcome:
    from covid_monai.ct import read_sources

    options = job.options
    title = name_of(job.path) if options.keep_names else None
    if options.resume:
        folder = options.output / (title or scan.id)
        row = job.rows.get(folder.name)
        if row is not None and analyser.made(folder, scan.id, row):
            return Outcome(job, folder, ("  results of an earlier run, left as they are",))
    sources = read_sources(job.path, _series(options)) if options.dicom or options.send else None
    analysis = analyser(scan, _lungs(options, scan))

    from covid_monai.reports import figures_of, write_results  # which another thread may have imported by now

    folder = options.output / (title or analysis.scan_id) if len(options.input) > 1 else options.output
    files = write_results(analysis, scan, folder, overwrite=options.overwrite, sources=sources, title=title)
    written = f"  written: {', '.join(str(file) for file in files.values())}"
    return Outcome(job, folder, (*lines_of(analysis), written), tuple(files.values()), figures_of(analysis))


def fault_of(error: Exception, options: argparse.Namespace) -> str:
    """One line for a fault, with its type where nobody foresaw it."""
    if options.traceback:
        traceback.print_exception(error)
    known = isinstance(error, (ValueError, OSError))
    return str(error) if known else f"{type(error).__name__}: {error} (see --traceback)"


def lines_of(analysis: Analysis) -> Iterator[str]:
    """The figures of a scan and its warnings, a line each."""
    from covid_monai.reports import summarise

    yield from (f"  {line}" for line in summarise(analysis))
    yield from (f"  warning: {warning}" for warning in analysis.warnings)


def name_of(path: Path) -> str:
    """Name of an input, without the suffix of a file."""
    path = path.resolve()
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


@contextmanager
def bundle_of(options: argparse.Namespace) -> Iterator[Path]:
    """The bundle that was asked for; one from the registry is deleted afterwards."""
    from covid_monai.inference import default_bundle

    if not options.model:
        yield options.bundle or default_bundle()
        return
    if options.bundle or options.weights:
        raise ValueError("--model brings its bundle and weights: leave out --bundle and --weights.")
    from covid_monai.registry import pulled

    without_progress_bars()
    with pulled(options.model) as bundle:
        yield bundle


def _lungs(options: argparse.Namespace, scan: CTScan) -> LungFinder | None:
    """How the lungs of a scan are found; None for the built-in way."""
    from covid_monai.ct import read_mask
    from covid_monai.severity import GivenLungs

    if options.lung_mask:
        return GivenLungs(lungs=read_mask(options.lung_mask, scan))
    if options.lobe_mask:
        return GivenLungs(lobes=read_mask(options.lobe_mask, scan))
    if options.lungmask_weights:
        from covid_monai.inference.lungmask import LungmaskLungs

        return LungmaskLungs(options.lungmask_model, options.lungmask_weights, options.device)
    return None


def _floor(options: argparse.Namespace) -> NoiseFloor:
    from covid_monai.severity import NoiseFloor

    if options.floor_percent is not None and not 0 <= options.floor_percent < 50:
        raise ValueError(f"--floor-percent is {options.floor_percent:g}: give a percentage from 0 to under 50.")
    given = {
        "ml": options.floor_ml,
        "share": None if options.floor_percent is None else options.floor_percent / 100,
    }
    return NoiseFloor(**{name: value for name, value in given.items() if value is not None})
