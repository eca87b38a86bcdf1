# SPDX-License-Identifier: Apache-2.0
"""Line drawings that are made once and rendered as SVG for the HTML report and by reportlab for the PDF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Literal

from reportlab.graphics import shapes as pdf
from reportlab.lib.colors import HexColor

__all__ = ["Anchor", "Drawing", "Label", "Path", "to_reportlab", "to_svg"]

Anchor = Literal["start", "middle", "end"]
"""Which part of a line of text lies at its x."""


@dataclass(frozen=True)
class Path:
    """Straight lines through points.

    Attributes:
        points: (x, y) with y downwards.
        fill: colour ``#rrggbb`` of the inside, or None for an open line.
        stroke: colour of the line, or None.
        width: of the line.
        dashed: whether the line is.
        tooltip: what an SVG says when the pointer rests on it.
    """

    points: tuple[tuple[float, float], ...]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dashed: bool = False
    tooltip: str = ""


@dataclass(frozen=True)
class Label:
    """One line of text whose baseline is at (x, y)."""

    x: float
    y: float
    text: str
    size: float = 11.0
    anchor: Anchor = "middle"
    colour: str = "#1a1a1a"
    bold: bool = False


@dataclass(frozen=True)
class Drawing:
    """Marks on a sheet of width x height, drawn in their order.

    Attributes:
        name: id of the SVG element.
        title: what it shows, for those who cannot see it.
        description: what it says, for the same.
        marks: paths and labels.
    """

    name: str
    title: str
    description: str
    width: float
    height: float
    marks: tuple[Path | Label, ...]


def to_svg(drawing: Drawing) -> str:
    """An SVG element to put into HTML, with title, description, and no style sheet or script of its own."""
    return "\n".join(_svg_lines(drawing))


def _svg_lines(drawing: Drawing) -> Iterator[str]:
    name = escape(drawing.name)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" viewBox="0 0 {drawing.width:g} {drawing.height:g}" '
        f'role="img" aria-labelledby="{name}-title {name}-description" font-family="sans-serif">'
    )
    yield f'<title id="{name}-title">{escape(drawing.title)}</title>'
    yield f'<desc id="{name}-description">{escape(drawing.description)}</desc>'
    for mark in drawing.marks:
        yield _svg_path(mark) if isinstance(mark, Path) else _svg_text(mark)
    yield "</svg>"


def _svg_path(path: Path) -> str:
    points = "L".join(f"{x:.1f} {y:.1f}" for x, y in path.points)
    close = "Z" if path.fill else ""
    line = f' stroke="{path.stroke}" stroke-width="{path.width:g}" stroke-linejoin="round"' if path.stroke else ""
    dashes = ' stroke-dasharray="4 3"' if path.dashed else ""
    tooltip = f"<title>{escape(path.tooltip)}</title>" if path.tooltip else ""
    return f'<path d="M{points}{close}" fill="{path.fill or "none"}"{line}{dashes}>{tooltip}</path>'


def _svg_text(label: Label) -> str:
    weight = ' font-weight="bold"' if label.bold else ""
    return (
        f'<text x="{label.x:.1f}" y="{label.y:.1f}" font-size="{label.size:g}" text-anchor="{label.anchor}" '
        f'fill="{label.colour}"{weight}>{escape(label.text)}</text>'
    )


def to_reportlab(drawing: Drawing, width: float, fonts: tuple[str, str]) -> pdf.Drawing:
    """A reportlab drawing of this width in points; ``fonts`` are the names of the regular and the bold one."""
    scale = width / drawing.width
    group = pdf.Group(*(_pdf_mark(mark, drawing.height, fonts) for mark in drawing.marks))
    group.scale(scale, scale)
    return pdf.Drawing(width, drawing.height * scale, group)


def _pdf_mark(mark: Path | Label, height: float, fonts: tuple[str, str]) -> pdf.Shape:
    """The mark with y upwards, as PDF has it."""
    if isinstance(mark, Label):
        return pdf.String(
            mark.x,
            height - mark.y,
            mark.text,
            fontName=fonts[mark.bold],
            fontSize=mark.size,
            textAnchor=mark.anchor,
            fillColor=HexColor(mark.colour),
        )
    points = [value for x, y in mark.points for value in (x, height - y)]
    line = {
        "strokeColor": HexColor(mark.stroke) if mark.stroke else None,
        "strokeWidth": mark.width,
        "strokeDashArray": (4, 3) if mark.dashed else None,
        "strokeLineJoin": 1,
    }
    if mark.fill:
        return pdf.Polygon(points, fillColor=HexColor(mark.fill), **line)
    return pdf.PolyLine(points, **line)
