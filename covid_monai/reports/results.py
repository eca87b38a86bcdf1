# SPDX-License-Identifier: Apache-2.0
"""The files that an analysis leaves: masks, figures, picture and reports, all of them or none."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from covid_monai.analysis import Analysis
from covid_monai.ct import CTScan, write_mask
from covid_monai.reports.html import save_html
from covid_monai.reports.overview import save_overview
from covid_monai.reports.pdf import save_pdf
from covid_monai.reports.pictures import draw_pictures
from covid_monai.severity import REGIONS, SIDES
from covid_monai.whole_files import unfinished_folder

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["FILES", "ResultsError", "check_results", "write_results"]

FILES = (
    *("lesions.nii.gz", "lungs.nii.gz", "regions.nii.gz"),
    *("overview.png", "report.html", "report.pdf", "analysis.json"),
)
DICOM = "dicom_results"
"""Folder of the DICOM files; not ``dicom``, which is what people call the folder of their series."""


class ResultsError(ValueError):
    """Results cannot be written where they were asked for."""


def write_results(
    analysis: Analysis,
    scan: CTScan,
    folder: str | os.PathLike,
    overwrite: bool = False,
    sources: Sequence[Dataset] | None = None,
    title: str | None = None,
) -> dict[str, Path]:
    """Write the files named in :data:`FILES` into a folder, and DICOM files into its ``dicom_results`` when asked for.

    All are made under temporary names first. ``analysis.json`` is taken away first and comes back last: where it lies,
    all belong together. Results of the same scan are replaced.

    Args:
        analysis: what was found.
        scan: the scan it was found in, whose grid the masks get.
        folder: where to write; made when missing.
        overwrite: replace the results of another scan too.
        sources: data sets of the DICOM series that the scan was read from, see :func:`covid_monai.ct.read_sources`:
            segmentations and a structured report of that patient are written too.
        title: name of the scan in the reports, instead of its id.

    Returns:
        Path of each file by its name.

    Raises:
        ResultsError: when the folder holds results of another scan, or cannot be written.
    """
    folder = Path(folder)
    if not overwrite:
        check_results(folder, analysis.scan_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as unfinished:
            with ThreadPoolExecutor() as beside:  # compression lets others run
                masks = beside.submit(_write_masks, analysis, scan, unfinished)
                overview = beside.submit(save_overview, analysis, unfinished / "overview.png")
                pictures = draw_pictures(analysis)
                pdf = beside.submit(save_pdf, analysis, unfinished / "report.pdf", title, pictures)
                save_html(analysis, unfinished / "report.html", title, pictures)
                for each in (masks, overview, pdf):
                    each.result()
            (unfinished / "analysis.json").write_text(json.dumps(analysis.to_dict(), indent=2) + "\n", encoding="utf-8")
            names = [*FILES[:-1], *(_write_dicom(analysis, sources, unfinished) if sources else ()), FILES[-1]]
            (folder / "analysis.json").unlink(missing_ok=True)
            _remove_dicom(folder / DICOM)  # of another state of this scan
            return {name: _moved(unfinished / name, folder / name) for name in names}
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error


def check_results(folder: Path, scan_id: str) -> None:
    """Refuse a folder that is not to be overwritten.

    Raises:
        ResultsError: when it holds the results of another scan, or other files of their names.
    """
    other = _scan_in(folder)
    if other not in (None, scan_id):
        found = f"results of another scan ({other})" if other else "files of these names that are no results"
        raise ResultsError(f"{folder} holds {found}: choose another folder, or --overwrite them.")


def _write_masks(analysis: Analysis, scan: CTScan, folder: Path) -> None:
    labels = {
        "lesions": dict(enumerate(analysis.classes, start=1)),
        "lungs": {side.code: side.name for side in SIDES},
        "regions": {region.code: f"{region.name} (approximate)" for region in REGIONS},
    }
    for name, names in labels.items():
        write_mask(scan.from_upright(getattr(analysis, name)), scan, folder / f"{name}.nii.gz", names)


def _write_dicom(analysis: Analysis, sources: Sequence[Dataset], folder: Path) -> list[str]:
    """Write segmentations and a structured report; their paths below the folder."""
    from covid_monai.reports.dicom_seg import write_seg
    from covid_monai.reports.dicom_sr import write_sr

    segmentations = write_seg(analysis, sources, folder / DICOM)
    report = write_sr(analysis, sources, segmentations, folder / DICOM / "report.sr.dcm")
    return [str(path.relative_to(folder)) for path in (*segmentations.values(), report)]


def _remove_dicom(folder: Path) -> None:
    """Take away what :func:`_write_dicom` left, and nothing else."""
    for pattern in ("*.seg.dcm", "report.sr.dcm"):
        for file in folder.glob(pattern):
            file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _moved(file: Path, to: Path) -> Path:
    to.parent.mkdir(exist_ok=True)
    return file.replace(to)


def _scan_in(folder: Path) -> str | None:
    """Id of the scan whose results lie in a folder, "" for other files of these names, None for neither."""
    try:
        return json.loads((folder / "analysis.json").read_text(encoding="utf-8")).get("scan_id", "")
    except (FileNotFoundError, NotADirectoryError):
        return "" if any((folder / name).exists() for name in FILES) else None
    except (OSError, ValueError, AttributeError):
        return ""
