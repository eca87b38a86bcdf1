# SPDX-License-Identifier: Apache-2.0
import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.analysis import NOTICE
from covid_monai.reports.cohort import COLUMNS, CohortError, CohortTable
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import FINDING, make_analysis

KEYS = tuple(region.key for region in REGIONS)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cohort.csv"


# what stands in a row ------------------------------------------------------------------------------------------------


def test_a_row_holds_the_figures_of_the_scan(path: Path):
    CohortTable(path).add("case 1", make_analysis(warnings=("One.", "Two.")))
    (row,) = rows(path)
    assert list(row) == list(COLUMNS)
    expected = {
        "name": "case 1",
        "scan_id": "0123456789abcdef",
        "error": "",
        "warnings": "2",
        "finding": "found",
        "ct_ss": "4",
        "ct_ss_lowest": "4",
        "ct_ss_highest": "4",
        "ct_ss_range_low": "3",
        "ct_ss_range_high": "9",
        "lobar": "5",
        "lobar_range_low": "2",
        "lobar_range_high": "6",
        "regions_assessable": "20",
        "grade": "mild",
        "lung_ml": "200",
        "lesion_ml": "10",
        "ground_glass_ml": "9",
        "consolidation_ml": "1",
        "lesion_share": "0.05",
        "lesion_share_range_low": "0.15",
        "lesion_share_range_high": "0.25",
        "right_lung_lesion_share": "0.09",
        "left_lung_ml": "100",
        "right_upper_lobe_lesion_share": "0.2",
        "right_upper_lobe_score": "2",
        "right_upper_apical_score": "2",
        "left_upper_anterior_score": "1",
        "left_lower_superior_score": "0",
        "bilateral": "true",
        "peripheral_share": "0.75",
        "slices": "54",
        "lung_slices": "50",
        "lesion_slices": "10",
        "floor_ml": "0.5",
        "lungs_from": "threshold",
        "model": "test bundle 1.2.3",
        "weights_sha256": "ab" * 32,
        "approximate_regions": "true",
        "notice": NOTICE,
    }
    assert {name: row[name] for name in expected} == expected


def test_what_is_unknown_is_empty_and_never_0(path: Path):
    unknown = replace(FINDING, result=None, bilateral=None, peripheral_share=None, lower_lobe_share=None)
    CohortTable(path).add(
        "a", make_analysis({}, missing=KEYS, known=False, told_apart=False, spread=None, finding=unknown)
    )
    (row,) = rows(path)
    empty = {name for name, value in row.items() if value == ""}
    assert {f"{key}_score" for key in KEYS} <= empty
    assert {
        "ct_ss",
        "lobar",
        "grade",
        "finding",
        "lesion_ml",
        "lesion_share",
        "ground_glass_ml",
        "ct_ss_range_low",
    } <= empty
    assert (row["ct_ss_lowest"], row["ct_ss_highest"], row["regions_assessable"]) == ("0", "40", "0")


def test_a_score_that_is_not_certain_has_its_ends(path: Path):
    CohortTable(path).add("a", make_analysis(not_assessable=KEYS[10:]))
    (row,) = rows(path)
    assert (row["ct_ss"], row["ct_ss_lowest"], row["ct_ss_highest"], row["grade"]) == ("", "3", "23", "")


def test_an_input_that_failed_has_its_fault_and_no_figure(path: Path):
    CohortTable(path).add_failure("input 2", "holds no CT:\n  give one.")
    (row,) = rows(path)
    assert {name: value for name, value in row.items() if value} == {
        "name": "input 2",
        "error": "holds no CT: give one.",
        "notice": NOTICE,
    }


def test_every_column_is_explained_in_the_manual():
    manual = (Path(__file__).parents[2] / "docs" / "guide" / "report.md").read_text(encoding="utf-8")
    for region in REGIONS:  # in one line
        manual = manual.replace("`<region>_score`", f"`<region>_score` `{region.key}_score`")
    missing = [name for name in COLUMNS if f"`{name}`" not in manual]
    assert missing == []


# what happens to the file --------------------------------------------------------------------------------------------


def test_the_file_is_whole_after_every_row(path: Path):
    table = CohortTable(path)
    for number in range(3):
        table.add(f"case {number}", make_analysis())
        assert [row["name"] for row in rows(path)] == [f"case {each}" for each in range(number + 1)]
        assert [file.name for file in path.parent.iterdir()] == ["cohort.csv"]


def test_a_failed_write_keeps_the_rows_before(path: Path, monkeypatch: pytest.MonkeyPatch):
    table = CohortTable(path)
    table.add("case 1", make_analysis())
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CohortError, match="No space left"):
        table.add("case 2", make_analysis())
    assert [file.read_bytes() for file in path.parent.iterdir()] == [before]


def test_rows_of_a_stopped_run_are_kept_and_one_of_the_same_name_replaced(path: Path):
    first = CohortTable(path)
    first.add("a", make_analysis())
    first.add_failure("=b", "no CT")
    second = CohortTable(path)
    second.add("c", make_analysis({}))
    second.add("=b", make_analysis({}))
    found = rows(path)
    assert [row["name"] for row in found] == ["a", "'=b", "c"]
    assert [row["ct_ss"] for row in found] == ["4", "0", "0"]
    assert [row["error"] for row in found] == ["", "", ""]


@pytest.mark.parametrize("content", [b"", b"name,score\na,1\n", b"\xff\xfe\x00", b"notes of mine"])
def test_another_file_in_its_place_is_refused_and_left(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(CohortError, match=r"is no cohort table of this version: move it away"):
        CohortTable(path)
    assert path.read_bytes() == content


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_is_a_formula_or_breaks_the_table(tmp_path_factory: pytest.TempPathFactory, name: str, fault: str):
    path = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    CohortTable(path).add_failure(name, fault)
    (row,) = rows(path)
    assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r")) for value in row.values())
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1+1"])
def test_formulas_get_an_apostrophe(path: Path, text: str):
    CohortTable(path).add_failure(text, text)
    (row,) = rows(path)
    assert row["name"] == row["error"] == f"'{text.strip()}"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    table = CohortTable(tmp_path / "file" / "below" / "cohort.csv")
    with pytest.raises(CohortError, match=r"cohort.csv cannot be written \(Not a directory\): choose another folder"):
        table.add_failure("input 1", "NoScanFound")
