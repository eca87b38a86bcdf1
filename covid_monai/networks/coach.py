# SPDX-License-Identifier: Apache-2.0
"""The coach: a network that learns which cells of a slice are hardest to paint back when they are erased.

Singh et al., "Self-Supervised Feature Learning for Semantic Segmentation of Overhead Imagery", BMVC 2018.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from monai.networks.utils import eval_mode
from torch import nn

__all__ = ["CELLS", "CoachNet", "CoachOutput", "cell_mask"]

CELLS = (4, 8, 16)
"""Sides of a cell in pixels that the coach can have: its trunk's stride, 16 as published."""


class CoachOutput(NamedTuple):
    """What the coach gives in training mode, for slices ``(B, C, H, W)`` of ``h`` x ``w`` cells.

    ``mask`` is the soft mask ``(B, 1, H, W)``, near 1 = kept, near 0 = erased, and 1 on cells that may not be erased;
    ``mean`` and ``log_variance`` of the latents are ``(B, latent, h, w)``. All float32.
    """

    mask: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor


def cell_mask(
    scores: torch.Tensor, keep_fraction: float, alpha: float = math.inf, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Keep the cells of highest score: Eq. 2 and 3, ``sigmoid(alpha * (scores - threshold))``.

    The threshold is the k-th highest score of each slice, k = ``round(keep_fraction * cells)``, so that the k-th cell
    itself is at sigmoid(0) = 1/2. Among equal scores the first in reading order are kept. Gradients flow to the scores
    and through the threshold.

    Args:
        scores: ``(B, 1, h, w)``, one a cell.
        keep_fraction: share of kept cells, above 0 and at most 1.
        alpha: steepness; at infinity the mask is 1 on exactly k cells of each slice and 0 on the others, ties or not,
            without gradient.
        allowed: booleans of that shape, the cells that may be erased: k counts them alone, and the mask is 1 on all
            others; None allows all.

    Returns:
        Mask ``(B, 1, h, w)``.

    Raises:
        ValueError: an argument outside its range, or allowed cells on another grid.
    """
    if not 0 < keep_fraction <= 1:
        raise ValueError(f"keep_fraction is {keep_fraction}; give a share above 0 and at most 1")
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; give a steepness above 0")
    if allowed is not None and (allowed.shape != scores.shape or allowed.dtype != torch.bool):
        raise ValueError(
            f"allowed has shape {list(allowed.shape)} and type {allowed.dtype}; give booleans of shape "
            f"{list(scores.shape)}, one a cell"
        )
    flat = scores.flatten(1)
    free = torch.ones_like(flat, dtype=torch.bool) if allowed is None else allowed.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, free.gather(1, order).int().argsort(dim=1, descending=True, stable=True))  # the free first
    kept = (keep_fraction * free.sum(1, keepdim=True).double()).round().long()
    if math.isinf(alpha):
        mask = (order.argsort(dim=1) < kept).to(flat.dtype)
    else:
        mask = torch.sigmoid(alpha * (flat - flat.gather(1, order.gather(1, kept.clamp(min=1) - 1))))
    return torch.where(free, mask, 1.0).view_as(scores)


class CoachNet(nn.Module):
    """Coach: slices in, masks out that erase what its scores put lowest.

    A ResNet-18 without max-pool (stride 16), a variational head (mean and log variance of the latents of each cell)
    and a linear score of the latents; :func:`cell_mask` thresholds the scores, and each cell becomes a square of 16
    pixels. The cells of the last row and column hang over where a side is no multiple of 16, and are cropped. Masks
    have one channel whatever the slices have. The score and all after it are float32, also under autocast. For smaller
    cells the last one or two stages keep their stride at 1: as many weights, but more to compute.

    Args:
        in_channels: channels of the slices.
        width: channels of the first stage; 64 as published (11.28 million parameters for 3 channels), 32 has 2.85
            and 16 has 0.73 million for 1 channel.
        latent: latents of a cell.
        keep_fraction: share of kept cells, above 0 and at most 1. A plain attribute that a schedule may change.
        alpha: steepness of the soft mask in training mode, above 0 and finite. A plain attribute, too.
        cell: side of a cell in pixels, one of :data:`CELLS`.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> coach = CoachNet(width=16)
        >>> coach(torch.rand(2, 1, 70, 64)).mask.shape
        torch.Size([2, 1, 70, 64])
        >>> coach.masks(torch.rand(2, 1, 64, 64)).mean()
        tensor(0.7500)
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 64,
        latent: int = 100,
        keep_fraction: float = 0.75,
        alpha: float = 1.0,
        cell: int = 16,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("width", width), ("latent", latent)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")
        if not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction is {keep_fraction}; give a share above 0 and at most 1")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha is {alpha}; give a finite steepness above 0")
        if cell not in CELLS:
            raise ValueError(f"cell is {cell}; choose one of {', '.join(map(str, CELLS))} pixels")
        self.in_channels = in_channels
        self.cell = cell
        self.keep_fraction = keep_fraction
        self.alpha = alpha
        planes = [width, 2 * width, 4 * width, 8 * width]
        resnet = ResNet(
            "basic",
            [2, 2, 2, 2],
            planes,
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
        for stage in [resnet.layer4, resnet.layer3][: CELLS[::-1].index(cell)]:
            for module in stage[0].modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        self.trunk = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.act, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        )
        self.moments = nn.Conv2d(planes[-1], 2 * latent, 1)
        self.score = nn.Conv2d(latent, 1, 1)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor | None = None) -> CoachOutput | torch.Tensor:
        """Choose what to erase.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].
            allowed: booleans ``(B, 1, h, w)``, the cells that may be erased, of which ``keep_fraction`` is the share;
                see :func:`covid_monai.transforms.cells_within`. None allows all.

        Returns:
            In training mode the soft mask of ``alpha`` from sampled latents, with their moments; otherwise the hard
            mask ``(B, 1, H, W)`` of zeros and ones from the mean latents.

        Raises:
            ValueError: if ``x`` or ``allowed`` has another shape or a setting is outside its range.
        """
        mean, log_variance = self._moments(x)
        if not self.training:
            return self._mask(mean, x, math.inf, allowed)
        return CoachOutput(self._mask(_sample(mean, log_variance), x, self.alpha, allowed), mean, log_variance)

    def masks(
        self, x: torch.Tensor, alpha: float = math.inf, sample: bool = False, allowed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute masks to train another network with: without gradient, in eval statistics whichever mode is on.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].
            alpha: steepness; infinity gives zeros and ones, 100 the published nearly binary mask.
            sample: draw the latents, from torch's random state; their mean otherwise.
            allowed: as in :meth:`forward`.

        Returns:
            Masks ``(B, 1, H, W)``, 1 = kept, 0 = erased.

        Raises:
            ValueError: as :meth:`forward`.
        """
        with eval_mode(self):
            mean, log_variance = self._moments(x)
            return self._mask(_sample(mean, log_variance) if sample else mean, x, alpha, allowed)

    def _moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance ``(B, latent, h, w)`` of the latents."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"slices have shape {list(x.shape)}; this coach wants (B, {self.in_channels}, H, W)")
        mean, log_variance = self.moments(self.trunk(x)).float().chunk(2, dim=1)
        return mean, log_variance

    def _mask(self, latents: torch.Tensor, x: torch.Tensor, alpha: float, allowed: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # half precision would make ties of near scores
            scores = self.score(latents)
        cells = cell_mask(scores, self.keep_fraction, alpha, allowed)
        mask = F.interpolate(cells, scale_factor=self.cell, mode="nearest")
        return mask[..., : x.shape[-2], : x.shape[-1]]


def _sample(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
