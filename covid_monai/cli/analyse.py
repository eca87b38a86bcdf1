# SPDX-License-Identifier: Apache-2.0
"""``covid-monai analyse``: scans in, lesion masks, figures and reports out."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_monai.cli.shell import EXIT_CODES, OK, SOME_FAILED, add_command, complain

if TYPE_CHECKING:
    from covid_monai.analysis import Analysis
    from covid_monai.ct import CTScan
    from covid_monai.inference import LesionSegmenter
    from covid_monai.severity import LungFinder, NoiseFloor

__all__ = ["Analyser", "add_analyse", "add_model_options", "show"]

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
  covid-monai analyse study1/ study2/ study3/ --output cohort
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
    """Add the options of :class:`Analyser`."""
    command.set_defaults(predicts=True)
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
                         "and at other thresholds: the network runs once instead of twice")  # fmt: skip


class Analyser:
    """The model and the settings of a command line, ready for scan after scan.

    Args:
        options: with those of :func:`add_model_options`.

    Raises:
        ValueError: when the bundle, its weights or a setting cannot be used.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from covid_monai.inference import LesionSegmenter

        self.floor: NoiseFloor = _floor(options)
        self.ranges: bool = not options.no_ranges
        with _bundle(options) as bundle:
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


@contextmanager
def _bundle(options: argparse.Namespace) -> Iterator[Path]:
    """The bundle that was asked for; one from the registry is deleted afterwards."""
    from covid_monai.inference import default_bundle

    if not options.model:
        yield options.bundle or default_bundle()
        return
    if options.bundle or options.weights:
        raise ValueError("--model brings its bundle and weights: leave out --bundle and --weights.")
    from covid_monai.registry import pulled

    with pulled(options.model) as bundle:
        yield bundle


def show(analysis: Analysis) -> None:
    """Print the figures of a scan and its warnings, one a line."""
    from covid_monai.reports import summarise

    for line in summarise(analysis):
        print(f"  {line}")
    for warning in analysis.warnings:
        print(f"  warning: {warning}")


def name_of(path: Path) -> str:
    """Name of an input, without the suffix of a file."""
    path = path.resolve()
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


def _analyse(options: argparse.Namespace) -> int:
    _check(options)
    from covid_monai.analysis import NOTICE
    from covid_monai.reports import CohortTable

    analyser = Analyser(options)
    print(f"model: {analyser.model}")
    failures: list[str] = []
    written: set[Path] = set()
    with _inputs(options) as inputs:
        cohort = CohortTable(options.output / "cohort.csv") if len(inputs) > 1 else None
        for number, path in enumerate(inputs, start=1):
            shown = options.dicomweb or path
            print(f"[{number}/{len(inputs)}] {shown}")
            try:
                folder, analysis, files = _analyse_one(path, analyser, options, written)
                written.add(folder)
                if cohort is not None:
                    cohort.add(folder.name, analysis)
            except Exception as error:  # the other inputs must not suffer
                fault = _fault(error, options)
                failures.append(f"{shown}: {fault}")
                complain(failures[-1])
                if cohort is not None and options.keep_names:
                    hidden = fault.replace(str(options.output), "the output folder").replace(str(path), name_of(path))
                    cohort.add_failure(f"{name_of(path)} (input {number})", hidden)
                elif cohort is not None:  # the message may hold names of files
                    cohort.add_failure(f"input {number}", type(error).__name__)
                continue
            try:
                _send(files, options)
            except Exception as error:  # what was found is written all the same
                failures.append(f"{shown}: {_fault(error, options)}")
                complain(failures[-1])
        if cohort is not None:
            print(f"one row each: {cohort.path}")
    print(NOTICE)
    if failures and len(inputs) > 1:
        complain(f"{len(failures)} of {len(inputs)} inputs could not be analysed:")
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
    return SOME_FAILED if failures else OK


def _fault(error: Exception, options: argparse.Namespace) -> str:
    """One line for a fault, with its type where nobody foresaw it."""
    if options.traceback:
        traceback.print_exception(error)
    known = isinstance(error, (ValueError, OSError))
    return str(error) if known else f"{type(error).__name__}: {error} (see --traceback)"


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together before anything is read."""
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is no folder: give --output a new folder or one for the results.")
    if options.dicomweb and (options.input or not (options.study and options.series)):
        raise ValueError("--dicomweb fetches one series: give --study UID and --series UID with it, and no INPUT.")
    if options.study and not options.dicomweb:
        raise ValueError("--study is of a DICOMweb server: give its address with --dicomweb URL.")
    if not options.input and not options.dicomweb:
        raise ValueError("nothing to analyse: give an INPUT, or --dicomweb URL --study UID --series UID.")
    if (options.lung_mask or options.lobe_mask) and len(options.input) > 1:
        raise ValueError("--lung-mask and --lobe-mask are of one scan: give one INPUT.")
    if options.send:
        from covid_monai.ct.exchange import check_address

        check_address(options.send)


@contextmanager
def _inputs(options: argparse.Namespace) -> Iterator[list[Path]]:
    """The inputs as paths; what comes from a server is deleted afterwards."""
    if not options.dicomweb:
        yield options.input
        return
    from covid_monai.ct.exchange import fetch_series

    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        yield [fetch_series(options.dicomweb, options.study, options.series, Path(folder) / "series")]


def _analyse_one(
    path: Path, analyser: Analyser, options: argparse.Namespace, written: set[Path]
) -> tuple[Path, Analysis, list[Path]]:
    """Analyse one input into a folder, in which the results of an earlier input are never replaced."""
    from covid_monai.ct import read_ct, read_sources
    from covid_monai.reports import write_results

    series = None if options.dicomweb else options.series
    scan = read_ct(path, series)
    sources = read_sources(path, series) if options.dicom or options.send else None
    analysis = analyser(scan, _lungs(options, scan))
    folder = options.output
    if len(options.input) > 1:
        folder /= name_of(path) if options.keep_names else analysis.scan_id
    overwrite = options.overwrite and folder not in written
    title = name_of(path) if options.keep_names else None
    files = write_results(analysis, scan, folder, overwrite=overwrite, sources=sources, title=title)
    show(analysis)
    print(f"  written: {', '.join(str(file) for file in files.values())}")
    return folder, analysis, list(files.values())


def _send(files: list[Path], options: argparse.Namespace) -> None:
    """Send the DICOM files among the results where that was asked for."""
    if options.send:
        from covid_monai.ct.exchange import send

        dicom = [file for file in files if file.suffix == ".dcm"]
        send(dicom, options.send)
        print(f"  sent: {len(dicom)} DICOM files to {options.send}")


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

    given = {
        "ml": options.floor_ml,
        "share": None if options.floor_percent is None else options.floor_percent / 100,
    }
    return NoiseFloor(**{name: value for name, value in given.items() if value is not None})
