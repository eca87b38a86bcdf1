# SPDX-License-Identifier: Apache-2.0
"""A schematic of both lungs whose twenty regions are coloured by how much of them is lesion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from covid_monai.reports.drawing import Anchor, Drawing, Label, Path, to_svg
from covid_monai.reports.wording import percent, score_of
from covid_monai.severity.anatomy import LOBES, REGIONS
from covid_monai.severity.scores import Involvement, Severity

__all__ = ["BANDS", "NOT_ASSESSABLE", "Band", "band", "body_map", "draw_body_map"]


@dataclass(frozen=True)
class Band:
    """A colour, from which share (0..1) on it stands, and what the legend says."""

    key: str
    colour: str
    ink: str
    at_least: float
    legend: str


NOT_ASSESSABLE = Band("na", "#d4d4d4", "#1a1a1a", math.inf, "n/a")
BANDS = (
    Band("b0", "#ffffff", "#1a1a1a", -math.inf, "score 0"),
    Band("b1", "#fff1c9", "#1a1a1a", 0.0, "< 10 %"),
    Band("b2", "#fed06f", "#1a1a1a", 0.1, "10-25 %"),
    Band("b3", "#fb9a29", "#1a1a1a", 0.25, "25-50 %"),
    Band("b4", "#cc4c02", "#ffffff", 0.5, "50-75 %"),
    Band("b5", "#7a2a04", "#ffffff", 0.75, "≥ 75 %"),
)
"""From light to dark in one hue, after ColorBrewer's YlOrBr, which the colour-blind can read; 50 % is where a region's
score becomes 2."""


def band(place: Involvement) -> Band:
    """The colour of a region, lobe or lung by its lesion share; that of score 0 where its score is 0."""
    if not place.assessable or place.lesion_share is None:
        return NOT_ASSESSABLE
    if place.score == 0 or place.lesion_share == 0:
        return BANDS[0]
    return next(each for each in reversed(BANDS) if place.lesion_share >= each.at_least)


def body_map(severity: Severity) -> str:
    """The schematic as an SVG element: twenty regions, the patient's right on the left, with a legend.

    It is a scheme, not a projection: every region has a cell of its own, also where one lies behind another.
    """
    return to_svg(draw_body_map(severity))


# Rows of cells of a lung, each from one height to another (0 apex, 1 base), with its regions from lateral to medial, by
# the number that they have within their lobe.
_LOWER_ROWS = ((0.53, 0.68, (0,)), (0.68, 0.84, (2, 1)), (0.84, 1.0, (3, 4)))
_ROWS = {
    "right_upper_lobe": ((0.0, 0.19, (0,)), (0.19, 0.37, (1, 2))),
    "right_middle_lobe": ((0.37, 0.53, (0, 1)),),
    "right_lower_lobe": _LOWER_ROWS,
    "left_upper_lobe": ((0.0, 0.17, (0,)), (0.17, 0.33, (1, 2)), (0.33, 0.43, (3,)), (0.43, 0.53, (4,))),
    "left_lower_lobe": _LOWER_ROWS,
}
_SHORT = {
    "superior lingular": "sup. lingular",
    "inferior lingular": "inf. lingular",
    "medial basal": "med. basal",
    "anterior basal": "ant. basal",
    "lateral basal": "lat. basal",
    "posterior basal": "post. basal",
}
WIDTH, HEIGHT = 500.0, 478.0
_LUNG_WIDTH, _LUNG_HEIGHT, _TOP, _MARGIN = 196.0, 388.0, 24.0, 42.0
_STEPS = 16


def draw_body_map(severity: Severity) -> Drawing:
    """The schematic of :func:`body_map` as a drawing."""
    places = {region.key: place for region, place in zip(REGIONS, severity.regions, strict=True)}
    total = severity.ct_ss
    score = f"{total.score}" if total.score is not None else f"between {total.lowest} and {total.highest}"
    description = (
        f"CT severity score {score} of {total.maximum}. "
        + "; ".join(
            f"{region.name}: {percent(places[region.key].lesion_share)} lesion, {score_of(places[region.key])}"
            for region in REGIONS
        )
        + "."
    )
    return Drawing(
        "body-map",
        "Lesion share of the twenty regions on a scheme of both lungs, patient's right on the left",
        description,
        WIDTH,
        HEIGHT,
        (*_lungs(severity, places), *_legend()),
    )


def _lungs(severity: Severity, places: dict[str, Involvement]) -> Iterator[Path | Label]:
    yield Label(_MARGIN, 15, "Right lung", 13, "start", bold=True)
    yield Label(WIDTH - _MARGIN, 15, "Left lung", 13, "end", bold=True)
    for lobe, place in zip(LOBES, severity.lobes, strict=True):
        left, rows = lobe.side == "left_lung", _ROWS[lobe.key]
        regions = [region for region in REGIONS if region.lobe == lobe.key]
        for begin, end, numbers in rows:
            for column, number in enumerate(numbers):
                edges = (column / len(numbers), (column + 1) / len(numbers))
                region = regions[number]
                yield from _cell(places[region.key], region.name.partition(", ")[2], (begin, end), edges, left)
        top, bottom = rows[0][0], rows[-1][1]
        yield Path(_outline((top, bottom), (0, 1), left), None, "#1a1a1a", 2)
        _, y = _point(0, (top + bottom) / 2, left)
        x = WIDTH - 3 if left else 3
        anchor: Anchor = "end" if left else "start"
        yield Label(x, y - 4, "".join(word[0] for word in lobe.name.split()).upper(), 12, anchor, bold=True)
        yield Label(x, y + 10, "n/a" if place.score is None else f"{place.score}/5", 11, anchor)


def _cell(
    place: Involvement, name: str, rows: tuple[float, float], edges: tuple[float, float], left: bool
) -> Iterator[Path | Label]:
    """One region: its outline, its name and its share."""
    colour = band(place)
    tooltip = f"{place.name}: {percent(place.lesion_share)} lesion, {score_of(place)}"
    outline = _outline(rows, edges, left)
    yield Path(outline, colour.colour, "#6b6b6b", 0.8, colour is NOT_ASSESSABLE, tooltip)
    x, y = _point(sum(edges) / 2, sum(rows) / 2 + (0.03 if rows[0] == 0 else 0), left)
    share = "n/a" if colour is NOT_ASSESSABLE else percent(place.lesion_share, 0)
    yield Label(x, y - 3, _SHORT.get(name, name), 11, colour=colour.ink)
    yield Label(x, y + 11, share, 12.5, colour=colour.ink, bold=True)


def _outline(rows: tuple[float, float], edges: tuple[float, float], left: bool) -> tuple[tuple[float, float], ...]:
    """Points around the cell, lateral to medial along its top, down, back along its bottom, and up."""

    def between(begin: float, end: float) -> list[float]:
        return [begin + (end - begin) * step / _STEPS for step in range(_STEPS + 1)]

    across, down = between(*edges), between(*rows)
    if rows[0] == 0:  # closer together where the apex is round
        down = [rows[1] * (step / len(down)) ** 2 for step in range(len(down) + 1)]
    way = [(u, rows[0]) for u in across] + [(edges[1], v) for v in down]
    way += [(u, rows[1]) for u in reversed(across)] + [(edges[0], v) for v in reversed(down)]
    return tuple(_point(u, v, left) for u, v in way)


def _point(u: float, v: float, left: bool) -> tuple[float, float]:
    """Place on the sheet: a round apex, a steep medial edge with the heart's notch, a domed base, sloping fissures."""
    base = 1 - 0.07 * math.sin(math.pi * (0.1 + 0.9 * u))
    slope = 0.05 * (0.5 - u) * math.sin(math.pi * v)  # fissures rise towards the mediastinum
    t = min(max(v + slope, 0.0), 1.0) * base
    lateral = 0.66 * (1 - math.sqrt(1 - (1 - min(t / 0.75, 1)) ** 2.4))
    notch = (0.16 if left else 0.06) * math.exp(-(((t - 0.74) / 0.16) ** 2))
    medial = 0.66 + 0.34 * math.sqrt(1 - (1 - min(t / 0.25, 1)) ** 2) - notch
    x = _LUNG_WIDTH * (lateral + (medial - lateral) * u)
    return (WIDTH - _MARGIN - x if left else _MARGIN + x), _TOP + _LUNG_HEIGHT * t


def _legend() -> Iterator[Path | Label]:
    """Colours below the lungs."""
    entries = (*BANDS, NOT_ASSESSABLE)
    step, size, top = WIDTH / len(entries), 16.0, HEIGHT - 46
    yield Label(0, top - 6, "Share of the region that is lesion", 11, "start")
    for number, entry in enumerate(entries):
        x = number * step
        square = ((x + 1, top), (x + step - 6, top), (x + step - 6, top + size), (x + 1, top + size))
        yield Path(square, entry.colour, "#6b6b6b", 0.8, entry is NOT_ASSESSABLE)
        yield Label(x + 1, top + size + 13, entry.legend, 10, "start")
    yield Label(
        0,
        HEIGHT - 2,
        "n/a: not assessable. A scheme: each region has its own cell. Beside the lobes: score 0 to 5.",
        10,
        "start",
    )
