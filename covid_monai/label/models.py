# SPDX-License-Identifier: Apache-2.0
"""The model in use: the bundle's, until a training on corrected labels has made a newer one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covid_monai.analysis import Analysis, analyse
from covid_monai.ct import CTScan
from covid_monai.inference import LesionSegmenter, default_bundle
from covid_monai.networks import weights_sha256

__all__ = ["ModelInUse"]


class ModelInUse:
    """Analyse scans with the newest weights.

    Args:
        bundle: folder of the MONAI bundle; None for the one that is shipped.
        work: folder of what the server makes; ``work/model.pt`` are the weights of its last training.
        device: cpu, cuda or cuda:N; None for CUDA when there is one.

    Raises:
        ValueError: the bundle or its weights cannot be used.
    """

    def __init__(self, bundle: Path | None, work: Path, device: str | None = None) -> None:
        self.bundle = bundle or default_bundle()
        self.work = work
        self.device = device
        self._lock = threading.Lock()
        self._segmenter = self._load()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ModelInUse:
        """From what the server passes to the app and its child processes: ``bundle``, ``work`` and ``device``."""
        bundle = settings.get("bundle")
        return cls(Path(bundle) if bundle else None, Path(settings["work"]), settings.get("device") or None)

    @property
    def trained(self) -> Path:
        """Weights of the last training here, whether or not they are there yet."""
        return self.work / "model.pt"

    @property
    def weights(self) -> Path:
        """The weights in use."""
        return self.trained if self.trained.exists() else self.bundle / "models" / "model.pt"

    @property
    def segmenter(self) -> LesionSegmenter:
        """The segmenter with the weights in use, loaded again when a training has replaced them."""
        with self._lock:
            if weights_sha256(self.weights) != self._segmenter.facts.weights_sha256:
                self._segmenter = self._load()
            return self._segmenter

    @property
    def classes(self) -> dict[str, int]:
        """Code of each class of lesion by its name."""
        return {name: code for code, name in enumerate(self._segmenter.classes, start=1)}

    def analyse(self, scan: CTScan) -> Analysis:
        """Analyse a scan as ``covid-monai analyse`` does."""
        return analyse(scan, self.segmenter)

    def _load(self) -> LesionSegmenter:
        return LesionSegmenter.from_bundle(self.bundle, self.device, self.weights)
