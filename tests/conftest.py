# SPDX-License-Identifier: Apache-2.0
import gc
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from covid_monai.datasets.phantom import Phantom

DATA = Path(__file__).parent / "data"
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BUNDLES = Path(__file__).parents[1] / "bundles"


def pytest_configure() -> None:
    """Hear Ctrl-C, here and in what the tests start: a shell's background, from which they may run, ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Search no garbage among the modules that are imported by now: it takes a twentieth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a real data set under ../shared/data; skips the test, with that reason, where it is not there."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"real data set {name} is not at {path}")
        return path

    return find


@pytest.fixture(scope="session")
def phantom() -> "Phantom":
    """A small synthetic thorax whose lungs are 30 % ground glass; its arrays are shared, so copy before a change."""
    from covid_monai.datasets.phantom import Lesions, make_phantom

    return make_phantom(0, (96, 96, 16), lesions=Lesions(0.3, 0.0))


@pytest.fixture(scope="session")
def phantom_folder(phantom: "Phantom", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dicom/`` with the phantom as a series, ``image.nii.gz`` with the same in NIfTI, and its truth; only to read."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom.write_dicom(folder / "dicom")
    phantom.write_nifti(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single bundle's own configs at 48 x 64 pixels a slice, with random weights and their record; only to read."""
    return _shrunken("lung_ct_infection_segmentation", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def tiny_cascade_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bundle`, of the cascade that tells ground glass from consolidation."""
    return _shrunken("lung_ct_ggo_consolidation_segmentation", tmp_path_factory.mktemp("cascade_bundle"))


def _shrunken(name: str, folder: Path) -> Path:
    """Copy a bundle's configs with small slices, and draw weights for the network of its inference config."""
    import torch
    from monai.bundle import ConfigParser

    from covid_monai.networks import save_weights

    shutil.copytree(BUNDLES / name / "configs", folder / "configs")
    for config in (folder / "configs").glob("*.yaml"):
        config.write_text(re.sub(r"(?m)^size: .*$", "size: [48, 64]", config.read_text()))
    definition = ConfigParser.load_config_file(folder / "configs" / "inference.yaml")["network_def"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
        save_weights(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(empty_mlflow_database: Path, tmp_path: Path) -> str:
    """A tracking store of its own for a test: ``store/mlflow.db`` below ``tmp_path``."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_mlflow_database, path)
    return f"sqlite:///{path}"
