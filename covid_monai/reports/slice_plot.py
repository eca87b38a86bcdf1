# SPDX-License-Identifier: Apache-2.0
"""Lesion share of every slice, from inferior to superior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from covid_monai.reports.drawing import Drawing, Label, Path

__all__ = ["LEFT", "RIGHT", "draw_slice_plot"]

WIDTH, HEIGHT = 640.0, 190.0
LEFT, RIGHT = 50.0, 630.0
"""Where the first slice begins and the last one ends on the sheet."""
TOP, BOTTOM = 12.0, 146.0
TOPS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the axis


def draw_slice_plot(shares: Sequence[float | None]) -> Drawing:
    """Draw the share of the lung that is lesion in each slice; gaps where a slice has no lung.

    Args:
        shares: 0..1 of each slice, inferior to superior; None without lung.
    """
    known = [share for share in shares if share is not None]
    top = next(each for each in TOPS if each >= max(known, default=0))
    if known:
        most = max(known)
        description = f"Most in slice {shares.index(most) + 1} of {len(shares)}: {100 * most:.1f} %."
    else:
        description = "No slice has lung."
    return Drawing(
        "slice-plot",
        "Share of the lung that is lesion in each slice, inferior to superior",
        description,
        WIDTH,
        HEIGHT,
        (*_axes(top, len(shares)), *_areas(shares, top), Path(((LEFT, BOTTOM), (RIGHT, BOTTOM)), None, "#1a1a1a", 1.2)),
    )


def _axes(top: float, count: int) -> Iterator[Path | Label]:
    for part in (0.0, 0.5, 1.0):
        y = BOTTOM - (BOTTOM - TOP) * part
        yield Path(((LEFT, y), (RIGHT, y)), None, "#cccccc", 0.8)
        yield Label(LEFT - 6, y + 4, f"{100 * top * part:g} %", 11, "end")
    for number in sorted({1, count, *(round(1 + (count - 1) * part / 4) for part in (1, 2, 3))}):
        yield Label(_x(number - 0.5, count), BOTTOM + 16, f"{number}", 11)
    yield Label(LEFT, BOTTOM + 34, "← inferior", 11, "start")
    yield Label((LEFT + RIGHT) / 2, BOTTOM + 34, "slice", 11)
    yield Label(RIGHT, BOTTOM + 34, "superior →", 11, "end")


def _areas(shares: Sequence[float | None], top: float) -> Iterator[Path]:
    """A stepped area for each run of slices with lung."""
    numbered = list(enumerate(shares))
    for with_lung, run in groupby(numbered, key=lambda each: each[1] is not None):
        if not with_lung:
            continue
        slices = list(run)
        points = [(_x(slices[0][0], len(shares)), BOTTOM)]
        for z, share in slices:
            y = BOTTOM - (BOTTOM - TOP) * (share or 0) / top
            points += [(_x(z, len(shares)), y), (_x(z + 1, len(shares)), y)]
        points.append((_x(slices[-1][0] + 1, len(shares)), BOTTOM))
        yield Path(tuple(points), "#cc4c02")


def _x(position: float, count: int) -> float:
    return LEFT + (RIGHT - LEFT) * position / count
