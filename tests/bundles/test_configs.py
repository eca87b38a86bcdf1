# SPDX-License-Identifier: Apache-2.0
"""What the configs of both bundles say: the model zoo's own checks, keys that both share, and which data they take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import verify_metadata, verify_net_in_out

from covid_monai.datasets import load_side
from covid_monai.networks import save_weights
from tests.bundles.bundle import CASCADE, CONFIGS, NAMES, SINGLE, Bundle
from tests.conftest import BUNDLES, DATA

TRAININGS = ("pretraining", "training", "finetuning")
KEYS = {
    **dict.fromkeys(("dataset_dir", "ckpt_dir", "output_dir", "seed", "batch_size"), (*TRAININGS, "evaluating")),
    **dict.fromkeys(("tracking_uri", "experiment", "run_name", "tracked#tags#study"), (*TRAININGS, "evaluating")),
    **dict.fromkeys(("max_epochs", "samples_per_epoch", "learning_rate", "val_interval", "resume"), TRAININGS),
    **dict.fromkeys(("patience", "label_fraction", "augmentation", "accumulation_steps"), ("training", "finetuning")),
    **dict.fromkeys(("cutout_fraction", "cutout_prob"), ("training", "finetuning")),
    "pretrain_dir": ("pretraining", "finetuning"),
    "pretrained": ("finetuning",),
    **dict.fromkeys(("masks", "pretext", "keep_fraction", "keep_fraction_end"), ("pretraining",)),
}
"""Keys that may be overridden, and the stages that have them."""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MONAI's schema of metadata, where the check writes its download to, so that nothing is downloaded."""
    return Path(shutil.copy(DATA / "meta_schema_20240725.json", tmp_path_factory.mktemp("schema") / "schema.json"))


def test_metadata_follow_the_schema_and_name_the_bundle(bundle: Bundle, schema: Path):
    metadata = bundle.folder / "configs" / "metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=schema)
    content = json.loads(metadata.read_text())
    assert content["name"] == bundle.name
    assert content["version"] in content["changelog"]
    classes = content["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert len(classes) == (3 if bundle.name == CASCADE else 1)


def test_metadata_without_a_required_key_are_refused(bundle: Bundle, schema: Path, tmp_path: Path):
    metadata = json.loads((bundle.folder / "configs" / "metadata.json").read_text())
    del metadata["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


def test_network_takes_and_gives_what_the_metadata_say(bundle: Bundle):
    (config,) = bundle.configs("inference")
    meta_file = str(bundle.folder / "configs" / "metadata.json")
    verify_net_in_out("network_def", meta_file=meta_file, config_file=config, device="cpu", n=2)


@pytest.mark.parametrize("stage", CONFIGS)
def test_properties(bundle: Bundle, stage: str, tmp_path: Path):
    network = bundle.workflow("training").parser.get_parsed_content("network")
    save_weights((network.multi if bundle.name == CASCADE else network).state_dict(), tmp_path / "model.pt")
    weights = {"finetuning": "pretrained", "evaluating": "weights"}
    workflow = bundle.workflow(stage, **({weights[stage]: str(tmp_path / "model.pt")} if stage in weights else {}))
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_config_and_training_config_describe_one_network(bundle: Bundle):
    training, inference = (bundle.workflow(stage).parser for stage in ("training", "inferring"))
    for key in ("size", "batch_size", "device"):
        assert training[key] == inference[key], key
    network, used = (parser.get_parsed_content("network") for parser in (training, inference))
    assert type(network) is type(used)
    shapes, wanted = ({k: v.shape for k, v in each.state_dict().items()} for each in (network, used))
    assert shapes == wanted
    assert getattr(network, "single_share", None) == getattr(used, "single_share", None)


def test_inference_config_stands_alone(bundle: Bundle, tmp_path: Path):
    """`inferring` reads no other config, and its network is written in plain values, as `analyse` wants it."""
    shutil.copy(bundle.folder / "configs" / "inference.yaml", tmp_path)
    alone = Bundle(tmp_path / "none", tmp_path)
    assert not alone.folder.exists()
    content = yaml.safe_load((tmp_path / "inference.yaml").read_text())
    assert not [value for value in leaves(content["network_def"]) if str(value).startswith(("$", "@", "%"))]
    assert "single_weights" not in content
    for key in ("size", "batch_size", "window_level", "window_width", "threshold", "slab", "smoothing"):
        assert not str(content[key]).startswith(("$", "@")), key


def leaves(content: Any) -> list[Any]:
    if not isinstance(content, dict | list):
        return [content]
    return [leaf for each in (content.values() if isinstance(content, dict) else content) for leaf in leaves(each)]


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_may_be_overridden(bundle: Bundle, key: str):
    for stage in KEYS[key]:
        if key != "tracked#tags#study":
            assert key in bundle.workflow(stage).parser, stage
        assert bundle.workflow(stage, **{key: "other"}).parser[key] == "other", stage


def test_a_tag_given_on_the_command_line_joins_the_others(bundle: Bundle):
    for stage in (*TRAININGS, "evaluating"):
        plain = bundle.workflow(stage).parser["tracked#tags"]
        assert bundle.workflow(stage, **{"tracked#tags#study": "coach"}).parser["tracked#tags"] == {
            **plain,
            "study": "coach",
        }


def test_both_bundles_have_the_same_settings():
    """What a user may set has the same name in both, whatever its value."""

    def names(bundle: str, config: str) -> set[str]:
        return set(yaml.safe_load((BUNDLES / bundle / "configs" / f"{config}.yaml").read_text()))

    own = {
        "single_weights",
        "single_def",
        "single",
        "single_lineage",
        "prior_dropout",
        "single_share",
        "multi_def",
        "multi",
        "average",
        "initial",
    }
    own |= {"validate#postprocessing", "+validate#additional_metrics", "validate#additional_metrics"}
    own |= {"validate#evaluator#additional_metrics", "imports", "+imports"}
    own |= {"validate#key_metric#val_mean_dice#output_transform"}
    for config in ("train", "pretrain", "finetune", "evaluate", "inference", "multi_gpu_train"):
        single, cascade = (names(bundle, config) - own for bundle in (SINGLE, CASCADE))
        assert single == cascade, config


def used(bundle: Bundle, **overrides: Any) -> list[str]:
    items = bundle.workflow("training", **overrides).parser.get_parsed_content("train#items")
    return [item["id"] for item in items]


def test_label_fraction_is_a_growing_share_of_the_slices(bundle: Bundle):
    slices = used(bundle)
    assert slices == [item["id"] for item in bundle.items("training")]
    tenth, fifth, half = (used(bundle, label_fraction=fraction) for fraction in (0.1, 0.2, 0.5))
    count = len(slices)
    assert [len(tenth), len(fifth), len(half)] == [-(-count // 10), -(-count // 5), -(-count // 2)]
    assert set(tenth) <= set(fifth) <= set(half) <= set(slices)
    assert used(bundle, label_fraction=0.5) == half
    assert any(used(bundle, label_fraction=0.5, seed=seed) != half for seed in (1, 2, 3))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_other_label_fractions_are_refused(bundle: Bundle, fraction: float):
    with pytest.raises(RuntimeError) as error:
        used(bundle, label_fraction=fraction)
    assert f"label_fraction is {fraction}: give a share above 0 and at most 1." in str(error.value.__cause__)


def test_label_fraction_spares_validation(bundle: Bundle):
    parser = bundle.workflow("training", label_fraction=0.2).parser
    assert [item["id"] for item in parser.get_parsed_content("validate#items")] == [
        item["id"] for item in bundle.items("validation")
    ]


def transforms(bundle: Bundle, stage: str, **overrides: Any) -> list[str]:
    preprocessing = bundle.workflow(stage, **overrides).parser.get_parsed_content("train#preprocessing")
    return [type(each).__name__ for each in preprocessing.transforms]


@pytest.mark.parametrize("stage", ["training", "finetuning"])
def test_augmentation_can_be_left_out(bundle: Bundle, stage: str):
    plain, augmented = (transforms(bundle, stage, augmentation=flag) for flag in (False, True))
    random = [name for name in augmented if name.startswith("Rand")]
    assert len(random) > 5
    assert "RandCutoutd" in random
    clipping = ["ScaleIntensityRanged"]  # back into the window, after what changed the greys
    assert plain == [name for name in augmented if name not in random + clipping]


def test_slices_without_augmentation_are_always_the_same(bundle: Bundle):
    item = load_side(bundle.folder / "data" / "datalist.json", "training")[0]

    def drawn(augmentation: bool) -> list[torch.Tensor]:
        parser = bundle.workflow("training", augmentation=augmentation).parser
        preprocessing = parser.get_parsed_content("train#preprocessing").set_random_state(0)
        return [torch.as_tensor(preprocessing(dict(item))["image"]) for _ in range(3)]

    first, *others = drawn(False)
    assert all(torch.equal(first, other) for other in others)
    first, *others = drawn(True)
    assert not any(torch.equal(first, other) for other in others)


def test_pretraining_takes_unlabelled_slices_and_no_label(bundle: Bundle):
    parser = bundle.workflow("pretraining").parser
    items = parser.get_parsed_content("train#items")
    expected = [item["id"] for side in ("unlabelled", "training") for item in bundle.items(side)]
    assert [item["id"] for item in items] == expected
    assert not any("label" in item for item in items[: len(bundle.items("unlabelled"))])
    preprocessing = parser.get_parsed_content("train#preprocessing")
    assert set(preprocessing({**items[0]})) == set(preprocessing({**items[-1]})) == {"image", "id"}


def test_pretraining_goes_without_an_unlabelled_side(make_bundle: Callable[[str], Bundle]):
    bundle = make_bundle(SINGLE)
    path = bundle.folder / "data" / "datalist.json"
    datalist = json.loads(path.read_text())
    del datalist["unlabelled"]
    path.write_text(json.dumps(datalist))
    items = bundle.workflow("pretraining").parser.get_parsed_content("train#items")
    assert [item["id"] for item in items] == [item["id"] for item in datalist["training"]]


@pytest.mark.parametrize("key", ["pretext", "masks"])
def test_an_unknown_pretext_or_mask_is_refused(bundle: Bundle, key: str):
    with pytest.raises(RuntimeError) as error:
        bundle.workflow("pretraining", **{key: "rnadom"}).parser.get_parsed_content("task")
    assert "rnadom" in str(error.value.__cause__)


def test_calibration_is_of_lesion_within_the_body(bundle: Bundle):
    """A body of 24 x 32 pixels in air, whose upper half has odds of lesion of e, or e + e of two classes."""
    image, label, logit = (torch.zeros(1, 64, 64) for _ in range(3))
    image[:, 20:44, 16:48] = 0.8
    label[:, 20:32, 16:48] = 2 if bundle.name == CASCADE else 1
    logit[:, 20:32, 16:48] = 1
    odds = 2 * torch.e if bundle.name == CASCADE else torch.e
    pred = torch.cat([torch.zeros_like(logit), logit, logit]) if bundle.name == CASCADE else logit
    item = {"image": image, "label": label, "pred": pred, "id": "a"}
    after = bundle.workflow("evaluating").parser.get_parsed_content("validate#postprocessing")(item)
    probability, mask = after["body_probability"], after["body_mask"]
    assert probability.shape == mask.shape == (1, 24 + 2 * 4, 32 + 2 * 4)
    assert mask.unique().tolist() == [0, 1]
    assert (mask > 0).sum() == 12 * 32
    assert torch.allclose(probability[mask > 0], torch.tensor(odds / (1 + odds)))


def test_evaluation_loads_lung_masks_where_there_are_any(bundle: Bundle):
    parser = bundle.workflow("evaluating").parser
    preprocessing = parser.get_parsed_content("validate#preprocessing")
    item = parser.get_parsed_content("validate#items")[0]
    loaded = preprocessing(dict(item))
    assert loaded.keys() == {"image", "label", "lung", "id"}
    assert loaded["lung"].shape == loaded["image"].shape
    assert (torch.as_tensor(loaded["lung"])[torch.as_tensor(loaded["label"]) > 0] > 0).float().mean() > 0.9
    plain = {key: value for key, value in item.items() if key != "lung"}
    assert preprocessing({**plain, "class_source": "stated"}).keys() == {"image", "label", "class_source", "id"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_it_is_run(name: str):
    for config in (BUNDLES / name / "configs").glob("*.yaml"):
        first, second = config.read_text().splitlines()[:2]
        assert first.startswith("# ")
        assert second.startswith("#   ")
        assert "torchrun" in second or "python -m monai.bundle run" in second


class TestMissingSingleWeights:
    """The cascade's trainings name what they lack, before they begin a run."""

    @pytest.mark.parametrize("stage", ["training", "pretraining", "finetuning"])
    def test_is_said_in_one_line(self, make_bundle: Callable[[str], Bundle], stage: str):
        bundle = make_bundle(CASCADE)
        missing = bundle.folder / "models" / "single.pt"
        workflow = bundle.workflow(stage, single_weights=str(missing))
        with pytest.raises(RuntimeError) as error:
            workflow.initialize()
            workflow.run()
        cause: BaseException | None = error.value
        while not isinstance(cause, ValueError):  # MONAI wraps it once for each expression around it
            assert cause is not None
            cause = cause.__cause__
        message = str(cause)
        assert str(missing) in message
        assert "\n" not in message
        assert "train" in message
        assert bundle.client.get_experiment_by_name(bundle.name) is None
