# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from covid_monai.training.experiments import Study, StudyError, load_study
from covid_monai.training.experiments.cases import Cases, read_cases, write_cases
from covid_monai.training.experiments.files import locked, read_csv, write_csv
from covid_monai.training.experiments.results import Results, finished_runs, read_results, write_results
from tests.training.experiments.studies import CASCADE, finish, finish_cell, rows

HEAD = "network,arm,fraction,seed,state,testing_val_mean_dice,testing_run_id,git_commit,data_hash,cell"


def update(study: Study, folder: Path, tracking_uri: str) -> Results:
    """Bring the results in a folder up to date from a store."""
    folder.mkdir(exist_ok=True)
    finished = finished_runs(tracking_uri, study.name)
    return write_results(study, study.cells("first"), finished, MlflowClient(tracking_uri), folder)


def test_a_row_by_hand(study: Study, tmp_path: Path, tracking_uri: str):
    cell = study.cells("first")[1]
    tags = {**cell.evaluations["testing"].tags, "git_commit": "abc"}
    run_id = finish(tracking_uri, "tiny", "evaluating", tags, 0.123456789)
    update(study, tmp_path / "report", tracking_uri)
    lines = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert lines[0] == HEAD
    assert lines[1] == f"single,supervised,0.5,1,missing,,,,,{study.cells('first')[0].digest}"
    assert lines[2] == f"single,coach,0.5,1,finished,0.123457,{run_id},abc,first,{cell.digest}"
    assert len(lines) == 7


def test_columns_of_both_networks_and_sides(both: Study, tmp_path: Path, tracking_uri: str):
    columns = update(both, tmp_path, tracking_uri).columns
    assert columns[5:11] == [
        "testing_val_mean_dice", "testing_val_dice_ggo", "validation_val_mean_dice", "validation_val_dice_ggo",
        "testing_run_id", "validation_run_id",
    ]  # fmt: skip


def test_rows_of_another_store_are_kept_and_not_doubled(study: Study, tmp_path: Path, tracking_uri: str):
    first, second = study.cells("first")[:2]
    finish_cell(tracking_uri, first, 0.25, {"a": 0.25})
    update(study, tmp_path / "report", tracking_uri)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    finish_cell(other, second, 0.5, {"b": 0.5})
    for _ in range(2):
        results = update(study, tmp_path / "report", other)
    assert [row["testing_val_mean_dice"] for row in rows(tmp_path / "report")] == ["0.25", "0.5", "", "", "", ""]
    assert (results.value(first, "testing", "val_mean_dice"), results.others) == (0.25, [])
    cases = read_cases(tmp_path / "report")
    assert cases.of(first.digest, "testing", "val_mean_dice") == {"a": 0.25}
    assert cases.of(second.digest, "testing", "val_mean_dice") == {"b": 0.5}


def test_rows_that_are_of_no_cell_any_more_are_kept_at_the_end(
    write: Callable[..., Path], tmp_path: Path, tracking_uri: str
):
    before = load_study(write())
    finish_cell(tracking_uri, before.cells("first")[0], 0.25)
    update(before, tmp_path / "report", tracking_uri)
    longer = load_study(write(budget={"pretraining": {}, "training": {"max_epochs": 9}}, metrics=["val_loss"]))
    for _ in range(2):
        results = update(longer, tmp_path / "report", tracking_uri)
    found = rows(tmp_path / "report")
    assert len(found) == 7  # the missing ones of before are not kept
    assert len(results.others) == 1
    assert (found[-1]["cell"], found[-1]["testing_val_mean_dice"]) == (before.cells("first")[0].digest, "0.25")
    assert "testing_val_loss" in found[-1]


def test_a_side_that_mlflow_holds_replaces_its_own_figures_alone(both: Study, tmp_path: Path, tracking_uri: str):
    cell = both.cells("first")[0]
    finish(tracking_uri, "tiny", "evaluating", cell.evaluations["testing"].tags, 0.25)
    update(both, tmp_path / "report", tracking_uri)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    finish(other, "tiny", "evaluating", cell.evaluations["validation"].tags, 0.5)
    update(both, tmp_path / "report", other)
    row = rows(tmp_path / "report")[0]
    assert (row["testing_val_mean_dice"], row["validation_val_mean_dice"], row["state"]) == ("0.25", "0.5", "finished")


def test_a_renamed_arm_keeps_its_row(write: Callable[..., Path], tmp_path: Path, tracking_uri: str):
    study = load_study(write())
    finish_cell(tracking_uri, study.cells("first")[0], 0.25)
    update(study, tmp_path / "report", tracking_uri)
    arms = [{"title": "plain", "training": {"augmentation": False}}]
    update(load_study(write(arms=arms, reference="plain")), tmp_path / "report", tracking_uri)
    assert [(row["arm"], row["state"]) for row in rows(tmp_path / "report")] == [
        ("plain", "finished"), ("plain", "missing"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n", "is not of a study, it lacks network, arm, fraction, seed, state, git_commit, data_hash, cell: "),
        (f"{HEAD}\nsingle,coach,1,1,finished,0.5\n", "line 2 of .* is torn: "),
        (f"{HEAD}\nsingle,coach,1,1,finished,half,a,b,c,d\n", "line 2 of .* is torn: "),
        (f"{HEAD}\nsingle,coach,1,1,finished,nan,a,b,c,d\n", "line 2 of .* is torn: "),
        (f"{HEAD}\nsingle,coach,1,1,finished,0.5,a,b,c,\n", "line 2 of .* is torn: "),
        (f"{HEAD}\nsingle,coach,1,1,finished,0.5,a,b,c,d,e\n", "line 2 of .* is torn: "),
        (f"{HEAD}\n" + 2 * "single,coach,1,1,finished,0.5,a,b,c,d\n", "has the cell d twice: "),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_results_is_told_in_one_line_and_stays(
    study: Study, tmp_path: Path, tracking_uri: str, text: str | bytes, fault: str
):
    path = tmp_path / "results.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(StudyError, match=fault) as caught:
        update(study, tmp_path, tracking_uri)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_no_file_is_no_results(tmp_path: Path):
    assert read_results(tmp_path) == {}


# cases ----------------------------------------------------------------------------------------------------------------


def test_cases_come_back_as_they_were_to_four_digits(tmp_path: Path):
    cases = Cases()
    cases.put("c1", "testing", {"val_mean_dice": {"a": 0.5, "b": 0.123456}, "val_loss": {}})
    cases.put("c2", "validation", {"val_mean_dice": {"c": 1.0}})
    write_cases(cases, tmp_path)
    assert (tmp_path / "cases.csv").read_text().splitlines() == [
        "cell,side,metric,a,b,c",
        "c1,testing,val_mean_dice,0.5000,0.1235,",
        "c2,validation,val_mean_dice,,,1.0000",
    ]
    back = read_cases(tmp_path)
    assert back.of("c1", "testing", "val_mean_dice") == {"a": 0.5, "b": 0.1235}
    assert back.of("c1", "validation", "val_mean_dice") == back.of("c1", "testing", "val_loss") == {}
    assert (back.has("c1", "testing"), back.has("c2", "testing")) == (True, False)


def test_torn_cases_are_told_in_one_line(tmp_path: Path):
    (tmp_path / "cases.csv").write_text("cell,side,metric,a\nc1,testing,val_mean_dice,half\n")
    with pytest.raises(StudyError, match=r"^line 2 of .*/cases.csv is torn: mend it, or take it out.$"):
        read_cases(tmp_path)


def test_only_metrics_of_the_study_are_kept_by_case(both: Study, tmp_path: Path, tracking_uri: str):
    cell = both.cells("first")[0]
    run_id = finish(tracking_uri, "tiny", "evaluating", cell.evaluations["testing"].tags)
    content = {"val_mean_dice": {"a": 0.5}, "val_dice_ggo": {"a": 0.25}, "val_other": {"a": 1.0}}
    MlflowClient(tracking_uri).log_dict(run_id, content, "cases.json")
    update(both, tmp_path, tracking_uri)
    (found,) = read_cases(tmp_path).rows()
    assert found == (cell.digest, "testing", "val_mean_dice", {"a": 0.5})  # ground glass is the cascade's
    assert CASCADE["metrics"][1] == "val_dice_ggo"


# files ----------------------------------------------------------------------------------------------------------------


def test_a_table_is_written_whole_with_its_columns_alone(tmp_path: Path):
    path = tmp_path / "a.csv"
    write_csv(path, ["a", "b"], [{"a": "1", "c": "2"}, {"a": "x,y", "b": "z"}])
    assert path.read_text() == 'a,b\n1,\n"x,y",z\n'
    assert list(read_csv(path, ["a"])) == [(2, {"a": "1", "b": ""}), (3, {"a": "x,y", "b": "z"})]
    assert list(tmp_path.iterdir()) == [path]


def count_up(folder: Path) -> None:
    path = folder / "a.csv"
    for _ in range(50):
        with locked(folder):
            (row,) = [row for _, row in read_csv(path, ["n"])]
            write_csv(path, ["n"], [{"n": str(int(row["n"]) + 1)}])


def test_two_writers_lose_nothing(tmp_path: Path):
    write_csv(tmp_path / "a.csv", ["n"], [{"n": "0"}])
    context = multiprocessing.get_context("fork")
    writers: list[Any] = [context.Process(target=count_up, args=[tmp_path]) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert re.fullmatch(r"n\n100\n", (tmp_path / "a.csv").read_text())
