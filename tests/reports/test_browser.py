# SPDX-License-Identifier: Apache-2.0
"""The HTML report in a real browser."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covid_monai.reports.html import save_html
from tests.reports.analyses import make_analysis
from tests.reports.browser import Visit, opened
from tests.reports.test_html import CASES

pytestmark = pytest.mark.slow

SLICES = 54


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    save_html(make_analysis(warnings=("The scan is short.",)), path)
    return path


@pytest.fixture
def visit(report: Path) -> Iterator[Visit]:
    with opened(report) as visit:
        yield visit


def position(visit: Visit) -> int:
    return int(re.match(r"Slice (\d+) of 54", visit.page.text_content("#position")).group(1))


def picture(visit: Visit) -> str:
    return visit.page.evaluate("document.getElementById('picture').toDataURL()")


def after(visit: Visit, action: Callable[[], object]) -> str:
    """The picture after an action that changes it."""
    before = picture(visit)
    action()
    visit.page.wait_for_function("before => document.getElementById('picture').toDataURL() !== before", arg=before)
    return picture(visit)


def at(visit: Visit, number: int) -> None:
    visit.page.wait_for_function(
        "start => document.getElementById('position').textContent.startsWith(start)", arg=f"Slice {number} of"
    )


@pytest.mark.parametrize("case", CASES)
def test_it_opens_without_complaint_and_asks_for_nothing(case: str, tmp_path: Path):
    save_html(CASES[case], tmp_path / "report.html")
    with opened(tmp_path / "report.html") as visit:
        assert visit.page.is_visible("#viewer")
        assert visit.complaints == []
        assert visit.requests == [(tmp_path / "report.html").as_uri()]


def test_a_script_that_is_not_its_own_is_refused(report: Path, tmp_path: Path):
    """That the policy is in force, so that the silence above means something."""
    source = report.read_text(encoding="utf-8")
    image = '<img src="https://example.org/x.png" alt="x">'
    (tmp_path / "changed.html").write_text(source.replace("</body>", f"<script>window.evil = 1</script>{image}</body>"))
    with opened(tmp_path / "changed.html") as visit:
        assert visit.page.evaluate("window.evil === undefined")
        assert len([complaint for complaint in visit.complaints if "Content Security Policy" in complaint]) >= 2


def test_it_opens_at_the_most_affected_slice(visit: Visit):
    assert position(visit) == 3  # the lowest of those with 100 voxels of lesion, the most


def test_the_slider_changes_the_slice(visit: Visit):
    after(visit, lambda: visit.page.fill("#slider", "9"))
    assert position(visit) == 10
    assert visit.page.get_attribute("#picture", "aria-label").startswith("Slice 10 of 54")


@pytest.mark.parametrize("target", ["#picture", "#slider"])
def test_keys_change_the_slice(visit: Visit, target: str):
    page = visit.page
    page.fill("#slider", "9")
    page.focus(target)
    for key, expected in (
        ("ArrowUp", 11),
        ("ArrowLeft", 10),
        ("PageUp", 20),
        ("PageDown", 10),
        ("End", 54),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        at(visit, expected)
    page.keyboard.press("ArrowDown")
    assert position(visit) == 1


def test_the_overlay_toggles_by_mouse_and_key(visit: Visit):
    with_overlay = picture(visit)
    without = after(visit, lambda: visit.page.uncheck("#overlay"))
    assert after(visit, lambda: visit.page.check("#overlay")) == with_overlay
    visit.page.focus("#picture")
    assert after(visit, lambda: visit.page.keyboard.press("o")) == without
    assert not visit.page.is_checked("#overlay")


def test_the_window_changes_by_mouse_and_key(visit: Visit):
    lung = picture(visit)
    soft = after(visit, lambda: visit.page.check("input[value=soft]"))
    visit.page.focus("#picture")
    assert after(visit, lambda: visit.page.keyboard.press("w")) == lung
    assert after(visit, lambda: visit.page.keyboard.press("w")) == soft


def test_the_wheel_scrolls_the_page_until_the_picture_is_clicked(visit: Visit):
    page = visit.page
    page.hover("#picture")
    start = position(visit)
    page.mouse.wheel(0, 120)
    page.wait_for_timeout(300)
    assert position(visit) == start
    page.click("#picture")
    page.mouse.wheel(0, 120)
    at(visit, start - 1)
    page.mouse.wheel(0, -120)
    at(visit, start)


def test_a_click_on_the_plot_goes_to_its_slice(visit: Visit):
    box = visit.page.locator("#slice-plot").bounding_box()
    x = box["width"] * (50 + 580 * 19.5 / SLICES) / 640  # the middle of slice 20
    visit.page.click("#slice-plot", position={"x": x, "y": box["height"] / 2})
    at(visit, 20)


def test_fast_scrolling_ends_at_the_slice_asked_for_last(visit: Visit):
    visit.page.fill("#slider", "0")
    visit.page.focus("#slider")
    for _ in range(40):
        visit.page.keyboard.press("ArrowUp")
    at(visit, 41)
    visit.page.wait_for_timeout(200)
    assert position(visit) == 41


@pytest.mark.parametrize("width", [400, 800, 1100, 1400])
@pytest.mark.parametrize("case", ["usual", "not assessable", "without lengths"])
def test_nothing_is_wider_than_the_window(case: str, width: int, tmp_path: Path):
    save_html(CASES[case], tmp_path / "report.html")
    with opened(tmp_path / "report.html", width=width) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        if width >= 800:  # below, the table scrolls within its frame
            table, frame = (
                visit.page.evaluate(f"document.querySelector('{name}').scrollWidth") for name in ("table", ".scroll")
            )
            assert table <= frame
            assert frame <= visit.page.evaluate("document.querySelector('.scroll').clientWidth")


def test_it_prints_without_the_viewer(visit: Visit, tmp_path: Path):
    visit.page.emulate_media(media="print")
    assert not visit.page.is_visible("#viewer")
    assert visit.page.is_visible("#body-map")
    content = visit.page.pdf(prefer_css_page_size=True)
    assert content.startswith(b"%PDF-")
    (box,) = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content))
    assert [round(float(length)) for length in box] == [595, 842]  # A4
