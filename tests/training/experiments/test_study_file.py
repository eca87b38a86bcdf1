# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from covid_monai.training.experiments import Runner, Study, StudyError, load_study
from tests.training.experiments.studies import BUNDLE, CASCADE, ROOT, arm

OWN_STUDY = ROOT / "studies" / "reproduction.yaml"


def cascade(**changes: Any) -> dict[str, Any]:
    return {"cascade": {**CASCADE, **changes}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sedes": [1]}, "the file has the unknown key sedes: known are arms, .*"),
        ({"arms": arm(0, trainnig={})}, "arm 1 has the unknown key trainnig: .*"),
        ({"arms": arm(0, training=None)}, "training of arm supervised is no mapping .*: write {} for none."),
        ({"arms": []}, "arms is no list, or an empty one: give at least one."),
        ({"arms": [1]}, "arm 1 is no mapping: it needs title, training."),
        ({"arms": arm(1, title="supervised")}, "two arms have the title 'supervised': give each its own."),
        ({"arms": arm(2, training={"augmentation": False})}, "arms 'coach' and 'coach, augmentation' are the same: .*"),
        ({"arms": arm(0, title="a@b")}, "title of arm 1 is 'a@b': .*"),
        ({"arms": arm(0, title=7)}, "title of arm 1 is 7: .*"),
        (
            {"arms": arm(0, training={"max_epochs": 9})},
            "training of arm supervised sets max_epochs, which the budget .*",
        ),
        (
            {"arms": arm(0, training={"seed": 9})},
            "training of arm supervised sets seed, which the study sets itself: .*",
        ),
        ({"arms": arm(0, training={"tracked#name": "a"})}, ".* sets tracked#name, which the study sets itself: .*"),
        ({"arms": arm(0, training={"rate": "1e-3"})}, "training of arm supervised: rate is the text '1e-3': .*1.0e-3."),
        ({"arms": arm(0, training={"rate": [float("inf")]})}, "training of arm supervised: rate is inf: .*"),
        ({"budget": {"training": {}}}, "budget lacks pretraining."),
        ({"budget": {"pretraining": {}, "training": []}}, "budget training is no mapping .*"),
        ({"reference": "superwised"}, "reference 'superwised' is no arm: name one of supervised, coach, .*"),
        ({"fractions": [0.5, 0]}, "fraction 0 is no share above 0 and at most 1."),
        ({"fractions": [1.5]}, "fraction 1.5 is no share above 0 and at most 1."),
        ({"fractions": [True]}, "fraction True is no share above 0 and at most 1."),
        ({"fractions": [1, 1.0]}, "fractions has 1.0 twice: take one out."),
        ({"fractions": []}, "fractions is no list, or an empty one: give at least one."),
        ({"seeds": []}, "seeds is no list, or an empty one: give at least one."),
        ({"seeds": [2, 2]}, "seeds has 2 twice: take one out."),
        ({"seeds": [-1]}, "seed -1 is no whole number .*"),
        ({"seeds": ["one"]}, "seed 'one' is no whole number .*"),
        ({"metrics": []}, "metrics is no list, or an empty one: give at least one."),
        ({"metrics": ["a/b"]}, "metric is 'a/b': .*"),
        ({"study": "../tiny"}, "study is '../tiny': .*"),
        ({"evaluate_on": ["testing", "training"]}, "evaluate_on names 'training': choose of testing, validation."),
        ({"evaluate_on": []}, "evaluate_on is no list, or an empty one: give at least one."),
        ({"cascade": 1}, "cascade is no mapping: it needs .*"),
        (cascade(seeds=[1]), "cascade has the unknown key seeds: known are arms, .*"),
        (cascade(fractions=[0.2]), "cascade's fractions have 0.2, at which no single network is trained: add .*"),
        (cascade(fractions=[2]), "cascade's fraction 2 is no share above 0 and at most 1."),
        (cascade(metrics=[]), "cascade's metrics is no list, or an empty one: give at least one."),
        (cascade(budget={"training": {}}), "cascade's budget lacks pretraining."),
        (
            cascade(budget={"pretraining": {"masks": "random"}, "training": {}}),
            "pretraining of arm coach sets masks, which the cascade's budget sets for every arm: .*",
        ),
        (cascade(arms=["supervised", "caoch"]), "cascade's arms name 'caoch', which is no arm: name some of .*"),
        (cascade(arms=[["coach"]]), r"cascade's arms name \['coach'\], which is no arm: name some of .*"),
        (cascade(arms=["coach"]), "reference 'supervised' is no arm of the cascade: name one of coach."),
        (cascade(bundle="bundel"), "bundle bundel is neither installed nor the folder .*/bundel: name another."),
        (
            {"budget": {"pretraining": {}, "training": {"single_weights": "a.pt"}}},
            "budget training sets single_weights, which the study sets itself: .*",
        ),
        ({"bundle": "bundel"}, "bundle bundel is neither installed nor the folder .*/bundel: name another."),
    ],
)
def test_a_fault_in_the_file_is_told_in_one_line(write: Callable[..., Path], changes: dict[str, Any], fault: str):
    with pytest.raises(StudyError) as caught:
        load_study(write(**changes))
    assert re.fullmatch(f"study file .*/study.yaml: {fault}", str(caught.value))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "is not YAML"),
        ("a: 1\na: 2", "a stands twice"),
        ("- 1", "the file is no mapping"),
        (None, "No such file"),
    ],
)
def test_what_is_no_study_file_is_told_in_one_line(tmp_path: Path, text: str | None, fault: str):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StudyError, match=re.escape(fault)) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_paths_are_those_of_the_file_or_of_the_command(write: Callable[..., Path], tmp_path: Path):
    study = load_study(write())
    assert (study.networks[0].bundle, study.dataset_dir) == (tmp_path / "bundle", tmp_path / "data")
    assert load_study(write(), tmp_path / "elsewhere").dataset_dir == tmp_path / "elsewhere"
    assert load_study(write(bundle=BUNDLE.name)).networks[0].bundle.resolve() == BUNDLE.resolve()


def test_cells_and_their_stages(study: Study):
    cells = study.cells("first")
    assert [(cell.arm.title, cell.fraction) for cell in cells[:4]] == [
        ("supervised", 0.5), ("coach", 0.5), ("coach, augmentation", 0.5), ("supervised", 1.0),
    ]  # fmt: skip
    assert [[stage.kind for stage in cell.stages] for cell in cells[:2]] == [
        ["training"],
        ["pretraining", "finetuning"],
    ]
    pretraining, finetuning = cells[1].stages
    evaluating = cells[1].evaluations["testing"]
    assert (evaluating.start, finetuning.start, pretraining.start) == (finetuning, pretraining, None)
    assert [stage.single for stage in (pretraining, finetuning, evaluating)] == [None] * 3
    assert evaluating.settings == {
        "max_epochs": 4, "patience": None, "augmentation": False, "seed": 1, "side": "testing",
    }  # fmt: skip
    assert evaluating.name == "evaluating: coach, 50 % of the labels, testing, seed 1"
    assert evaluating.tags["side"] == "testing"
    assert pretraining.settings == {"max_epochs": 2, "masks": "coach", "seed": 1}
    assert finetuning.settings == {
        "max_epochs": 4, "patience": None, "augmentation": False, "seed": 1, "label_fraction": 0.5,
    }  # fmt: skip
    assert finetuning.name == "finetuning: coach, 50 % of the labels, seed 1"
    assert finetuning.tags == {
        "study": "tiny", "network": "single", "arm": "coach", "fraction": "0.5", "seed": "1", "stage": "finetuning",
        "cell": finetuning.digest,
    }  # fmt: skip
    assert pretraining.tags.keys() == {"study", "network", "seed", "stage", "cell"}


def test_cells_of_a_cascade_stand_on_the_single_network_of_theirs(both: Study):
    cells = both.cells("first")
    assert [cell.key[:3] for cell in cells[6:]] == [("cascade", "supervised", 1.0), ("cascade", "coach", 1.0)]
    supervised, coach = cells[6:]
    single = next(cell for cell in cells if cell.key == ("single", "coach", 1.0, 1))
    assert coach.stages[:2] == single.stages
    pretraining, finetuning = coach.own_stages
    assert (pretraining.kind, pretraining.start, pretraining.single) == ("pretraining", None, single.trained)
    assert (finetuning.kind, finetuning.start, finetuning.single) == ("finetuning", pretraining, single.trained)
    assert finetuning.needs == (single.trained, pretraining)
    assert finetuning.settings == {"max_epochs": 5, "augmentation": False, "label_fraction": 1.0, "seed": 1}
    assert pretraining.settings == {"max_epochs": 3, "masks": "coach", "seed": 1}
    assert pretraining.name == "pretraining: cascade, coach, 100 % of the labels, seed 1"
    assert (pretraining.tags["network"], pretraining.tags["arm"]) == ("cascade", "coach")
    assert coach.evaluations.keys() == {"testing", "validation"}
    assert coach.evaluations["validation"].needs == (finetuning,)  # whose weights hold both networks
    assert [stage.kind for stage in supervised.stages] == ["training", "training"]
    assert supervised.trained.single == supervised.stages[0]


def test_a_cascade_of_another_single_network_is_another(write: Callable[..., Path]):
    def digests(**changes: Any) -> set[str]:
        study = load_study(write(**changes, **cascade()))
        return {cell.digest for cell in study.cells("first") if cell.network.name == "cascade"}

    one = digests()
    assert len(one) == 2
    assert digests(evaluate_on=["validation"]) == one
    assert not digests(budget={"pretraining": {}, "training": {"max_epochs": 9}}) & one
    assert len(digests(budget={"pretraining": {}, "training": {"max_epochs": 4, "patience": None}}) & one) == 1


def test_equal_stages_are_one_and_others_are_not(write: Callable[..., Path]):
    def digests(data: str = "first", **changes: Any) -> set[str]:
        cells = load_study(write(**changes)).cells(data)
        return {stage.digest for cell in cells for stage in (*cell.stages, *cell.evaluations.values())}

    one = digests()
    assert len(one) == 1 + 6 + 6  # one pre-training for two arms and two fractions
    assert digests(study="other", metrics=["val_loss"], reference="coach") == one  # these change nothing that is run
    assert digests(arms=[*arm(0, title="renamed")], reference="renamed") == one
    assert not digests(data="second") & one
    longer = digests(budget={"pretraining": {"max_epochs": 3}, "training": {"max_epochs": 4, "patience": None}})
    assert len(longer & one) == 4  # what does not start from a pre-training
    assert len(digests(seeds=[1, 2]) & one) == len(one)
    assert len(digests(evaluate_on=["testing", "validation"]) - one) == 6


def test_the_study_of_this_project_fits_its_bundle(tmp_path: Path):
    study = load_study(OWN_STUDY)
    own = Runner(study, tmp_path)
    assert len(own.cells) == 3 * 6 * (4 + 2)
    pretrainings = 3 * (2 + 3 * 2)  # two for the single network; one for each arm and fraction of the cascade
    assert len(own.plan()) == 3 * len(own.cells) + pretrainings
    assert len(Runner(study, tmp_path, network="single").cells) == 3 * 6 * 4
    assert not list(tmp_path.iterdir())
