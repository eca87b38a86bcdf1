# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from covid_monai.training.experiments import Study, load_study, write_table
from covid_monai.training.experiments.cases import read_cases
from covid_monai.training.experiments.table import compare, holm
from tests.training.experiments.studies import finish, finish_cell, rows, table_rows


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; and 0.04 no less than that
        ([0.5, 0.9], [1.0, 1.0]),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]):
    assert holm(p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_stays_within_bonferroni(p: list[float]):
    adjusted = holm(p)
    ranked = [adjusted[index] for index in sorted(range(len(p)), key=lambda i: p[i])]
    assert ranked == sorted(ranked)
    bounds = [min(1.0, len(p) * value) for value in p]
    assert all(a <= b for a, b in zip(p, adjusted, strict=True))
    assert not p or min(adjusted) == min(bounds)  # the smallest is multiplied by their number


def test_compare_averages_over_seeds_and_takes_shared_cases():
    arms = [{"a": 0.5, "b": 0.7, "c": 0.9, "d": 0.1}, {"a": 0.7, "b": 0.7, "c": float("nan"), "d": 0.1}]
    reference = [{"a": 0.4, "b": 0.6, "c": 0.9, "d": 0.4}, {"a": 0.4, "b": 0.4, "c": 0.9}]
    found = compare(arms, reference)  # a: 0.6 - 0.4 = 0.2; b: 0.7 - 0.5 = 0.2
    assert found is not None
    assert (found.cases, found.median) == (2, pytest.approx(0.2))


def test_compare_by_hand():
    reference = dict.fromkeys("abcdef", 0.5)
    better = {key: 0.5 + 0.01 * (number + 1) for number, key in enumerate("abcdef")}
    found = compare([better], [reference])
    assert found is not None
    assert found.p == pytest.approx(2 / 2**6)  # all six signs alike, two-sided
    assert found.median == pytest.approx(0.035)
    assert compare([reference], [better]).median == pytest.approx(-0.035)  # type: ignore[union-attr]


def test_compare_of_equals_and_of_nothing():
    same = compare([{"a": 0.5, "b": 0.5}], [{"a": 0.5, "b": 0.5}])
    assert same is not None
    assert (same.cases, same.median, same.p) == (2, 0.0, 1.0)
    assert compare([{"a": 1.0}], [{"b": 1.0}]) is None
    assert compare([{"a": None}], [{"a": 1.0}]) is None  # type: ignore[dict-item]
    assert compare([], []) is None


@pytest.fixture
def evaluated(write: Callable[..., Path], tracking_uri: str) -> Study:
    """A study of two seeds: supervised 0.5 and 0.6, coach 0.7 twice and at 50 % once, the third arm not at all."""
    study = load_study(write(seeds=[1, 2]))
    reference = dict.fromkeys("abcdef", 0.5)
    better = {key: 0.5 + 0.01 * (number + 1) for number, key in enumerate("abcdef")}
    for cell in study.cells("first"):
        if cell.arm.title == "supervised":
            finish_cell(tracking_uri, cell, 0.4 + 0.1 * cell.seed, reference)
        elif cell.arm.title == "coach" and (cell.seed == 1 or cell.fraction == 1):
            cases = better if cell.fraction == 0.5 else {key: better[key] for key in "abcde"}
            finish_cell(tracking_uri, cell, 0.7, cases)
    return study


def test_table_by_hand(evaluated: Study, tmp_path: Path, tracking_uri: str):
    paths = write_table(evaluated, tmp_path / "out", tracking_uri)
    assert {path.name for path in paths} == {"results.csv", "cases.csv", "table.md", "single_testing.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "7 of 12 cells are finished. Seeds: 1, 2. Data: `first`." in text
    assert "Wilcoxon signed-rank test, two-sided" in text
    assert "![Metrics of the single network on side testing](single_testing.png)" in text
    found = table_rows(text)
    assert found[0] == ["arm", "50 %", "100 %"]
    assert found[2:5] == [
        ["supervised", "0.550 ± 0.071", "0.550 ± 0.071"],  # 0.1 / sqrt(2)
        ["coach", "0.700 (1 of 2 seeds)", "0.700 ± 0.000"],
        ["coach, augmentation", "missing", "missing"],
    ]
    assert found[5][-1] == "p (Holm, 2 tests)"
    assert found[7:] == [
        ["coach", "50 %", "1", "6", "+0.035", "0.031", "0.062"],  # 2/2^6, and twice that
        ["coach, augmentation", "50 %", "0", "missing", "missing", "missing", "missing"],
        ["coach", "100 %", "2", "5", "+0.030", "0.062", "0.062"],  # 2/2^5
        ["coach, augmentation", "100 %", "0", "missing", "missing", "missing", "missing"],
    ]
    assert wilcoxon([0.01, 0.02, 0.03, 0.04, 0.05]).pvalue == pytest.approx(0.0625)


def test_results_have_a_row_a_cell_and_fill_nothing_in(evaluated: Study, tmp_path: Path, tracking_uri: str):
    write_table(evaluated, tmp_path, tracking_uri)
    found = rows(tmp_path)
    assert [(row["arm"], row["fraction"], row["seed"], row["testing_val_mean_dice"]) for row in found[:3]] == [
        ("supervised", "0.5", "1", "0.5"),
        ("coach", "0.5", "1", "0.7"),
        ("coach, augmentation", "0.5", "1", ""),
    ]
    assert [row["state"] for row in found].count("missing") == 5
    assert all(bool(row["testing_run_id"]) == (row["state"] == "finished") for row in found)


def test_the_newest_of_two_evaluations_counts(evaluated: Study, tmp_path: Path, tracking_uri: str):
    write_table(evaluated, tmp_path, tracking_uri)
    cell = evaluated.cells("first")[0]
    finish_cell(tracking_uri, cell, 0.25, {"a": 0.25})
    write_table(evaluated, tmp_path, tracking_uri)
    assert rows(tmp_path)[0]["testing_val_mean_dice"] == "0.25"
    assert read_cases(tmp_path).of(cell.digest, "testing", "val_mean_dice") == {"a": 0.25}


def test_the_data_of_the_newest_evaluation_count(evaluated: Study, tmp_path: Path, tracking_uri: str):
    tags = evaluated.cells("second")[0].evaluations["testing"].tags
    finish(tracking_uri, "tiny", "evaluating", {**tags, "data_hash": "second"}, 0.25)
    write_table(evaluated, tmp_path, tracking_uri)
    assert [row["state"] for row in rows(tmp_path)].count("finished") == 1
    assert "1 of 12 cells are finished. Seeds: 1, 2. Data: `second`." in (tmp_path / "table.md").read_text()


def test_runs_without_cases_are_tabulated_but_not_tested(write: Callable[..., Path], tmp_path: Path, tracking_uri: str):
    study = load_study(write())
    for cell in study.cells("first"):
        finish_cell(tracking_uri, cell)
    write_table(study, tmp_path, tracking_uri)
    found = table_rows((tmp_path / "table.md").read_text())
    assert ["coach", "0.500", "0.500"] in found
    assert len(found) == 5
    assert not (tmp_path / "cases.csv").exists()


def test_a_section_for_each_network_and_side(both: Study, tmp_path: Path, tracking_uri: str):
    cells = both.cells("first")
    for cell in cells[:6]:
        finish_cell(tracking_uri, cell)
    validation = cells[6].evaluations["validation"]
    finish(tracking_uri, "tiny", "evaluating", validation.tags, 0.25)
    paths = write_table(both, tmp_path, tracking_uri)
    assert {path.name for path in paths if path.suffix == ".png"} == {
        "single_testing.png", "single_validation.png", "cascade_validation.png",
    }  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert "6 of 8 cells are finished (single network 6 of 6, cascade 0 of 2)." in text
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## Single network", "### Side testing", "#### val_mean_dice", "### Side validation", "#### val_mean_dice",
        "## Cascade", "### Side testing", "### Side validation", "#### val_mean_dice",
    ]  # fmt: skip
    cascade = text[text.index("## Cascade") :]
    assert "No cell is evaluated on this side yet." in cascade
    assert "Not measured on this side: val_dice_ggo." in cascade
    assert table_rows(cascade)[2:] == [["supervised", "0.250"], ["coach", "missing"]]
    found = rows(tmp_path)
    assert [row["state"] for row in found[6:]] == ["partial", "missing"]
    assert (found[6]["testing_val_mean_dice"], found[6]["validation_val_mean_dice"]) == ("", "0.25")


def test_a_report_is_tabulated_without_mlflow(evaluated: Study, tmp_path: Path, tracking_uri: str):
    names = ["results.csv", "cases.csv", "table.md", "single_testing.png"]
    write_table(evaluated, tmp_path / "report", tracking_uri)
    before = [(tmp_path / "report" / name).read_bytes() for name in names]
    (tmp_path / "report" / "table.md").unlink()
    write_table(evaluated, tmp_path / "report", f"sqlite:///{tmp_path / 'none.db'}")
    assert [(tmp_path / "report" / name).read_bytes() for name in names] == before
    assert not (tmp_path / "none.db").exists()
