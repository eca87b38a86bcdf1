# SPDX-License-Identifier: Apache-2.0
"""Convolutions in 8-bit integers, computed wherever the CPU can, whether or not they are the fastest there."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from covid_monai.ct import read_ct
from covid_monai.datasets.phantom import make_phantom, upright
from covid_monai.inference import FastNetwork, LesionSegmenter, UprightSliceInferer, default_bundle, upright_hu
from covid_monai.inference.int8 import gains_by_int8, is_exact
from covid_monai.networks import FineInfNet, InfNet, InfNetCascade, MultiInfNet
from covid_monai.severity import dice
from tests.inference.test_fast import shaken

needs_vnni = pytest.mark.skipif(not is_exact(), reason="this CPU has no VNNI instructions")

CHANNELS = 16


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


class Doubled(nn.Conv2d):
    """A convolution of another kind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def fast(network: nn.Module, x: torch.Tensor) -> FastNetwork:
    return FastNetwork(nn.Sequential(network).eval(), x[:1], amp=False)


@pytest.fixture
def doubling() -> nn.Conv2d:
    """Gives twice what it is given."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
    conv.weight.data = 2 * torch.eye(CHANNELS)[:, :, None, None]
    return conv


def plane(value: float) -> torch.Tensor:
    return torch.full((1, CHANNELS, 4, 4), value)


@needs_vnni
def test_steps_by_hand(doubling: nn.Conv2d):
    whole = fast(doubling, plane(1.0)).quantised(torch.cat([plane(-0.55), plane(2.0)]))  # 255 steps of 0.01, 55 below 0
    for given, found in ((0.0, 0.0), (1.0, 2.0), (1.0042, 2.0), (1.0058, 2.02), (-0.55, -1.1)):
        torch.testing.assert_close(whole(plane(given)), plane(found), rtol=0, atol=1e-5)


@needs_vnni
def test_what_is_beyond_the_range_that_was_seen_is_cut_off(doubling: nn.Conv2d):
    whole = fast(doubling, plane(1.0)).quantised(torch.cat([plane(-0.55), plane(2.0)]))
    torch.testing.assert_close(whole(plane(9.0)), plane(4.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole(plane(-9.0)), plane(-1.1), rtol=0, atol=1e-5)


@needs_vnni
def test_padding_counts_as_zero():
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=True)
    x = torch.rand(2, CHANNELS, 6, 5) - 2.0  # all negative: 0 must be within the range all the same
    expected = conv(x).detach()
    found = fast(conv, x).quantised(x)(x)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("value", [0.0, 1e-40, float("inf"), float("nan")])
def test_a_layer_without_a_range_stays(doubling: nn.Conv2d, value: float):
    whole = fast(doubling, plane(1.0)).quantised(plane(value))
    assert whole.precision == "float32"
    assert torch.equal(whole(plane(3.0)), plane(6.0))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(15, CHANNELS, 3),
        nn.Conv2d(CHANNELS, 7, 1),
        nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same"),
        Doubled(CHANNELS, CHANNELS, 1),
    ],
    ids=["first", "last", "by channel", "reflected", "named padding", "another class"],
)
def test_what_gains_little_or_cannot_be_had_stays(conv: nn.Conv2d):
    x = torch.rand(1, conv.in_channels, 8, 8)
    whole = fast(conv, x).quantised(x)
    assert len(convolutions(whole)) == 1
    assert whole.precision == "float32"


@needs_vnni
def test_eight_channels_from_sixteen_are_enough():
    x = torch.rand(1, 16, 8, 8)
    assert fast(nn.Conv2d(16, 8, 3), x).quantised(x).precision == "int8"


@needs_vnni
@pytest.mark.parametrize(("rows", "stays"), [(28, False), (29, True)])
def test_a_layer_whose_inputs_have_a_long_tail_stays(doubling: nn.Conv2d, rows: int, stays: bool):
    x = torch.zeros(1, CHANNELS, rows, 8)
    x[0, 0, 0, 0] = 1.0  # over the root of the mean square of all: that of their number, 59.9 or 60.9
    assert bool(convolutions(fast(doubling, x).quantised(x))) == stays


@needs_vnni
@pytest.mark.parametrize(
    "network",
    [InfNet(), InfNet(encoder="res2net50"), FineInfNet(), InfNetCascade(FineInfNet(), MultiInfNet())],
    ids=["InfNet", "Res2Net-50", "FineInfNet", "cascade"],
)
def test_our_networks_stay_about_the_same_function(network: nn.Module):
    torch.manual_seed(0)
    x = torch.rand(4, 1, 96, 64)
    whole = fast(shaken(network), x)
    before = copy.deepcopy(whole.state_dict())
    integers = whole.quantised(x)
    assert len(convolutions(integers)) < len(convolutions(whole)) / 2
    expected = whole(x)
    assert (integers(x) - expected).abs().mean() < 0.25 * expected.std()  # of random weights
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())
    shared = {id(weight) for weight in whole.parameters()}
    assert {id(weight) for weight in integers.parameters()} < shared  # none is there twice


@needs_vnni
def test_a_slice_has_the_same_logits_in_every_batch():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 64, 64)
    integers = fast(shaken(FineInfNet()), x).quantised(x)
    torch.testing.assert_close(integers(x)[1:2], integers(x[1:2]), rtol=0, atol=1e-5)


def test_only_float32_can_be_quantised(doubling: nn.Conv2d, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("covid_monai.inference.fast.has_bfloat16", lambda: True)
    half = FastNetwork(nn.Sequential(doubling).eval(), plane(1.0))
    with pytest.raises(ValueError, match=r"a network in bfloat16 on cpu cannot be quantised: give float32 on cpu"):
        half.quantised(plane(1.0))


@needs_vnni
def test_it_can_be_quantised_once(doubling: nn.Conv2d):
    whole = fast(doubling, plane(1.0)).quantised(plane(1.0))
    with pytest.raises(ValueError, match="a network in int8 on cpu"):
        whole.quantised(plane(1.0))


@needs_vnni
def test_a_convolution_that_is_used_twice_has_the_range_of_both():
    conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
    conv.weight.data = 3 * torch.eye(CHANNELS)[:, :, None, None]
    x = plane(1.0)
    whole = FastNetwork(nn.Sequential(conv, conv).eval(), x, amp=False).quantised(x)
    torch.testing.assert_close(whole(x), plane(9.0), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("avx2", "bfloat16", "exact", "gains"),
    [(True, False, True, True), (False, False, True, False), (True, True, True, False), (True, False, False, False)],
)
def test_integers_are_for_x86_cpus_that_have_instructions_for_them_and_none_for_bfloat16(
    avx2: bool, bfloat16: bool, exact: bool, gains: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    monkeypatch.setattr("covid_monai.inference.int8.has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr("covid_monai.inference.int8.is_exact", lambda: exact)
    assert gains_by_int8() == gains


@pytest.mark.slow
def test_the_probe_leaves_no_trace_and_is_not_misled():
    command = """
import torch
from covid_monai.inference.int8 import is_exact
torch.manual_seed(0)
before = torch.get_rng_state()
with torch.autocast("cpu"):
    found = is_exact()
assert torch.equal(torch.get_rng_state(), before)
print(found)
"""
    printed = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    assert printed.split()[-1:] == [str(is_exact())]


@pytest.mark.slow
@needs_vnni
@pytest.mark.parametrize("allowed", ["AVX2", "AVX512_CORE"])
def test_integers_are_not_exact_where_onednn_is_kept_from_vnni(allowed: str):
    command = "from covid_monai.inference.int8 import is_exact; print(is_exact())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": allowed}
    printed = subprocess.run([sys.executable, "-c", command], env=environment, check=True, capture_output=True).stdout
    assert printed.split()[-1:] == [b"False"]


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that gains by 8-bit integers."""
    for module in ("fast", "precision", "int8"):
        monkeypatch.setattr(f"covid_monai.inference.{module}.has_bfloat16", lambda: False)


def fitted(segmenter: LesionSegmenter, slices: int) -> FastNetwork:
    """What predicts a scan of so many slices, each brighter than the one before and seen alone."""
    hu = np.linspace(-1000, 0, slices, dtype=np.float32)[:, None, None] * np.ones((1, 64, 64), np.float32)
    return segmenter.fitted(hu, segmenter.inferer.slabs((0, slices), slices, None), ((0, 64), (0, 64)))


@needs_vnni
def test_a_scan_is_seen_in_integers_calibrated_on_slabs_from_all_over_it(gains: None, monkeypatch: pytest.MonkeyPatch):
    segmenter = LesionSegmenter(shaken(FineInfNet()), UprightSliceInferer((64, 64)), device="cpu")
    shown: list[torch.Tensor] = []
    quantised = FastNetwork.quantised
    monkeypatch.setattr(FastNetwork, "quantised", lambda self, x: shown.append(x) or quantised(self, x))
    network = fitted(segmenter, 81)
    assert len(convolutions(network)) < len(convolutions(segmenter._fast)) / 2
    assert (network.precision, segmenter._fast.precision) == ("int8", "float32")
    (slices,) = shown
    numbers = (slices.mean((1, 2, 3)) * 1500 - 1350 + 1000) / 1000 * 80  # the window, and then the slices' HU, undone
    assert numbers.round().tolist() == [10, 30, 50, 70]


@needs_vnni
def test_a_few_slices_are_not_worth_it(gains: None):
    segmenter = LesionSegmenter(shaken(FineInfNet()), UprightSliceInferer((64, 64)), device="cpu")
    assert fitted(segmenter, 15) is segmenter._fast
    assert fitted(segmenter, 16) is not segmenter._fast


@needs_vnni
def test_without_mixed_precision_there_are_no_integers(gains: None):
    segmenter = LesionSegmenter(shaken(FineInfNet()), UprightSliceInferer((64, 64), amp=False), device="cpu")
    assert fitted(segmenter, 80) is segmenter._fast


@needs_vnni
def test_a_further_pass_is_by_the_same_network(gains: None, chest: np.ndarray):
    segmenter = LesionSegmenter(shaken(FineInfNet()), UprightSliceInferer((64, 64)), device="cpu")
    network = segmenter.levels(chest, (0.5,)).network
    again = segmenter.levels(chest, (0.5,), mirrored=True, network=network)
    assert again.network is network
    assert network.precision == "int8"


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    """A synthetic thorax with lesions, (40, 192, 192) in HU."""
    return upright(make_phantom(11, (192, 192, 40)).hu).astype(np.float32)


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_lesions_of_the_shipped_model_stay(
    mirrored: bool, gains: None, monkeypatch: pytest.MonkeyPatch, chest: np.ndarray
):
    expected, found = in_both(chest, 6.0, mirrored, monkeypatch)
    assert dice(found > 0, expected > 0) > 0.99


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("volume", [1, 5])
def test_lesions_of_real_scans_stay(
    volume: int,
    gains: None,
    monkeypatch: pytest.MonkeyPatch,
    shared_data: Callable[[str], Path],
    tmp_path: Path,
):
    for file in (shared_data("medseg_radiopaedia9") / "images").glob(f"v{volume}_*.png"):
        (tmp_path / file.name).symlink_to(file)
    scan = read_ct(tmp_path)
    expected, found = in_both(upright_hu(scan), None, False, monkeypatch)
    assert dice(found > 0, expected > 0) >= 0.995
    assert abs(np.mean(found > 0) / np.mean(expected > 0) - 1) < 0.01


def in_both(
    hu: np.ndarray, distance: float | None, mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, np.ndarray]:
    """Lesions by the shipped model in float32 and in integers."""
    found = []
    for gains in (False, True):
        monkeypatch.setattr("covid_monai.inference.fast.gains_by_int8", lambda gains=gains: gains)
        segmenter = LesionSegmenter.from_bundle(default_bundle(), "cpu")
        levels = segmenter.levels(hu, (0.5,), distance, mirrored)
        assert levels.network.precision == ("int8" if gains else "float32")
        found.append(levels.codes(0.5))
    return found[0], found[1]
