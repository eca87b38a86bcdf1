# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from covid_monai.networks import WeightsError, load_network, load_weights, save_atomically, save_weights, weights_sha256


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a small network, with their record."""
    torch.manual_seed(0)
    save_weights(torch.nn.Linear(3, 2).state_dict(), tmp_path / "models" / "model.pt")
    return tmp_path / "models" / "model.pt"


def record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def with_record(path: Path) -> Path:
    """Record whatever lies there as what it is."""
    record(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def test_weights_come_back_bit_for_bit(saved: Path):
    torch.manual_seed(0)
    expected = torch.nn.Linear(3, 2).state_dict()
    loaded = load_weights(saved)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_the_record_is_that_of_sha256sum(saved: Path):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert weights_sha256(saved) == digest
    assert record(saved).read_text() == f"{digest}  model.pt\n"
    subprocess.run(["sha256sum", "--check", "--quiet", record(saved).name], cwd=saved.parent, check=True)


def test_a_record_by_sha256sum_is_taken(saved: Path):
    found = subprocess.run(["sha256sum", str(saved)], capture_output=True, text=True, check=True)
    record(saved).write_text(found.stdout)
    assert load_weights(saved).keys() == {"weight", "bias"}


def test_saving_again_replaces_file_and_record(saved: Path):
    before = weights_sha256(saved)
    assert save_weights({"weight": torch.ones(1)}, saved) != before
    assert load_weights(saved)["weight"].item() == 1
    assert sorted(file.name for file in saved.parent.iterdir()) == ["model.pt", "model.pt.sha256"]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_changed_byte_is_refused(saved: Path, place: float):
    content = bytearray(saved.read_bytes())
    content[int(place * len(content))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(WeightsError, match=r"was changed: .*restore the file"):
        load_weights(saved)


def test_a_missing_file_is_refused(saved: Path):
    saved.unlink()
    with pytest.raises(WeightsError, match="no weights at"):
        load_weights(saved)


def test_a_missing_record_is_refused(saved: Path):
    record(saved).unlink()
    with pytest.raises(WeightsError, match="has no record"):
        load_weights(saved)


@pytest.mark.parametrize("content", [b"", b"\n", b"no digest", b"\xff\xfe"])
def test_a_record_of_nothing_is_refused(saved: Path, content: bytes):
    record(saved).write_bytes(content)
    with pytest.raises(WeightsError, match="was changed"):
        load_weights(saved)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_a_pickled_object_is_refused_and_not_made_even_with_a_fitting_record(saved: Path, tmp_path: Path):
    torch.save({"weight": torch.ones(1), "more": Malicious(tmp_path / "victim")}, saved)
    with pytest.raises(WeightsError, match="is not a file of weights"):
        load_weights(with_record(saved))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"state": {"weight": torch.ones(1)}}, [torch.ones(1)], torch.ones(1)]
)
def test_other_things_than_named_tensors_are_refused(saved: Path, content: Any):
    torch.save(content, saved)
    with pytest.raises(WeightsError, match="holds other things than a network's tensors"):
        load_weights(with_record(saved))


def test_a_truncated_file_is_refused_even_with_a_fitting_record(saved: Path):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is not a file of weights"):
        load_weights(with_record(saved))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_a_save_that_breaks_off_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
):
    def half(state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise interruption

    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(interruption):
        save_weights({"weight": torch.ones(1)}, saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert load_weights(saved).keys() == {"weight", "bias"}
    assert sorted(file.name for file in saved.parent.iterdir()) == ["model.pt", "model.pt.sha256"]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    save = torch.save

    def watched(state: Any, path: Path) -> None:
        save(state, path)
        seen.append((tmp_path / "state.pt").exists())

    monkeypatch.setattr(torch, "save", watched)
    save_atomically({"epoch": 1}, tmp_path / "state.pt")
    assert seen == [False]
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"epoch": 1}


def test_a_network_is_loaded_and_returned(tmp_path: Path):
    trained, fresh = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    save_weights(trained.state_dict(), tmp_path / "model.pt")
    assert load_network(fresh, tmp_path / "model.pt") is fresh
    assert torch.equal(fresh.weight, trained.weight)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    save_weights(torch.nn.Linear(3, 1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="does not fit the Linear of the configuration"):
        load_network(torch.nn.Linear(2, 1), tmp_path / "model.pt")
