# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from monai.utils import set_determinism

from covid_monai.datasets import prepare
from covid_monai.networks import FineInfNet, save_weights
from tests.bundles.bundle import NAMES, Bundle, copy_bundle


@pytest.fixture(scope="session", autouse=True)
def id_key() -> Iterator[None]:
    """The key that ids are hashed with, so that no test makes one in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVID_MONAI_ID_KEY", "key of the tests")
        yield


@pytest.fixture(autouse=True, scope="module")
def global_state() -> Iterator[None]:
    """Take back what a stage sets for its whole process: seeds, determinism, and the path of imports."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    set_determinism(None)


@pytest.fixture(scope="session")
def phantom_slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a datalist of phantom slices: 12 to train on, 8 on each other side; only to read."""
    folder = tmp_path_factory.mktemp("slices") / "data"
    shares = {"validation": 0.22, "testing": 0.22, "unlabelled_share": 0.22}
    prepare("phantom", None, folder / "datalist.json", seed=1, patients=9, slices=4, size=64, healthy=0.0, **shares)
    return folder


@pytest.fixture(scope="session")
def single_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a single network, random ones."""
    path = tmp_path_factory.mktemp("single") / "model.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(FineInfNet().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def make_bundle(
    phantom_slices: Path, empty_mlflow_database: Path, single_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """Make a fresh copy of a bundle, by its name."""

    def make(name: str) -> Bundle:
        folder = tmp_path_factory.mktemp("bundle")
        return copy_bundle(name, folder, phantom_slices, empty_mlflow_database, single_weights)

    return make


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[[str], Bundle]) -> Bundle:
    """Either bundle; the tests of a module share it."""
    return make_bundle(request.param)


@pytest.fixture(params=NAMES)
def own_bundle(request: pytest.FixtureRequest, make_bundle: Callable[[str], Bundle]) -> Bundle:
    """Either bundle, for one test alone."""
    return make_bundle(request.param)
