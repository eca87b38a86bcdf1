# SPDX-License-Identifier: Apache-2.0
"""The roofs of this machine: what every other figure here has to be read beside.

    python benchmarks/machine.py

Matrix products of 2048 x 2048 in float32, bfloat16 and 8-bit integers, which instructions the CPU has for the latter
two, and copying 256 MiB, by torch with all its threads; the fastest of several rounds counts.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

SIDE, COPIED = 2048, 2**28


def main() -> None:
    """Print a table."""
    products = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    known = set(_cpuinfo().split())
    instructions = [
        each for each in ("amx_bf16", "avx512_bf16", "amx_int8", "avx512_vnni", "avx_vnni") if each in known
    ]
    source = torch.zeros(COPIED // 4)
    target = torch.empty_like(source)
    copied = 2 * COPIED / fastest(lambda: target.copy_(source)) / 1e9
    print("| machine | |\n|---|---|")
    print(f"| processor | {_processor()}, {torch.get_num_threads()} threads of torch {torch.__version__} |")
    print(f"| instructions | {', '.join(instructions)} |")
    for name, dtype in products.items():
        print(f"| matrix product, {name} | {2 * SIDE**3 / fastest(_product(dtype)) / 1e9:.0f} G operations/s |")
    print(f"| memory, read and written | {copied:.1f} GB/s |")


def fastest(run: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of the fastest round after one that warms up."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    a, b = ((100 * torch.rand(SIDE, SIDE)).to(dtype) for _ in range(2))
    return lambda: torch._int_mm(a, b) if dtype == torch.int8 else a @ b


def _cpuinfo() -> str:
    """What Linux knows of the CPU; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _processor() -> str:
    lines = _cpuinfo().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()


if __name__ == "__main__":
    main()
