# SPDX-License-Identifier: Apache-2.0
import platform
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from covid_monai.inference import AutocastInferer, autocast
from covid_monai.inference.precision import gains_by_int8, has_bfloat16

CPUINFO = Path("/proc/cpuinfo")


class Maps(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.fixture
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU with bfloat16 instructions, or one without."""
    monkeypatch.setattr("covid_monai.inference.precision.has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.skipif(not CPUINFO.is_file(), reason="needs Linux's list of the CPU's instructions")
def test_bfloat16_is_used_where_the_cpu_has_it_itself():
    listed = CPUINFO.read_text()
    if "flags" not in listed:
        pytest.skip("this is no x86 CPU")
    assert has_bfloat16() == (" avx512_bf16" in listed)


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_an_x86_cpu_that_computes_bfloat16_by_other_instructions_does_not_have_it(
    machine: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert not has_bfloat16()


@pytest.mark.parametrize("there", [True, False])
def test_of_other_cpus_torch_is_asked(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: there, raising=False)
    assert has_bfloat16() == there


@pytest.mark.parametrize(
    ("machine", "vnni", "bfloat16", "gains"),
    [
        ("x86_64", True, False, True),
        ("AMD64", True, False, True),
        ("x86_64", True, True, False),
        ("x86_64", False, False, False),
        ("aarch64", True, False, False),
    ],
    indirect=["bfloat16"],
)
def test_integers_are_for_x86_cpus_with_instructions_for_them_and_none_for_bfloat16(
    machine: str, vnni: bool, bfloat16: bool, gains: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert gains_by_int8() == gains


@pytest.mark.parametrize("bfloat16", [True, False], indirect=True)
@pytest.mark.parametrize("enabled", [True, False])
def test_a_cpu_computes_in_bfloat16_only_where_it_has_it(bfloat16: bool, enabled: bool):
    a = torch.ones(2, 2)
    with autocast("cpu", enabled):
        assert (a @ a).dtype == (torch.bfloat16 if bfloat16 and enabled else torch.float32)
    assert (a @ a).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_cuda_computes_in_float16():
    context = autocast(torch.device("cuda:0"))
    assert isinstance(context, torch.autocast)
    assert (context.device, context.fast_dtype) == ("cuda", torch.float16)


@pytest.mark.parametrize(("device", "enabled"), [("meta", True), ("cuda", False), ("cpu", False)])
def test_other_devices_and_disabled_ones_are_left_alone(device: str, enabled: bool):
    assert isinstance(autocast(device, enabled), nullcontext)


@pytest.mark.parametrize("bfloat16", [True], indirect=True)
@pytest.mark.parametrize(("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_inferer_runs_the_network_in_mixed_precision(bfloat16: bool, amp: bool, dtype: torch.dtype):
    maps = AutocastInferer(amp)(torch.ones(2, 2), lambda x, y: Maps(x @ y, x), torch.ones(2, 2))
    assert isinstance(maps, Maps)
    assert (maps.first.dtype, maps.second.dtype) == (dtype, torch.float32)
