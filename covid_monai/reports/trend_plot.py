# SPDX-License-Identifier: Apache-2.0
"""A key figure over the scans of a patient, with its ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from covid_monai.reports.drawing import Drawing, Label, Path

__all__ = ["Line", "draw_trend_plot"]

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 398.0, 34.0, 178.0
TOPS = (1, 2, 2.5, 4, 5, 6, 8, 10)  # of the axis, times a power of ten
DOT = 3.5  # half its width


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, its colour, and values and ranges of the scans, None where there are none."""

    name: str
    colour: str
    values: Sequence[float | None]
    ranges: Sequence[tuple[float, float] | None]


def draw_trend_plot(
    name: str,
    title: str,
    lines: Sequence[Line],
    days: Sequence[float] | None,
    write: Callable[[float], str],
    most: float | None = None,
    limit: tuple[float, str] | None = None,
) -> Drawing:
    """Draw lines over the days of the scans, or over their numbers.

    Args:
        name: id of the drawing.
        title: what is drawn.
        lines: one or more; a scan without a value leaves a gap.
        days: of the scans, ascending, or None.
        write: how a value is written.
        most: end of the axis; made to fit when None.
        limit: a value to mark by a dashed line, and what it is.
    """
    places = list(days) if days is not None else [float(number) for number, _ in enumerate(lines[0].values, start=1)]
    known = [value for line in lines for value in line.values if value is not None]
    ends = [end for line in lines for ends in line.ranges if ends is not None for end in ends]
    top = most or _top(max([*known, *ends], default=0.0))
    texts = [f"{line.name}: {', '.join('n/a' if v is None else write(v) for v in line.values)}" for line in lines]
    marks = [*_axes(title, top, places, days is not None, write)]
    if limit is not None:
        y = _y(limit[0], top)
        marks += [Path(((LEFT, y), (RIGHT, y)), None, "#555555", 1.0, dashed=True)]
        marks += [Label(RIGHT, y - 4, limit[1], 10, "end", "#555555")]
    for line in lines:
        marks += _line(line, top, places, write)
    marks += _legend(lines)
    return Drawing(name, title, "; ".join(texts) + ".", WIDTH, HEIGHT, tuple(marks))


def _axes(
    title: str, top: float, places: Sequence[float], in_days: bool, write: Callable[[float], str]
) -> Iterator[Path | Label]:
    yield Label(LEFT, 14, title, 13, "start", bold=True)
    for part in (0.0, 0.5, 1.0):
        y = _y(part * top, top)
        yield Path(((LEFT, y), (RIGHT, y)), None, "#1a1a1a" if part == 0 else "#cccccc", 1.0)
        yield Label(LEFT - 6, y + 4, write(part * top), 11, "end")
    last = -100.0
    for place in places:
        x = _x(place, places)
        if x - last > 28:  # labels must not touch
            yield Label(x, BOTTOM + 16, f"{place:g}", 11)
            last = x
    yield Label((LEFT + RIGHT) / 2, BOTTOM + 31, "day" if in_days else "scan", 11)


def _line(line: Line, top: float, places: Sequence[float], write: Callable[[float], str]) -> Iterator[Path]:
    points: list[tuple[float, float]] = []
    for place, value, ends in zip(places, line.values, line.ranges, strict=True):
        x = _x(place, places)
        if ends is not None:
            low, high = (_y(end, top) for end in ends)
            yield Path(((x, low), (x, high)), None, line.colour, 1.4)
            yield from (Path(((x - 5, y), (x + 5, y)), None, line.colour, 1.4) for y in (low, high))
        if value is None:
            yield from _joined(points, line.colour)
            points = []
            continue
        y = _y(value, top)
        points.append((x, y))
        corners = ((x - DOT, y - DOT), (x + DOT, y - DOT), (x + DOT, y + DOT), (x - DOT, y + DOT))
        yield Path(corners, line.colour, tooltip=f"{line.name}: {write(value)}")
    yield from _joined(points, line.colour)


def _joined(points: Sequence[tuple[float, float]], colour: str) -> Iterator[Path]:
    if len(points) > 1:
        yield Path(tuple(points), None, colour, 2.0)


def _legend(lines: Sequence[Line]) -> Iterator[Path | Label]:
    if len(lines) < 2:
        return
    x = LEFT
    for line in lines:
        yield Path(((x, HEIGHT - 9), (x + 16, HEIGHT - 9)), None, line.colour, 3.0)
        yield Label(x + 21, HEIGHT - 5, line.name, 11, "start")
        x += 36 + 6.2 * len(line.name)


def _top(most: float) -> float:
    """A round number that is at least ``most``."""
    power = 1e-3
    while most > 10 * power:
        power *= 10
    return next(each * power for each in TOPS if each * power >= most)


def _x(place: float, places: Sequence[float]) -> float:
    inset = 24.0
    span = places[-1] - places[0] or 1.0
    return LEFT + inset + (RIGHT - LEFT - 2 * inset) * (place - places[0]) / span


def _y(value: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * min(value, top) / top
