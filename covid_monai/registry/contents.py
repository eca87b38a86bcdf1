# SPDX-License-Identifier: Apache-2.0
"""What a bundle in the registry consists of: configs, docs, licence, and one weights file with its record."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from covid_monai.inference import LesionSegmenter
from covid_monai.networks import weights_sha256
from covid_monai.registry.faults import RegistryError

__all__ = ["WEIGHTS", "bundle_sha256", "licence_of", "model_name", "whole_bundle"]

WEIGHTS = Path("models", "model.pt")
FOLDERS = ("configs", "docs")
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "docs/data_license.txt")


def whole_bundle(bundle: Path, weights: Path | None, target: Path) -> LesionSegmenter:
    """Copy what belongs to a bundle, and no data, checkpoint or result that lies beside it; the copy is checked.

    Args:
        bundle: folder of a MONAI bundle.
        weights: file that becomes ``models/model.pt`` of the copy; None: the bundle's own.
        target: folder to make.

    Returns:
        The copy's network, loaded, on the CPU.

    Raises:
        RegistryError: when the bundle lacks a file that others need to use it.
        ValueError: when its configuration or weights cannot be used, see
            :meth:`covid_monai.inference.LesionSegmenter.from_bundle`.
    """
    if lacking := [name for name in NEEDED if not (bundle / name).is_file()]:
        raise RegistryError(f"{bundle} is no whole bundle, it lacks {', '.join(lacking)}: add them, or name another.")
    source = weights or bundle / WEIGHTS
    checked = LesionSegmenter.from_bundle(bundle, "cpu", source).facts.weights_sha256
    for folder in FOLDERS:
        shutil.copytree(bundle / folder, target / folder)
    shutil.copy(bundle / "LICENSE", target / "LICENSE")
    (target / WEIGHTS).parent.mkdir()
    shutil.copy(source, target / WEIGHTS)
    (target / f"{WEIGHTS}.sha256").write_text(f"{checked}  {WEIGHTS.name}\n", encoding="utf-8")
    return LesionSegmenter.from_bundle(target, "cpu")


def bundle_sha256(folder: Path) -> str:
    """SHA-256, in hexadecimal, over names and contents of all files below a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{weights_sha256(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_name(bundle: Path) -> str:
    """Name under which a bundle is registered: that of its metadata, in lower case, words held by underscores.

    Raises:
        RegistryError: when the metadata cannot be read or name nothing.
    """
    path = bundle / "configs" / "metadata.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RegistryError(f"{path} gives the bundle no name: restore it, or give a bundle's folder.") from error
    if not (words := re.findall(r"[a-z0-9.]+", str(name).lower())):
        raise RegistryError(f"{path} names the bundle {name!r}: give it a name of letters and digits.")
    return "_".join(words)


def licence_of(bundle: Path) -> str:
    """Licence of the weights: the first ``Licence: …`` of ``docs/data_license.txt``, up to its full stop."""
    text = (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"(?im)^\s*licence:\s*(.+?)(?:\.\s|\.?$)", text)
    return found[1] if found else "not stated"
