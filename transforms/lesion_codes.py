# SPDX-License-Identifier: Apache-2.0
"""From a network's logits to the codes of a lesion mask: the one rule for training, inference and analysis."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

__all__ = ["LesionCodes", "LesionCodesD", "LesionCodesDict", "LesionCodesd", "lesion_odds"]


def lesion_odds(logits: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the odds of lesion, and where consolidation is more probable than ground-glass opacity.

    Args:
        logits: its axis ``dim`` holds one logit, of lesion, or three: background, ground glass and consolidation.
        dim: the axis, which stays, of length 1.

    Returns:
        Float odds and bool; the latter is False everywhere for one logit.

    Raises:
        ValueError: for another number of channels.
    """
    channels = logits.shape[dim]
    if channels == 1:
        return logits, torch.zeros_like(logits, dtype=torch.bool)
    if channels != 3:
        raise ValueError(f"lesion_odds: found {channels} logits in shape {tuple(logits.shape)}; give 1 or 3")
    background, ggo, consolidation = logits.split(1, dim)
    return torch.logaddexp(ggo, consolidation) - background, consolidation > ggo


class LesionCodes(Transform):
    """Lesion codes from logits: 0 background, 1 infection, or 1 ground-glass opacity and 2 consolidation.

    A pixel is lesion where the probability of being none is at most ``1 - threshold``, and of the lesion class with the
    larger logit. So lesion and its extent do not depend on how sure the network is of the class.

    Args:
        threshold: probability from which a pixel is lesion, between 0 and 1.

    Raises:
        ValueError: if the threshold is not between 0 and 1.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"LesionCodes: threshold is {threshold}; give a probability between 0 and 1")
        self.threshold = threshold

    def __call__(self, logits: NdarrayOrTensor) -> NdarrayOrTensor:
        """Decide.

        Args:
            logits: (1, ...) of infection, or (3, ...) of background, ground-glass opacity and consolidation.

        Returns:
            uint8 codes (1, ...) of the input's type.

        Raises:
            ValueError: for another number of channels.
        """
        x = convert_to_tensor(logits, dtype=torch.float32, track_meta=False)
        return convert_to_dst_type(self.decide(x, 0), logits, dtype=torch.uint8)[0]

    def decide(self, logits: torch.Tensor, dim: int) -> torch.Tensor:
        """Uint8 codes of a plain tensor whose axis ``dim`` holds one or three logits; the axis stays, of length 1."""
        odds, dense = lesion_odds(logits, dim)
        return (odds >= torch.tensor(self.threshold).logit().item()).byte() * (1 + dense.byte())


class LesionCodesd(MapTransform):
    """Dictionary-based version of :py:class:`LesionCodes`.

    Args:
        keys: the logits.
        threshold: probability from which a pixel is lesion.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = LesionCodes.backend

    def __init__(self, keys: KeysCollection, threshold: float = 0.5, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lesion_codes = LesionCodes(threshold)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the logits in a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.lesion_codes(d[key])
        return d


LesionCodesD = LesionCodesDict = LesionCodesd
