# SPDX-License-Identifier: Apache-2.0
"""What a report says, in words and rows: the same for HTML and PDF, which only lay it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports.body_map import Band, band
from covid_monai.reports.pictures import LESION_COLOURS
from covid_monai.reports.wording import ml, ml_range, over, percent, percent_range, total, unbroken, whole_range
from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.finding import Finding
from covid_monai.severity.scores import CUT_OFF, CUT_OFF_SOURCE, Involvement, Score, Severity
from covid_monai.severity.uncertainty import Spread

__all__ = ["APPROXIMATE", "COLUMNS", "Contents", "Figure", "Row", "contents"]

APPROXIMATE = "Lobes and regions are a geometric approximation, not segmented anatomy."
FROM_LOBES = "Regions are a geometric approximation within the given lobes, not segmented anatomy."
COLUMNS = ("Place", "Lung (mL)", "Lesion (mL)", "Lesion (%)", "Ground glass (%)", "Consolidation (%)", "Score")


@dataclass(frozen=True)
class Figure:
    """A key figure: its name, its value, and what must be known about it."""

    name: str
    value: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A row of the table of places.

    Attributes:
        level: "whole", "lung", "lobe" or "region".
        name: of the place, within the one above it.
        cells: the rest of :data:`COLUMNS`.
        band: its colour on the body map.
    """

    level: str
    name: str
    cells: tuple[str, ...]
    band: Band


@dataclass(frozen=True)
class Contents:
    """Everything that a report says.

    Attributes:
        title: heading, and name of the document.
        scan_id: of the scan.
        notice: research use only.
        approximate: what the regions are.
        warnings: of the analysis.
        finding: the patient-level finding, with reason and distribution as its details.
        rule: by which it was made.
        figures: the key figures.
        rows: both lungs, each lung, its lobes, their regions.
        notes: how the figures are to be read, with sources.
        legend: what the colours on the slices mean.
        slices: heading of the axial slices.
        record: scan, method, software and seconds: groups of names and values.
    """

    title: str
    scan_id: str
    notice: str
    approximate: str
    warnings: tuple[str, ...]
    finding: Figure
    rule: str
    figures: tuple[Figure, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    legend: str
    slices: str
    record: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def contents(analysis: Analysis, title: str | None = None) -> Contents:
    """Say in words what an analysis found.

    Args:
        analysis: what was found.
        title: name of the scan for the heading, which may tell who the patient is; the scan id when None.
    """
    severity = analysis.severity
    colours = ", ".join(f"{LESION_COLOURS[name][0].lower()}: {name}" for name in analysis.classes)
    approximate = FROM_LOBES if analysis.record["method"].get("regions_from") == "lobes" else APPROXIMATE
    return Contents(
        title=f"Chest CT: lung involvement, {title or 'scan ' + analysis.scan_id}",
        scan_id=analysis.scan_id,
        notice=NOTICE,
        approximate=approximate,
        warnings=analysis.warnings,
        finding=_finding(analysis.finding),
        rule=analysis.finding.rule,
        figures=tuple(_figures(analysis)),
        rows=tuple(_rows(severity)),
        notes=tuple(_notes(severity, analysis.spread)),
        legend=f"Outlined in {colours}; light blue: lung. Patient's right is on the left.",
        slices="Most affected slices" if analysis.lesion_slices else "Slices without lesion",
        record=tuple(
            (name.capitalize(), tuple(_flat(analysis.record[name])))
            for name in ("scan", "method", "software", "seconds")
        ),
    )


def _finding(finding: Finding) -> Figure:
    facts = []
    if finding.bilateral is not None:
        facts.append(f"Both lungs involved: {'yes' if finding.bilateral else 'no'}")
    for name, share in (
        ("outer half of the lungs", finding.peripheral_share),
        ("lower lobes", finding.lower_lobe_share),
    ):
        if share is not None:
            facts.append(f"{percent(share, 0)} of the lesions in the {name}")
    return Figure(
        "Opacities consistent with viral pneumonia", finding.result or "not assessable", (finding.reason, *facts)
    )


def _figures(analysis: Analysis) -> Iterator[Figure]:
    severity, spread = analysis.severity, analysis.spread
    whole, (right, left), ct_ss = severity.whole, severity.lungs, severity.ct_ss

    def details(*parts: str | None) -> tuple[str, ...]:
        return tuple(unbroken(part) for part in parts if part)

    def classes(
        write: Callable[[float | None], str], ground_glass: float | None, consolidation: float | None
    ) -> tuple[str, ...]:
        if ground_glass is None:
            return ()
        return f"ground glass {write(ground_glass)}", f"consolidation {write(consolidation)}"

    def ranged(text: str | None) -> str | None:
        return f"range {text}" if text else None

    yield Figure(
        "Lung involved",
        "not assessable" if whole.lesion_share is None else percent(whole.lesion_share),
        details(
            *classes(percent, whole.ground_glass_share, whole.consolidation_share),
            f"right {percent(right.lesion_share)}, left {percent(left.lesion_share)}",
            ranged(percent_range(spread.lesion_share) if spread else None),
        ),
    )
    yield Figure(
        "CT severity score",
        total(ct_ss) if ct_ss.assessable else "not assessable",
        details(_assessed(ct_ss, "regions"), ranged(whole_range(spread.ct_ss) if spread else None)),
    )
    yield Figure(
        "Grade",
        severity.grade or "cannot be told",
        details(
            f"cut-off: CT severity score {CUT_OFF:g}",
            None if severity.grade else f"the possible scores {ct_ss.lowest} to {ct_ss.highest} lie on both sides",
            "the range of the score lies on both sides"
            if severity.grade and spread and spread.ct_ss[0] < CUT_OFF < spread.ct_ss[1]
            else None,
        ),
    )
    yield Figure(
        "Lobar score",
        total(severity.lobar) if severity.lobar.assessable else "not assessable",
        details(_assessed(severity.lobar, "lobes"), ranged(whole_range(spread.lobar) if spread else None)),
    )
    yield Figure(
        "Lesion volume",
        "not known" if whole.lesion_ml is None else ml(whole.lesion_ml),
        details(
            "the source gives no voxel size" if whole.lung_ml is None else f"of {ml(whole.lung_ml)} lung",
            *classes(ml, whole.ground_glass_ml, whole.consolidation_ml),
            ranged(ml_range(spread.lesion_ml) if spread else None),
        ),
    )
    yield Figure("Slices with lesion", f"{analysis.lesion_slices} of {analysis.lung_slices}", ("of those with lung",))


def _assessed(score: Score, parts: str) -> str:
    if score.assessable == score.parts:
        return f"all {score.parts} {parts} assessable"
    if score.assessable:
        return f"lowest to highest possible; only {score.assessable} of {score.parts} {parts} assessable"
    return f"none of the {score.parts} {parts} is assessable; possible: {score.lowest} to {score.highest}"


def _rows(severity: Severity) -> Iterator[Row]:
    yield _row("whole", "Both lungs", severity.whole, total(severity.ct_ss))
    lobes = dict(zip((lobe.key for lobe in LOBES), severity.lobes, strict=True))
    regions = dict(zip((region.key for region in REGIONS), severity.regions, strict=True))
    for side, lung in zip(SIDES, severity.lungs, strict=True):
        yield _row("lung", side.name.capitalize(), lung, "")
        for lobe in LOBES:
            if lobe.side != side.key:
                continue
            yield _row("lobe", lobe.name.capitalize(), lobes[lobe.key], _out_of(lobes[lobe.key], 5))
            for region in REGIONS:
                if region.lobe == lobe.key:
                    name = region.name.partition(", ")[2].capitalize()
                    yield _row("region", name, regions[region.key], _out_of(regions[region.key], 2))


def _row(level: str, name: str, place: Involvement, score: str) -> Row:
    shares = (place.lesion_share, place.ground_glass_share, place.consolidation_share)
    volumes = (ml(volume).removesuffix(" mL") for volume in (place.lung_ml, place.lesion_ml))
    return Row(level, name, (*volumes, *(percent(share).removesuffix(" %") for share in shares), score), band(place))


def _out_of(place: Involvement, most: int) -> str:
    return "n/a" if place.score is None else f"{place.score} / {most}"


def _notes(severity: Severity, spread: Spread | None) -> Iterator[str]:
    floor = severity.floor
    yield (
        "CT severity score: each of 20 regions has 0 (no lesion), 1 (under 50 %) or 2 (50 % or more); the sum is 0 to "
        "40. Lobar score: each of 5 lobes has 0 to 5 (none, under 5 %, to 25 %, to 50 %, to 75 %, above); the sum is 0 "
        "to 25 (Pan et al. 2020)."
    )
    yield f"Severe or mild: cut-off {CUT_OFF:g}. {CUT_OFF_SOURCE}"
    yield (
        f"Noise floor: a place counts as free of lesion below {floor.ml:g} mL or below {percent(floor.share)} of its "
        f"lung. Not assessable (n/a) is never 0: a score then lies between the lowest and the highest "
        "possible, and the shares of such a place are those of the part that was seen."
    )
    if spread is None:
        yield "Ranges over thresholds and mirrored slices were not made."
    else:
        yield f"Range: lowest and highest figure over {spread.runs} lesion masks ({over(spread)})."


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a nested record, in its own order; what is not known is left out."""
    for key, value in record.items():
        name = f"{above}{key.strip('_')}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list | tuple):
            yield name, " x ".join(str(each) for each in value)
        elif value is not None:
            yield name, str(value)
