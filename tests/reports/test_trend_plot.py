# SPDX-License-Identifier: Apache-2.0
import pytest

from covid_monai.reports.drawing import Label, Path, to_svg
from covid_monai.reports.trend_plot import BOTTOM, LEFT, RIGHT, TOP, Line, draw_trend_plot
from tests.reports.markup import Page

BLUE, RED = "#0000ff", "#ff0000"


def draw(*lines: Line, days=None, **options):
    return draw_trend_plot("plot", "Title", lines, days, lambda value: f"{value:g}", **options)


def joined(drawing, colour: str) -> list[tuple[tuple[float, float], ...]]:
    """Lines between scans."""
    return [
        mark.points for mark in drawing.marks if isinstance(mark, Path) and mark.stroke == colour and mark.width == 2
    ]


def test_points_lie_at_their_days_and_values():
    line = Line("lesion", BLUE, (0.0, 40.0, 20.0), (None, None, None))
    ((first, second, third),) = joined(draw(line, days=[0, 10, 40], most=40.0), BLUE)
    assert first[1] == BOTTOM
    assert second[1] == TOP
    assert third[1] == (TOP + BOTTOM) / 2
    assert second[0] - first[0] == pytest.approx((third[0] - first[0]) / 4)
    assert LEFT < first[0] < third[0] < RIGHT


def test_without_days_scans_are_numbered():
    drawing = draw(Line("lesion", BLUE, (1.0, 2.0), (None, None)))
    texts = [mark.text for mark in drawing.marks if isinstance(mark, Label)]
    assert {"scan", "1", "2"} <= set(texts)
    assert "day" not in texts


def test_what_is_unknown_leaves_a_gap():
    line = Line("lesion", BLUE, (1.0, 2.0, None, 3.0, 4.0), (None,) * 5)
    assert [len(points) for points in joined(draw(line), BLUE)] == [2, 2]
    assert "n/a" in draw(line).description


def test_a_range_is_a_bar_with_two_ends():
    drawing = draw(Line("lesion", BLUE, (2.0,), ((1.0, 4.0),)), most=4.0)
    bar, low, high = (mark for mark in drawing.marks if isinstance(mark, Path) and mark.stroke == BLUE)
    assert bar.points[1][1] == high.points[0][1] == TOP
    assert low.points[0][1] == BOTTOM - (BOTTOM - TOP) / 4


@pytest.mark.parametrize(
    ("most", "top"), [(0.0, 0.001), (0.13, 0.2), (1.0, 1.0), (1367.0, 2000.0), (459.0, 500.0), (1e4, 1e4)]
)
def test_the_axis_ends_at_a_round_number_above_the_values(most: float, top: float):
    drawing = draw(Line("lesion", BLUE, (most,), (None,)))
    assert f"{top:g}" in [mark.text for mark in drawing.marks if isinstance(mark, Label)]


def test_the_axis_holds_the_ranges_too():
    drawing = draw(Line("lesion", BLUE, (9.0,), ((8.0, 11.0),)))
    assert "20" in [mark.text for mark in drawing.marks if isinstance(mark, Label)]


def test_a_legend_names_lines_where_there_are_several():
    lines = [Line("ground glass", BLUE, (1.0,), (None,)), Line("consolidation", RED, (2.0,), (None,))]
    names = {"ground glass", "consolidation"}
    assert names <= {mark.text for mark in draw(*lines).marks if isinstance(mark, Label)}
    assert not names & {mark.text for mark in draw(lines[0]).marks if isinstance(mark, Label)}


def test_a_limit_is_a_dashed_line_with_its_name():
    drawing = draw(Line("score", BLUE, (10,), (None,)), most=40.0, limit=(20.0, "cut-off"))
    (dashed,) = (mark for mark in drawing.marks if isinstance(mark, Path) and mark.dashed)
    assert dashed.points[0][1] == (TOP + BOTTOM) / 2
    assert "cut-off" in [mark.text for mark in drawing.marks if isinstance(mark, Label)]


def test_days_that_lie_close_are_not_written_over_each_other():
    drawing = draw(Line("lesion", BLUE, (1.0,) * 3, (None,) * 3), days=[0, 1, 100])
    texts = [mark.text for mark in drawing.marks if isinstance(mark, Label)]
    assert "100" in texts
    assert texts.count("1") == 1  # of the axis of values, not of the days


def test_the_drawing_renders():
    page = Page(to_svg(draw(Line("a < b", BLUE, (1.0, None), ((0.5, 2.0), None)))))
    assert page["desc"][0].text == "a < b: 1, n/a."
