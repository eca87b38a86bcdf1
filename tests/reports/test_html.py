# SPDX-License-Identifier: Apache-2.0
import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports import html
from covid_monai.reports.contents import APPROXIMATE
from covid_monai.reports.html import save_html
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import FINDING, make_analysis, only_slices
from tests.reports.markup import Page

EVIL = '"><script>alert(1)</script><img src=https://example.org/x onerror=alert(1)>'
KEYS = tuple(region.key for region in REGIONS)
CASES = {
    "usual": make_analysis(warnings=("The scan is short.",)),
    "one class": make_analysis(told_apart=False),
    "without lengths": make_analysis(known=False),
    "one slice": only_slices(make_analysis(known=False, spread=None), slice(20, 21)),
    "three slices": only_slices(make_analysis(), slice(20, 23)),
    "not assessable": make_analysis(not_assessable=KEYS[10:]),
    "without lesion": make_analysis({}),
    "without lung": make_analysis({}, missing=KEYS, finding=replace(FINDING, result=None, bilateral=None)),
}


def written(analysis: Analysis, folder: Path, title: str | None = None) -> str:
    save_html(analysis, folder / "report.html", title)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(params=CASES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Page:
    return Page(written(CASES[request.param], tmp_path))


@pytest.fixture
def usual(tmp_path: Path) -> Page:
    return Page(written(CASES["usual"], tmp_path))


# what it is ----------------------------------------------------------------------------------------------------------


def test_it_is_sane_html(page: Page):
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert [len(page[tag]) for tag in ("html", "head", "body", "h1", "main")] == [1] * 5
    assert page["head"][0].text.strip().startswith(page["h1"][0].text)  # the title
    assert page["html"][0].attributes["lang"] == "en"
    assert all(image.attributes["alt"] for image in page["img"])
    for element in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all("scope" in cell.attributes for cell in page["th"])


def test_every_control_has_a_label(usual: Page):
    labelled = {label.attributes.get("for") for label in usual["label"]}
    wrapped = " ".join(label.text for label in usual["label"])
    controls = {control.attributes.get("id") or control.attributes["value"]: control for control in usual["input"]}
    assert set(controls) == {"slider", "overlay", "lung", "soft"}
    assert "slider" in labelled
    for name in ("Lesions and lung outline", "lung", "soft tissue"):
        assert name in wrapped


def test_it_refers_to_nothing_outside(page: Page):
    for element in page.elements:
        assert not {name for name in element.attributes if name.startswith("on")} | {"style"} & set(element.attributes)
        for name in ("src", "href"):
            assert element.attributes.get(name, "data:").startswith("data:")
    assert set(re.findall(r"https?://[^\s\"'<]+", page.source)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import", page.source)
    assert not {element.tag for element in page.elements} & {"iframe", "object", "embed", "form", "base", "a"}


def test_the_policy_allows_what_is_there_and_nothing_else(page: Page):
    policies = [meta.attributes["content"] for meta in page["meta"] if "http-equiv" in meta.attributes]
    allowed = dict(part.split(" ", 1) for part in policies[0].split("; "))
    (style,), scripts = page["style"], [each for each in page["script"] if "type" not in each.attributes]

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert allowed == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": digest(style.text),
        "script-src": digest(scripts[0].text),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(scripts) == 1


def test_the_same_analysis_gives_the_same_file(tmp_path: Path):
    assert written(CASES["usual"], tmp_path) == written(CASES["usual"], tmp_path)


def test_a_failure_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = written(CASES["usual"], tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_html(CASES["without lesion"], tmp_path / "report.html")
    assert [file.read_text() for file in tmp_path.iterdir()] == [before]


# what it says --------------------------------------------------------------------------------------------------------


def text(page: Page) -> str:
    return re.sub(r"\s+", " ", page["body"][0].text)  # non-breaking spaces too


def test_notices_stand_at_both_ends(page: Page):
    for place in ("header", "footer"):
        assert NOTICE in page[place][0].text
        assert APPROXIMATE in page[place][0].text


def test_key_figures_are_in_it(usual: Page):
    said = text(usual)
    for expected in (
        "Opacities consistent with viral pneumonia: found",
        "Rule: The rule, in words.",
        "Lung involved 5.0 %",
        "CT severity score 4 / 40 all 20 regions assessable range 3 to 9",
        "Grade mild cut-off: CT severity score 19.5",
        "Lobar score 5 / 25",
        "Lesion volume 10 mL of 200 mL lung",
        "Yang et al. 2020",
        "ab" * 32,
        "The scan is short.",
    ):
        assert expected in said


def test_warnings_come_before_figures(usual: Page):
    assert text(usual).index("The scan is short.") < text(usual).index("Lung involved")
    assert "No warnings" not in text(usual)


def test_it_says_when_there_is_no_warning(tmp_path: Path):
    assert "No warnings." in text(Page(written(make_analysis(), tmp_path)))


def test_the_table_has_all_places_with_their_colours(page: Page):
    levels = [row.attributes["class"].split() for row in page["tr"] if "class" in row.attributes]
    assert [level for level, _ in levels].count("region") == 20
    assert [level for level, _ in levels].count("lobe") == 5
    style = page["style"][0].text
    assert all(f".{colour} .swatch" in style for _, colour in levels)


def test_pictures_are_in_it(usual: Page):
    assert len(usual["img"]) == 6 + 4 + 4
    assert {svg.attributes["id"] for svg in usual["svg"]} == {"body-map", "slice-plot"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("without lengths", "Lesion volume not known the source gives no voxel size"),
        ("without lengths", "CT severity score not assessable none of the 20 regions is assessable"),
        ("without lengths", "The source gives no lengths, so no coronal or sagittal planes can be drawn."),
        ("not assessable", "Grade cannot be told"),
        ("without lung", "Lung involved not assessable"),
        ("without lung", "Opacities consistent with viral pneumonia: not assessable"),
        ("without lesion", "Slices without lesion"),
        ("three slices", "The scan has 3 slices, too few"),
        ("one slice", "Ranges over thresholds and mirrored slices were not made."),
        ("one class", "Outlined in red: lesion;"),
    ],
)
def test_what_cannot_be_had_is_said(case: str, expected: str, tmp_path: Path):
    said = text(Page(written(CASES[case], tmp_path)))
    assert expected in said
    assert "None" not in said


def test_the_viewer_has_every_slice(usual: Page):
    (data,) = (each for each in usual["script"] if each.attributes.get("type") == "application/json")
    viewer = json.loads(data.text)
    assert [frame["z"] for frame in viewer["frames"]] == list(range(54))
    assert viewer["slices"] == 54
    slider = next(each for each in usual["input"] if each.attributes.get("id") == "slider")
    assert slider.attributes["max"] == "53"
    jpeg, png = (base64.b64decode(viewer["frames"][20][name]) for name in ("lung", "overlay"))
    assert (jpeg[:3], png[:4]) == (b"\xff\xd8\xff", b"\x89PNG")


# what it must not do -------------------------------------------------------------------------------------------------


def test_text_from_outside_is_only_text(tmp_path: Path):
    analysis = make_analysis(warnings=(EVIL,), finding=replace(FINDING, rule=EVIL, reason=EVIL))
    analysis.record["scan"]["kernel"] = EVIL
    page = Page(written(analysis, tmp_path, title=EVIL))
    assert len(page["script"]) == 2
    assert not [image for image in page["img"] if not image.attributes["src"].startswith("data:")]
    assert text(page).count("<script>alert(1)</script>") == 5  # heading, warning, reason, rule, kernel


def test_the_title_is_the_scan_id_unless_a_name_is_given(tmp_path: Path):
    assert "0123456789abcdef" in Page(written(make_analysis(), tmp_path))["h1"][0].text
    named = Page(written(make_analysis(), tmp_path, title="Müller"))
    assert named["h1"][0].text == "Chest CT: lung involvement, Müller" == named["title"][0].text


def test_no_path_is_in_it(usual: Page, tmp_path: Path):
    assert str(tmp_path) not in usual.source
    assert str(Path(html.__file__).parents[2]) not in usual.source
