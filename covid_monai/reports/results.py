# SPDX-License-Identifier: Apache-2.0
"""The files that an analysis leaves: lesion mask, figures and picture, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from covid_monai.analysis import Analysis
from covid_monai.ct import CTScan, write_mask
from covid_monai.reports.overview import save_overview

__all__ = ["FILES", "ResultsError", "write_results"]

FILES = ("lesions.nii.gz", "overview.png", "analysis.json")


class ResultsError(ValueError):
    """Results cannot be written where they were asked for."""


def write_results(
    analysis: Analysis, scan: CTScan, folder: str | os.PathLike, overwrite: bool = False
) -> dict[str, Path]:
    """Write ``lesions.nii.gz``, ``analysis.json`` and ``overview.png`` into a folder.

    All three are made under temporary names first. ``analysis.json`` is taken away first and comes back last: where it
    lies, all three belong together. Results of the same scan are replaced.

    Args:
        analysis: what was found.
        scan: the scan it was found in, whose grid the mask gets.
        folder: where to write; made when missing.
        overwrite: replace the results of another scan too.

    Returns:
        Path of each file by its name.

    Raises:
        ResultsError: when the folder holds results of another scan, or cannot be written.
    """
    folder = Path(folder)
    other = _scan_in(folder)
    if other not in (None, analysis.scan_id) and not overwrite:
        found = f"results of another scan ({other})" if other else "files of these names that are no results"
        raise ResultsError(f"{folder} holds {found}: choose another folder, or --overwrite them.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as name:
            unfinished = Path(name)
            labels = dict(enumerate(analysis.classes, start=1))
            write_mask(scan.from_upright(analysis.lesions), scan, unfinished / "lesions.nii.gz", labels)
            (unfinished / "analysis.json").write_text(json.dumps(analysis.to_dict(), indent=2) + "\n", encoding="utf-8")
            save_overview(analysis, unfinished / "overview.png")
            (folder / "analysis.json").unlink(missing_ok=True)
            return {name: (unfinished / name).replace(folder / name) for name in FILES}
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error


def _scan_in(folder: Path) -> str | None:
    """Id of the scan whose results lie in a folder, "" for other files of these names, None for neither."""
    try:
        return json.loads((folder / "analysis.json").read_text(encoding="utf-8")).get("scan_id", "")
    except (FileNotFoundError, NotADirectoryError):
        return "" if any((folder / name).exists() for name in FILES) else None
    except (OSError, ValueError, AttributeError):
        return ""
