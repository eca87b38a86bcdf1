# SPDX-License-Identifier: Apache-2.0
"""Lesion mask of a whole scan, slice by slice, with the network of a bundle."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from covid_monai.ct import CTScan
from covid_monai.inference.slice_inferer import UprightSliceInferer
from covid_monai.networks import WeightsError, load_weights, weights_sha256
from covid_monai.transforms import BOX_SLICES, GreyToHU, LesionCodes, LungWindow

__all__ = ["BundleError", "LesionSegmenter", "ModelFacts"]

NETWORKS = "covid_monai.networks"
CLASSES = {1: ("lesion",), 3: ("ground glass", "consolidation")}
"""Names of the mask's codes from 1 on, by how many logits the network gives."""


class BundleError(ValueError):
    """A bundle lacks what inference needs."""


@dataclass(frozen=True)
class ModelFacts:
    """What a mask was made with, for the record.

    Attributes:
        name: name of the bundle.
        version: version of the bundle.
        weights_sha256: SHA-256 of the weights file, in hexadecimal.
        network: class and arguments of the network.
    """

    name: str
    version: str
    weights_sha256: str
    network: dict[str, Any] = field(default_factory=dict)


class LesionSegmenter:
    """Segment lesions in a scan with a 2-D network.

    A network of one logit gives the codes 0 (background) and 1 (lesion). One of three class logits (background, ground
    glass, consolidation) gives 0, 1 and 2: lesion is where one minus the probability of background reaches the
    threshold, and its class is the more probable of the two, see :class:`covid_monai.transforms.LesionCodes`.

    Args:
        network: maps windowed slices (N, 1, H, W) in [0, 1] to logits (N, 1, H, W) or class logits (N, 3, H, W).
        inferer: how slices are cropped, resized and batched.
        window: Hounsfield units to [0, 1].
        threshold: probability from which a pixel is lesion.
        device: where the network runs; CUDA when there is one, else the CPU.
        facts: what is known of the network.

    Attributes:
        classes: names of the mask's codes from 1 on.
        codes: from logits to codes, with the threshold.

    Raises:
        ValueError: when the threshold is out of range, the device is not there, or the network gives something else.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: UprightSliceInferer | None = None,
        window: LungWindow | None = None,
        threshold: float = 0.5,
        device: torch.device | str | None = None,
        facts: ModelFacts | None = None,
    ) -> None:
        self.codes = LesionCodes(threshold)
        self.device = _device(device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.inferer = inferer or UprightSliceInferer()
        self.window = window or LungWindow()
        self.facts = facts or ModelFacts("unnamed", "0", "")
        self.classes = self._classes()

    @classmethod
    def from_bundle(cls, bundle: Path, device: torch.device | str | None = None) -> LesionSegmenter:
        """Read network, window, size, threshold and weights from a bundle.

        Only plain values of ``configs/inference.yaml`` are read: no expression in it is run, and the network, and every
        network among its arguments, must be a class of :mod:`covid_monai.networks`. The weights must match their
        recorded SHA-256.

        Args:
            bundle: folder of a MONAI bundle with ``configs/inference.yaml``, ``configs/metadata.json`` and
                ``models/model.pt``.
            device: where the network runs.

        Raises:
            BundleError: when a file or a value is missing or not what it must be.
            covid_monai.networks.WeightsError: when the weights are missing or were changed.
        """
        device = _device(device)
        config, metadata = (_read(bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        weights = bundle / "models" / "model.pt"
        if not weights.is_file():
            raise WeightsError(
                f"no weights at {weights}: train this bundle as its docs/README.md says, or give a trained one with "
                "--bundle DIR."
            )
        state = load_weights(weights)
        try:
            network = _network(config["network_def"])
            window = LungWindow(level=config["window_level"], width=config["window_width"])
            inferer = UprightSliceInferer(size=config["size"], batch_size=config["batch_size"])
            facts = ModelFacts(
                metadata.get("name", bundle.name), metadata["version"], weights_sha256(weights), config["network_def"]
            )
            segmenter = cls(network, inferer, window, config["threshold"], device, facts)
        except KeyError as error:
            raise BundleError(f"{bundle}/configs has no {error}: add it, or restore the bundle.") from error
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"{bundle}/configs/inference.yaml is wrong: {error}") from error
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BundleError(
                f"{weights} does not fit the network of {bundle}/configs/inference.yaml: restore one of the two."
            ) from error
        return segmenter

    def __call__(self, scan: CTScan, progress: Callable[[int], Any] | None = None) -> np.ndarray:
        """Lesion mask of a scan.

        Args:
            scan: the scan, in HU or in grey levels, which are brought to approximate HU first.
            progress: called with the number of slices done since the last call.

        Returns:
            (Z, H, W) uint8 in the order of :meth:`covid_monai.ct.CTScan.upright`: 0 and the codes of :attr:`classes`.
        """
        return self.segment(upright_hu(scan), progress)

    @torch.inference_mode()
    def segment(self, hu: np.ndarray, progress: Callable[[int], Any] | None = None) -> np.ndarray:
        """Lesion mask of upright slices (Z, H, W) in HU, see :meth:`__call__`."""
        box = self.inferer.box(self._windowed(hu[:: -(-len(hu) // BOX_SLICES)])[:, 0])  # the slices body_box looks at
        mask = np.zeros(hu.shape, dtype=np.uint8)
        body = mask[:, slice(*box[0]), slice(*box[1])]
        for start, stop in self.inferer.batches(len(hu)):
            windowed = self._windowed(hu[start:stop]).to(self.device, non_blocking=True)
            logits = self.inferer.predict_inside(windowed, box, self.network)
            body[start:stop] = self.codes.decide(logits, 1)[:, 0].cpu().numpy()
            if progress is not None:
                progress(stop - start)
        return mask

    @torch.inference_mode()
    def _classes(self) -> tuple[str, ...]:
        """Names of the codes by what the network gives for an empty slice."""
        found = self.network(torch.zeros(1, 1, *self.inferer.size, device=self.device))
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        names = [names for count, names in CLASSES.items() if shape == (1, count, *self.inferer.size)]
        if not names:
            raise ValueError(
                f"the network gives {shape} for a slice, expected one logit or three class logits (1, 3, H, W)."
            )
        return names[0]

    def _windowed(self, hu: np.ndarray) -> torch.Tensor:
        """(N, 1, H, W) in [0, 1] from (N, H, W) in HU."""
        return torch.as_tensor(self.window(torch.from_numpy(np.ascontiguousarray(hu))))[:, None]


def upright_hu(scan: CTScan) -> np.ndarray:
    """Upright slices (Z, H, W) of a scan in HU; grey levels are harmonised, one line for the whole scan."""
    upright = scan.upright()
    if scan.units == "HU":
        return upright
    stack = np.clip(upright, 0, None).transpose(1, 2, 0)[None]  # interpolation may have undershot black
    return np.asarray(GreyToHU()(stack))[0].transpose(2, 0, 1)


def _device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or CUDA when there is one, else the CPU; refuse what this machine does not have."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: give cpu, cuda or cuda:N.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {found} here: torch finds {torch.cuda.device_count()} CUDA devices.")
    return found


def _network(definition: Any) -> torch.nn.Module:
    """The network that plain values describe: its class under ``_target_``, and its arguments, networks or not."""
    if not isinstance(definition, dict):
        raise ValueError(f"network_def holds {definition!r} where a network with its _target_ is expected.")
    network = _network_class(str(definition["_target_"]))
    return network(**{name: _argument(value) for name, value in definition.items() if name != "_target_"})


def _argument(value: Any) -> Any:
    if isinstance(value, dict):
        return _network(value)
    if isinstance(value, list):
        return [_argument(each) for each in value]
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise ValueError(f"network_def holds the expression {value!r}: it is not run, write the value.")
    return value


def _network_class(target: str) -> type[torch.nn.Module]:
    """The network that a configuration names; nothing else of this package, and nothing of another."""
    module, _, name = target.rpartition(".")
    networks = importlib.import_module(NETWORKS)
    found = getattr(networks, name, None) if module == NETWORKS and name in networks.__all__ else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ValueError(f"{target} is no network of {NETWORKS}.")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path} cannot be read: give a bundle's folder with --bundle.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is not a configuration: give a bundle's folder with --bundle.")
    return content
