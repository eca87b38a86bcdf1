# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fire.parser import DefaultParseValue
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow

from covid_monai.training.experiments import Runner, Study, StudyError, load_study, runner
from tests.training.experiments.studies import CASCADE, TRAIN, arm

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(values.filter(lambda value: value is not None))
def test_fire_reads_a_value_as_it_was(value: Any):
    assert DefaultParseValue(runner.literal(value)) == value


@pytest.mark.parametrize("kind", ["training", "finetuning"])
def test_monai_takes_settings_and_tags(study: Study, tmp_path: Path, tracking_uri: str, kind: str):
    """The tags in the config of one are a mapping, in that of the other an expression."""
    own = Runner(study, tmp_path / "out", tracking_uri)
    stage = next(stage for cell in own.cells for stage in cell.stages if stage.kind == kind)
    words = own._command(stage)[7:]
    settings = {key.removeprefix("--"): DefaultParseValue(word) for key, word in zip(*[iter(words)] * 2, strict=True)}
    workflow = ConfigWorkflow(workflow_type="train", logging_file=False, **settings)
    workflow.parser.parse()
    get = workflow.parser.get_parsed_content
    assert get("tracked#tags") == stage.tags
    assert (get("patience"), get("augmentation"), get("label_fraction")) == (None, False, 0.5)
    assert (get("max_epochs"), get("seed"), get("experiment")) == (4, 1, "tiny")
    assert get("ckpt_dir") == str(tmp_path / "out" / kind / stage.digest)
    assert get("dataset_dir") == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"arms": arm(0, training={"augmentatoin": True})},
            "the training of arm supervised sets augmentatoin, no key of ",
        ),
        (
            {"arms": arm(1, pretraining={"loss#x": 1})},
            "the pretraining of arm coach sets loss#x, no key of train.yaml + ",
        ),
        ({"budget": {"pretraining": {}, "training": {"epochs": 1}}}, "the training of arm supervised sets epochs, no "),
    ],
)
def test_an_override_of_no_key_is_refused(
    write: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], fault: str
):
    with pytest.raises(StudyError, match=f"^{re.escape(fault)}.* of bundle bundle: mend the arm or the budget.$"):
        Runner(load_study(write(**changes)), tmp_path / "out")


def test_a_bundle_without_a_stage_that_arms_need_is_refused(study: Study, tmp_path: Path):
    (study.networks[0].bundle / "configs" / "pretrain.yaml").unlink()
    with pytest.raises(StudyError, match=r"^bundle bundle has no pretrain.yaml, which pretraining needs.$"):
        Runner(study, tmp_path / "out")


def test_a_bundle_that_needs_other_weights_is_refused(study: Study, tmp_path: Path):
    configs = tmp_path / "bundle" / "configs"
    (configs / "train.yaml").write_text(yaml.safe_dump({**TRAIN, "single_weights": "single.pt"}))
    with pytest.raises(StudyError, match=r"^bundle bundle needs the weights of a single network: .* under cascade"):
        Runner(study, tmp_path / "out")


def test_a_cascade_of_a_bundle_that_stands_alone_is_refused(write: Callable[..., Path], tmp_path: Path):
    study = load_study(write(cascade={**CASCADE, "bundle": "bundle"}))
    with pytest.raises(StudyError, match=r"^bundle bundle takes no single_weights: it is no cascade.$"):
        Runner(study, tmp_path / "out")


def test_an_override_that_only_one_bundle_knows_is_refused(write: Callable[..., Path], tmp_path: Path):
    configs = tmp_path / "bundle" / "configs"
    (configs / "train.yaml").write_text(yaml.safe_dump({**TRAIN, "cutout": 0.4}))
    study = load_study(write(arms=arm(0, training={"cutout": 0.5}), cascade=CASCADE))
    with pytest.raises(StudyError, match=r"sets cutout, no key of train.yaml of bundle cascade_bundle: "):
        Runner(study, tmp_path / "out")


def test_a_network_that_the_study_lacks_is_refused(study: Study, tmp_path: Path):
    with pytest.raises(StudyError, match=r"^--network is cascade, which study tiny does not have: leave it out.$"):
        Runner(study, tmp_path / "out", network="cascade")


def test_a_relative_store_is_the_same_for_every_stage(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Runner(study, tmp_path / "out", "sqlite:///mlflow.db").tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert Runner(study, tmp_path / "out", "http://127.0.0.1:5000").tracking_uri == "http://127.0.0.1:5000"


def test_a_folder_that_a_bundle_cannot_be_given_is_refused(study: Study, tmp_path: Path):
    with pytest.raises(StudyError, match=r"holds a #, which a bundle cannot be given: choose another folder.$"):
        Runner(study, tmp_path / "run #1")
