# SPDX-License-Identifier: Apache-2.0
"""The command ``covid-monai``: a thin face; each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covid_monai import __version__

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = """\
From a chest CT to a lesion map and its figures, and from labelled slices to the model that draws it.
Research use only, not a medical device."""

EXIT_CODES = """\
exit codes:
  0    all was done
  1    at least one input could not be used; the others were done, and each fault is one line
  2    the command line, the bundle or its weights cannot be used; nothing was done
  130  interrupted"""

ANALYSE = """\
Segment the lesions of chest CT scans and measure them.

INPUT is a folder with a DICOM series, a NIfTI file (.nii, .nii.gz), a slice image, or a folder of slice images
(PNG, JPEG, TIFF) named from inferior to superior. For each scan these files are written, analysis.json last:

  lesions.nii.gz  lesion mask on the scan's own grid: 0 background, 1 ground glass, 2 consolidation
                  (1 lesion, where the model does not tell them apart)
  analysis.json   figures, what ran (versions, SHA-256 of the weights) and warnings
  overview.png    the slices that matter, lesions and lungs outlined

One input: into DIR itself. Several: into DIR/<scan id>, where the id comes from the voxels and tells nothing of the
patient; with --keep-names into DIR/<name of the input>."""

ANALYSE_EXAMPLES = """\
examples:
  covid-monai analyse scan.nii.gz --output results
  covid-monai analyse dicom/ --series 2 --output results
  covid-monai analyse study1/ study2/ study3/ --output cohort --bundle my_bundle
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.getLogger("monai").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(monai|torch|pydicom|highdicom)\b")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if options.traceback:
            traceback.print_exc()
        _complain(str(error))
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("covid-monai", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"covid-monai {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    analyse = _command(commands, "analyse", "lesion mask, figures and picture of CT scans", _analyse)
    analyse.description, analyse.epilog = ANALYSE, f"{ANALYSE_EXAMPLES}\n{EXIT_CODES}"
    analyse.add_argument("input", nargs="+", type=Path, metavar="INPUT", help="scan to analyse")
    analyse.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    analyse.add_argument("--series", metavar="N", help="which DICOM series: its number in the list shown when a folder "
                         "holds several, or its SeriesInstanceUID")  # fmt: skip
    analyse.add_argument("--bundle", type=Path, metavar="DIR", help="MONAI bundle with the model (default: the "
                         "installed lung_ct_ggo_consolidation_segmentation)")  # fmt: skip
    analyse.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    analyse.add_argument(
        "--keep-names", action="store_true", help="name the folders of several results after the inputs"
    )
    analyse.add_argument("--overwrite", action="store_true", help="replace results of another scan that lie in DIR")

    demo = _command(
        commands,
        "demo",
        "train both networks on synthetic slices, analyse a synthetic CT, compare with its truth",
        _demo,
    )
    demo.add_argument("--output", required=True, type=Path, metavar="DIR", help="empty or new folder for everything")

    data = commands.add_parser("data", help="public data sets and the phantom", formatter_class=_Help)
    kinds = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(kinds, "list", "data sets that can be prepared: source layout, licence, options", _data_list)
    prepare = _command(kinds, "prepare", "turn a data set into a checked MONAI datalist", _data_prepare)
    prepare.add_argument("name", metavar="NAME", help="data set, see `covid-monai data list`")
    prepare.add_argument(
        "--source", type=Path, metavar="DIR", help="folder with the files as their authors publish them"
    )
    prepare.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="datalist to write, e.g. data/datalist.json"
    )
    prepare.add_argument("--append", action="store_true", help="add to the datalist instead of replacing it")
    prepare.add_argument(
        "--seed", type=int, default=0, help="of splits that are drawn, and of the phantoms (default 0)"
    )
    prepare.add_argument("--unlabelled", action="store_true", help="put its training side on the side for "
                         "self-supervised training, without labels")  # fmt: skip
    prepare.add_argument("--option", action="append", default=[], type=_option, metavar="KEY=VALUE", help="option of "
                         "the data set, its value in YAML; may be given several times")  # fmt: skip
    phantom = _command(kinds, "phantom", "write one synthetic chest CT with known lesions", _data_phantom)
    phantom.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for scan and truth")
    phantom.add_argument("--format", choices=("dicom", "nifti"), default="dicom", help="of the scan (default dicom)")
    phantom.add_argument("--seed", type=int, default=0, help="which phantom (default 0)")
    phantom.add_argument("--shape", type=int, nargs=3, default=(256, 256, 48), metavar=("X", "Y", "Z"), help="voxels "
                         "(default 256 256 48)")  # fmt: skip
    phantom.add_argument("--lesion-share", type=float, default=0.12, help="share of the lungs, 0..0.8 (default 0.12)")
    phantom.add_argument("--consolidation", type=float, default=0.25, help="share of the lesions (default 0.25)")

    study = commands.add_parser("study", help="compare ways of training under one budget", formatter_class=_Help)
    kinds = study.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = _command(
        kinds, "run", "train and evaluate what MLflow does not hold yet; goes on where it stopped", _study_run
    )
    table = _command(kinds, "table", "means over seeds, paired tests and plots, from MLflow alone", _study_table)
    for command in (run, table):
        command.add_argument("study", type=Path, metavar="STUDY", help="study file (YAML)")
        command.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the study")
        command.add_argument("--tracking_uri", metavar="URI", help="MLflow store (default: mlflow.db in DIR)")
    run.add_argument("--dataset_dir", type=Path, metavar="DIR", help="folder of datalist.json instead of the study's")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="stages that run at once (default 1)")
    run.add_argument("--dry-run", action="store_true", help="only show what would run")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written, and room for the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def _command(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    """A subcommand whose description is its summary."""
    command = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=_Help
    )
    command.add_argument("--traceback", action="store_true", help="show where in the code a fault was raised")
    command.set_defaults(run=run)
    return command


def _option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` with a YAML value."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    if key in ("name", "source", "out", "append", "seed", "unlabelled"):
        raise argparse.ArgumentTypeError(f"{key} is no option of a data set, see --help")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"the value in {text!r} is not YAML") from error


def _complain(line: str) -> None:
    print(f"covid-monai: {line}", file=sys.stderr)


def _analyse(options: argparse.Namespace) -> int:
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is no folder: give --output a new folder or one for the results.")
    from covid_monai.analysis import NOTICE
    from covid_monai.inference import LesionSegmenter

    segmenter = LesionSegmenter.from_bundle(options.bundle or default_bundle(), options.device)
    failures: list[str] = []
    written: set[Path] = set()
    for number, path in enumerate(options.input, start=1):
        print(f"[{number}/{len(options.input)}] {path}")
        try:
            written.add(_analyse_one(path, segmenter, options, written))
        except Exception as error:  # the other inputs must not suffer
            if options.traceback:
                traceback.print_exc()
            known = isinstance(error, (ValueError, OSError))
            failures.append(
                f"{path}: {error}" if known else f"{path}: {type(error).__name__}: {error} (see --traceback)"
            )
            _complain(failures[-1])
    print(NOTICE)
    if failures and len(options.input) > 1:
        _complain(f"{len(failures)} of {len(options.input)} inputs could not be analysed:")
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
    return SOME_FAILED if failures else OK


def _analyse_one(path: Path, segmenter: Any, options: argparse.Namespace, written: set[Path]) -> Path:
    """Analyse one input and return the folder of its results, which never replace those of an earlier input."""
    from tqdm import tqdm

    from covid_monai.analysis import analyse
    from covid_monai.ct import read_ct
    from covid_monai.reports import summarise, write_results

    scan = read_ct(path, options.series)
    with tqdm(total=len(scan.upright()), unit="slice", leave=False, disable=not sys.stderr.isatty()) as bar:
        analysis = analyse(scan, segmenter, bar.update)
    folder = options.output
    if len(options.input) > 1:
        folder /= _name(path.resolve()) if options.keep_names else analysis.scan_id
    files = write_results(analysis, scan, folder, overwrite=options.overwrite and folder not in written)
    figures = analysis.figures
    for line in summarise(figures):
        print(f"  {line}")
    print(f"  lesions on {figures.lesion_slices} of {figures.lung_slices} slices with lung")
    for warning in analysis.warnings:
        print(f"  warning: {warning}")
    print(f"  written: {', '.join(str(file) for file in files.values())}")
    return folder


def _demo(options: argparse.Namespace) -> int:
    from covid_monai.demo import run

    run(default_bundle().parent, options.output.resolve())
    return OK


def _name(path: Path) -> str:
    """Name of an input, without the suffix of a file."""
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


def default_bundle() -> Path:
    """Folder of the installed bundle that ``analyse`` uses."""
    from importlib.resources import files

    return Path(str(files("covid_monai.bundles") / "lung_ct_ggo_consolidation_segmentation"))


def _data_list(options: argparse.Namespace) -> int:
    from covid_monai.datasets import describe

    for row in describe():
        print(f"{row['name']}\n  {row['title']}")
        for key in ("source", "licence", "options"):
            if row[key]:
                print(f"  {key + ':':9}{row[key]}")
    return OK


def _data_prepare(options: argparse.Namespace) -> int:
    from covid_monai.datasets import prepare

    summary = prepare(
        options.name,
        options.source,
        options.out,
        append=options.append,
        seed=options.seed,
        unlabelled=options.unlabelled,
        **dict(options.option),
    )
    print(f"{'':12}{'slices':>8}{'lesion':>8}{'patients':>10}")
    for side, count in summary.slices.items():
        patients = summary.patients[side] or ("unknown" if count else 0)
        print(f"{side:12}{count:8}{summary.lesion_slices.get(side, '-'):>8}{patients:>10}")
    if summary.dropped:
        print(f"{summary.dropped} exact duplicates were left out")
    print(f"written: {summary.path}")
    return OK


def _data_phantom(options: argparse.Namespace) -> int:
    from covid_monai.datasets.phantom import Lesions, make_phantom

    lesions = Lesions(options.lesion_share, options.consolidation)
    phantom = make_phantom(options.seed, tuple(options.shape), lesions=lesions)
    if options.format == "dicom":
        path = phantom.write_dicom(options.output / "dicom")
        phantom.write_truth(options.output)
    else:
        path = phantom.write_nifti(options.output)
    print(f"written: {path}, and its truth beside it (lesions.nii.gz, lungs.nii.gz, truth.json)")
    print(json.dumps(phantom.truth, indent=2))
    return OK


def _study_run(options: argparse.Namespace) -> int:
    from covid_monai.training.experiments import Runner, load_study

    study = load_study(options.study, options.dataset_dir)
    runner = Runner(study, options.output, options.tracking_uri, options.jobs)
    if options.dry_run:
        print(runner.describe())
        return OK
    failed = runner.run()
    print(f"{runner.finished_cells()} of {len(runner.cells)} cells are finished: {options.output / 'results.csv'}")
    if failed:
        _complain(f"{len(failed)} stages failed; the same command runs them again:")
        for name, fault in failed.items():
            print(f"  {name}: {fault}", file=sys.stderr)
    return SOME_FAILED if failed else OK


def _study_table(options: argparse.Namespace) -> int:
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

    from covid_monai.training.experiments import default_tracking_uri, load_study, write_table

    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    uri = options.tracking_uri or default_tracking_uri(options.output)
    study = load_study(options.study, dataset_dir=options.output)  # the table needs no data
    paths = write_table(study, options.output, uri)
    print((options.output / "table.md").read_text(encoding="utf-8"))
    print(f"written: {', '.join(map(str, paths))}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
