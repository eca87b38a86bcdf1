# SPDX-License-Identifier: Apache-2.0
"""Run the stages of a study that MLflow does not hold yet, several at once, each in a process and folder of its own."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired
from typing import Any

from mlflow import MlflowClient
from monai.bundle import ConfigParser

from covid_monai.datasets import data_hash
from covid_monai.tracking.lineage import recorded_run
from covid_monai.tracking.runs import signals_as_interrupts
from covid_monai.training.experiments.results import Finished, evaluated, finished_runs, read_results, write_results
from covid_monai.training.experiments.study import CASCADE, STAGES, Cell, Stage, Study, StudyError

__all__ = ["Runner", "default_tracking_uri"]

POLL_SECONDS = 0.2
GRACE_SECONDS = 60
"""How long an interrupted stage may take to close its run and files before it is killed."""


class Runner:
    """Runs a study into a folder, and goes on where it stopped when it is run again.

    A stage is done when MLflow holds a finished run whose tag ``cell`` is the stage's digest, and, where a later stage
    needs its weights, when they lie in its folder and are of such a run. Otherwise it is run, and resumes from the
    ``checkpoint.pt`` that a broken attempt has left; that of a finished stage is deleted, being four times as large as
    its weights. Folders are ``<output>/<stage>/<digest>``, each with ``log.txt``.

    Args:
        study: what to run.
        output: folder of the weights, the logs and the results.
        tracking_uri: MLflow store; None: ``mlflow.db`` in ``output``.
        jobs: stages that run at once; each gets its share of the cores.
        report: folder of ``results.csv`` and ``cases.csv``, to be kept apart from ``output``; cells that it holds are
            not run again, even where MLflow does not know them. None: ``output``, where MLflow alone says what is done.
        network: run the cells of this network alone; None: of all that the study has.

    Raises:
        StudyError: when an override names no key of the bundle, the folder or the ``results.csv`` in ``report`` cannot
            be used, or the study has no such network.
        DatasetError: when the datalist or one of its files cannot be read.
    """

    def __init__(
        self,
        study: Study,
        output: Path,
        tracking_uri: str | None = None,
        jobs: int = 1,
        report: Path | None = None,
        network: str | None = None,
    ) -> None:
        if jobs < 1:
            raise StudyError(f"--jobs is {jobs}: at least one stage must run.")
        if network not in [None, *(known.name for known in study.networks)]:
            raise StudyError(f"--network is {network}, which study {study.name} does not have: leave it out.")
        self.study = study
        self.output = output.resolve()
        self.report = self.output if report is None else report.resolve()
        for path in (self.output, study.dataset_dir, *(each.bundle for each in study.networks)):
            if "#" in str(path):
                raise StudyError(f"the path {path} holds a #, which a bundle cannot be given: choose another folder.")
        self.tracking_uri = _absolute(tracking_uri or default_tracking_uri(self.output))
        self.jobs = jobs
        self._tags = _read_tags(study.cells(""))
        self._all_cells = study.cells(data_hash(study.dataset_dir / "datalist.json"))
        self.cells = [cell for cell in self._all_cells if network in (None, cell.network.name)]
        rows = read_results(self.report)
        self._reported = {
            evaluation.digest
            for cell in self._all_cells
            for side, evaluation in cell.evaluations.items()
            if report is not None and evaluated(rows.get(cell.digest, {}), side)
        }

    def plan(self, finished: Finished | None = None) -> list[Stage]:
        """The stages to run, in order: those of the first cell first, a stage that cells share only once."""
        finished = self.finished() if finished is None else finished
        needed: dict[str, Stage] = {}

        def need(stage: Stage) -> None:
            for start in stage.needs:
                if not self._has_weights(start, finished):
                    need(start)
            needed.setdefault(stage.digest, stage)

        for cell in self.cells:
            for evaluation in cell.evaluations.values():
                if not self._is_done(evaluation, finished):
                    need(evaluation)
        return list(needed.values())

    def describe(self) -> str:
        """The plan for a person to read: a line a stage, and what is held already."""
        finished = self.finished()
        stages = self.plan(finished)
        how = {True: "resume", False: "run"}
        counts = f"{len(self.cells)} cells, {self.finished_cells()} of them finished, {len(stages)} stages to run"
        lines = [f"study {self.study.name}: {counts}"]
        lines += [
            f"{how[self._can_resume(stage, finished)]:8}{stage.name}  [{stage.digest}]"
            + (f" from {', '.join(f'[{start.digest}]' for start in stage.needs)}" if stage.needs else "")
            for stage in stages
        ]
        return "\n".join(lines)

    def run(self) -> dict[str, str]:
        """Run what is to run; a stage that fails stops only those that start from it.

        Every start, end and fault is printed, and ``results.csv`` in the report grows with each finished cell.

        Returns:
            Why each failed stage failed, by the name of its run; empty when all went well.

        Raises:
            StudyError: when another runner, or a stage that it has left, works in this folder.
            KeyboardInterrupt: on Ctrl-C and SIGTERM, after all running stages have ended.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with _only_one(self.output) as lock, signals_as_interrupts():
            self._prepare_store()
            return _Queue(self, lock).work()

    def finished(self) -> Finished:
        """The finished runs of this study in MLflow."""
        return finished_runs(self.tracking_uri, self.study.name)

    def finished_cells(self) -> int:
        """How many cells are finished."""
        finished = self.finished()
        return sum(all(self._is_done(each, finished) for each in cell.evaluations.values()) for cell in self.cells)

    def write_results(self) -> None:
        """Bring ``results.csv`` in the report up to date."""
        self.report.mkdir(parents=True, exist_ok=True)
        finished = self.finished()
        client = MlflowClient(self.tracking_uri) if finished else None
        write_results(self.study, self._all_cells, finished, client, self.report)

    def folder(self, stage: Stage) -> Path:
        """Where a stage writes."""
        return self.output / stage.kind / stage.digest

    def launch(self, stage: Stage, lock: int) -> Popen:
        """Start a stage in its folder, its output in ``log.txt``; the process keeps the lock as long as it lives."""
        folder = self.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        if not self._can_resume(stage, self.finished()):  # a finished training has nothing left to do: begin it anew
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        command = self._command(stage)
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            print(f"$ OMP_NUM_THREADS={threads} {shlex.join(command)}", file=log, flush=True)
            return Popen(
                command,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which ends its stages one after the other
                pass_fds=[lock],
            )

    def fault(self, stage: Stage, code: int) -> str | None:
        """What is wrong with a stage whose process has ended with this exit code, in one line; None for nothing."""
        folder = self.folder(stage)
        if code:
            return f"exit code {code}: {_cause(folder / 'log.txt')} (see {folder / 'log.txt'})"
        finished = self.finished()
        if stage.digest not in finished:
            return f"it ended well, but MLflow holds no finished run of it (see {folder / 'log.txt'})"
        if stage.kind != "evaluating" and not self._has_weights(stage, finished):
            return f"it ended well, but left no weights {folder / 'model.pt'} of its run (see log.txt there)"
        return None

    def _command(self, stage: Stage) -> list[str]:
        folder = self.folder(stage)
        trained = folder if stage.kind != "evaluating" else self.folder(_start(stage))
        pretrained = self.folder(_start(stage)) if stage.kind == "finetuning" else folder
        configs = [str(stage.bundle / "configs" / name) for name in STAGES[stage.kind]]
        settings = {
            "bundle_root": str(stage.bundle),
            "config_file": configs,
            "dataset_dir": str(self.study.dataset_dir),
            "ckpt_dir": str(trained),
            "pretrain_dir": str(pretrained),
            "output_dir": str(folder),
            "tracking_uri": self.tracking_uri,
            "experiment": self.study.name,
            "run_name": stage.name,
            **({"single_weights": str(self.folder(stage.single) / "model.pt")} if stage.single else {}),
            **stage.settings,
            **_with_tags(self._tags[stage.bundle, stage.kind], stage.tags),
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", literal(value))]
        return [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", stage.kind, *words]

    def _is_done(self, evaluation: Stage, finished: Finished) -> bool:
        """Whether MLflow holds an evaluation, or the report does that goes on from another store."""
        return evaluation.digest in finished or evaluation.digest in self._reported

    def _has_weights(self, stage: Stage, finished: Finished) -> bool:
        """Whether weights of a finished run of the stage lie in its folder, not those of a broken repetition."""
        folder = self.folder(stage)
        run_id = recorded_run(folder / "tracking.json")
        return (folder / "model.pt").is_file() and run_id in [run.info.run_id for run in finished.get(stage.digest, [])]

    def _can_resume(self, stage: Stage, finished: Finished) -> bool:
        """Whether a broken attempt, not a finished one without its weights, has left a checkpoint."""
        folder = self.folder(stage)
        run_id = recorded_run(folder / "tracking.json")
        ended = run_id in [run.info.run_id for run in finished.get(stage.digest, [])]
        return (folder / "checkpoint.pt").is_file() and not ended

    def _prepare_store(self) -> None:
        """Make database and experiment before several stages would do so at once."""
        from covid_monai.tracking import TrackedRun

        TrackedRun(self.tracking_uri, self.study.name, "study").experiment_id()


class _Queue:
    """The stages of one :meth:`Runner.run`: waiting, running, failed."""

    def __init__(self, runner: Runner, lock: int) -> None:
        self.runner = runner
        self.lock = lock
        self.waiting = {stage.digest: stage for stage in runner.plan()}
        self.total = len(self.waiting)
        self.running: dict[str, tuple[Popen, float]] = {}
        self.stages = dict(self.waiting)
        self.failed: dict[str, str] = {}

    def work(self) -> dict[str, str]:
        self.runner.write_results()
        try:
            while self.waiting or self.running:
                self._start_ready()
                time.sleep(POLL_SECONDS)
                self._collect_ended()
        finally:
            _end([process for process, _ in self.running.values()])
        return {self.stages[digest].name: fault for digest, fault in self.failed.items()}

    def _start_ready(self) -> None:
        for stage in list(self.waiting.values()):
            starts = [start.digest for start in stage.needs]
            if failed := [start for start in starts if start in self.failed]:
                del self.waiting[stage.digest]
                self._fail(stage, f"{self.stages[failed[0]].kind} [{failed[0]}], which it starts from, failed")
            elif len(self.running) < self.runner.jobs and not {*starts} & {*self.waiting, *self.running}:
                del self.waiting[stage.digest]
                print(f"[{self._number()}/{self.total}] {stage.name}  [{stage.digest}]", flush=True)
                self.running[stage.digest] = (self.runner.launch(stage, self.lock), time.monotonic())

    def _collect_ended(self) -> None:
        for digest, (process, began) in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[digest]
            stage = self.stages[digest]
            if fault := self.runner.fault(stage, code):
                self._fail(stage, fault)
                continue
            (self.runner.folder(stage) / "checkpoint.pt").unlink(missing_ok=True)
            print(f"finished: {stage.name}  ({time.monotonic() - began:.0f} s)", flush=True)
            if stage.kind == "evaluating":
                self.runner.write_results()

    def _fail(self, stage: Stage, fault: str) -> None:
        self.failed[stage.digest] = fault
        print(f"failed: {stage.name}: {fault}", file=sys.stderr, flush=True)

    def _number(self) -> int:
        return self.total - len(self.waiting)


def default_tracking_uri(output: Path) -> str:
    """The MLflow store of a study's folder."""
    return f"sqlite:///{output.resolve() / 'mlflow.db'}"


def _absolute(tracking_uri: str) -> str:
    """An SQLite store by its whole path: each stage runs in a folder of its own."""
    prefix, path = "sqlite:///", tracking_uri.removeprefix("sqlite:///")
    return f"{prefix}{Path(path).resolve()}" if path != tracking_uri else tracking_uri


def literal(value: Any) -> str:
    """A value as a word of ``monai.bundle``'s command line.

    Fire reads Python literals, so quotes keep text that looks like a number. MONAI leaves out a plain None, and takes
    it as an expression.
    """
    return "$None" if value is None else repr(value)


def _with_tags(there: Any, tags: Mapping[str, str]) -> dict[str, Any]:
    """Overrides that add tags to a config's own, which are a mapping or an expression that gives one."""
    if isinstance(there, dict):
        return {f"tracked#tags#{key}": value for key, value in tags.items()}
    return {"tracked#tags": f"$dict({str(there).removeprefix('$')}, **{dict(tags)!r})"}


def _read_tags(cells: list[Cell]) -> dict[tuple[Path, str], Any]:
    """The tags in the configs of each stage that the cells have, by bundle and kind of the stage.

    Raises:
        StudyError: when a bundle is not of the kind that its network needs, or an override names a key that the configs
            lack, which MONAI would take without a word.
    """
    tags: dict[tuple[Path, str], Any] = {}
    parsers: dict[tuple[Path, str], ConfigParser] = {}
    for cell in cells:
        for stage in (*cell.stages, *cell.evaluations.values()):
            key = stage.bundle, stage.kind
            if key not in parsers:
                parsers[key] = _read_configs(stage)
                tags[key] = parsers[key].get("tracked#tags")
            _check_network(stage, parsers[key])
            if stage.kind != "evaluating":  # which gets the keys of a fine-tuning too
                unknown = [setting for setting in stage.settings if setting not in parsers[key]]
                if unknown:
                    raise StudyError(
                        f"the {stage.kind} of arm {cell.arm.title} sets {', '.join(unknown)}, no key of "
                        f"{' + '.join(STAGES[stage.kind])} of bundle {stage.bundle.name}: mend the arm or the budget."
                    )
    return tags


def _read_configs(stage: Stage) -> ConfigParser:
    """The bundle's configs that a stage is run with."""
    name = stage.bundle.name
    paths = [stage.bundle / "configs" / config for config in STAGES[stage.kind]]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise StudyError(f"bundle {name} has no {', '.join(absent)}, which {stage.kind} needs.")
    return ConfigParser(ConfigParser.load_config_files([str(path) for path in paths]))


def _check_network(stage: Stage, parser: ConfigParser) -> None:
    """Refuse a bundle that stands alone for a cascade, and one that does not for a single network."""
    is_cascade = stage.tags["network"] == CASCADE
    if is_cascade and "single_weights" not in parser:
        raise StudyError(f"bundle {stage.bundle.name} takes no single_weights: it is no {CASCADE}.")
    if not is_cascade and "single_weights" in parser:
        raise StudyError(
            f"bundle {stage.bundle.name} needs the weights of a single network: name it under {CASCADE}, and a bundle "
            "that stands alone for the single network."
        )


def _start(stage: Stage) -> Stage:
    assert stage.start is not None
    return stage.start


def _cause(log: Path) -> str:
    """The first exception of the last attempt in a log, which others only wrap; its last line when there is none."""
    attempt = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2]
    lines = [line.strip() for line in attempt.splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])[:300]


def _end(processes: list[Popen]) -> None:
    """Ask processes to end as SIGTERM does, wait for them, and kill what is left of them and of their children."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except TimeoutExpired:
        pass
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock and give its file descriptor; whoever inherits that holds the lock too."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(
                f"{folder} is in use by another run of a study, or by a stage it left: wait or end it."
            ) from error
        yield file.fileno()
