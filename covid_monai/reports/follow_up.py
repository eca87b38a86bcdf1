# SPDX-License-Identifier: Apache-2.0
"""The files that a follow-up leaves: change maps, figures, trend and report, all of them or none."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from covid_monai import __version__
from covid_monai.analysis import NOTICE, Analysis
from covid_monai.ct import CTScan, write_mask
from covid_monai.reports.follow_up_html import render_follow_up
from covid_monai.reports.results import ResultsError, check_results
from covid_monai.severity.follow_up import FollowUp, Interval
from covid_monai.severity.lesion_change import CHANGES, EDGE_MM
from covid_monai.severity.registration import TRUSTED_DICE, TRUSTED_VESSELS
from covid_monai.whole_files import unfinished_folder

__all__ = ["SCHEMA", "check_follow_up", "to_dict", "write_follow_up"]

SCHEMA = "covid_monai/follow_up/1"
_FILES = ("follow_up.html", "trend.csv", "follow_up.json")
_CHANGE_FILE = re.compile(r"change_\d+_\d+\.nii\.gz")


def write_follow_up(
    followed: FollowUp,
    analyses: Sequence[Analysis],
    scans: Sequence[CTScan],
    folder: str | os.PathLike,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write ``follow_up.json``, ``follow_up.html``, ``trend.csv`` and a ``change_1_2.nii.gz`` for each interval.

    All are made under temporary names first. ``follow_up.json`` is taken away first and comes back last: where it
    lies, all belong together. Results of the same scans are replaced.

    Args:
        followed: what changed.
        analyses: of the scans, in the same order.
        scans: that were analysed; each change map gets the grid of its later one.
        folder: where to write; made when missing.
        overwrite: replace the results of other scans too.

    Returns:
        Path of each file by its name.

    Raises:
        ValueError: when analyses or scans are not those that were followed.
        ResultsError: when the folder holds a follow-up of other scans, or their results below, or cannot be written.
    """
    found = tuple(analysis.scan_id for analysis in analyses)
    if found != followed.scan_ids or len(scans) != len(found):
        raise ValueError(
            f"the follow-up is of the scans {', '.join(followed.scan_ids)}: give their {len(followed.scan_ids)} "
            "analyses and scans in this order."
        )
    folder = Path(folder)
    if not overwrite:
        check_follow_up(folder, found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as unfinished:
            for interval in followed.intervals:
                scan = scans[interval.later - 1]
                write_mask(scan.from_upright(interval.change), scan, unfinished / _change_file(interval), CHANGES)
            (unfinished / "follow_up.html").write_text(render_follow_up(followed, analyses), encoding="utf-8")
            (unfinished / "trend.csv").write_text(_trend_csv(followed), encoding="utf-8", newline="")
            text = json.dumps(to_dict(followed, analyses), indent=2, allow_nan=False) + "\n"
            (unfinished / "follow_up.json").write_text(text, encoding="utf-8")
            (folder / "follow_up.json").unlink(missing_ok=True)
            for stale in _change_files(folder):
                stale.unlink()
            names = [*(_change_file(interval) for interval in followed.intervals), *_FILES]
            return {name: (unfinished / name).replace(folder / name) for name in names}
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error


def check_follow_up(folder: Path, scan_ids: Sequence[str]) -> None:
    """Refuse a folder that is not to be overwritten.

    Args:
        folder: where a follow-up is to be written, and the results of its scans below.
        scan_ids: of the scans.

    Raises:
        ResultsError: when it holds the follow-up or the results of other scans, or other files of their names.
    """
    others = _scans_in(folder)
    if others not in (None, tuple(scan_ids)):
        what = "a follow-up of other scans" if others else "files of these names that are no follow-up"
        raise ResultsError(f"{folder} holds {what}: choose another folder, or --overwrite them.")
    for number, scan_id in enumerate(scan_ids, start=1):
        check_results(folder / str(number), scan_id)


def to_dict(followed: FollowUp, analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Everything but the arrays, as plain values for JSON; None where a figure cannot be had.

    Args:
        followed: what changed.
        analyses: of the scans, in the same order.
    """
    days = followed.days or (None,) * len(analyses)
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "approximate": True,
        "scans": [
            {
                "number": number,
                "scan_id": analysis.scan_id,
                "day": day,
                "figures": {trend.key: trend.values[number - 1] for trend in followed.trends},
                "ranges": {trend.key: trend.ranges[number - 1] for trend in followed.trends},
                "grade": analysis.severity.grade,
                "warnings": list(analysis.warnings),
                "model": analysis.record["method"]["model"],
            }
            for number, (analysis, day) in enumerate(zip(analyses, days, strict=True), start=1)
        ],
        "slopes_per_day": {trend.key: trend.per_day for trend in followed.trends},
        "intervals": [_interval(interval) for interval in followed.intervals],
        "change_codes": {str(code): name for code, name in CHANGES.items()},
        "edge_mm": EDGE_MM,
        "software": {"covid_monai": __version__},
    }


def _interval(interval: Interval) -> dict[str, Any]:
    registration = interval.registration
    return {
        "earlier": interval.earlier,
        "later": interval.later,
        "days": interval.days,
        "change_map": _change_file(interval),
        "lesions": asdict(interval.lesions),
        "ct_ss": asdict(interval.ct_ss),
        "lobar": asdict(interval.lobar),
        "grades": list(interval.grades),
        "whole": asdict(interval.whole),
        "lungs": [asdict(place) for place in interval.lungs],
        "lobes": [asdict(place) for place in interval.lobes],
        "regions": [asdict(place) for place in interval.regions],
        "registration": {
            "dice_before": registration.dice_before,
            **asdict(registration.fit),
            "folded": registration.folded,
            "trusted": registration.trusted,
            "trusted_from": {"dice": TRUSTED_DICE, "vessels": TRUSTED_VESSELS},
        },
        "warnings": list(interval.warnings),
    }


def _change_file(interval: Interval) -> str:
    return f"change_{interval.earlier}_{interval.later}.nii.gz"


def _change_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _CHANGE_FILE.fullmatch(path.name)] if folder.is_dir() else []


def _trend_csv(followed: FollowUp) -> str:
    """One row a scan: its key figures with their ranges; empty where one cannot be had."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for trend in followed.trends for name in (trend.key, f"{trend.key}_low", f"{trend.key}_high")]
    writer.writerow(["scan", "scan_id", "day", *columns, "notice"])
    for number, scan_id in enumerate(followed.scan_ids):
        day = None if followed.days is None else followed.days[number]
        writer.writerow([number + 1, scan_id, *(_text(value) for value in (day, *_values(followed, number))), NOTICE])
    return text.getvalue()


def _values(followed: FollowUp, number: int) -> Iterator[float | None]:
    for trend in followed.trends:
        yield trend.values[number]
        yield from trend.ranges[number] or (None, None)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _scans_in(folder: Path) -> tuple[str, ...] | None:
    """Ids of the scans whose follow-up lies in a folder, () for other files of these names, None for neither."""
    try:
        content = json.loads((folder / "follow_up.json").read_text(encoding="utf-8"))
        return tuple(scan["scan_id"] for scan in content["scans"])
    except (FileNotFoundError, NotADirectoryError):
        return () if _change_files(folder) or any((folder / name).exists() for name in _FILES) else None
    except (OSError, ValueError, LookupError, TypeError):
        return ()
