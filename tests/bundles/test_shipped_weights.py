# SPDX-License-Identifier: Apache-2.0
"""The weights that both bundles come with: small, whole, described by their card, and safe from a training."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from covid_monai.inference import LesionSegmenter
from covid_monai.networks import load_weights, weights_sha256
from tests.bundles.bundle import CASCADE, NAMES, SINGLE
from tests.conftest import BUNDLES

LARGEST = 25_000_000
"""Bytes that a weights file may have."""
CLASSES = {SINGLE: ("lesion",), CASCADE: ("ground glass", "consolidation")}
LICENCE = "CC BY-NC-SA 4.0"


@pytest.fixture(params=NAMES)
def shipped(request: pytest.FixtureRequest) -> Path:
    """Either bundle as it lies in the checkout; only to read."""
    return BUNDLES / request.param


def weights(bundle: Path) -> Path:
    return bundle / "models" / "model.pt"


def card(bundle: Path) -> str:
    return (bundle / "docs" / "README.md").read_text()


def row(bundle: Path, name: str) -> str:
    """What the card's table says of the weights."""
    (found,) = re.findall(rf"(?m)^\| {name} \| (.+) \|$", card(bundle))
    return found


def test_weights_match_their_record_and_are_in_half_precision(shipped: Path):
    state = load_weights(weights(shipped))
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16}


def test_weights_are_small(shipped: Path):
    assert weights(shipped).stat().st_size <= LARGEST


def test_weights_fit_the_network_of_the_bundle(shipped: Path):
    assert LesionSegmenter.from_bundle(shipped, "cpu").classes == CLASSES[shipped.name]


def test_the_card_names_these_weights(shipped: Path):
    digest = weights_sha256(weights(shipped))
    assert row(shipped, "SHA-256") == f"`{digest}`"
    assert weights(shipped).with_name("model.pt.sha256").read_text() == f"{digest}  model.pt\n"


def test_the_card_tells_their_size(shipped: Path):
    megabytes = float(re.search(r"([\d.]+) MB", row(shipped, "file"))[1])
    assert megabytes == pytest.approx(weights(shipped).stat().st_size / 1e6, abs=0.051)


def test_the_card_is_of_this_version_which_the_changelog_has(shipped: Path):
    metadata = json.loads((shipped / "configs" / "metadata.json").read_text())
    assert row(shipped, "version of the bundle") == metadata["version"]
    assert metadata["version"] in metadata["changelog"]


def test_the_metadata_give_figures_of_the_card(shipped: Path):
    performance = re.search(r"(?s)\*\*Performance\*\*(.+?)\n## ", card(shipped))[1]
    metrics = json.loads((shipped / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert metrics
    for name, value in metrics.items():
        assert f"{value:.3f}".removeprefix("0") in performance, name


def test_the_readme_gives_figures_of_the_cards():
    readme = " ".join((BUNDLES.parent / "README.md").read_text().split())
    lesion, *classes = re.search(
        r"masks have a Dice of (\.\d+) \(ground glass (\.\d+), consolidation (\.\d+)\)", readme
    ).groups()
    demo = row(BUNDLES / CASCADE, "the phantom of `covid-monai demo`, true HU: Dice, in integers")
    assert [f"{float(each):.2f}"[1:] for each in demo.split(" | ")] == [*classes, lesion]  # to what precisions agree in
    ground_glass, consolidation, single = re.search(
        r"mean Dice of (\.\d+) for ground glass and (\.\d+) for consolidation, and (\.\d+)", readme
    ).groups()
    assert f"**{ground_glass}**" in row(BUNDLES / CASCADE, "ground glass")
    assert f"**{consolidation}**" in row(BUNDLES / CASCADE, "consolidation")
    assert single in re.search(r"(?s)\*\*Performance\*\*(.+?)\n## ", card(BUNDLES / SINGLE))[1]


def test_nothing_is_left_to_be_filled_in(shipped: Path):
    for file in (*shipped.glob("docs/*"), *shipped.glob("configs/*")):
        assert "TODO" not in file.read_text(), file


def test_card_and_data_licence_say_what_the_weights_allow(shipped: Path):
    assert LICENCE in row(shipped, "licence")
    licence = (shipped / "docs" / "data_license.txt").read_text()
    assert "models/model.pt" in licence
    assert LICENCE in licence
    assert "non-commercial" in licence


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not there to ask what it ignores")
def test_git_keeps_the_shipped_weights_and_ignores_what_a_training_leaves(shipped: Path, tmp_path: Path):
    """Asked in a repository of its own, so that an installed or unpacked source can be asked too."""
    shutil.copy(BUNDLES.parent / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    models = f"bundles/{shipped.name}/models"
    kept = [f"{models}/model.pt", f"{models}/model.pt.sha256"]
    others = ("checkpoint.pt", "single.pt", "single.pt.sha256", "tracking.json", "model.ts")
    trainings = ("training/model.pt", "training/model.pt.sha256", "training/checkpoint.pt", "pretraining/model.pt")
    left = [f"{models}/{name}" for name in (*others, *trainings)]
    found = subprocess.run(
        ["git", "check-ignore", "--no-index", *kept, *left], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert found.stdout.split() == left
