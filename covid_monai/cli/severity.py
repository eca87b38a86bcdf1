# SPDX-License-Identifier: Apache-2.0
"""``covid-monai follow-up``, ``compare-masks`` and ``evaluate-scores``: over time, and against references."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_monai.cli.analyse import add_model_options
from covid_monai.cli.lean import import_monai_to_predict
from covid_monai.cli.scans import Analyser, lines_of
from covid_monai.cli.shell import OK, add_command, check_output

if TYPE_CHECKING:
    from covid_monai.severity import Agreement, Proportion

__all__ = ["add_severity"]

FOLLOW_UP = """\
Analyse scans of one patient, earliest first, register each to the next, and report what changed.

Each scan's own results go into DIR/1, DIR/2, …; beside them lie

  follow_up.json        change of every figure, and volumes of new, persisting and resolved lesion
  follow_up.html        the same for people: one file that needs no network
  trend.csv             the key figures of every scan
  change_1_2.nii.gz, …  on the grid of the later scan: 1 persisting, 2 new, 3 resolved lesion, 4 lesion
                        where the earlier scan shows nothing"""

COMPARE_MASKS = """\
Compare a lesion mask with a reference on the same grid: Dice, Hausdorff distance (largest, and 95th percentile, in mm)
and volumes, for lesion as one and for each code."""

EVALUATE_SCORES = """\
How well a score separates outcomes: area under the ROC curve with its confidence interval, sensitivity and specificity
at a cut-off. TABLE is a CSV file with a head line. The outcomes that are not named as positive are the other ones of
iCTCF (control, mild, regular, severe, critically ill), or those named as negative; an outcome that is neither is
refused. Rows without a score are left out and counted."""


def add_severity(commands: Any) -> None:
    """Add the three commands."""
    follow_up = add_command(commands, "follow-up", "what changed between scans of one patient", _follow_up)
    follow_up.description = FOLLOW_UP
    follow_up.add_argument("baseline", type=Path, metavar="BASELINE", help="the earliest scan")
    follow_up.add_argument("later", nargs="+", type=Path, metavar="FOLLOWUP", help="later scans, in order")
    follow_up.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    follow_up.add_argument("--series", nargs="+", metavar="N", help="which DICOM series of each scan, as in analyse; "
                           "- for one that has no choice")  # fmt: skip
    follow_up.add_argument("--days", nargs="+", type=float, metavar="DAY", help="day of each scan, e.g. 0 14 35")
    add_model_options(follow_up)
    follow_up.add_argument("--overwrite", action="store_true", help="replace results of other scans that lie in DIR")

    compare = add_command(
        commands, "compare-masks", "Dice, Hausdorff distance and volumes of two masks", _compare_masks
    )
    compare.description = COMPARE_MASKS
    compare.add_argument("mask", type=Path, metavar="MASK", help="NIfTI mask, e.g. lesions.nii.gz")
    compare.add_argument("reference", type=Path, metavar="REFERENCE", help="NIfTI mask on the same grid")
    compare.add_argument("--codes", nargs="+", type=_code, metavar="CODE=NAME", help="names of the masks' codes "
                         "(default: those in a header, else 1=ground glass, 2=consolidation)")  # fmt: skip
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file too")

    evaluate = add_command(commands, "evaluate-scores", "how well a score separates outcomes: AUC, cut-off, ROC curve",
                           _evaluate_scores)  # fmt: skip
    evaluate.description = EVALUATE_SCORES
    evaluate.add_argument("table", type=Path, metavar="TABLE", help="CSV file")
    evaluate.add_argument("--score", required=True, metavar="COLUMN", help="column of the scores, e.g. ct_ss")
    evaluate.add_argument("--outcome", required=True, metavar="COLUMN", help="column of the outcomes")
    evaluate.add_argument(
        "--positive", required=True, nargs="+", metavar="OUTCOME", help="e.g. severe 'critically ill'"
    )
    evaluate.add_argument("--negative", nargs="+", metavar="OUTCOME", help="the others, where they are not iCTCF's")
    evaluate.add_argument("--cut-off", type=float, metavar="SCORE", help="scores from here on are called positive, "
                          "e.g. 19.5")  # fmt: skip
    evaluate.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for evaluation.json and "
                          "roc.png")  # fmt: skip


def _code(text: str) -> tuple[int, str]:
    code, equals, name = text.partition("=")
    if not (equals and name and code.isdigit() and 0 < int(code) < 256):
        raise argparse.ArgumentTypeError(f"{text!r} is not CODE=NAME with a code from 1 to 255")
    return int(code), name


def _compare_masks(options: argparse.Namespace) -> int:
    import numpy as np

    from covid_monai.analysis import NOTICE
    from covid_monai.ct import names_of_codes, read_mask_pair
    from covid_monai.severity import LESION_CODES, compare_masks
    from covid_monai.whole_files import write_whole

    mask, reference, spacing = read_mask_pair(options.mask, options.reference)
    there = {int(code) for each in (mask, reference) for code in np.unique(each)} - {0}
    named = (names_of_codes(path) for path in (options.mask, options.reference))
    codes = dict(options.codes or next((names for names in named if there <= set(names)), LESION_CODES))
    comparison = compare_masks(mask, reference, spacing, codes)
    if options.json:
        write_whole(options.json, (json.dumps({"notice": NOTICE, **asdict(comparison)}, indent=2) + "\n").encode())
    print(f"{'':16}{'Dice':>8}{'Hausdorff':>12}{'95 %':>10}{'mask':>12}{'reference':>12}{'difference':>12}")
    for agreement in (comparison.whole, *comparison.classes):
        print(_row(agreement))
    print(NOTICE)
    return OK


def _row(agreement: Agreement) -> str:
    distances = (agreement.hausdorff_mm, agreement.hausdorff_95_mm)
    hausdorff, hausdorff_95 = ("-" if distance is None else f"{distance:.1f} mm" for distance in distances)
    volumes = (agreement.mask_ml, agreement.reference_ml, agreement.difference_ml)
    mask, reference, difference = (f"{volume:.1f} mL" for volume in volumes)
    return (
        f"{agreement.name:16}{agreement.dice:8.3f}{hausdorff:>12}{hausdorff_95:>10}{mask:>12}{reference:>12}"
        f"{difference:>12}"
    )


def _evaluate_scores(options: argparse.Namespace) -> int:
    from covid_monai.reports.roc import FILES, evaluate_table

    found = evaluate_table(
        options.table,
        options.score,
        options.outcome,
        options.positive,
        options.output,
        cut_off=options.cut_off,
        negative=options.negative,
    )
    print(f"positive: {', '.join(found.positive)} ({found.positives}); negative: {', '.join(found.negative)} "
          f"({found.negatives}); without a score: {found.dropped}")  # fmt: skip
    interval = (
        ""
        if found.auc_low is None
        else f" ({100 * found.confidence:.0f} %: {found.auc_low:.3f} to {found.auc_high:.3f})"
    )
    print(f"AUC {found.auc:.3f}{interval}")
    if found.at_cut_off is not None:
        print(f"at {found.at_cut_off.cut_off:g}: sensitivity {_percent(found.at_cut_off.sensitivity)}, "
              f"specificity {_percent(found.at_cut_off.specificity)}")  # fmt: skip
    print(f"written: {', '.join(str(options.output / name) for name in FILES)}")
    return OK


def _percent(proportion: Proportion) -> str:
    return f"{100 * proportion.value:.1f} % ({100 * proportion.low:.1f} to {100 * proportion.high:.1f})"


def _follow_up(options: argparse.Namespace) -> int:
    import_monai_to_predict(options)
    from covid_monai.analysis import NOTICE
    from covid_monai.ct import read_ct
    from covid_monai.reports import write_results
    from covid_monai.reports.follow_up import check_follow_up, write_follow_up
    from covid_monai.severity.follow_up import check_days, check_scans, follow_up
    from covid_monai.severity.registration import elastix

    paths = [options.baseline, *options.later]  # all that can be refused is, before anything takes minutes
    check_days(options.days, len(paths))
    check_output(options.output)
    series = [None if which == "-" else which for which in options.series or ["-"] * len(paths)]
    if len(series) != len(paths):
        raise ValueError(f"{len(series)} series were given for {len(paths)} scans: give one for each scan.")
    elastix()
    scans = [read_ct(path, which) for path, which in zip(paths, series, strict=True)]
    identities = [scan.id for scan in scans]
    check_scans(identities, [scan.spacing_known for scan in scans])
    if not options.overwrite:
        check_follow_up(options.output, identities)
    analyser = Analyser(options)
    analyses = []
    for number, (path, scan) in enumerate(zip(paths, scans, strict=True), start=1):
        print(f"[{number}/{len(paths)}] {path}")
        analyses.append(analyser(scan))
        print(*lines_of(analyses[-1]), sep="\n")
    print("registering each scan to the next")
    followed = follow_up(analyses, options.days)
    for interval in followed.intervals:
        change = interval.lesions
        print(
            f"  {interval.earlier} to {interval.later}: new {change.new_ml:.0f} mL, persisting "
            f"{change.persisting_ml:.0f} mL, resolved {change.resolved_ml:.0f} mL; registered lungs have a Dice of "
            f"{interval.registration.fit.dice:.2f}"
        )
        for warning in interval.warnings:
            print(f"  warning: {warning}")
    files = write_follow_up(followed, analyses, scans, options.output, overwrite=options.overwrite)
    for number, (scan, analysis) in enumerate(zip(scans, analyses, strict=True), start=1):
        write_results(analysis, scan, options.output / str(number), overwrite=options.overwrite)
    print(f"written: {', '.join(str(file) for file in files.values())}, and each scan's own results")
    print(NOTICE)
    return OK
