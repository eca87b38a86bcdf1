# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from covid_monai.networks import (
    WeightsError,
    load_network,
    load_weights,
    pack_weights,
    save_atomically,
    save_weights,
    weights_sha256,
)


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


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights of a small network with counters, as batch normalisation has them."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 3), torch.nn.BatchNorm2d(64))
    network(torch.randn(2, 1, 8, 8))
    save_weights(network.state_dict(), tmp_path / "training" / "model.pt")
    return tmp_path / "training" / "model.pt"


def test_packed_weights_are_rounded_to_half_precision_and_counters_stay(trained: Path, tmp_path: Path):
    digest = pack_weights(trained, tmp_path / "models" / "model.pt")
    assert weights_sha256(tmp_path / "models" / "model.pt") == digest
    whole, packed = load_weights(trained), load_weights(tmp_path / "models" / "model.pt")
    assert list(packed) == list(whole)
    for name, tensor in packed.items():
        if name == "1.num_batches_tracked":
            assert (tensor.dtype, tensor.item()) == (torch.int64, 1)
        else:
            assert tensor.dtype == torch.float16
            torch.testing.assert_close(tensor.float(), whole[name], rtol=2**-11, atol=2**-25)


def test_a_network_keeps_its_own_precision_with_packed_weights(trained: Path, tmp_path: Path):
    pack_weights(trained, tmp_path / "model.pt")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 3), torch.nn.BatchNorm2d(64))
    load_network(network, tmp_path / "model.pt")
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert torch.equal(network[0].weight, load_weights(tmp_path / "model.pt")["0.weight"].float())


def test_packed_weights_take_half_the_room(tmp_path: Path):
    save_weights({"weight": torch.ones(100_000)}, tmp_path / "model.pt")
    pack_weights(tmp_path / "model.pt", tmp_path / "packed" / "model.pt")
    sizes = [(tmp_path / folder / "model.pt").stat().st_size for folder in (".", "packed")]
    assert sizes[1] < 0.52 * sizes[0]


def test_the_same_weights_are_packed_into_the_same_bytes(trained: Path, tmp_path: Path):
    digests = {pack_weights(trained, tmp_path / folder / "model.pt") for folder in ("first", "second")}
    assert len(digests) == 1
    assert pack_weights(tmp_path / "first" / "model.pt", tmp_path / "again" / "model.pt") in digests


@pytest.mark.parametrize("value", [65520.0, -1e30, float("inf"), float("nan")])
def test_values_that_half_precision_cannot_hold_are_refused(tmp_path: Path, value: float):
    save_weights({"fine": torch.ones(2), "wide": torch.tensor([1.0, value])}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"wide in .*model\.pt holds values that are not finite or beyond"):
        pack_weights(tmp_path / "model.pt", tmp_path / "packed" / "model.pt")
    assert not (tmp_path / "packed").exists()


def test_the_largest_half_is_packed(tmp_path: Path):
    save_weights({"wide": torch.tensor([65504.0])}, tmp_path / "model.pt")
    pack_weights(tmp_path / "model.pt", tmp_path / "packed.pt")
    assert load_weights(tmp_path / "packed.pt")["wide"].item() == 65504


def test_weights_that_do_not_match_their_record_are_not_packed(saved: Path, tmp_path: Path):
    record(saved).write_text("0" * 64 + "  model.pt\n")
    with pytest.raises(WeightsError, match="was changed"):
        pack_weights(saved, tmp_path / "packed.pt")
