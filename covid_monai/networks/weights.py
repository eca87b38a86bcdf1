# SPDX-License-Identifier: Apache-2.0
"""Weights files: written whole or not at all, recorded by their SHA-256, and loaded only when they match it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

import torch

from covid_monai.whole_files import replacing, write_whole

__all__ = [
    "WeightsError",
    "load_network",
    "load_weights",
    "pack_weights",
    "save_atomically",
    "save_weights",
    "weights_sha256",
]

Network = TypeVar("Network", bound=torch.nn.Module)


class WeightsError(ValueError):
    """A weights file is missing, has no record, does not match its record, or cannot be read."""


def save_atomically(state: Any, path: str | os.PathLike) -> None:
    """``torch.save`` to a temporary name, then rename: a kill leaves the old file or the new one, never half of one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        torch.save(state, unfinished)


def save_weights(state_dict: dict[str, torch.Tensor], path: str | os.PathLike) -> str:
    """Save a network's weights and record their SHA-256 beside them, in ``<path>.sha256`` as ``sha256sum`` writes it.

    While the file is replaced the record names old and new weights, so that a kill leaves weights that match it.

    Returns:
        The SHA-256 in hexadecimal.
    """
    path = Path(path)
    record = _record(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        torch.save(state_dict, unfinished)
        digest = weights_sha256(unfinished)
        line = f"{digest}  {path.name}\n"
        write_whole(record, (line + (record.read_text() if record.is_file() else "")).encode())
    write_whole(record, line.encode())
    return digest


def load_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Load a network's weights, tensors only, on the CPU.

    Args:
        path: a file of :func:`save_weights`, or any state dict with a record that ``sha256sum`` wrote beside it.

    Raises:
        WeightsError: when the file or its record is missing, or they do not match, or it holds more than tensors.
    """
    path = Path(path)
    record = _record(path)
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: train first, or name another file; those a bundle comes with are models/model.pt."
        )
    if not record.is_file():
        raise WeightsError(f"{path.name} has no record {record}: if you trust it, write one with sha256sum.")
    recorded = [line.partition(" ")[0] for line in record.read_text(errors="replace").splitlines()] or [""]
    found = weights_sha256(path)
    if found not in recorded:
        raise WeightsError(
            f"{path} was changed: its SHA-256 is {found[:12]}…, its record says {recorded[0][:12]}…; restore the file."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} is not a file of weights ({type(error).__name__}): restore it.") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds other things than a network's tensors: restore it.")
    return state


def load_network(network: Network, path: str | os.PathLike) -> Network:
    """Load a weights file into a network, whole, and return the network.

    Raises:
        WeightsError: as :func:`load_weights`, or when the weights are not those of this network.
    """
    try:
        network.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the {type(network).__name__} of the configuration: {error}") from error
    return network


def pack_weights(source: str | os.PathLike, target: str | os.PathLike) -> str:
    """Save a copy of a weights file in half precision, to be shipped: half as large, and loaded as any other.

    Floating tensors become float16, which loading into a network brings back to the network's own precision; others,
    such as counters, stay as they are.

    Args:
        source: a file that :func:`load_weights` takes.
        target: the copy; its record is written beside it.

    Returns:
        The SHA-256 of the copy in hexadecimal; the same weights give the same one under the same name.

    Raises:
        WeightsError: as :func:`load_weights`, or when a value is not finite or too large for half precision (65504).
    """
    packed = {}
    for name, tensor in load_weights(source).items():
        packed[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not packed[name].isfinite().all():
            raise WeightsError(
                f"{name} in {source} holds values that are not finite or beyond half precision: ship the file as it "
                "is, or train it again."
            )
    return save_weights(packed, target)


def weights_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
