# SPDX-License-Identifier: Apache-2.0
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from covid_monai.datasets import prepare
from covid_monai.datasets.phantom import make_phantom
from covid_monai.datasets.phantoms import lesion_free_phantoms
from covid_monai.registry import Figures, GateError, Split, evaluate
from covid_monai.registry.evaluation import CODE
from tests.bundles.bundle import CASCADE, SINGLE
from tests.conftest import BUNDLES

pytestmark = pytest.mark.slow
RUN = "a" * 32


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Two patients to train on, two to test on."""
    path = tmp_path_factory.mktemp("split") / "datalist.json"
    prepare("phantom", None, path, seed=3, patients=4, slices=4, size=64, healthy=0.0, validation=0.0, testing=0.5)
    return Split(path)


@pytest.fixture(scope="module")
def store(empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def shipped(split: Split, store: str) -> Figures:
    """Of the shipped cascade."""
    return evaluate(BUNDLES / CASCADE, split, [], store, "lungs", {"started_from_sha256": "4" * 64})


def test_every_patient_has_a_dice_of_each_class(shipped: Figures):
    assert list(shipped.cases) == ["val_volume_dice", "val_volume_dice_ggo", "val_volume_dice_consolidation"]
    assert {len(values) for values in shipped.cases.values()} == {2}
    assert all(0 < value <= 1 for value in shipped.cases["val_volume_dice"].values())
    assert not any("phantom" in case for values in shipped.cases.values() for case in values)  # ids are hashed


def test_little_is_marked_in_the_phantoms_without_lesions(shipped: Figures):
    assert list(shipped.false_positives) == ["phantom 1", "phantom 2", "phantom 3"]
    assert all(ml >= 0 for ml in shipped.false_positives.values())


def test_it_is_a_finished_run_of_the_weights_and_the_data(shipped: Figures, store: str, split: Split):
    run = MlflowClient(store).get_run(shipped.run_id)
    assert (run.info.run_name, run.info.status) == ("evaluating", "FINISHED")
    assert run.data.tags["started_from_sha256"] == "4" * 64
    assert run.data.tags["data_hash"] == split.data_hash
    assert (run.data.params["side"], run.data.params["threshold"]) == ("testing", "0.5")


def test_configs_of_the_bundle_itself_are_not_run(tiny_bundle: Path, split: Split, store: str, tmp_path: Path):
    """It is scored by the shipped ones, with its own size, window and threshold."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    trap = tmp_path / "trap"
    for name in ("train", "evaluate"):
        (bundle / "configs" / f"{name}.yaml").write_text(f"evaluating: $open({str(trap)!r}, 'w')\n")
    inference = bundle / "configs" / "inference.yaml"
    inference.write_text(inference.read_text().replace("threshold: 0.5", "threshold: 0.25"))
    make_phantom(5, (64, 64, 8), (5.0, 5.0, 30.0), None).write_nifti(tmp_path / "healthy")
    found = evaluate(
        bundle, split, [tmp_path / "healthy" / "image.nii.gz"], store, "lungs", {"started_from_sha256": ""}
    )
    assert not trap.exists()
    assert list(found.cases) == ["val_volume_dice"]
    assert len(found.false_positives) == 4
    params = MlflowClient(store).get_run(found.run_id).data.params
    assert (params["size"], params["threshold"]) == ("[48, 64]", "0.25")


def test_a_side_without_slices_is_refused(tiny_bundle: Path, split: Split, store: str):
    with pytest.raises(ValueError, match="no validation slices"):
        evaluate(tiny_bundle, Split(split.datalist, "validation"), [], store, "lungs", {"started_from_sha256": ""})


def test_the_code_that_scores_is_shipped():
    assert CODE == {1: SINGLE, 2: CASCADE}
    assert all((BUNDLES / name / "configs" / "evaluate.yaml").is_file() for name in CODE.values())
    assert GateError.__mro__[1].__name__ == "RegistryError"


def test_lesion_free_phantoms_are_always_the_same():
    """Their false positives are compared over the years: what makes them is written down here once more."""
    for number, (thickness, noise, found) in enumerate(
        zip((1.5, 3.0, 6.0, 1.5), (40.0, 25.0, 12.0, 40.0), lesion_free_phantoms(4, size=64), strict=True)
    ):
        spacing = (5.625, 5.625, 10.0)
        made = make_phantom(9000 + number, (64, 64, 24), spacing, None, noise=noise, thickness=thickness)
        assert np.array_equal(found.hu, made.hu)
        assert np.array_equal(found.affine, made.affine)
        assert not found.lesions.any()
    assert [phantom.hu.shape for phantom in lesion_free_phantoms()] == [(256, 256, 24)] * 3
