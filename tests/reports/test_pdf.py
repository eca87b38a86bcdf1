# SPDX-License-Identifier: Apache-2.0
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports.contents import APPROXIMATE, contents
from covid_monai.reports.pdf import save_pdf
from tests.reports.analyses import FINDING, make_analysis
from tests.reports.test_html import CASES

MARKUP = "<b>bold</b> & <font color=red>red</font> <img src='https://example.org/x.png'/>"


def written(analysis: Analysis, folder: Path, title: str | None = None) -> bytes:
    save_pdf(analysis, folder / "report.pdf", title)
    return (folder / "report.pdf").read_bytes()


def tool(name: str, *arguments: str) -> str:
    """Output of a tool of poppler; skips the test where it is not installed."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} (Debian's poppler-utils) is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def text(analysis: Analysis, folder: Path, title: str | None = None) -> str:
    """All that can be selected, with single spaces; pages end with a form feed."""
    written(analysis, folder, title)
    return re.sub(r"[^\S\f]+", " ", tool("pdftotext", "-layout", str(folder / "report.pdf"), "-"))


@pytest.mark.parametrize("case", CASES)
def test_it_has_up_to_three_pages(case: str, tmp_path: Path):
    content = written(CASES[case], tmp_path)
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    pages = len(re.findall(rb"/Type /Page\b(?!s)", content))
    assert 2 <= pages <= 3


@pytest.mark.parametrize("notes", range(0, 60, 6))
def test_the_last_heading_stands_over_its_table(notes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever it falls on its page, and though the table does not break."""
    report = contents(CASES["usual"])
    rows = tuple((f"key {number}", "value") for number in range(40))
    longer = replace(report, notes=(*report.notes, *["A note of one line."] * notes), record=(("Method", rows),))
    monkeypatch.setattr("covid_monai.reports.pdf.contents", lambda *_: longer)
    (page,) = [each for each in text(CASES["usual"], tmp_path).split("\f") if "Method and software" in each]
    assert "key 0" in page.partition("Method and software")[2]


@pytest.mark.parametrize("case", ["usual", "without lung"])
def test_the_same_analysis_gives_the_same_bytes(case: str, tmp_path: Path):
    assert written(CASES[case], tmp_path) == written(CASES[case], tmp_path)


def test_the_document_has_a_title_and_no_date_of_its_own(tmp_path: Path):
    content = written(make_analysis(), tmp_path)
    assert b"/Title (Chest CT: lung involvement, scan 0123456789abcdef)" in content
    assert b"/Lang (en)" in content
    assert set(re.findall(rb"/(?:CreationDate|ModDate) \(D:(\d{8})", content)) == {b"20000101"}


def test_notice_and_page_number_are_on_every_page(tmp_path: Path):
    pages = text(CASES["usual"], tmp_path).split("\f")[:-1]
    for number, page in enumerate(pages, start=1):
        assert NOTICE in page
        assert APPROXIMATE in page
        assert f"Page {number} of {len(pages)}" in page


def test_figures_warnings_regions_and_record_can_be_selected(tmp_path: Path):
    said = text(CASES["usual"], tmp_path)
    for expected in (
        "Warnings (1): read before using any figure",
        "The scan is short.",
        "Opacities consistent with viral pneumonia: found",
        "Rule: The rule, in words.",
        "4 / 40",
        "range 3 to 9",
        "cut-off: CT severity score 19.5",
        "Yang et al. 2020",
        "Apical 10 6.0 60.0 60.0 0.0 2/2",
        "Posterior basal 10 3.0 30.0 20.0 10.0 1/2",
        "post. basal",
        "test bundle",
        "Slice 3 of 54: 25.0 % of the lung here is lesion",
    ):
        assert expected in said


def test_pictures_are_embedded(tmp_path: Path):
    written(CASES["usual"], tmp_path)
    listed = tool("pdfimages", "-list", str(tmp_path / "report.pdf")).splitlines()[2:]
    assert len(listed) == 6 + 4 + 4
    assert all(" jpeg " in line for line in listed)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("without lengths", "none of the 20 regions is assessable"),
        ("without lengths", "The source gives no lengths"),
        ("not assessable", "cannot be told"),
        ("without lung", "Opacities consistent with viral pneumonia: not assessable"),
        ("one class", "Outlined in red: lesion;"),
    ],
)
def test_what_cannot_be_had_is_said(case: str, expected: str, tmp_path: Path):
    said = text(CASES[case], tmp_path)
    assert expected in said
    assert "None" not in said


def test_text_from_outside_is_only_text(tmp_path: Path):
    analysis = make_analysis(warnings=(MARKUP,), finding=replace(FINDING, rule=MARKUP, reason=MARKUP))
    analysis.record["scan"]["kernel"] = MARKUP
    said = text(analysis, tmp_path, title=MARKUP)
    assert said.count("<b>bold</b> & <font color=red>red</font>") >= 5


@pytest.mark.parametrize("title", ["Müller", "Жук", "Λάμδα ≤ 3"])
def test_names_in_other_alphabets_can_be_read(title: str, tmp_path: Path):
    assert f"Chest CT: lung involvement, {title}" in text(make_analysis(), tmp_path, title)


def test_many_warnings_break_between_pages(tmp_path: Path):
    warnings = tuple(
        f"Warning number {number}: " + "what was found and what to do about it. " * 4 for number in range(60)
    )
    said = text(make_analysis(warnings=warnings), tmp_path)
    assert all(f"Warning number {number}:" in said for number in range(60))


def test_a_failure_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = written(CASES["usual"], tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pdf(CASES["without lesion"], tmp_path / "report.pdf")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
