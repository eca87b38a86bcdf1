# SPDX-License-Identifier: Apache-2.0
"""``covid-monai data``: public data sets and the phantom."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from covid_monai.cli.shell import OK, Help, add_command

__all__ = ["add_data"]


def add_data(commands: Any) -> None:
    """Add ``data`` and its subcommands."""
    data = commands.add_parser("data", help="public data sets and the phantom", formatter_class=Help)
    kinds = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_command(kinds, "list", "data sets that can be prepared: source layout, licence, options", _data_list)
    prepare = add_command(kinds, "prepare", "turn a data set into a checked MONAI datalist", _data_prepare)
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
    phantom = add_command(kinds, "phantom", "write one synthetic chest CT with known lesions", _data_phantom)
    phantom.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for scan and truth")
    phantom.add_argument("--format", choices=("dicom", "nifti"), default="dicom", help="of the scan (default dicom)")
    phantom.add_argument("--seed", type=int, default=0, help="which phantom (default 0)")
    phantom.add_argument("--shape", type=int, nargs=3, default=(256, 256, 48), metavar=("X", "Y", "Z"), help="voxels "
                         "(default 256 256 48)")  # fmt: skip
    phantom.add_argument("--lesion-share", type=float, default=0.12, help="share of the lungs, 0..0.8 (default 0.12)")
    phantom.add_argument("--consolidation", type=float, default=0.25, help="share of the lesions (default 0.25)")


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
