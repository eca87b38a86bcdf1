# SPDX-License-Identifier: Apache-2.0
"""The report as a PDF of a few A4 pages: the contents of the HTML report without the slice viewer."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib
from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    CondPageBreak,
    Flowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from covid_monai.analysis import Analysis
from covid_monai.reports.body_map import draw_body_map
from covid_monai.reports.contents import COLUMNS, Contents, Figure, contents
from covid_monai.reports.drawing import to_reportlab
from covid_monai.reports.pictures import Picture, Pictures, draw_pictures
from covid_monai.reports.slice_plot import draw_slice_plot
from covid_monai.whole_files import write_whole

__all__ = ["save_pdf"]

FONTS = ("DejaVuSans", "DejaVuSans-Bold")
"""Fonts that come with matplotlib: they hold Greek and Cyrillic too, which PDF's own do not."""
MARGIN, PADDING = 12 * mm, 6
"""Around the text: of the page, and of reportlab's frame within it."""
WIDTH = A4[0] - 2 * (MARGIN + PADDING)
TALLEST = 40 * mm  # of a picture
INK, SOFT, LINE = HexColor("#1a1a1a"), HexColor("#555555"), HexColor("#c8c8c8")


def save_pdf(
    analysis: Analysis, path: str | os.PathLike, title: str | None = None, pictures: Pictures | None = None
) -> None:
    """Write the report as PDF; the same analysis gives the same bytes.

    Args:
        analysis: what to report.
        path: file to write.
        title: name of the scan for the heading; the scan id when None. It may tell who the patient is.
        pictures: of the analysis, where they are drawn already.

    Raises:
        OSError: when the file cannot be written.
    """
    _register_fonts()
    report = contents(analysis, title)
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=12 * mm,
        bottomMargin=17 * mm,
        title=report.title,
        author="covid_monai",
        subject=f"{report.notice} {report.approximate}",
        creator="covid_monai",
        lang="en",
        invariant=1,
    )
    footer = _Footer(report)
    kept, rl_config.useA85 = rl_config.useA85, 0  # pictures as they are; as text they take twice the time
    try:
        story = _story(report, analysis, pictures or draw_pictures(analysis))
        document.build(list(story), footer, footer, canvasmaker=_NumberedCanvas)
    finally:
        rl_config.useA85 = kept
    write_whole(path, buffer.getvalue())


@cache
def _register_fonts() -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        pdfmetrics.registerFont(TTFont(name, folder / f"{name}.ttf"))
    pdfmetrics.registerFontFamily(FONTS[0], *FONTS, *FONTS)  # <b> in paragraphs


def _style(size: float, **options: object) -> ParagraphStyle:
    return ParagraphStyle(
        "", **{"fontName": FONTS[0], "fontSize": size, "leading": 1.3 * size, "textColor": INK, **options}
    )


TITLE, HEADING = _style(14, fontName=FONTS[1]), _style(10.5, fontName=FONTS[1], spaceBefore=7, spaceAfter=3)
BODY, SMALL, TINY = _style(8.5), _style(7.5, textColor=SOFT), _style(6.8)
VALUE, NAME = _style(14, fontName=FONTS[1]), _style(7.5, fontName=FONTS[1], textColor=SOFT)
WARNING = _style(8, bulletIndent=2, leftIndent=10)


def _paragraph(text: str, style: ParagraphStyle, **options: object) -> Paragraph:
    """Text as it is: nothing in it is markup."""
    return Paragraph(escape(text), style, **options)


def _story(report: Contents, analysis: Analysis, pictures: Pictures) -> Iterator[Flowable]:
    yield _paragraph(report.title, TITLE)
    yield Spacer(1, 2 * mm)
    yield _box([Paragraph(f"<b>{escape(report.notice)}</b> {escape(report.approximate)}", BODY)], "#eef4fa", "#0b4f8a")
    yield Spacer(1, 2 * mm)
    if report.warnings:
        heading = _paragraph(
            f"Warnings ({len(report.warnings)}): read before using any figure", _style(9, fontName=FONTS[1])
        )
        lines = [_paragraph(warning, WARNING, bulletText="•") for warning in report.warnings]
        yield _box([heading, *lines], "#fff6e0", "#b26a00")
    else:
        yield _paragraph("No warnings.", SMALL)
    yield _paragraph("Summary", HEADING)
    yield _box(
        [
            Paragraph(f"{escape(report.finding.name)}: <b>{escape(report.finding.value)}</b>", _style(10)),
            _paragraph(report.finding.details[0], BODY),
            _paragraph(" · ".join(report.finding.details[1:]), BODY),
            _paragraph(f"Rule: {report.rule}", _style(7, textColor=SOFT)),
        ],
        "#ffffff",
        "#c8c8c8",
    )
    yield Spacer(1, 2 * mm)
    yield _figures(report.figures)
    body_map = to_reportlab(draw_body_map(analysis.severity), 118 * mm, FONTS)
    body_map.hAlign = "CENTER"
    yield KeepTogether([_paragraph("Body map", HEADING), body_map])
    yield CondPageBreak(160 * mm)
    yield _paragraph("Twenty regions", HEADING)
    yield _paragraph(report.approximate, SMALL)
    yield Spacer(1, 1.5 * mm)
    yield _regions(report)
    yield from _pictures(report, analysis, pictures)
    yield _paragraph("How to read the figures", HEADING)
    for note in report.notes:
        yield _paragraph(note, _style(7.5, bulletIndent=2, leftIndent=10), bulletText="•")
    yield KeepTogether([_paragraph("Method and software", HEADING), _record(report)])


def _box(content: list[Flowable], background: str, edge: str) -> Table:
    """Paragraphs, one a row so that a long list of them breaks between pages, with an edge on the left."""
    style: list[tuple] = [
        ("BACKGROUND", (0, 0), (-1, -1), HexColor(background)),
        ("LINEBEFORE", (0, 0), (0, -1), 3, HexColor(edge)),
        ("TOPPADDING", (0, 0), (-1, -1), 1.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
    ]
    return Table([[each] for each in content], colWidths=[WIDTH], style=TableStyle(style))


def _figures(figures: Sequence[Figure]) -> Table:
    """Key figures, three in a row."""
    cells = [
        [_paragraph(figure.name, NAME), _paragraph(figure.value, VALUE)]
        + [_paragraph(detail, _style(7.5)) for detail in figure.details]
        for figure in figures
    ]
    rows = [cells[first : first + 3] for first in range(0, len(cells), 3)]
    style: list[tuple] = [
        ("BOX", (column, row), (column, row), 0.6, LINE) for row in range(len(rows)) for column in range(3)
    ]
    style += [("VALIGN", (0, 0), (-1, -1), "TOP")]
    return Table(rows, colWidths=[WIDTH / 3] * 3, style=TableStyle(style))


INDENT = {"whole": 0, "lung": 0, "lobe": 6, "region": 14}


def _regions(report: Contents) -> Table:
    """The table of places, each with its colour on the body map."""
    rows: list[list[str]] = [["", *(column.replace(" (", "\n(") for column in COLUMNS)]]
    style: list[tuple] = [
        ("FONT", (0, 0), (-1, -1), FONTS[0], 7.5),
        ("FONT", (0, 0), (-1, 0), FONTS[1], 7.5),
        ("ALIGN", (2, 0), (-1, -1), "RIGHT"),
        ("TOPPADDING", (0, 0), (-1, -1), 1.6),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.6),
        ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
        ("LINEBELOW", (0, 0), (-1, 0), 1, INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.3, LINE),
    ]
    for number, row in enumerate(report.rows, start=1):
        rows.append(["", row.name, *row.cells])
        style.append(("LEFTPADDING", (1, number), (1, number), 4 + INDENT[row.level]))
        style.append(("BACKGROUND", (0, number), (0, number), HexColor(row.band.colour)))
        style.append(("BOX", (0, number), (0, number), 0.3, SOFT))
        if row.level != "region":
            style.append(("FONT", (1, number), (-1, number), FONTS[1], 7.5))
        if row.level == "lobe":
            style.append(("BACKGROUND", (1, number), (-1, number), HexColor("#f3f3f3")))
        if row.level == "lung":
            style.append(("LINEABOVE", (0, number), (-1, number), 1, SOFT))
    widths = [3 * mm, 47 * mm, 20 * mm, 20 * mm, 24 * mm, 24 * mm, 26 * mm, WIDTH - 164 * mm]
    return Table(rows, colWidths=widths, style=TableStyle(style), repeatRows=1)


def _pictures(report: Contents, analysis: Analysis, pictures: Pictures) -> Iterator[Flowable]:
    axial = [_paragraph(report.slices, HEADING), _paragraph(report.legend, SMALL), Spacer(1, 1.5 * mm)]
    yield KeepTogether([*axial, _grid(pictures.axial, 3)])
    plot = to_reportlab(draw_slice_plot(analysis.slice_shares), 126 * mm, FONTS)
    yield KeepTogether([_paragraph("Lesion share of each slice", HEADING), plot])
    if pictures.missing:
        yield _paragraph("Coronal and sagittal planes", HEADING)
        yield _paragraph(pictures.missing, BODY)
        return
    yield KeepTogether([_paragraph("Coronal planes, anterior to posterior", HEADING), _grid(pictures.coronal, 4)])
    heading = _paragraph("Sagittal planes, patient's right to left", HEADING)
    yield KeepTogether([heading, _grid(pictures.sagittal, 4)])


def _grid(pictures: Sequence[Picture], columns: int) -> Table:
    """Pictures with their captions, in rows."""
    cell = WIDTH / columns
    cells = [
        [
            Image(io.BytesIO(picture.jpeg), cell - 6, TALLEST, kind="bound"),
            _paragraph(picture.caption, TINY),
        ]
        for picture in pictures
    ]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    rows[-1] += [[]] * (columns - len(rows[-1]))
    style = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("TOPPADDING", (0, 0), (-1, -1), 1)]
    style += [(f"{side}PADDING", (0, 0), (-1, -1), 3) for side in ("LEFT", "RIGHT", "BOTTOM")]
    return Table(rows, colWidths=[cell] * columns, style=TableStyle(style), hAlign="LEFT")


def _record(report: Contents) -> Table:
    """Groups of names and values in two columns: the method on the right, the rest on the left."""
    halves: tuple[list[Flowable], list[Flowable]] = ([], [])
    width = WIDTH / 2 - 12
    for name, values in report.record:
        rows = [[_paragraph(key, _style(6.5, textColor=SOFT)), _paragraph(value, _style(6.5))] for key, value in values]
        style = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0)]
        style += [(f"{side}PADDING", (0, 0), (-1, -1), 0.6) for side in ("TOP", "BOTTOM")]
        table = Table(rows, colWidths=[27 * mm, width - 27 * mm], style=TableStyle(style), hAlign="LEFT")
        halves[name == "Method"].extend((_paragraph(name, _style(7, fontName=FONTS[1], spaceBefore=2)), table))
    style = TableStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0)])
    return Table([list(halves)], colWidths=[WIDTH / 2] * 2, style=style)


class _Footer:
    """Draws the notice at the foot of every page."""

    def __init__(self, report: Contents) -> None:
        self.lines = (report.notice, f"{report.approximate} Scan {report.scan_id}.")

    def __call__(self, canvas: Canvas, document: SimpleDocTemplate) -> None:
        canvas.setFillColor(INK)
        for number, (line, font) in enumerate(zip(self.lines, (FONTS[1], FONTS[0]), strict=True)):
            canvas.setFont(font, 7)
            canvas.drawString(MARGIN + PADDING, 10 * mm - number * 9, line)


class _NumberedCanvas(Canvas):
    """Writes "2 / 3" at the foot of every page once the number of pages is known."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self._pages: list[dict] = []

    def showPage(self) -> None:
        self._pages.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        for number, page in enumerate(self._pages, start=1):
            self.__dict__.update(page)
            self.setFont(FONTS[0], 7)
            self.setFillColor(INK)
            self.drawRightString(A4[0] - MARGIN - PADDING, 10 * mm, f"Page {number} of {len(self._pages)}")
            super().showPage()
        super().save()
