# SPDX-License-Identifier: Apache-2.0
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.ct import CTScan, SourceFacts
from covid_monai.reports import follow_up as module
from covid_monai.reports.follow_up import to_dict, write_follow_up
from covid_monai.reports.follow_up_html import change_of, render_follow_up
from covid_monai.reports.follow_up_pictures import draw_rows
from covid_monai.reports.results import ResultsError
from covid_monai.severity.follow_up import FollowUp, difference, follow_up
from covid_monai.severity.lesion_change import CHANGES
from covid_monai.severity.registration_grid import Fit
from tests.reports.analyses import SICK, make_analysis
from tests.reports.markup import Page
from tests.severity.in_place import WARNING, in_place

WORSE = {**SICK, "right_upper_apical": (800, 100), "left_lower_posterior_basal": (300, 0)}
BETTER = {"right_upper_apical": (100, 0)}
FILES = {"follow_up.json", "follow_up.html", "trend.csv", "change_1_2.nii.gz", "change_2_3.nii.gz"}


@pytest.fixture(scope="module")
def analyses() -> list[Analysis]:
    return [make_analysis(sick, scan_id=name * 16) for sick, name in ((SICK, "a"), (WORSE, "b"), (BETTER, "c"))]


@pytest.fixture(scope="module")
def scans(analyses: list[Analysis]) -> list[CTScan]:
    """Scans whose own axes run to anterior, inferior and left."""
    turned = (np.ascontiguousarray(np.transpose(each.hu, (1, 0, 2))[::-1, ::-1]) for each in analyses)
    return [CTScan(array, own_affine(), SourceFacts("NIfTI", files=1)) for array in turned]


def own_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -1.0], [2.0, 0, 0], [0, -5.0, 0]]
    affine[:3, 3] = [30, -40, 200]
    return affine


@pytest.fixture(scope="module")
def followed(analyses: list[Analysis]) -> FollowUp:
    return follow(analyses, [0, 14, 35])


def follow(analyses: list[Analysis], days: list[float] | None = None) -> FollowUp:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("covid_monai.severity.follow_up.elastix", lambda: None)
        patch.setattr("covid_monai.severity.follow_up.register", in_place)
        return follow_up(analyses, days)


@pytest.fixture
def write(followed: FollowUp, analyses: list[Analysis], scans: list[CTScan]) -> Callable[..., dict[str, Path]]:
    return lambda folder, **options: write_follow_up(followed, analyses, scans, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# the files ----------------------------------------------------------------------------------------------------------


def test_all_files_are_written(write: Callable, tmp_path: Path):
    files = write(tmp_path / "new" / "folder")
    assert set(files) == FILES
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    assert list(files)[-1] == "follow_up.json"


def test_a_change_map_lies_on_the_later_scan(write: Callable, followed: FollowUp, scans: list[CTScan], tmp_path: Path):
    mask = nib.load(write(tmp_path)["change_1_2.nii.gz"])
    change = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, scans[1].affine)
    np.testing.assert_array_equal(np.transpose(change[::-1, ::-1], (1, 0, 2)), followed.intervals[0].change)
    interval = followed.intervals[0]
    assert np.count_nonzero(change == 2) * 0.01 == pytest.approx(interval.lesions.new_ml)
    (extension,) = mask.header.extensions
    assert b"1 = persisting lesion; 2 = new lesion; 3 = resolved lesion" in extension.get_content()


def test_json_holds_every_figure(write: Callable, followed: FollowUp, analyses: list[Analysis], tmp_path: Path):
    text = write(tmp_path)["follow_up.json"].read_text()
    found = json.loads(text)
    assert found == json.loads(json.dumps(to_dict(followed, analyses)))
    assert found["schema"] == "covid_monai/follow_up/1"
    assert found["notice"] == NOTICE
    assert found["approximate"] is True
    assert [(scan["number"], scan["scan_id"], scan["day"]) for scan in found["scans"]] == [
        (1, "a" * 16, 0), (2, "b" * 16, 14), (3, "c" * 16, 35)
    ]  # fmt: skip
    # 1000, then 1600, then 100 of 20 000 voxels of 0.01 mL
    assert [scan["figures"]["lesion_share"] for scan in found["scans"]] == pytest.approx([0.05, 0.08, 0.005])
    first, second = found["intervals"]
    assert (first["earlier"], first["later"], first["change_map"]) == (1, 2, "change_1_2.nii.gz")
    assert first["whole"]["lesion_ml"]["absolute"] == pytest.approx(6.0)
    assert first["whole"]["lesion_ml"]["per_day"] == pytest.approx(6.0 / 14)
    assert first["lesions"]["new_ml"] == pytest.approx(6.0)
    assert second["lesions"]["resolved_ml"] == pytest.approx(15.0)
    assert [len(first[name]) for name in ("lungs", "lobes", "regions")] == [2, 5, 20]
    assert first["registration"]["trusted"] is True
    assert first["warnings"] == [WARNING]
    assert found["change_codes"] == {str(code): name for code, name in CHANGES.items()}


def test_the_trend_has_a_row_for_each_scan(write: Callable, tmp_path: Path):
    with write(tmp_path)["trend.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scan"], row["scan_id"], row["day"]) for row in rows] == [
        ("1", "a" * 16, "0"), ("2", "b" * 16, "14"), ("3", "c" * 16, "35")
    ]  # fmt: skip
    assert [float(row["lesion_ml"]) for row in rows] == pytest.approx([10, 16, 1])
    assert [row["lesion_share_low"] for row in rows] == ["0.15"] * 3  # of the analyses' spread
    assert [row["lung_ml_low"] for row in rows] == [""] * 3
    assert {row["notice"] for row in rows} == {NOTICE}


def test_what_is_unknown_is_null_and_empty(analyses: list[Analysis], scans: list[CTScan], tmp_path: Path):
    cut = [make_analysis(SICK, scan_id="d" * 16, told_apart=False, not_assessable=("right_upper_apical",), spread=None)]
    pair = [make_analysis(SICK, scan_id="a" * 16, told_apart=False), *cut]
    files = write_follow_up(follow(pair), pair, scans[:2], tmp_path)
    found = json.loads(files["follow_up.json"].read_text())
    assert found["intervals"][0]["ct_ss"]["absolute"] is None
    assert found["intervals"][0]["lesions"]["denser_ml"] is None
    assert found["scans"][1]["figures"]["ct_ss"] is None
    assert found["slopes_per_day"]["lesion_ml"] is None
    with files["trend.csv"].open(newline="") as file:
        _, row = csv.DictReader(file)
    assert (row["ct_ss"], row["day"], row["consolidation_share"]) == ("", "", "")
    page = Page(files["follow_up.html"].read_text())
    assert "Right upper lobe *" in [cell.text for cell in page["th"]]
    assert "None" not in page["body"][0].text


# the report ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(followed: FollowUp, analyses: list[Analysis]) -> Page:
    return Page(render_follow_up(followed, [replace(analyses[0], warnings=("The scan is short.",)), *analyses[1:]]))


def test_the_report_needs_nothing_else(page: Page):
    sources = [element.attributes["src"] for element in page["img"]]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert page["script"] == []
    assert "default-src 'none'" in page["meta"][1].attributes["content"]


def test_the_report_says_what_it_must(page: Page):
    text = page["body"][0].text
    assert text.count(NOTICE) == 2
    assert "geometric approximation" in text
    assert f"Scan 1 to 2: {WARNING}" in text
    assert "Scan 1: The scan is short." in text
    assert "Scan 2 to scan 3: 21 days" in text


def test_tables_hold_figures_and_changes(page: Page):
    heads = [cell.text for cell in page["th"]]
    assert {"Lung involved", "CT severity score", "Scan 2, day 14", "Change 2 to 3", "Both lungs"} <= set(heads)
    assert heads.count("Apical") == 4  # of both lungs, in two intervals
    text = page["body"][0].text
    assert "+3.0 points" in text  # 5.0 % to 8.0 %
    assert "\N{MINUS SIGN}7.5 points" in text  # 8.0 % to 0.5 %
    assert "5.0 \N{RIGHTWARDS ARROW} 8.0" in text


def test_the_trend_is_drawn_for_those_who_cannot_see_it_too(page: Page):
    assert [element.attributes["id"] for element in page["svg"]] == ["trend-share", "trend-ct-ss", "trend-ml"]
    assert "lung involved: 5 %, 8 %, 0.5 %" in page["desc"][0].text
    assert page["desc"][2].text == "lesion volume: 10, 16, 1."


def test_a_registration_that_cannot_be_trusted_is_marked(followed: FollowUp, analyses: list[Analysis]):
    bad = replace(followed.intervals[0].registration, fit=Fit(0.5, 1.0, None))
    intervals = (replace(followed.intervals[0], registration=bad), *followed.intervals[1:])
    text = render_follow_up(replace(followed, intervals=intervals), analyses)
    assert text.count('class="doubt"') == 1
    assert "They are not to be trusted here." in text


def test_pictures_show_the_slices_that_changed(followed: FollowUp, analyses: list[Analysis]):
    interval = followed.intervals[0]
    rows = draw_rows(interval, *analyses[:2])
    changed = np.flatnonzero(np.isin(interval.change, (2, 3)).any(axis=(1, 2)))
    slices = [int(row.caption.split()[1]) - 1 for row in rows if row.caption.startswith("Slice")]
    assert slices == sorted(slices, reverse=True)
    assert 0 < len(slices) <= 5
    assert set(slices) <= set(changed.tolist())
    assert sum(row.caption.startswith("Coronal") for row in rows) == 2
    for row in rows:
        sizes = {(picture.width, picture.height) for picture in (row.earlier, row.later, row.change)}
        assert len(sizes) == 1
        assert max(*sizes) == 400
        assert row.earlier.jpeg != row.change.jpeg


def test_pictures_are_drawn_where_nothing_changed(analyses: list[Analysis]):
    same = [analyses[0], replace(analyses[0], scan_id="d" * 16)]
    rows = draw_rows(follow(same).intervals[0], *same)
    assert rows
    assert all("persisting lesion" in row.change.caption or "none here" in row.change.caption for row in rows)


@pytest.mark.parametrize(
    ("key", "earlier", "later", "text"),
    [
        ("lesion_share", 0.05, 0.08, "+3.0 points"),
        ("lesion_share", 0.08, 0.05, "\N{MINUS SIGN}3.0 points"),
        ("lesion_share", 0.08, 0.0802, "no change"),
        ("lesion_ml", 1.0, 3.5, "+2.5 mL"),
        ("lesion_ml", 100.0, 30.0, "\N{MINUS SIGN}70 mL"),
        ("ct_ss", 10, 12, "+2"),
        ("ct_ss", None, 12, "n/a"),
    ],
)
def test_changes_in_words(key: str, earlier: float | None, later: float, text: str):
    assert change_of(key, difference(earlier, later)) == text


def test_a_change_that_is_only_known_between_limits_is_said_so():
    assert change_of("ct_ss", difference(None, 12, ranges=((8, 14), (12, 12)))) == "\N{MINUS SIGN}2 to +4"


def test_nothing_tells_of_patient_or_place(write: Callable, tmp_path: Path):
    files = write(tmp_path / "Miller_Anna")
    for name in ("follow_up.json", "follow_up.html", "trend.csv"):
        assert "Miller" not in files[name].read_text()


# whole or not at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write_mask", "render_follow_up", "to_dict"])
@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fault: type[BaseException]
):
    write(tmp_path)
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise fault("no memory")

    monkeypatch.setattr(module, step, fail)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(fault, match="no memory"):
            write(folder)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    assert contents(tmp_path) == before


def test_a_full_disk_is_said_so(write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_mask", fail)
    with pytest.raises(ResultsError, match=r"cannot be written \(No space left on device\): choose another folder"):
        write(tmp_path)


def test_a_follow_up_of_the_same_scans_is_replaced_and_other_files_kept(write: Callable, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    write(tmp_path)
    assert set(contents(tmp_path)) == {*FILES, "notes.txt"}


def test_a_follow_up_of_other_scans_is_refused_unless_to_be_overwritten(
    write: Callable, analyses: list[Analysis], scans: list[CTScan], tmp_path: Path
):
    write(tmp_path)
    before = contents(tmp_path)
    pair = analyses[:2]
    with pytest.raises(ResultsError, match="holds a follow-up of other scans: choose another folder"):
        write_follow_up(follow(pair), pair, scans[:2], tmp_path)
    assert contents(tmp_path) == before
    write_follow_up(follow(pair), pair, scans[:2], tmp_path, overwrite=True)
    assert set(contents(tmp_path)) == FILES - {"change_2_3.nii.gz"}  # no map of the earlier ones is left


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("follow_up.json", "{"),
        ("follow_up.json", "[]"),
        ("follow_up.json", '{"scans": [1]}'),
        ("trend.csv", ""),
        ("change_7_8.nii.gz", ""),
    ],
)
def test_files_of_unknown_origin_are_not_overwritten(write: Callable, tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ResultsError, match="files of these names that are no follow-up"):
        write(tmp_path)
    assert contents(tmp_path) == {name: content.encode()}


def test_a_file_in_the_place_of_the_folder_is_refused(write: Callable, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultsError, match="cannot be written"):
        write(tmp_path / "file")


@pytest.mark.parametrize("case", ["analyses in another order", "a scan is missing"])
def test_other_analyses_or_scans_are_refused(
    followed: FollowUp, analyses: list[Analysis], scans: list[CTScan], tmp_path: Path, case: str
):
    given = (analyses[::-1], scans) if case.startswith("analyses") else (analyses, scans[:2])
    with pytest.raises(ValueError, match="give their 3 analyses and scans in this order"):
        write_follow_up(followed, *given, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# in a browser -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_shows_it_without_a_complaint(write: Callable, tmp_path: Path, width: int):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium (of Debian) is not installed")
    complaints: list[str] = []
    asked: list[str] = []
    file = write(tmp_path)["follow_up.html"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda message: complaints.append(str(message)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(loaded)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
        browser.close()
    assert complaints == []
    assert [address for address in asked if not address.startswith("data:")] == [file.as_uri()]
