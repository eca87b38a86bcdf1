# SPDX-License-Identifier: Apache-2.0
"""``covid-monai analyse``: scans in, lesion masks, figures and reports out."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_monai.cli.lean import import_monai_to_predict
from covid_monai.cli.scans import (
    Analyser,
    Job,
    Outcome,
    begin_reading,
    bundle_of,
    fault_of,
    in_processes,
    in_turn,
    name_of,
    on_ray,
)
from covid_monai.cli.shell import EXIT_CODES, OK, SOME_FAILED, add_command, check_output, complain
from covid_monai.whole_files import UNFINISHED

if TYPE_CHECKING:
    from covid_monai.reports import CohortTable

__all__ = ["add_analyse", "add_model_options"]

DESCRIPTION = """\
Segment the lesions of chest CT scans, measure them and report.

INPUT is a folder with a DICOM series, a NIfTI file (.nii, .nii.gz), a slice image, or a folder of slice images
(PNG, JPEG, TIFF) named from inferior to superior. For each scan these files are written, analysis.json last:

  analysis.json   figures and scores, what ran (versions, SHA-256 of the weights) and warnings
  report.html     the report: one file that needs no network; report.pdf is the same to print
  overview.png    the slices that matter, lesions and lungs outlined
  lesions.nii.gz  lesion mask on the scan's own grid: 0 background, 1 ground glass, 2 consolidation
                  (1 lesion, where the model does not tell them apart)
  lungs.nii.gz    1 right lung, 2 left lung
  regions.nii.gz  the 20 regions of the CT severity score, approximate; their names are in the file and in the report

The model comes with the package, trained on CT of COVID-19; its weights may not be used commercially (see docs/ of the
bundle). --bundle and --weights name one of your own.

One input: into DIR itself. Several: into DIR/<scan id>, where the id comes from the voxels and tells nothing of the
patient (with --keep-names into DIR/<name of the input>), and DIR/cohort.csv has one row for each of them."""

EXAMPLES = """\
examples:
  covid-monai analyse scan.nii.gz --output results
  covid-monai analyse dicom/ --series 2 --output results --dicom
  covid-monai analyse study1/ study2/ study3/ --output cohort --workers 2 --resume
  covid-monai analyse scan.nii.gz --output results --bundle my_bundle --weights my_bundle/models/training/model.pt
  covid-monai analyse --dicomweb http://127.0.0.1:8042/dicom-web --study 1.2.3 --series 1.2.3.4 --output results \\
      --send http://127.0.0.1:8042/dicom-web
"""


def add_analyse(commands: Any) -> None:
    """Add ``analyse``."""
    command = add_command(commands, "analyse", "lesion mask, severity scores and report of CT scans", _analyse)
    command.description, command.epilog = DESCRIPTION, f"{EXAMPLES}\n{EXIT_CODES}"
    command.add_argument("input", nargs="*", type=Path, metavar="INPUT", help="scan to analyse")
    command.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    command.add_argument("--series", metavar="N", help="which DICOM series: its number in the list shown when a folder "
                         "holds several, or its SeriesInstanceUID")  # fmt: skip
    add_model_options(command)
    command.add_argument("--keep-names", action="store_true", help="name the folders of several results after the "
                         "inputs")  # fmt: skip
    command.add_argument("--overwrite", action="store_true", help="replace results of another scan that lie in DIR")
    command.add_argument("--resume", action="store_true", help="leave results alone that an earlier run made of the "
                         "same scan, with the same model and settings")  # fmt: skip
    command.add_argument("--workers", type=int, default=1, metavar="N", help="analyse several inputs in N processes, "
                         "each of which takes about 2 GB of memory (default 1)")  # fmt: skip
    command.add_argument("--ray", metavar="ADDRESS", help="analyse the inputs on this Ray cluster, whose machines all "
                         "see the same files")  # fmt: skip

    lungs = command.add_argument_group("lungs", "found by threshold when none of these is given")
    way = lungs.add_mutually_exclusive_group()
    way.add_argument("--lung-mask", type=Path, metavar="FILE", help="NIfTI on the scan's grid: 1 right, 2 left lung, "
                     "or one code for both")  # fmt: skip
    way.add_argument("--lobe-mask", type=Path, metavar="FILE", help="NIfTI on the scan's grid, lobes as lungmask (1-5) "
                     "or TotalSegmentator (10-14) number them")  # fmt: skip
    way.add_argument("--lungmask-weights", type=Path, metavar="FILE", help="run the network of the package lungmask "
                     "with these weights")  # fmt: skip
    lungs.add_argument("--lungmask-model", default="R231", choices=("R231", "LTRCLobes"), help="of these weights "
                       "(default R231)")  # fmt: skip

    dicom = command.add_argument_group("DICOM", "these results carry the patient's name and identifiers")
    dicom.add_argument("--dicom", action="store_true", help="also write segmentations (SEG) and a structured report "
                       "(SR) of a DICOM input, into DIR/dicom_results")  # fmt: skip
    dicom.add_argument("--send", metavar="ADDRESS", help="send them: http(s)://HOST/dicom-web (STOW-RS) or "
                       "dicom://AET@HOST:PORT (C-STORE)")  # fmt: skip
    dicom.add_argument("--dicomweb", metavar="URL", help="fetch the input from this DICOMweb server, with --study and "
                       "--series")  # fmt: skip
    dicom.add_argument("--study", metavar="UID", help="StudyInstanceUID to fetch")


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the options of :class:`~covid_monai.cli.scans.Analyser`."""
    command.add_argument("--bundle", type=Path, metavar="DIR", help="MONAI bundle with the model (default: the one "
                         "shipped, lung_ct_ggo_consolidation_segmentation)")  # fmt: skip
    command.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own training of this bundle "
                         "(default: its models/model.pt)")  # fmt: skip
    command.add_argument("--model", metavar="URI", help="registered model in place of --bundle: models:/NAME@champion, "
                         "models:/NAME/NUMBER; from MLFLOW_TRACKING_URI or sqlite:///mlflow.db")  # fmt: skip
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    command.add_argument("--floor-ml", type=float, metavar="ML", help="a place with less lesion counts as free of it")
    command.add_argument("--floor-percent", type=float, metavar="PERCENT", help="a place of whose lung less is lesion "
                         "counts as free of it")  # fmt: skip
    command.add_argument("--no-ranges", action="store_true", help="do not make the figures again on mirrored slices "
                         "and at other thresholds: the network sees the scan once")  # fmt: skip


def _analyse(options: argparse.Namespace) -> int:
    _check(options)
    failures: list[str] = []
    with _inputs(options) as inputs, ExitStack() as stack:
        elsewhere = options.ray or (options.workers > 1 and len(inputs) > 1)
        reading = None if elsewhere else begin_reading(inputs[0], options)
        try:
            import_monai_to_predict(options)
            from covid_monai.analysis import NOTICE

            bundle = stack.enter_context(bundle_of(options))
            options = argparse.Namespace(**{**vars(options), "bundle": bundle, "model": None})  # one, for all workers
            analyser = Analyser(options)
        except Exception:
            if reading is not None:
                reading.exception()  # done with its files, and with the warnings of this process
            raise
        cohort = _cohort(options) if len(inputs) > 1 else None
        rows = dict(cohort.rows) if cohort is not None else {}
        jobs = [Job(number, path, options, rows) for number, path in enumerate(inputs, start=1)]
        print(f"model: {analyser.model}")
        if options.resume:
            _remove_unfinished(options.output)

        def announce(job: Job) -> None:
            print(f"[{job.number}/{len(jobs)}] {job.shown}")

        if reading is not None:
            outcomes = in_turn(jobs, analyser, announce, reading)
            del reading  # with the scan
        elif options.ray:
            outcomes = on_ray(jobs, options.ray, announce)
        else:
            outcomes = in_processes(jobs, options.workers, announce)
        for outcome in outcomes:
            if outcome.fault is None:
                print(*outcome.lines, sep="\n")
                _send(outcome, failures)
            else:
                shown = outcome.job.shown
                named = outcome.fault.startswith((f"{shown} ", f"{shown}:"))
                failures.append(outcome.fault if named else f"{shown}: {outcome.fault}")
                complain(failures[-1])
            if cohort is not None:
                _add_row(cohort, outcome)
        if cohort is not None:
            print(f"one row each: {cohort.path}")
    print(NOTICE)
    if failures and len(inputs) > 1:
        complain(f"{len(failures)} of {len(inputs)} inputs could not be analysed:")
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
    return SOME_FAILED if failures else OK


def _cohort(options: argparse.Namespace) -> CohortTable:
    from covid_monai.reports import CohortTable

    return CohortTable(options.output / "cohort.csv")


def _remove_unfinished(output: Path) -> None:
    """Take away what processes that were killed left half-written."""
    for unfinished in (*output.glob(f"{UNFINISHED}*"), *output.glob(f"*/{UNFINISHED}*")):
        shutil.rmtree(unfinished, ignore_errors=True)


def _add_row(cohort: CohortTable, outcome: Outcome) -> None:
    """Put an outcome into the table; names of files only where they are kept."""
    job, options = outcome.job, outcome.job.options
    if outcome.folder is not None:
        if outcome.figures is not None:
            cohort.add_figures(outcome.folder.name, outcome.figures)
    elif options.keep_names:
        name = name_of(job.path)
        hidden = str(outcome.fault).replace(str(options.output), "the output folder").replace(str(job.path), name)
        cohort.add_failure(f"{name} (input {job.number})", hidden)
    else:  # the message may hold names of files
        cohort.add_failure(f"input {job.number}", outcome.kind)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together before anything is read."""
    check_output(options.output)
    if options.dicomweb and (options.input or not (options.study and options.series)):
        raise ValueError("--dicomweb fetches one series: give --study UID and --series UID with it, and no INPUT.")
    if options.study and not options.dicomweb:
        raise ValueError("--study is of a DICOMweb server: give its address with --dicomweb URL.")
    if not options.input and not options.dicomweb:
        raise ValueError("nothing to analyse: give an INPUT, or --dicomweb URL --study UID --series UID.")
    if (options.lung_mask or options.lobe_mask) and len(options.input) > 1:
        raise ValueError("--lung-mask and --lobe-mask are of one scan: give one INPUT.")
    if options.workers < 1 or (options.workers > 1 and options.ray):
        raise ValueError("--workers is a number of processes on this machine, 1 or more, and does not go with --ray.")
    if options.ray and (options.model or options.dicomweb):
        raise ValueError("--ray needs files that all its machines see: fetch series first, and pull the model with "
                         "`covid-monai model pull` to name it with --bundle.")  # fmt: skip
    if options.resume and (options.dicom or options.send or not _by_threshold(options)):
        raise ValueError("--resume is for lungs by threshold, and not with --dicom or --send: leave it out.")
    if options.ray:  # its workers run in folders of their own
        options.input = [path.resolve() for path in options.input]
        for name in ("output", "bundle", "weights", "lungmask_weights"):
            if (path := getattr(options, name)) is not None:
                setattr(options, name, path.resolve())
    if options.keep_names and options.input:
        name, count = Counter(map(name_of, options.input)).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} inputs are called {name}: leave out --keep-names, or analyse them apart.")
    if options.send:
        from covid_monai.ct.exchange import check_address

        check_address(options.send)


def _by_threshold(options: argparse.Namespace) -> bool:
    return not (options.lung_mask or options.lobe_mask or options.lungmask_weights)


@contextmanager
def _inputs(options: argparse.Namespace) -> Iterator[list[Path]]:
    """The inputs as paths; what comes from a server is deleted afterwards."""
    if not options.dicomweb:
        yield options.input
        return
    from covid_monai.ct.exchange import fetch_series

    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        yield [fetch_series(options.dicomweb, options.study, options.series, Path(folder) / "series")]


def _send(outcome: Outcome, failures: list[str]) -> None:
    """Send the DICOM files among the results where that was asked for; what was found stays written all the same."""
    options = outcome.job.options
    if not options.send:
        return
    from covid_monai.ct.exchange import send

    dicom = [file for file in outcome.files if file.suffix == ".dcm"]
    try:
        send(dicom, options.send)
    except Exception as error:
        failures.append(f"{outcome.job.shown}: {fault_of(error, options)}")
        complain(failures[-1])
    else:
        print(f"  sent: {len(dicom)} DICOM files to {options.send}")
