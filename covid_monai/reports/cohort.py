# SPDX-License-Identifier: Apache-2.0
"""One table for many scans: a CSV row each with the key figures, safe on disk after every scan."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.scores import Score
from covid_monai.whole_files import write_whole

__all__ = ["COLUMNS", "CohortError", "CohortTable", "figures_of", "tells"]


class CohortError(ValueError):
    """The file in the place of a cohort table is none, or one of another version."""


def _columns() -> Iterator[tuple[str, str]]:
    """Name and meaning of every column, in order."""
    yield "name", "name of the row: the folder of the results, or what the input is called"
    yield "scan_id", "id of the scan by its content; empty for an input that failed"
    yield "error", "fault of an input that failed, which has no figures; else empty"
    yield "warnings", "number of warnings: read them in the scan's analysis.json"
    yield "finding", "opacities consistent with viral pneumonia: found, not found or indeterminate"
    for score, name in (("ct_ss", "CT severity score, 0 to 40"), ("lobar", "lobar score, 0 to 25")):
        yield score, f"{name}; empty when a part is not assessable"
        yield f"{score}_lowest", "lowest possible, parts that are not assessable counted as 0"
        yield f"{score}_highest", "highest possible"
        yield f"{score}_range_low", "lowest over thresholds and mirrored slices"
        yield f"{score}_range_high", "highest over the same"
    yield "regions_assessable", "how many of the 20 regions could be scored"
    yield "grade", "severe or mild by the cut-off 19.5; empty when it cannot be told"
    for kind in ("lung", "lesion", "ground_glass", "consolidation"):
        yield f"{kind}_ml", "volume in mL; empty when lengths, or the class, are unknown"
    for kind in ("lesion", "ground_glass", "consolidation"):
        yield f"{kind}_share", "share of the lungs, 0 to 1; empty when there is no lung, or the class is unknown"
    for end in ("low", "high"):
        yield f"lesion_share_range_{end}", "of the lesion share over thresholds and mirrored slices"
    for side in SIDES:
        yield f"{side.key}_ml", f"volume of the {side.name} in mL"
        yield f"{side.key}_lesion_share", f"share of the {side.name} that is lesion, 0 to 1"
    for lobe in LOBES:
        yield f"{lobe.key}_lesion_share", f"share of the {lobe.name} that is lesion, 0 to 1"
        yield f"{lobe.key}_score", f"score of the {lobe.name}, 0 to 5; empty when not assessable"
    for region in REGIONS:
        yield f"{region.key}_score", f"score of the region: {region.name}, 0 to 2; empty when not assessable"
    yield "bilateral", "whether both lungs hold lesion: true or false"
    yield "peripheral_share", "share of the lesions in the outer part of the lungs, 0 to 1"
    yield "lower_lobe_share", "share of the lesions in the lower lobes, 0 to 1"
    yield "slices", "axial slices of the scan"
    yield "lung_slices", "slices with lung"
    yield "lesion_slices", "slices with lesion"
    yield "floor_ml", "noise floor in mL"
    yield "floor_share", "noise floor as share of a place's lung"
    yield "lungs_from", "how the lungs were found"
    yield "model", "name and version of the model"
    yield "weights_sha256", "SHA-256 of the weights"
    yield "covid_monai", "version of this program"
    yield "approximate_regions", "true: lobes and regions are a geometric approximation"
    yield "notice", "research use only"


COLUMNS: Mapping[str, str] = dict(_columns())
"""Name and meaning of every column of a cohort table."""


class CohortTable:
    """A CSV file with one row a scan, rewritten whole after each, so that a cohort that is stopped loses nothing.

    Rows of scans that a file of an earlier run holds are kept, its failures are not; a row of the same name takes the
    old one's place. Text that a spreadsheet would take for a formula gets an apostrophe in front.

    Args:
        path: CSV file; made with the first row.

    Raises:
        CohortError: when the file there is no table with these columns; from every call that cannot write it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._rows = self._earlier_rows()

    def add(self, name: str, analysis: Analysis) -> None:
        """Add the figures of a scan.

        Args:
            name: of the row. It stands in the file as given: give no patient's name unless that is wanted.
            analysis: what was found.
        """
        self.add_figures(name, figures_of(analysis))

    def add_figures(self, name: str, figures: Mapping[str, Any]) -> None:
        """Add the figures of a scan, as :func:`figures_of` gives them, in another process perhaps; see :meth:`add`."""
        self._put(name, {"name": name, **figures})

    @property
    def rows(self) -> Mapping[str, Mapping[str, str]]:
        """The rows as they stand in the file, by their names."""
        return self._rows

    def add_failure(self, name: str, fault: str) -> None:
        """Add an input that could not be analysed.

        Args:
            name: of the row, as in :meth:`add`.
            fault: what was wrong. It stands in the file as given, so it must not hold a path that tells of a patient.
        """
        self._put(name, {"name": name, "error": fault, "notice": NOTICE})

    def _put(self, name: str, row: Mapping[str, Any]) -> None:
        self._rows[_cell(name)] = {column: _cell(row.get(column)) for column in COLUMNS}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text.getvalue().encode())
        except OSError as error:
            raise CohortError(
                f"{self.path} cannot be written ({error.strerror or error}): choose another folder."
            ) from error

    def _earlier_rows(self) -> dict[str, dict[str, str]]:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, csv.Error):  # no text, no table, or an empty file
            header, rows = [], []
        if header != list(COLUMNS) or any(len(row) != len(header) for row in rows):
            raise CohortError(
                f"{self.path} is no cohort table of this version: move it away, or choose another folder."
            )
        return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def figures_of(analysis: Analysis) -> dict[str, Any]:
    """The row of a scan in a cohort table, without its name."""
    severity, finding, record = analysis.severity, analysis.finding, analysis.record
    method, whole = record["method"], severity.whole
    row = {
        "scan_id": analysis.scan_id,
        "warnings": len(analysis.warnings),
        "finding": finding.result,
        "regions_assessable": severity.ct_ss.assessable,
        "grade": severity.grade,
        "bilateral": finding.bilateral,
        "peripheral_share": finding.peripheral_share,
        "lower_lobe_share": finding.lower_lobe_share,
        "slices": len(analysis.slice_shares),
        "lung_slices": analysis.lung_slices,
        "lesion_slices": analysis.lesion_slices,
        "floor_ml": severity.floor.ml,
        "floor_share": severity.floor.share,
        "lungs_from": method["lungs"],
        "model": " ".join(filter(None, (method["model"]["name"], method["model"]["version"]))),
        "weights_sha256": method["model"]["weights_sha256"],
        "covid_monai": record["software"]["covid_monai"],
        "approximate_regions": severity.approximate,
        "notice": NOTICE,
    }
    for kind in ("lung", "lesion", "ground_glass", "consolidation"):
        row[f"{kind}_ml"] = getattr(whole, f"{kind}_ml")
    for kind in ("lesion", "ground_glass", "consolidation"):
        row[f"{kind}_share"] = getattr(whole, f"{kind}_share")
    row |= _score("ct_ss", severity.ct_ss) | _score("lobar", severity.lobar)
    if analysis.spread is not None:
        for name in ("ct_ss", "lobar", "lesion_share"):
            low, high = getattr(analysis.spread, name) or (None, None)
            row |= {f"{name}_range_low": low, f"{name}_range_high": high}
    for lung in severity.lungs:
        row |= {f"{lung.key}_ml": lung.lung_ml, f"{lung.key}_lesion_share": lung.lesion_share}
    for lobe in severity.lobes:
        row |= {f"{lobe.key}_lesion_share": lobe.lesion_share, f"{lobe.key}_score": lobe.score}
    return row | {f"{region.key}_score": region.score for region in severity.regions}


def tells(row: Mapping[str, str], content: Mapping[str, Any]) -> bool:
    """Whether a row of a table has the figures of an ``analysis.json``, not those of another analysis of its scan.

    Args:
        row: of :attr:`CohortTable.rows`.
        content: of the file.

    Raises:
        LookupError, TypeError: the file is none.
    """
    method, severity, spread = content["method"], content["severity"], content["spread"]
    share = (spread and spread["lesion_share"]) or (None, None)
    expected = {
        "error": None,
        "scan_id": content["scan_id"],
        "covid_monai": content["software"]["covid_monai"],
        "weights_sha256": method["model"]["weights_sha256"],
        "lungs_from": method["lungs"],
        "floor_ml": severity["floor"]["ml"],
        "floor_share": severity["floor"]["share"],
        "lesion_ml": severity["whole"]["lesion_ml"],
        "lesion_share": severity["whole"]["lesion_share"],
        "lesion_share_range_low": share[0],
        "lesion_share_range_high": share[1],
    }
    return all(row[column] == _cell(value) for column, value in expected.items())


def _score(name: str, score: Score) -> dict[str, int | None]:
    return {name: score.score, f"{name}_lowest": score.lowest, f"{name}_highest": score.highest}


def _cell(value: object) -> str:
    """A value as text of one line: nothing for None, no formula for a spreadsheet."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    text = " ".join(str(value).split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
