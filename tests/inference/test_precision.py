# SPDX-License-Identifier: Apache-2.0
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from covid_monai.inference import AutocastInferer, autocast
from covid_monai.inference.precision import has_bfloat16

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
    if " avx512f" in listed:
        assert has_bfloat16() == (" avx512_bf16" in listed)


@pytest.mark.parametrize(
    ("counted", "avx512", "avx512_bf16", "there"),
    [
        (True, True, True, True),
        (True, True, False, False),  # computed by other instructions
        (True, False, False, True),  # ARM, and x86 that has them without AVX-512
        (False, True, True, False),  # oneDNN is kept from AVX-512
        (False, False, False, False),
    ],
)
def test_bfloat16_that_is_computed_by_other_instructions_does_not_count(
    counted: bool, avx512: bool, avx512_bf16: bool, there: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: counted, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert has_bfloat16() == there


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
