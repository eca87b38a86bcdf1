# SPDX-License-Identifier: Apache-2.0
"""Lungs or lobes by the networks of the package ``lungmask``, when it is installed and their weights are at hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covid_monai.networks import WeightsError, load_weights
from covid_monai.severity.lobes import lobes_from_codes
from covid_monai.severity.lung_checks import added_by_lesions
from covid_monai.severity.lungs import (
    FoundLungs,
    LungFinder,
    Lungs,
    LungSearch,
    Spacing,
    check_lesions,
    check_scan,
    check_sides,
    sides_of_lobes,
    slices_around,
    unite_lesions,
)
from covid_monai.severity.mask_slices import MaskSlices

__all__ = ["MODELS", "LungmaskLungs"]

MODELS = {"R231": 3, "LTRCLobes": 6}
"""Names of the models and their number of classes, background included."""


class LungmaskLungs(LungFinder):
    """Lungs by Hofmanninger et al. 2020 (Eur Radiol Exp 4:50), united with the lesions that belong to them.

    Weights are never downloaded.

    Args:
        model_name: "R231" for right and left lung, "LTRCLobes" for the five lobes.
        weights_path: state dict of that model, with its SHA-256 beside it, see `covid_monai.networks.load_weights`.
        device: such as "cpu" or "cuda:0"; None for CUDA when there is one, else the CPU.

    Raises:
        ValueError: unknown model, ``lungmask`` is not installed, no such device, or weights that are missing, have no
            record or do not match it (`WeightsError`), or are another model's.
    """

    def __init__(self, model_name: str, weights_path: str | Path, device: torch.device | str | None = None) -> None:
        if model_name not in MODELS:
            raise ValueError(f"there is no lungmask model {model_name!r} here: give one of {', '.join(MODELS)}.")
        try:
            with warnings.catch_warnings():  # its import silences all warnings of users
                from lungmask.mask import LMInferer
        except ImportError as error:
            raise ValueError(
                "lungmask is not installed: install it with pip install 'covid_monai[lungmask]', or find the lungs by "
                "threshold."
            ) from error
        weights_path = Path(weights_path)
        classes = len(next(reversed(load_weights(weights_path).values()), ()))
        if classes != MODELS[model_name]:
            raise WeightsError(
                f"{weights_path.name} holds weights for {classes} classes, {model_name} has {MODELS[model_name]}: give "
                "the weights of this model."
            )
        self.model_name = model_name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self.inferer: Any = LMInferer(modelpath=str(weights_path), force_cpu=True, tqdm_disable=True)
            self.inferer.model.to(self.device)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"{weights_path.name} cannot be used as {model_name} on {self.device}: {reason}"
            ) from error
        self.inferer.device = self.device

    def begin(self, hu: np.ndarray, spacing: Spacing) -> LungSearch:
        """See `covid_monai.severity.lungs.LungFinder`."""
        check_scan(hu, spacing)
        method = f"lungmask {self.model_name}"
        found = self.inferer.apply(np.ascontiguousarray(hu, dtype=np.float32))  # upright is its order of axes, LPS

        def finish(lesions: MaskSlices) -> Lungs:
            """Raise a ValueError when the network put the right lung on the patient's left, as on a mirrored scan."""
            check_lesions(lesions, hu)
            if not found.any():
                return Lungs.checked(found, method, hu, lesions)
            lobar = self.model_name == "LTRCLobes"
            codes = unite_lesions(lobes_from_codes(found) if lobar else found, lesions, hu, spacing)
            mask = sides_of_lobes(codes) if lobar else codes
            check_sides(mask, f"the mask of {method}")
            added = added_by_lesions(found, codes)
            return Lungs.checked(mask, method, hu, lesions, codes if lobar else None, added)

        return FoundLungs(slices_around(found.any(axis=(1, 2)), spacing), finish)
