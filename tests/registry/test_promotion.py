# SPDX-License-Identifier: Apache-2.0
"""The gate's decisions against a real store; what it measures is given, see test_evaluation for the measuring."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from covid_monai import cli
from covid_monai.datasets import prepare
from covid_monai.registry import Figures, GateError, Registry, Split, Version, compare, promote, promotion, rollback
from tests.registry.test_gate import better, figures, worse


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    path = tmp_path_factory.mktemp("split") / "datalist.json"
    prepare("phantom", None, path, seed=1, patients=2, slices=2, size=48, healthy=0.0, validation=0.0, testing=0.5)
    return Split(path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, Figures]:
    """What each version, by its number, is found to be worth; the measuring of another takes its place."""
    known: dict[int, Figures] = {}
    monkeypatch.setattr(promotion, "_measure", lambda registry, version, split, scans: known[version.number])
    return known


@pytest.fixture
def two(
    registry: Registry, add_version: Callable[..., Version], measured: dict[int, Figures], split: Split
) -> tuple[Version, Version]:
    """A champion and a better challenger."""
    measured |= {1: figures(), 2: figures(better())}
    promote(registry, add_version(), split)
    return registry.find("models:/lungs@champion"), add_version()


def test_the_first_champion_passes_and_is_recorded_as_such(
    registry: Registry, two: tuple[Version, Version], split: Split
):
    champion, _ = two
    assert champion.number == 1
    assert champion.tags["gate"] == "first champion"
    assert champion.tags["gate_data_hash"] == split.data_hash
    assert "champion_before" not in champion.tags


def test_a_better_challenger_becomes_the_champion(registry: Registry, two: tuple[Version, Version], split: Split):
    comparison = promote(registry, two[1], split)
    champion = registry.find("models:/lungs@champion")
    assert (champion.number, champion.aliases) == (2, ("champion",))
    assert (champion.tags["gate"], champion.tags["gate_against"], champion.tags["champion_before"]) == (
        "passed",
        "1",
        "1",
    )
    rows = json.loads(champion.tags["gate_figures"])
    assert rows[0]["p_gain"] == comparison.verdict.gain.p_gain == 1 / 64
    assert "gate_reason" not in champion.tags


@pytest.mark.parametrize(
    ("worth", "fault"),
    [
        (figures(worse()), "no gain beyond noise"),
        (figures(better(), ggo=worse()), "loss of a guard: Dice of ground glass"),
        (figures(better(), consolidation=worse()), "loss of a guard: Dice of consolidation"),
        (figures(better(), marked=(3.0, 4.0)), "loss of a guard: 0.15 to 3.50 mL are marked"),
    ],
)
def test_a_worse_challenger_is_refused_and_that_is_recorded(
    registry: Registry,
    two: tuple[Version, Version],
    measured: dict[int, Figures],
    split: Split,
    worth: Figures,
    fault: str,
):
    measured[2] = worth
    with pytest.raises(GateError, match=f"models:/lungs/2 is refused: {fault}"):
        promote(registry, two[1], split)
    assert registry.find("models:/lungs@champion").number == 1
    challenger = registry.find("models:/lungs@challenger")
    assert (challenger.number, challenger.tags["gate"]) == (2, "refused")
    assert challenger.tags["gate_faults"].startswith(fault)


def test_a_reason_forces_it_and_is_recorded(
    registry: Registry, two: tuple[Version, Version], measured: dict[int, Figures], split: Split
):
    measured[2] = figures(worse())
    promote(registry, two[1], split, force="the old one was trained on test slices")
    champion = registry.find("models:/lungs@champion")
    assert (champion.number, champion.tags["gate"]) == (2, "forced")
    assert champion.tags["gate_reason"] == "the old one was trained on test slices"
    assert champion.tags["gate_faults"].startswith("no gain beyond noise")


def test_a_reason_that_was_not_needed_forces_nothing(registry: Registry, two: tuple[Version, Version], split: Split):
    promote(registry, two[1], split, force="to be sure")
    tags = registry.find("models:/lungs@champion").tags
    assert tags["gate"] == "passed"
    assert "gate_reason" not in tags


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_blank_reason_is_refused(registry: Registry, two: tuple[Version, Version], split: Split, reason: str):
    with pytest.raises(GateError, match="--force is blank: say why"):
        promote(registry, two[1], split, force=reason)
    with pytest.raises(GateError, match="--reason is blank: say why"):
        rollback(registry, "lungs", reason)


def test_comparing_promotes_nothing(registry: Registry, two: tuple[Version, Version], split: Split):
    champion, challenger = two
    assert compare(registry, challenger, champion, split).verdict.faults == ()
    assert registry.find("models:/lungs@champion").number == 1
    assert "gate" not in registry.find(challenger.uri).tags


def test_the_champion_is_no_challenger_of_its_own(registry: Registry, two: tuple[Version, Version], split: Split):
    with pytest.raises(GateError, match="models:/lungs/1 would be measured against itself"):
        promote(registry, two[0], split)


def test_a_champion_that_changes_meanwhile_is_not_overwritten(
    registry: Registry, two: tuple[Version, Version], add_version: Callable[..., Version], split: Split,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    other = add_version()

    def measure(registry: Registry, version: Version, *_: object) -> Figures:
        registry.point("champion", other)
        return figures(better()) if version.number == 2 else figures()

    monkeypatch.setattr(promotion, "_measure", measure)
    with pytest.raises(GateError, match="the champion of lungs has changed meanwhile"):
        promote(registry, two[1], split)
    assert registry.find("models:/lungs@champion").number == other.number


@pytest.mark.parametrize(("trained_on", "notes"), [("same", 0), ("0" * 64, 1), (None, 1)])
def test_another_training_set_is_noted(
    registry: Registry,
    add_version: Callable[..., Version],
    measured: dict[int, Figures],
    split: Split,
    trained_on: str | None,
    notes: int,
):
    measured[1] = figures()
    tags = {} if trained_on is None else {"data_hash": split.data_hash if trained_on == "same" else trained_on}
    found = promote(registry, add_version(**tags), split).notes
    assert len(found) == notes
    assert all("make sure that no patient of its testing side was in that training" in note for note in found)


class TestRollback:
    def test_puts_the_champion_before_back_and_says_why(
        self, registry: Registry, two: tuple[Version, Version], split: Split
    ):
        promote(registry, two[1], split)
        assert rollback(registry, "lungs", "it marks vessels").number == 1
        assert registry.find("models:/lungs@champion").number == 1
        assert registry.find("models:/lungs/2").tags["rolled_back"] == "it marks vessels"

    def test_goes_back_no_further_than_the_first(self, registry: Registry, two: tuple[Version, Version]):
        with pytest.raises(GateError, match="lungs has no champion before version 1: promote the version"):
            rollback(registry, "lungs", "why not")

    def test_needs_a_champion(self, registry: Registry, add_version: Callable[..., Version]):
        add_version()
        with pytest.raises(GateError, match="lungs has no champion before any"):
            rollback(registry, "lungs", "why not")

    def test_what_was_taken_back_can_be_promoted_again(
        self, registry: Registry, two: tuple[Version, Version], split: Split
    ):
        promote(registry, two[1], split)
        rollback(registry, "lungs", "it marks vessels")
        promote(registry, registry.find("models:/lungs/2"), split)
        champion = registry.find("models:/lungs@champion")
        assert champion.number == 2
        assert "rolled_back" not in champion.tags


def test_a_split_that_was_changed_is_refused(split: Split, tmp_path: Path):
    content = json.loads(split.datalist.read_text())
    content["data_hash"] = "0" * 64
    for side in ("training", "testing"):
        for item in content[side]:
            item |= {key: str(split.datalist.parent / item[key]) for key in ("image", "label", "lung")}
    changed = tmp_path / "datalist.json"
    changed.write_text(json.dumps(content))
    with pytest.raises(GateError, match="is not frozen: its slices were changed since they were prepared"):
        Split(changed)


PROMOTER = """
import os, sys, time
from pathlib import Path
from covid_monai.registry import GateError, Registry, Split, promote, promotion
from tests.registry.test_gate import figures

uri, datalist, folder, me = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

def meet(name):
    (folder / f"{name}.{me}").touch()
    deadline = time.monotonic() + 60
    while not (folder / f"{name}.{1 - me}").exists():
        if time.monotonic() > deadline:
            sys.exit(f"the other process does not come to {name}")
        time.sleep(0.002)

def measure(registry, version, split, scans):
    return figures([0.1 + 0.01 * version.number * (k + 1) for k in range(5)], None, None)

promotion._measure = measure
judged = promotion.judge

def judge(*both):
    verdict = judged(*both)
    meet(f"judged {turn}")
    return verdict

promotion.judge = judge
registry, split = Registry(uri), Split(datalist)
for turn in range(3):
    number = 2 + 2 * turn + me
    meet(f"begin {turn}")
    try:
        promote(registry, registry.find(f"models:/lungs/{number}"), split)
        print(number, "won", flush=True)
    except GateError as error:
        print(number, error, flush=True)
"""


@pytest.mark.slow
def test_of_two_processes_that_promote_at_once_one_is_told_that_the_champion_changed(
    registry: Registry,
    add_version: Callable[..., Version],
    measured: dict[int, Figures],
    split: Split,
    tmp_path: Path,
):
    """Three times two challengers, both better than the champion that both were compared with."""
    measured[1] = figures()
    promote(registry, add_version(), split)
    for _ in range(6):
        add_version()
    words = [sys.executable, "-W", "ignore", "-c", PROMOTER, registry.tracking_uri, str(split.datalist), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*words, str(me)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for me in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    champion = 1
    for lines in zip(*(out.splitlines() for out, _ in said), strict=True):
        told = dict(line.split(" ", 1) for line in lines)
        (winner,) = (number for number, word in told.items() if word == "won")
        (loser,) = set(told) - {winner}
        fault = f"the champion of lungs has changed meanwhile, it is version {winner}"
        assert told[loser] == f"{fault}: compare anew."
        won, lost = (registry.find(f"models:/lungs/{number}").tags for number in (winner, loser))
        assert (won["gate"], won["champion_before"]) == ("passed", str(champion))
        assert (lost["gate"], lost["gate_faults"], lost.get("champion_before")) == ("refused", fault, None)
        champion = int(winner)
    assert registry.find("models:/lungs@champion").number == champion
    assert rollback(registry, "lungs", "to see who was before").number == int(won["champion_before"])


class TestFigures:
    """What is recorded of a measurement; the measuring itself is given."""

    @pytest.fixture
    def measure(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
        def measure(version: Version, split: Split, dice: float) -> dict[str, str]:
            found = Figures({"val_volume_dice": {"a": dice}}, {"phantom 1": 0.25}, "run")
            monkeypatch.setattr(promotion, "evaluate", lambda *_: found)
            monkeypatch.setattr(registry, "pull", lambda version, folder: folder)
            promotion._measure(registry, version, split, ())
            return dict(registry.find(version.uri).tags)

        return measure

    def test_those_of_another_side_or_split_give_way(
        self,
        add_version: Callable[..., Version],
        split: Split,
        measure: Callable[..., dict[str, str]],
        registry: Registry,
        capsys: pytest.CaptureFixture[str],
    ):
        version = add_version(testing_val_volume_dice_ggo="0.9", measured_on="1" * 64)
        tags = measure(version, split, 0.5)
        assert (tags["testing_val_volume_dice"], tags["measured_on"]) == ("0.5000", split.data_hash)
        assert "testing_val_volume_dice_ggo" not in tags
        tags = measure(version, Split(split.datalist, "training"), 0.75)
        assert "testing_val_volume_dice" not in tags
        assert cli.main(["model", "list", "--tracking-uri", registry.tracking_uri]) == 0
        listed = capsys.readouterr().out.splitlines()
        expected = f"  false_positive_ml 0.2500, training_val_volume_dice 0.7500 (data {split.data_hash[:12]})"
        assert [line for line in listed if "_val_" in line] == [expected]
