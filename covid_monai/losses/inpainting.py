# SPDX-License-Identifier: Apache-2.0
"""Losses of pre-training by inpainting: the reconstruction's, and the coach's that opposes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CoachLoss", "Criterion", "InpaintingLoss"]

Criterion = Literal["squared", "cross_entropy"]


class InpaintingLoss(nn.Module):
    """Error of the rebuilt image over erased and over kept pixels, summed over all the network's outputs.

    For each map ``erased_weight * sum(e (1 - M)) / sum(1 - M) + (1 - erased_weight) * sum(e M) / sum(M)``, M the mask
    (1 = kept), the sums over the whole batch; a part without pixels counts 0. Singh et al., BMVC 2018. The error of a
    pixel, e, is at most ``clamp``, and beyond it without gradient:

    - ``"squared"``: ``(map - image)^2``, the map is the image rebuilt.
    - ``"cross_entropy"``: binary cross-entropy, the sigmoid of the map is the image rebuilt (Algorithm 1's wording).

    Soft masks are taken, and gradients flow to them. Computed in float32, also under autocast.

    Args:
        erased_weight: weight of the erased part, 0 to 1; the kept part has the rest.
        clamp: highest error of a pixel, above 0.
        criterion: one of the two.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, erased_weight: float = 0.99, clamp: float = 2.0, criterion: Criterion = "squared") -> None:
        super().__init__()
        if not 0 <= erased_weight <= 1:
            raise ValueError(f"erased_weight is {erased_weight}; give a share, 0 to 1")
        if not clamp > 0:
            raise ValueError(f"clamp is {clamp}; give an error above 0")
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion is {criterion!r}; choose one of {', '.join(get_args(Criterion))}")
        self.erased_weight = erased_weight
        self.clamp = clamp
        self.criterion = criterion

    def forward(self, maps: Sequence[torch.Tensor], image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            maps: the network's outputs, each ``(B, 1, H, W)``.
            image: what was to be rebuilt, of that shape, in [0, 1].
            mask: of that shape, 1 = kept, 0 = erased, or between.

        Raises:
            ValueError: if there is no map or one tensor instead of several, or a shape differs.
        """
        if isinstance(maps, torch.Tensor) or not len(maps):
            found = "one tensor" if isinstance(maps, torch.Tensor) else "no map"
            raise ValueError(f"found {found} instead of the network's maps; put the network in training mode")
        _check_shapes(image, mask)
        image, kept = image.float(), mask.float()
        total = image.new_zeros(())
        for rebuilt in maps:
            _check_map(rebuilt, image)
            error = self._error(rebuilt.float(), image)
            total = total + self.erased_weight * _weighted_mean(error, 1 - kept)
            total = total + (1 - self.erased_weight) * _weighted_mean(error, kept)
        return total

    def reconstruction(self, rebuilt: torch.Tensor) -> torch.Tensor:
        """Turn a map of the network into the image it stands for, float32 of the same shape."""
        return rebuilt.float() if self.criterion == "squared" else rebuilt.float().sigmoid()

    def erased_error(self, rebuilt: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return each slice's mean clamped squared error over its erased pixels, whichever the criterion.

        Args:
            rebuilt: one map ``(B, 1, H, W)`` of the network.
            image: of that shape.
            mask: of that shape, 1 = kept, 0 = erased.

        Returns:
            Errors ``(B,)``; NaN for a slice of which nothing is erased.

        Raises:
            ValueError: if a shape differs.
        """
        _check_shapes(image, mask)
        _check_map(rebuilt, image)
        erased = 1 - mask.float()
        error = self._squared(self.reconstruction(rebuilt), image.float())
        return (error * erased).sum((1, 2, 3)) / erased.sum((1, 2, 3))

    def _error(self, rebuilt: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        if self.criterion == "squared":
            return self._squared(rebuilt, image)
        return F.binary_cross_entropy_with_logits(rebuilt, image, reduction="none").clamp(max=self.clamp)

    def _squared(self, rebuilt: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (rebuilt - image).square().clamp(max=self.clamp)


class CoachLoss(nn.Module):
    """Eq. 1: ``1 - reconstruction + kl_weight * KLD``; the coach gains what the network loses.

    KLD is the divergence of the latents' normal distribution from the standard one,
    ``-1/2 sum(1 + log_variance - mean^2 - exp(log_variance))``, summed over latents and cells, averaged over the batch.
    Computed in float32, also under autocast.

    Args:
        kl_weight: weight of the divergence, 0 or more.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, kl_weight: float = 1e-6) -> None:
        super().__init__()
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight is {kl_weight}; give 0 or more")
        self.kl_weight = kl_weight

    def forward(self, reconstruction: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            reconstruction: the network's :class:`InpaintingLoss` under the coach's masks, a scalar.
            mean: of the latents, ``(B, latent, h, w)``.
            log_variance: of the latents, of that shape.

        Raises:
            ValueError: if the shapes differ or ``reconstruction`` is no scalar.
        """
        if reconstruction.ndim or mean.shape != log_variance.shape or mean.ndim != 4:
            raise ValueError(
                f"reconstruction has shape {tuple(reconstruction.shape)}, mean {tuple(mean.shape)} and log_variance "
                f"{tuple(log_variance.shape)}; give a scalar and twice (B, latent, h, w)"
            )
        mean, log_variance = mean.float(), log_variance.float()
        divergence = -(1 + log_variance - mean.square() - log_variance.exp()).sum((1, 2, 3)).mean() / 2
        return 1 - reconstruction.float() + self.kl_weight * divergence


def _weighted_mean(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over the batch; 0, and without gradient, where all weights are 0."""
    total = weight.sum()
    return torch.where(total > 0, (error * weight).sum() / total.where(total > 0, 1), 0.0)


def _check_shapes(image: torch.Tensor, mask: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 1 or mask.shape != image.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)} and mask {tuple(mask.shape)}; both must be (B, 1, H, W), "
            "masks have one channel"
        )


def _check_map(rebuilt: torch.Tensor, image: torch.Tensor) -> None:
    if rebuilt.shape != image.shape:
        raise ValueError(
            f"a map has shape {tuple(rebuilt.shape)} and the image {tuple(image.shape)}; they must be the same, "
            "give the network inpainting heads"
        )
