# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from covid_monai.reports import roc
from covid_monai.reports.results import ResultsError
from covid_monai.reports.roc import FILES, evaluate_table, save_roc
from covid_monai.severity.evaluate import Evaluation, evaluate

SEVERE = ("Severe", "Critically ill")


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluate([3, 19, 24, 31, None], ["mild", "severe", "regular", "severe", "mild"], SEVERE, cut_off=19.5)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "cohort.csv"
    path.write_text("scan,ct_ss,outcome\nx1,3,Mild\nx2,19,Severe\nx3,24,Regular\nx4,31,Severe\nx5,,Mild\n")
    return path


def words(path: Path) -> str:
    """What an SVG says, by the comments with which matplotlib keeps the text of its outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return "\n".join(node.text or "" for node in tree.iter() if node.tag is ElementTree.Comment)


def test_the_curve_is_drawn_with_its_area_and_cut_off(evaluation: Evaluation, tmp_path: Path):
    save_roc(evaluation, tmp_path / "roc.svg", "ct_ss")
    text = words(tmp_path / "roc.svg")
    for expected in (
        "ct_ss: 2 positive, 2 negative",
        "area 0.750 (0.057 to 1.000)",
        "cut-off 19.5",
        "sensitivity 50 % (9 to 91)",
        "specificity 50 % (9 to 91)",
        "Positive: severe, critically ill. Negative: control, mild, regular.",
        "95 % intervals (DeLong, Wilson); 1 without score left out.",
        "Research use only, not a medical device.",
    ):
        assert expected in text


def test_without_cut_off_and_interval_none_is_drawn(tmp_path: Path):
    save_roc(evaluate([1, 2], ["mild", "severe"], SEVERE), tmp_path / "roc.svg")
    text = words(tmp_path / "roc.svg")
    assert "area 1.000" in text
    for absent in ("cut-off", "area 1.000 (", "left out", "None"):
        assert absent not in text


def coloured(path: Path) -> tuple[int, int]:
    """Pixels that are clearly red, and clearly blue."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        red, _, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
    return int((red - blue > 80).sum()), int((blue - red > 80).sum())


def test_a_png_shows_curve_and_cut_off(evaluation: Evaluation, tmp_path: Path):
    save_roc(evaluation, tmp_path / "roc.png")
    red, blue = coloured(tmp_path / "roc.png")
    assert red > 200
    assert blue > 500


def test_other_pictures_are_refused(evaluation: Evaluation, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot be drawn as roc\.jpg: give a name that ends in \.png or \.svg"):
        save_roc(evaluation, tmp_path / "roc.jpg")


def test_a_table_becomes_two_files(table: Path, evaluation: Evaluation, tmp_path: Path):
    found = evaluate_table(table, "ct_ss", "outcome", SEVERE, tmp_path / "new" / "folder", cut_off=19.5)
    assert found == evaluation
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    record = json.loads((folder / "evaluation.json").read_text())
    assert record.pop("schema") == "covid_monai/evaluation/1"
    assert record.pop("notice") == "Research use only, not a medical device."
    assert (record.pop("score"), record.pop("outcome")) == ("ct_ss", "outcome")
    assert record == json.loads(json.dumps(asdict(evaluation)))
    assert coloured(folder / "roc.png")[1] > 500


def test_no_row_of_the_table_is_in_the_record(table: Path, tmp_path: Path):
    evaluate_table(table, "ct_ss", "outcome", SEVERE, tmp_path / "out")
    text = (tmp_path / "out" / "evaluation.json").read_text()
    assert not any(name in text for name in ("x1", "x4", "cohort.csv", str(tmp_path)))


def test_a_bad_table_leaves_nothing(table: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no column 'ctss'"):
        evaluate_table(table, "ctss", "outcome", SEVERE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_no_half_results(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluate_table(table, "ct_ss", "outcome", SEVERE, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(roc, "save_roc", full)
    with pytest.raises(ResultsError, match=r"out cannot be written \(No space left on device\)"):
        evaluate_table(table, "ct_ss", "outcome", SEVERE, tmp_path / "out", cut_off=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_file_in_the_way_is_named(table: Path, tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match="out cannot be written"):
        evaluate_table(table, "ct_ss", "outcome", SEVERE, tmp_path / "out")
