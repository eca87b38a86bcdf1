# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.reports.body_map import BANDS, NOT_ASSESSABLE, band, body_map, draw_body_map
from covid_monai.reports.drawing import Drawing, Label, Path, to_svg
from covid_monai.severity.anatomy import LOBES, REGIONS
from covid_monai.severity.scores import Severity
from tests.reports.analyses import make_analysis

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def severity() -> Severity:
    return make_analysis(not_assessable=("left_lower_lateral_basal",)).severity


def cells(severity: Severity) -> dict[str, Path]:
    """The cell of each region by the region's name."""
    marks = draw_body_map(severity).marks
    return {mark.tooltip.partition(":")[0]: mark for mark in marks if isinstance(mark, Path) and mark.tooltip}


def area(points: tuple[tuple[float, float], ...]) -> float:
    """By the shoelace formula."""
    x, y = np.asarray(points).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def test_every_region_has_a_cell_that_says_what_it_has(severity: Severity):
    root = ElementTree.fromstring(body_map(severity))
    said = [title.text for title in root.iterfind(f"{SVG}path/{SVG}title")]
    assert len(said) == 20
    assert {text.partition(":")[0] for text in said} == {region.name for region in REGIONS}
    assert "right upper lobe, apical: 60.0 % lesion, score 2" in said
    assert "right lower lobe, posterior basal: 30.0 % lesion, score 1" in said
    assert "left lower lobe, lateral basal: 0.0 % lesion, not assessable" in said


def test_it_is_described_for_those_who_cannot_see_it(severity: Severity):
    root = ElementTree.fromstring(body_map(severity))
    named = {element.get("id"): element.text for element in root.iter()}
    assert root.get("role") == "img"
    title, description = (named[name] for name in root.get("aria-labelledby").split())
    assert "patient's right on the left" in title
    assert "CT severity score between 4 and 6 of 40" in description
    assert "right upper lobe, apical: 60.0 % lesion, score 2;" in description


def test_the_patients_right_is_on_the_left(severity: Severity):
    middle = draw_body_map(severity).width / 2
    for name, cell in cells(severity).items():
        x = [point[0] for point in cell.points]
        assert max(x) < middle if name.startswith("right") else min(x) > middle


def test_upper_lobes_are_above_lower_ones_and_lateral_parts_outside_medial_ones(severity: Severity):
    centres = {name: np.mean(cell.points, axis=0) for name, cell in cells(severity).items()}
    for side, outwards in (("right", -1), ("left", 1)):
        assert centres[f"{side} upper lobe, apical"][1] < centres[f"{side} lower lobe, superior"][1]
        lateral, medial = (centres[f"{side} lower lobe, {part} basal"][0] for part in ("lateral", "medial"))
        assert (lateral - medial) * outwards > 0
    assert centres["right middle lobe, lateral"][0] < centres["right middle lobe, medial"][0]


def test_cells_fill_their_lobe(severity: Severity):
    """The areas of a lobe's cells add up to that within its outline: no gap, no overlap."""
    drawing = draw_body_map(severity)
    outlines = [mark for mark in drawing.marks if isinstance(mark, Path) and not mark.fill and mark.width == 2]
    assert len(outlines) == 5
    for lobe, outline in zip(LOBES, outlines, strict=True):
        parts = [cell for name, cell in cells(severity).items() if name.startswith(lobe.name)]
        assert sum(area(cell.points) for cell in parts) == pytest.approx(area(outline.points), rel=0.01)


def test_everything_lies_on_the_sheet(severity: Severity):
    drawing = draw_body_map(severity)
    points = np.array([point for mark in drawing.marks if isinstance(mark, Path) for point in mark.points])
    assert points.min() >= 0
    assert (points <= (drawing.width, drawing.height)).all()


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (0, 0),
        (20, 0),
        (50, 1),
        (99, 1),
        (100, 2),
        (249, 2),
        (250, 3),
        (499, 3),
        (500, 4),
        (749, 4),
        (750, 5),
        (1000, 5),
    ],
)
def test_colours_follow_the_share(voxels: int, expected: int):
    """20 of 1000 voxels are 0.2 mL, below the noise floor of 0.5 mL: the region's score is 0."""
    severity = make_analysis({"left_upper_anterior": (voxels, 0)}).severity
    cell = cells(severity)["left upper lobe, anterior"]
    assert cell.fill == BANDS[expected].colour


def test_what_is_not_assessable_is_grey_and_dashed_not_empty(severity: Severity):
    cell = cells(severity)["left lower lobe, lateral basal"]
    assert (cell.fill, cell.dashed) == (NOT_ASSESSABLE.colour, True)
    assert cell.fill not in {each.colour for each in BANDS}
    labels = [mark.text for mark in draw_body_map(severity).marks if isinstance(mark, Label)]
    assert labels.count("n/a") == 3  # the region, its lobe, and the legend


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    values = [int(colour[begin : begin + 2], 16) / 255 for begin in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("each", [*BANDS, NOT_ASSESSABLE], ids=lambda each: each.key)
def test_text_can_be_read_on_every_colour(each):
    bright, dark = sorted((luminance(each.colour), luminance(each.ink)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_colours_get_darker_with_the_share_for_the_colour_blind():
    light = [luminance(each.colour) for each in BANDS]
    assert light == sorted(light, reverse=True)
    assert min(a / b for a, b in pairwise(light)) > 1.1


@given(st.floats(0, 1), st.booleans())
def test_every_place_has_a_colour(share: float, assessable: bool):
    place = replace(make_analysis({}).severity.whole, lesion_share=share, assessable=assessable)
    found = band(place)
    assert (found is NOT_ASSESSABLE) == (not assessable)
    assert (found is BANDS[0]) == (assessable and share == 0)


def test_text_is_text_not_markup():
    drawing = Drawing(
        "d", "<a>", '"&', 10, 10, (Label(1, 1, "<b>&"), Path(((0, 0), (1, 1)), tooltip="</title><script>"))
    )
    root = ElementTree.fromstring(to_svg(drawing))
    assert root.find(f"{SVG}text").text == "<b>&"
    assert root.find(f"{SVG}path/{SVG}title").text == "</title><script>"
    assert not re.search("<script|<b>|<a>", to_svg(drawing))
