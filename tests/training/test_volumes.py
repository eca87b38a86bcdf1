# SPDX-License-Identifier: Apache-2.0
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted

from covid_monai.training import VolumeMetrics, volume_of

Row = tuple[str, str | None, dict[str, Any], list[int], list[int], list[int] | None]


def mask(pixels: list[int]) -> torch.Tensor:
    """(1, 1, N)."""
    return torch.tensor(pixels)[None, None]


def one_hot(codes: list[int]) -> torch.Tensor:
    """(3, 1, N)."""
    return torch.nn.functional.one_hot(torch.tensor(codes), 3).T[:, None].float()


def evaluate(rows: list[Row], shape: Callable[[list[int]], torch.Tensor] = mask, **options: Any) -> Engine:
    """Score slices ``(id, patient, more of the item, prediction, reference, lung)``, one a batch."""
    items = [{"id": id_, "patient": patient, **more} for id_, patient, more, *_ in rows]
    output = [{"pred": shape(prediction), "label": shape(reference)} for *_, prediction, reference, _ in rows]
    batches = [[{"id": id_} if lung is None else {"id": id_, "lung": mask(lung)}] for id_, _, _, _, _, lung in rows]
    evaluator = Engine(lambda engine, batch: [output[engine.state.iteration - 1]])
    VolumeMetrics(items, **options).attach(evaluator)
    evaluator.run(batches)
    return evaluator


def metrics(engine: Engine) -> dict[str, float]:
    return {name: pytest.approx(value) for name, value in engine.state.metrics.items()}


def details(engine: Engine) -> dict[str, dict[str, float]]:
    return engine.state.case_details  # type: ignore[attr-defined]


# Volume a/1, patient 1, slices apart from each other in the list:
#   slice 1: predicted 2, reference 2, both 1; lung 4 pixels, all of them within
#   slice 2: predicted 1, reference 0;         lung 2 pixels, the predicted one outside
#   Dice 2 * 1 / (3 + 2) = 2/5; shares of 6 lung pixels: predicted 2, reference 2, error 0
# Volumes a/2 and a/3, patient 2+3:
#   a/2: predicted 0, reference 1; lung 4: Dice 0, shares 0 and 1/4, error 25
#   a/3: predicted 3, reference 3, both 3; lung 4: Dice 1, error 0
# Patients: 1 has .4 and 0, 2+3 has .5 and 12.5
BY_HAND: list[Row] = [
    ("a/1/001", "a/1", {}, [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]),
    ("a/2/001", "a/2+3", {}, [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]),
    ("a/1/002", "a/1", {}, [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 255]),
    ("a/3/001", "a/2+3", {}, [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]),
]


def test_values_worked_out_by_hand():
    engine = evaluate(BY_HAND)
    assert metrics(engine) == {"val_volume_dice": (0.4 + 0.5) / 2, "val_share_error": (0 + 12.5) / 2}
    assert details(engine) == {
        "val_volume_dice": {"a/1": pytest.approx(0.4), "a/2+3": pytest.approx(0.5)},
        "val_share_error": {"a/1": 0, "a/2+3": pytest.approx(12.5)},
    }


def test_a_row_for_each_volume(tmp_path: Path):
    evaluate(BY_HAND, save_dir=tmp_path / "eval")
    with (tmp_path / "eval" / "volumes.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    figures = ["val_volume_dice", "val_share_error", "predicted_share", "reference_share"]
    assert header == ["volume", "patient", "slices", *figures]
    assert [row[:3] for row in rows] == [["a/1", "a/1", "2"], ["a/2", "a/2+3", "1"], ["a/3", "a/2+3", "1"]]
    third = 100 * 2 / 6
    expected = [[0.4, 0, third, third], [0, 25, 0, 25], [1, 0, 75, 75]]
    assert [[float(value) for value in row[3:]] for row in rows] == [pytest.approx(each) for each in expected]


def test_slices_of_no_known_patient_are_volumes_of_their_own():
    engine = evaluate(
        [
            ("b/001", None, {}, [1, 0, 0, 0], [1, 1, 0, 0], None),  # 2/3
            ("b/002", None, {}, [0, 0, 0, 0], [0, 0, 0, 0], None),  # none and none: 1
            ("b/003", None, {}, [1, 0, 0, 0], [0, 0, 0, 0], None),  # a false alarm: 0
        ]
    )
    assert details(engine) == {"val_volume_dice": {"b/001": pytest.approx(2 / 3), "b/002": 1, "b/003": 0}}
    assert metrics(engine) == {"val_volume_dice": 5 / 9}


def test_a_share_needs_the_lungs_of_every_slice(tmp_path: Path):
    rows: list[Row] = [
        ("a/1/001", "a/1", {}, [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]),
        ("a/1/002", "a/1", {}, [1, 0, 0, 0], [1, 0, 0, 0], None),
        ("a/4/001", "a/4", {}, [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]),  # 50 against 0 percent
        ("a/5/001", "a/5", {}, [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]),
    ]
    engine = evaluate(rows, save_dir=tmp_path)
    assert details(engine)["val_share_error"] == {"a/4": 50}
    with (tmp_path / "volumes.csv").open(newline="") as file:
        shares = [
            (row["val_share_error"], row["predicted_share"], row["reference_share"]) for row in csv.DictReader(file)
        ]
    assert shares == [("", "", ""), ("50.0", "50.0", "0.0"), ("", "", "")]
    assert "val_share_error" not in evaluate(rows[1:2]).state.metrics


def test_volumes_of_patients_whose_ids_have_no_volume_stay_apart():
    rows: list[Row] = [
        ("mine/anna_1", "mine/anna", {}, [1, 0, 0, 0], [1, 0, 0, 0], None),
        ("mine/ben_1", "mine/ben", {}, [0, 0, 0, 0], [1, 0, 0, 0], None),
    ]
    assert details(evaluate(rows)) == {"val_volume_dice": {"mine/anna": 1, "mine/ben": 0}}


# Volume 1, classes of the third slice are guessed:
#   ground glass (1): slices 1 and 2: predicted 2 + 1, reference 1 + 0, both 1: 2 / 4
#   consolidation (2): predicted 0 + 1, reference 1 + 2, both 0 + 1: 2 / 4
#   lesion: predicted 2 + 2 + 2, reference 2 + 2 + 2, both 2 + 2 + 2: 1
# Volume 2 has no ground glass in its reference, where some is predicted: it does not count for it.
#   consolidation: predicted 1, reference 1, both 1: 1; lesion: predicted 2, reference 1, both 1: 2 / 3
# Volume 3 is all guessed: only its lesion counts, which is missed: 0
CLASSES: list[Row] = [
    ("a/1/001", "a/1", {"class_source": "stated"}, [1, 1, 0, 0], [1, 2, 0, 0], None),
    ("a/1/002", "a/1", {}, [1, 2, 0, 0], [2, 2, 0, 0], None),
    ("a/1/003", "a/1", {"class_source": "inferred"}, [1, 1, 0, 0], [2, 2, 0, 0], None),
    ("a/2/001", "a/2", {"class_source": "stated"}, [1, 2, 0, 0], [0, 2, 0, 0], None),
    ("a/3/001", "a/3", {"class_source": "inferred"}, [0, 0, 0, 0], [1, 1, 0, 0], None),
]


def test_classes_are_scored_where_they_are_known():
    engine = evaluate(CLASSES, one_hot, classes=["ggo", "consolidation"])
    assert details(engine) == {
        "val_volume_dice": {"a/1": 1, "a/2": pytest.approx(2 / 3), "a/3": 0},
        "val_volume_dice_ggo": {"a/1": pytest.approx(1 / 2)},
        "val_volume_dice_consolidation": {"a/1": pytest.approx(1 / 2), "a/2": 1},
    }
    assert metrics(engine) == {
        "val_volume_dice": 5 / 9,
        "val_volume_dice_ggo": 1 / 2,
        "val_volume_dice_consolidation": 3 / 4,
    }


def test_a_false_alarm_on_a_slice_without_lesion_counts_for_its_class():
    rows: list[Row] = [
        ("a/1/001", "a/1", {"class_source": "stated"}, [1, 0, 0, 0], [1, 0, 0, 0], None),
        ("a/1/002", "a/1", {"class_source": "none"}, [1, 1, 0, 0], [0, 0, 0, 0], None),
    ]
    engine = evaluate(rows, one_hot, classes=["ggo", "consolidation"])
    assert engine.state.metrics["val_volume_dice_ggo"] == pytest.approx(2 * 1 / (3 + 1))


def test_without_names_one_hot_masks_are_scored_as_lesion_alone():
    assert metrics(evaluate(CLASSES, one_hot)) == {"val_volume_dice": 5 / 9}


def test_a_second_evaluation_takes_the_place_of_the_first():
    evaluator = Engine(lambda engine, batch: [{"pred": mask([1, 0, 0, 0]), "label": mask([1, 1, 0, 0])}])
    VolumeMetrics([{"id": "a/1/001", "patient": "a/1"}, {"id": "a/2/001", "patient": "a/2"}]).attach(evaluator)
    evaluator.run([[{"id": "a/1/001", "lung": mask([1, 1, 1, 1])}]])
    assert evaluator.state.metrics.keys() == {"val_volume_dice", "val_share_error"}
    evaluator.run([[{"id": "a/2/001"}]])
    assert evaluator.state.metrics.keys() == {"val_volume_dice"}
    assert details(evaluator) == {"val_volume_dice": {"a/2": pytest.approx(2 / 3)}}


def test_a_monai_evaluator_is_scored():
    """Batches of several slices, decollated, with values that are probabilities before postprocessing."""
    data = [
        {
            "id": f"a/{k}/001",
            "image": torch.tensor([[[0.9, 0.1]]]),
            "label": torch.ones(1, 1, 2),
            "lung": torch.ones(1, 1, 2),
        }
        for k in range(3)
    ]
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(data), batch_size=2),
        torch.nn.Identity(),
        postprocessing=AsDiscreted("pred", threshold=0.5),
        val_handlers=[VolumeMetrics([{"id": item["id"], "patient": "a"} for item in data])],
    )
    evaluator.run()
    assert metrics(evaluator) == {"val_volume_dice": 2 / 3, "val_share_error": 50.0}


def test_volume_of_items():
    assert volume_of({"id": "medseg_radiopaedia9/2/012", "patient": "medseg_radiopaedia9/2+3"}) == (
        "medseg_radiopaedia9/2+3",
        "medseg_radiopaedia9/2",
    )
    assert volume_of({"id": "medseg_sirm100/012", "patient": None}) == ("medseg_sirm100/012",) * 2
    assert volume_of({"id": "medseg_sirm100/012"}) == ("medseg_sirm100/012",) * 2


def run_one(batch: Any, output: Any, **options: Any) -> None:
    evaluator = Engine(lambda engine, each: output)
    VolumeMetrics([{"id": "a/1/001", "patient": "a/1"}], **options).attach(evaluator)
    evaluator.run([batch])


@pytest.mark.parametrize(
    ("item", "prediction", "reference", "options", "message"),
    [
        ({"id": "a/2/001"}, mask([1]), mask([1]), {}, "a slice that is evaluated is not among the items"),
        (
            {},
            mask([1]),
            mask([1, 1]),
            {},
            r"prediction is \(1, 1, 1\) and reference \(1, 1, 2\): both must be \(1, H, W\)",
        ),
        ({}, one_hot([1]), one_hot([1]), {"classes": ["ggo"]}, r"both must be \(2, H, W\)"),
        ({}, mask([1]), mask([1]), {"classes": ["ggo"]}, r"both must be \(2, H, W\)"),
        ({"lung": mask([1, 1])}, mask([1]), mask([1]), {}, r"lung mask is \(1, 2\) and prediction \(1, 1\)"),
    ],
)
def test_slices_that_cannot_be_counted_are_refused(
    item: dict[str, Any], prediction: torch.Tensor, reference: torch.Tensor, options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        run_one([{"id": "a/1/001", **item}], [{"pred": prediction, "label": reference}], **options)


def test_batches_that_are_not_decollated_are_refused():
    with pytest.raises(ValueError, match="let the evaluator decollate its batches"):
        run_one({"id": ["a/1/001"]}, {"pred": mask([1])[None], "label": mask([1])[None]})
