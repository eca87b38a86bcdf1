# SPDX-License-Identifier: Apache-2.0
"""The network of a registered version in a file that others can run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript

from covid_monai.inference import LesionSegmenter
from covid_monai.registry.faults import RegistryError
from covid_monai.registry.versions import Registry, Version
from covid_monai.whole_files import unfinished_folder

__all__ = ["SUFFIXES", "export"]

SUFFIXES = (".ts", ".onnx", ".pt2")


def export(registry: Registry, version: Version, file: Path) -> Path:
    """Write the network as TorchScript (.ts), ONNX (.onnx) or torch.export (.pt2), by the suffix of the file.

    All take windowed slices and give logits. TorchScript takes slices of any size; the others those of the bundle's
    size, ONNX as many as the bundle's batch, torch.export any number, as it was registered.

    Raises:
        RegistryError: when the suffix is another, the file is there already, or the extra that ONNX needs is not.
    """
    if file.suffix not in SUFFIXES:
        raise RegistryError(f"{file.name} names no form: let it end in {', '.join(SUFFIXES)}.")
    if file.exists():
        raise RegistryError(f"{file} is there already: name a new file.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(file.parent) as unfinished:
        made = unfinished / file.name
        if file.suffix == ".pt2":
            shutil.move(registry.pull_network(version, unfinished / "registered"), made)
        else:
            segmenter = LesionSegmenter.from_bundle(registry.pull(version, unfinished / "bundle"), "cpu")
            network = segmenter.network.to(memory_format=torch.contiguous_format)
            if file.suffix == ".ts":
                convert_to_torchscript(network, filename_or_obj=str(made))
            else:
                _write_onnx(network, (segmenter.inferer.batch_size, 1, *segmenter.inferer.size), made)
        return made.rename(file)


def _write_onnx(network: torch.nn.Module, shape: tuple[int, ...], file: Path) -> None:
    try:
        import onnx

        made = convert_to_onnx(network, [torch.zeros(shape)], ["image"], ["pred"], use_trace=False)
    except ImportError as error:
        raise RegistryError("ONNX needs packages that are not here: pip install 'covid_monai[export]'.") from error
    onnx.save(made, file)
