# SPDX-License-Identifier: Apache-2.0
"""The second network, which tells ground glass from consolidation, and the cascade of both networks.

Fan et al., "Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images", IEEE TMI 39(8), 2020, section
III-D: a U-Net sees the slice together with the first network's prediction, the prior.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from torch import nn

from covid_monai.networks.inf_net import InfNet, InfNetMaps, pad_to
from covid_monai.networks.inpainting import OutputModule, initialise

__all__ = ["LIGHT_FEATURES", "PUBLISHED_FEATURES", "InfNetCascade", "MultiInfNet", "UNetMaps"]

CLASSES = 3
"""Background, ground-glass opacity, consolidation."""

PUBLISHED_FEATURES = (64, 128, 256, 512, 512)
"""Widths of the five levels of the published U-Net: 18.9 M parameters here, 17.3 M there (bilinear upsampling)."""

LIGHT_FEATURES = (8, 16, 64, 128, 320)
"""Widths of the five levels by default: 2.4 M parameters, narrow where the maps are large and time is spent."""


class UNetMaps(NamedTuple):
    """The U-Net's only map: class logits ``(B, 3, H, W)`` of the image's size."""

    pred: torch.Tensor


class _UNet(OutputModule):
    """U-Net of five levels, with the manners of :class:`~covid_monai.networks.InfNet`."""

    def __init__(self, in_channels: int, features: Sequence[int], out_channels: int) -> None:
        super().__init__()
        if len(features) != 5 or min(features) < 1:
            raise ValueError(f"features are {list(features)}; give the widths of the U-Net's five levels")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.width = features[0]
        self.stride = 16
        self.feature_channels = features[-1]
        self.body = BasicUNet(2, in_channels, out_channels, features=(*features, self.width), norm="batch", bias=False)
        self.body.final_conv = nn.Identity()
        for module in self.body.modules():
            if isinstance(module, UpCat):
                module.is_pad = False  # sides are multiples of 16 already
        self.head = self.segmentation_head()
        initialise(self.head)

    def segmentation_head(self) -> nn.Module:
        return nn.Conv2d(self.width, self.out_channels, 1)

    def forward(self, x: torch.Tensor) -> UNetMaps | torch.Tensor:
        maps = self.maps(x)
        if self.training:
            return maps
        return maps.pred

    @torch.jit.export
    def maps(self, x: torch.Tensor) -> UNetMaps:
        logits = self.head(self.body(self._checked(x)))
        return UNetMaps(logits[..., : x.shape[-2], : x.shape[-1]])

    def features(self, x: torch.Tensor) -> torch.Tensor:
        body = self.body
        x = body.conv_0(self._checked(x))
        for down in (body.down_1, body.down_2, body.down_3, body.down_4):
            x = down(x)
        return x

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_tracing() and (x.ndim != 4 or x.shape[1] != self.in_channels):
            raise ValueError(f"slices have shape {list(x.shape)}; this U-Net wants (B, {self.in_channels}, H, W)")
        return pad_to(x, self.stride)


class MultiInfNet(nn.Module):
    """Multi Inf-Net: background, ground-glass opacity or consolidation for each pixel of a CT slice with its prior.

    Slices of any size are taken: right and bottom are padded (edge values repeated) to a multiple of the trunk's
    coarsest stride, and the maps cropped back.

    Args:
        trunk: "unet", as published, or "inf_net", an :class:`~covid_monai.networks.InfNet` of two channels and three
            classes.
        encoder: of the trunk "inf_net", a name in :data:`covid_monai.networks.encoders.ENCODERS`.
        features: of the trunk "unet", the widths of its five levels: :data:`LIGHT_FEATURES`, or
            :data:`PUBLISHED_FEATURES` for the published network.

    Attributes:
        feature_channels: channels of :meth:`features`.

    Raises:
        ValueError: for an unknown trunk or encoder, or other than five widths.

    Example:
        >>> net = MultiInfNet()
        >>> net(torch.rand(2, 2, 70, 64)).pred.shape
        torch.Size([2, 3, 70, 64])
        >>> net.eval()(torch.rand(2, 2, 70, 64)).shape
        torch.Size([2, 3, 70, 64])
    """

    def __init__(
        self, trunk: str = "unet", encoder: str = "resnet18_narrow", features: Sequence[int] = LIGHT_FEATURES
    ) -> None:
        super().__init__()
        self.in_channels = 2
        self.out_channels = CLASSES
        self.trunk: _UNet | InfNet
        if trunk == "unet":
            self.trunk = _UNet(self.in_channels, features, CLASSES)
        elif trunk == "inf_net":
            self.trunk = InfNet(self.in_channels, encoder, CLASSES)
        else:
            raise ValueError(f"no trunk is named {trunk!r}; choose unet or inf_net")
        self.feature_channels = self.trunk.feature_channels

    def forward(self, x: torch.Tensor) -> UNetMaps | InfNetMaps | torch.Tensor:
        """Segment slices.

        Args:
            x: slices and priors ``(B, 2, H, W)`` in [0, 1]; the prior is the probability of infection.

        Returns:
            In training mode the trunk's maps, :class:`UNetMaps` or :class:`~covid_monai.networks.InfNetMaps`; otherwise
            the prediction alone, class logits ``(B, 3, H, W)``.
        """
        return self.trunk(x)

    @torch.jit.export
    def maps(self, x: torch.Tensor) -> UNetMaps | InfNetMaps:
        """Compute the trunk's maps, whichever mode the network is in.

        Args:
            x: slices and priors ``(B, 2, H, W)`` in [0, 1].
        """
        return self.trunk.maps(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the encoder's deepest feature, for pretexts that need no map.

        Args:
            x: slices and priors ``(B, 2, H, W)`` in [0, 1].

        Returns:
            ``(B, feature_channels, h, w)``.
        """
        return self.trunk.features(x)


class InfNetCascade(nn.Module):
    """Inf-Net and Multi Inf-Net in one: a CT slice in, background, ground-glass opacity or consolidation out.

    The prior is always the single network's prediction, made from the very tensor that goes on to the multi network:
    image and prior cannot be augmented apart, and no reference can stand in for the prior. The single network is
    frozen: it stays in evaluation mode, statistics included, and receives no gradient. (Once scripted, ``train`` sets
    the mode of both networks: train the module itself.)

    Args:
        single: an :class:`~covid_monai.networks.InfNet` of one channel in and out, trained before.
        multi: the network that is trained.
        prior_dropout: probability, in training mode, that a slice gets an empty prior. On slices that the single
            network was trained on its prediction is better than it will be on others, so the multi network must not
            learn to trust it alone.
        single_share: how much the single network's logit of lesion counts beside the multi network's, in evaluation
            mode, 0 to 1: the logit of lesion is their weighted mean, and its class as the multi network has it. 0, as
            published, takes the multi network's alone.

    Raises:
        ValueError: if the networks' channels do not fit each other, or ``prior_dropout`` or ``single_share`` is not
            between 0 and 1.
    """

    def __init__(
        self, single: InfNet, multi: MultiInfNet, prior_dropout: float = 0.0, single_share: float = 0.0
    ) -> None:
        super().__init__()
        if (single.in_channels, single.out_channels) != (1, 1):
            raise ValueError(
                f"the single network has {single.in_channels} channels in and {single.out_channels} out; "
                "the cascade wants one that takes slices of 1 channel and gives the infection's logit"
            )
        if multi.in_channels != 2:
            raise ValueError(f"the multi network takes {multi.in_channels} channels; the cascade gives it 2")
        if not 0 <= prior_dropout <= 1:
            raise ValueError(f"prior_dropout is {prior_dropout}; give a probability, 0 to 1")
        self.single = single.requires_grad_(False)
        self.multi = multi
        if not 0 <= single_share <= 1:
            raise ValueError(f"single_share is {single_share}; give the single network's share in the decision, 0 to 1")
        self.prior_dropout = float(prior_dropout)
        self.single_share = float(single_share)
        self.train(self.training)

    def train(self, mode: bool = True) -> "InfNetCascade":
        """Set the multi network's mode; the single network stays in evaluation mode."""
        super().train(mode)
        self.single.eval()
        return self

    def forward(self, x: torch.Tensor) -> UNetMaps | InfNetMaps | torch.Tensor:
        """Segment slices.

        Args:
            x: slices ``(B, 1, H, W)`` in [0, 1].

        Returns:
            In training mode the multi network's maps, otherwise class logits ``(B, 3, H, W)``.
        """
        logit = self._logit(x)
        prior = torch.sigmoid(logit)
        if self.training and self.prior_dropout > 0:
            prior = prior * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.prior_dropout).to(prior.dtype)
        found = self.multi(torch.cat([x, prior], 1))
        if self.training or self.single_share == 0 or not isinstance(found, torch.Tensor):
            return found
        background, lesion = found[:, :1], found[:, 1:]
        odds = torch.logsumexp(lesion, 1, keepdim=True) - background
        return torch.cat([background, lesion + self.single_share * (logit - odds)], 1)

    def prior(self, x: torch.Tensor) -> torch.Tensor:
        """Predict the probability of infection ``(B, 1, H, W)`` from slices of the same shape, without gradient."""
        return torch.sigmoid(self._logit(x))

    def _logit(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.single.predict(x).to(x.dtype)
