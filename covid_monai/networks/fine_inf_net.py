# SPDX-License-Identifier: Apache-2.0
"""Inf-Net carried on to a fine map: a decoder of our own after the published maps.

The published prediction is made at an eighth of the slice's resolution. At the sizes a light network is run at, that is
coarser than many lesions: at 192 x 256 pixels even a perfect map of that grid has a mean Dice of about .77 on the 48
slices Inf-Net is tested on. And reverse attention hands nothing but a map of one channel from stage to stage; handing
on features, as U-Net does (Ronneberger et al., MICCAI 2015), learns faster.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from covid_monai.networks.encoders import Features
from covid_monai.networks.inf_net import InfNet, pad_to, resize, restore
from covid_monai.networks.inpainting import OutputModule, initialise

__all__ = ["FineInfNet", "FineInfNetMaps"]

WIDTHS = (96, 64, 32, 16)
"""Channels of the decoder's stages at strides 16, 8, 4 and 2."""


class FineInfNetMaps(NamedTuple):
    """Inf-Net's maps and a finer one, logits of the image's size: ``(B, out_channels, H, W)``, ``edge`` of one channel.

    ``s_g`` to ``s_3`` and ``edge`` are those of :class:`~covid_monai.networks.InfNetMaps`. ``s_1``, made at stride 2,
    is the prediction.
    """

    s_g: torch.Tensor
    s_5: torch.Tensor
    s_4: torch.Tensor
    s_3: torch.Tensor
    s_1: torch.Tensor
    edge: torch.Tensor


class _Stage(nn.Sequential):
    """Two convolutions, each with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class _FineDecoder(OutputModule):
    """From the encoder's deepest feature up to stride 2, each stage with the feature of its stride.

    At stride 8 it sees Inf-Net's prediction too, and it corrects that one: its map is added to it.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        w4, w3, w2, w1 = WIDTHS
        self.out_channels = out_channels
        self.up4 = _Stage(c4 + c3, w4)
        self.up3 = _Stage(w4 + c2 + out_channels, w3)
        self.up2 = _Stage(w3 + c1, w2)
        self.up1 = _Stage(w2 + c0, w1)
        self.head = self.segmentation_head()

    def segmentation_head(self) -> nn.Module:
        return nn.Conv2d(WIDTHS[-1], self.out_channels, 1)

    def forward(self, features: Features, coarser: torch.Tensor) -> torch.Tensor:
        x0, x1, x2, x3, x4 = features
        x = self.up4(torch.cat([resize(x4, x3), x3], 1))
        x = self.up3(torch.cat([resize(x, x2), x2, coarser], 1))
        x = self.up2(torch.cat([resize(x, x1), x1], 1))
        x = self.up1(torch.cat([resize(x, x0), x0], 1))
        x = self.head(x)
        return x + resize(coarser, x)


class FineInfNet(InfNet):
    """Inf-Net with a prediction at stride 2: a decoder of U-Net's kind refines the published one.

    Everything up to ``s_3`` is :class:`~covid_monai.networks.InfNet`.

    Args:
        in_channels: see :class:`~covid_monai.networks.InfNet`.
        encoder: likewise.
        out_channels: likewise.

    Attributes:
        feature_channels: channels of :meth:`features`.

    Raises:
        ValueError: for other channel counts or an unknown encoder.

    Example:
        >>> net = FineInfNet()
        >>> net(torch.rand(2, 1, 70, 64)).s_1.shape
        torch.Size([2, 1, 70, 64])
        >>> net.eval()(torch.rand(2, 1, 70, 64)).shape
        torch.Size([2, 1, 70, 64])
    """

    def __init__(self, in_channels: int = 1, encoder: str = "resnet18_narrow", out_channels: int = 1) -> None:
        super().__init__(in_channels, encoder, out_channels)
        self.fine = _FineDecoder(self.encoder.channels, out_channels)
        initialise(self.fine)

    def forward(self, x: torch.Tensor) -> FineInfNetMaps | torch.Tensor:  # type: ignore[override]
        """Segment slices.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].

        Returns:
            In training mode the six maps, otherwise the prediction ``s_1`` alone, logits ``(B, out_channels, H, W)``.
        """
        if self.training:
            return self.maps(x)
        return self.predict(x)

    @torch.jit.export
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the prediction ``s_1`` alone, whichever mode the network is in; see :meth:`forward`."""
        self._check(x)
        padded = pad_to(x, self.stride)
        return restore(self._finer_maps(padded).s_1, padded, x)

    @torch.jit.export
    def maps(self, x: torch.Tensor) -> FineInfNetMaps:  # type: ignore[override]
        """Compute all six maps, whichever mode the network is in.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].
        """
        self._check(x)
        padded = pad_to(x, self.stride)
        maps = self._finer_maps(padded)
        return FineInfNetMaps(
            restore(maps.s_g, padded, x),
            restore(maps.s_5, padded, x),
            restore(maps.s_4, padded, x),
            restore(maps.s_3, padded, x),
            restore(maps.s_1, padded, x),
            restore(maps.edge, padded, x),
        )

    def _finer_maps(self, x: torch.Tensor) -> FineInfNetMaps:
        """Compute the six maps at the strides they arise at: 8, 32, 16, 8, 2 and 4."""
        features = self.encoder(x)
        guidance, edge = self.edge(features[1])
        maps = self._decode(features, guidance, edge)
        return FineInfNetMaps(maps.s_g, maps.s_5, maps.s_4, maps.s_3, self.fine(features, maps.s_3), edge)
