# SPDX-License-Identifier: Apache-2.0
"""Automatic mixed precision as each device has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import SimpleInferer

__all__ = ["AutocastInferer", "autocast"]


def autocast(device: torch.device | str, enabled: bool = True) -> torch.autocast | nullcontext[None]:
    """Mixed precision as the device has it: float16 on CUDA, bfloat16 on CPUs with bfloat16 instructions, else none."""
    kind = torch.device(device).type
    if enabled and kind == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    if enabled and kind == "cpu" and has_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions that torch uses.

    torch counts every CPU with AVX-512; those without the instructions compute bfloat16 by others, several times slower
    than float32. Whether oneDNN is kept from them (``ONEDNN_MAX_CPU_ISA``) is not asked.
    """
    counted = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return counted and (torch.cpu._is_avx512_bf16_supported() or not torch.cpu._is_avx512_supported())


class AutocastInferer(SimpleInferer):
    """The forward pass under :func:`autocast` of the input's device.

    MONAI's trainers know mixed precision on CUDA only (``amp=True``, with gradient scaling); this one adds CPUs and
    goes well with it.

    Args:
        amp: False computes in the network's own precision.
    """

    def __init__(self, amp: bool = True) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Whatever the network returns for ``inputs`` (B, C, ...)."""
        with autocast(inputs.device, self.amp):
            return network(inputs, *args, **kwargs)
