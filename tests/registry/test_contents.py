# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest

from covid_monai.networks import WeightsError, weights_sha256
from covid_monai.registry import RegistryError
from covid_monai.registry.contents import licence_of, model_name, whole_bundle
from tests.bundles.bundle import NAMES
from tests.conftest import BUNDLES


def test_a_copy_has_the_bundle_and_nothing_of_the_data_beside_it(whole: Path, tmp_path: Path):
    segmenter = whole_bundle(whole, None, tmp_path / "copy")
    copied = {str(file.relative_to(tmp_path / "copy")) for file in (tmp_path / "copy").rglob("*") if file.is_file()}
    lying = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    assert lying - copied == {"data/slice.png"}
    assert copied <= lying
    assert segmenter.facts.weights_sha256 == weights_sha256(whole / "models" / "model.pt")


def test_weights_of_a_training_take_the_place_of_the_bundle_s(whole: Path, tmp_path: Path):
    """The file keeps its bytes, and its record the name that it has in the bundle."""
    own = tmp_path / "best.pt"
    shutil.copy(whole / "models" / "model.pt", own)
    sha256 = weights_sha256(own)
    own.with_name("best.pt.sha256").write_text(f"{sha256}  best.pt\n")
    whole_bundle(whole, own, tmp_path / "copy")
    assert (tmp_path / "copy" / "models" / "model.pt.sha256").read_text() == f"{sha256}  model.pt\n"


@pytest.mark.parametrize("name", ["LICENSE", "docs/data_license.txt", "configs/metadata.json"])
def test_a_bundle_that_lacks_a_file_is_refused(whole: Path, tmp_path: Path, name: str):
    shutil.copytree(whole, tmp_path / "bundle")
    (tmp_path / "bundle" / name).unlink()
    with pytest.raises(RegistryError, match=f"is no whole bundle, it lacks {name}: add"):
        whole_bundle(tmp_path / "bundle", None, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_changed_weights_are_refused_before_their_record_is_made_anew(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "bundle")
    flip_a_byte(tmp_path / "bundle" / "models" / "model.pt")
    with pytest.raises(WeightsError, match="was changed"):
        whole_bundle(tmp_path / "bundle", None, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("given", "name"), [("lung_ct", "lung_ct"), ("Lung CT: GGO, v2.1", "lung_ct_ggo_v2.1"), ("a/b@c", "a_b_c")]
)
def test_the_name_of_the_metadata_becomes_that_of_the_model(tmp_path: Path, given: str, name: str):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"name": given}))
    assert model_name(tmp_path) == name


@pytest.mark.parametrize("content", ["{}", "no JSON", "[]", '{"name": "…"}'])
def test_metadata_without_a_name_are_refused(tmp_path: Path, content: str):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(content)
    with pytest.raises(RegistryError, match=r"metadata\.json"):
        model_name(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_licence_of_the_shipped_weights(name: str):
    assert licence_of(BUNDLES / name) == "CC BY-NC-SA 4.0"


@pytest.mark.parametrize(
    ("text", "licence"),
    [("Weights\n  Licence: CC0 1.0\nLicence: other", "CC0 1.0"), ("LICENCE: mine.", "mine"), ("none", "not stated")],
)
def test_licence_of_others(tmp_path: Path, text: str, licence: str):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "data_license.txt").write_text(text)
    assert licence_of(tmp_path) == licence


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
