# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from covid_monai.inference import LesionSegmenter
from covid_monai.networks import weights_sha256
from covid_monai.registry import Registry, RegistryError, Version, export, pulled
from covid_monai.tracking import TrackedRun
from tests.bundles.bundle import SINGLE
from tests.registry.test_contents import flip_a_byte


@pytest.fixture
def version(registered: Registry) -> Version:
    return registered.find(SINGLE, "challenger")


def stored(registered: Registry, version: Version) -> Path:
    """Folder in which MLflow keeps a version."""
    uri = registered.client.get_model_version_download_uri(version.name, str(version.number))
    return Path(uri.removeprefix("file://"))


class TestRegister:
    def test_the_first_version_is_the_challenger_with_its_tags(
        self, registered: Registry, version: Version, whole: Path
    ):
        sha256 = weights_sha256(whole / "models" / "model.pt")
        assert (version.name, version.number, version.aliases) == (SINGLE, 1, ("challenger",))
        assert version.tags["weights_sha256"] == sha256
        assert version.tags["licence"] == "CC BY-NC-SA 4.0"
        assert version.tags["classes"] == "lesion"
        assert version.tags["network_sha256"] == weights_sha256(stored(registered, version) / "data" / "model.pt2")
        assert registered.versions() == [version]

    def test_its_own_run_is_finished_and_names_the_weights(self, registered: Registry, version: Version):
        run = registered.client.get_run(version.run_id)
        assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "registering")
        assert run.data.tags["started_from_sha256"] == version.tags["weights_sha256"]

    def test_one_model_has_two_flavours_and_no_pickle(self, registered: Registry, version: Version):
        folder = stored(registered, version)
        model = yaml.safe_load((folder / "MLmodel").read_text())
        assert set(model["flavors"]) == {"python_function", "pytorch"}
        assert "python_model" not in model["flavors"]["python_function"]  # it would be a pickle
        assert "path" in model["signature"]["inputs"]
        assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pth")]

    def test_the_network_loads_as_torch_and_is_the_bundle_s(self, registered: Registry, version: Version, whole: Path):
        network = mlflow.pytorch.load_model(str(stored(registered, version)))
        slices = torch.rand(3, 1, 48, 64)
        with torch.no_grad():
            expected = LesionSegmenter.from_bundle(whole, "cpu").network(slices)
            torch.testing.assert_close(network(slices), expected, atol=1e-4, rtol=1e-4)

    def test_a_run_that_made_other_weights_is_refused(self, registry: Registry, tracking_uri: str, whole: Path):
        training = TrackedRun(tracking_uri, SINGLE, "training")
        training.execute(lambda: training.record_weights("1" * 64))
        with pytest.raises(RegistryError, match=f"run {training.run_id} made weights 111111111111, not these of "):
            registry.register(whole, run_id=training.run_id)
        assert registry.versions() == []

    def test_a_run_that_is_not_there_is_refused(self, registry: Registry, whole: Path):
        with pytest.raises(RegistryError, match="nothing is neither a bundle's folder nor a run of sqlite"):
            registry.register(whole, run_id="nothing")

    @pytest.mark.slow
    @pytest.mark.parametrize("named", [True, False])
    def test_a_version_takes_over_the_lineage_of_its_training(
        self, registry: Registry, tracking_uri: str, whole: Path, tmp_path: Path, named: bool
    ):
        """Whether the run is named, or found by the record beside the weights."""
        folder = tmp_path / "bundle"
        shutil.copytree(whole, folder)
        tags = {"data_hash": "2" * 64, "started_from_run": "a" * 32, "started_from_sha256": "3" * 64}
        training = TrackedRun(tracking_uri, SINGLE, "finetuning", tags=tags, record=folder / "models" / "tracking.json")
        training.execute(lambda: training.record_weights(weights_sha256(folder / "models" / "model.pt")))
        found = registry.register(folder, run_id=training.run_id if named else None)
        assert found.run_id == training.run_id
        assert tags.items() <= found.tags.items()
        assert [run.info.status for run in registry.client.search_runs(["1"])] == ["FINISHED"]

    @pytest.mark.slow
    def test_two_processes_that_register_at_once_lose_nothing(self, whole: Path, tmp_path: Path):
        """They make the store, too."""
        uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
        words = [sys.executable, "-m", "covid_monai.cli", "model", "register", str(whole), "--tracking-uri", uri]
        both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=300) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        versions = Registry(uri).versions()
        assert [each.number for each in versions] == [1, 2]
        assert [each.aliases for each in versions] == [(), ("challenger",)]
        for each in versions:
            with pulled(each.uri, uri) as bundle:
                LesionSegmenter.from_bundle(bundle, "cpu")


class TestFind:
    @pytest.mark.parametrize("uri", ["lungs", "models:/lungs", "models:/lungs@champion", "models:/lungs/1", "lungs/1"])
    def test_by_name_alias_or_number(self, registry: Registry, add_version: Callable[..., Version], uri: str):
        first, _ = add_version(), add_version()
        registry.point("champion", first)
        assert registry.find(uri).number == 1

    @pytest.mark.parametrize(
        ("uri", "fault"),
        [
            ("models:/lungs@champion", "there is no champion of lungs"),
            ("models:/lungs/7", "there is no version 7 of lungs"),
            ("models:/other/1", "there is no version 1 of other"),
            ("other", "there is no champion of other"),
            ("models:/a/b/c", "names no model: write models:/NAME@champion"),
            ("runs:/lungs", "names no model"),
            ("", "names no model"),
        ],
    )
    def test_what_is_not_there_is_refused(
        self, registry: Registry, add_version: Callable[..., Version], uri: str, fault: str
    ):
        add_version()
        with pytest.raises(RegistryError, match=fault):
            registry.find(uri)

    def test_a_store_that_is_not_there_is_not_made(self, tmp_path: Path):
        with pytest.raises(RegistryError, match=r"there is no MLflow store .*: register a model first"):
            Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions()
        assert not list(tmp_path.iterdir())


class TestPull:
    def test_a_pulled_bundle_is_whole(self, registered: Registry, version: Version, whole: Path, tmp_path: Path):
        folder = registered.pull(version, tmp_path / "new" / "bundle")
        for file in whole.rglob("*"):
            if file.is_file() and "data" not in file.relative_to(whole).parts:
                assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
        assert LesionSegmenter.from_bundle(folder, "cpu").facts.weights_sha256 == version.tags["weights_sha256"]
        assert [file.name for file in folder.parent.iterdir()] == ["bundle"]

    def test_a_folder_that_is_there_is_kept(self, registered: Registry, version: Version, tmp_path: Path):
        (tmp_path / "mine").write_text("kept")
        with pytest.raises(RegistryError, match="is there already: name a new folder"):
            registered.pull(version, tmp_path)
        assert (tmp_path / "mine").read_text() == "kept"

    @pytest.mark.parametrize("with_record", [False, True])
    def test_a_changed_byte_is_refused(self, registered: Registry, version: Version, tmp_path: Path, with_record: bool):
        """Also where the record beside the weights was changed with them: the registry knows better."""
        weights = stored(registered, version) / "artifacts" / "bundle" / "models" / "model.pt"
        record = weights.with_name("model.pt.sha256")
        kept = weights.read_bytes(), record.read_bytes()
        try:
            flip_a_byte(weights)
            if with_record:
                record.write_text(f"{weights_sha256(weights)}  model.pt\n")
            with pytest.raises(RegistryError, match=rf"model.pt of models:/{SINGLE}/1 was changed: its SHA-256 is "):
                registered.pull(version, tmp_path / "bundle")
        finally:
            weights.write_bytes(kept[0])
            record.write_bytes(kept[1])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("change", ["edited", "added"])
    def test_a_changed_configuration_is_refused(
        self, registered: Registry, version: Version, tmp_path: Path, change: str
    ):
        configs = stored(registered, version) / "artifacts" / "bundle" / "configs"
        inference, more = configs / "inference.yaml", configs / "more.yaml"
        kept = inference.read_text()
        try:
            if change == "edited":
                inference.write_text(kept.replace("threshold: 0.5", "threshold: 0.05"))
            else:
                more.write_text("a: 1\n")
            with pytest.raises(RegistryError, match=rf"a file of models:/{SINGLE}/1 was changed beside its weights"):
                registered.pull(version, tmp_path / "bundle")
        finally:
            inference.write_text(kept)
            more.unlink(missing_ok=True)

    def test_changed_weights_are_not_served(self, registered: Registry, version: Version, tmp_path: Path):
        copy = tmp_path / "model"
        shutil.copytree(stored(registered, version), copy)
        flip_a_byte(copy / "artifacts" / "bundle" / "models" / "model.pt")
        with pytest.raises(ValueError, match="was changed"):
            mlflow.pyfunc.load_model(str(copy))


class TestExport:
    @pytest.mark.parametrize("suffix", [".ts", ".pt2"])
    def test_an_export_gives_what_the_network_gives(
        self, registered: Registry, version: Version, whole: Path, tmp_path: Path, suffix: str
    ):
        file = export(registered, version, tmp_path / f"network{suffix}")
        network = torch.jit.load(file) if suffix == ".ts" else torch.export.load(file).module()
        slices = torch.rand(2, 1, 48, 64)
        with torch.no_grad():
            expected = LesionSegmenter.from_bundle(whole, "cpu").network(slices)
            torch.testing.assert_close(network(slices), expected, atol=1e-4, rtol=1e-4)
        assert list(tmp_path.iterdir()) == [file]

    @pytest.mark.slow
    def test_onnx(self, registered: Registry, version: Version, whole: Path, tmp_path: Path):
        import onnxruntime

        file = export(registered, version, tmp_path / "network.onnx")
        assert list(tmp_path.iterdir()) == [file]
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        segmenter = LesionSegmenter.from_bundle(whole, "cpu")
        slices = torch.rand(segmenter.inferer.batch_size, 1, 48, 64)
        (found,) = session.run(["pred"], {"image": slices.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), segmenter.network(slices), atol=1e-3, rtol=1e-3)

    def test_another_form_or_a_file_that_is_there_is_refused(
        self, registered: Registry, version: Version, tmp_path: Path
    ):
        with pytest.raises(RegistryError, match=r"network.xyz names no form: let it end in .ts, .onnx, .pt2"):
            export(registered, version, tmp_path / "network.xyz")
        (tmp_path / "network.ts").write_text("kept")
        with pytest.raises(RegistryError, match="is there already: name a new file"):
            export(registered, version, tmp_path / "network.ts")
        assert (tmp_path / "network.ts").read_text() == "kept"
