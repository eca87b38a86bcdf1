# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional encoders: image in, features at strides 2, 4, 8, 16 and 32 out.

An :class:`Encoder` has an attribute ``channels`` (of its five outputs) and a ``forward`` from ``(B, C, H, W)``, H and W
multiples of 32, to five tensors ``(B, channels[i], H / 2**(i + 1), W / 2**(i + 1))``. To add one, write a function
``build(in_channels) -> Encoder`` and list it in :data:`ENCODERS`.

Parameter names inside the residual encoders are those of torchvision's and the Res2Net authors' files.
"""

from collections.abc import Callable, Sequence

import torch
from monai.networks.nets import ResNet
from torch import nn

__all__ = ["ENCODERS", "Encoder", "Features", "Res2NetEncoder", "ResNetEncoder", "build_encoder"]

Features = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Encoder(nn.Module):
    """Base of the encoders: declares the channels of the five outputs, finest first."""

    channels: tuple[int, int, int, int, int]


class ResNetEncoder(ResNet, Encoder):
    """MONAI's two-dimensional ResNet without its classifier, returning the outputs of its stem and its four stages.

    Shortcuts are convolutions (type B): MONAI's type A passes no gradient and cannot be scripted.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks in each of the four stages.
        in_channels: channels of the image.
        widths: base width of each stage.
    """

    def __init__(
        self, block: str, layers: Sequence[int], in_channels: int, widths: Sequence[int] = (64, 128, 256, 512)
    ) -> None:
        super().__init__(
            block=block,
            layers=list(layers),
            block_inplanes=list(widths),
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
        expansion = 4 if block == "bottleneck" else 1
        w1, w2, w3, w4 = (width * expansion for width in widths)
        self.channels = (widths[0], w1, w2, w3, w4)

    def forward(self, x: torch.Tensor) -> Features:  # type: ignore[override]
        """Return the outputs of the stem, before its pooling, and of the four stages."""
        x0 = self.act(self.bn1(self.conv1(x)))
        x1 = self.layer1(self.maxpool(x0))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x0, x1, x2, x3, self.layer4(x3)


class _Res2NetBlock(nn.Module):
    """Bottleneck whose 3x3 convolution works on ``scale`` groups of channels, each group seeing the one before it.

    The first block of a stage (``first=True``) handles its groups apart, pools the last one and has a shortcut of
    average pooling and a 1x1 convolution. Pooling rounds up, as published and as the strided convolutions do, so that
    exporters with free sizes see both come out equal.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, *, first: bool, width: int, scale: int) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.width = width
        self.first = first
        self.conv1 = nn.Conv2d(in_channels, self.width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width * scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, stride, padding=1, bias=False) for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in range(scale - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else nn.Identity()
        self.conv3 = nn.Conv2d(self.width * scale, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if first
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = self.relu(self.bn1(self.conv1(x))).split(self.width, 1)
        outputs: list[torch.Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            group = groups[i] if i == 0 or self.first else outputs[-1] + groups[i]
            outputs.append(self.relu(bn(conv(group))))
        outputs.append(self.pool(groups[-1]))
        grown = self.bn3(self.conv3(torch.cat(outputs, 1)))
        grown += self.downsample(x)  # in place, as in MONAI's blocks: new memory takes longer than the sum
        return self.relu(grown)


class Res2NetEncoder(Encoder):
    """Res2Net v1b: deep stem (three 3x3 convolutions), hierarchical groups in each block, average-pool shortcuts.

    Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", IEEE TPAMI 2021.

    Args:
        layers: blocks in each of the four stages.
        in_channels: channels of the image.
        base_width: channels of a group in the first stage.
        scale: groups in a block.
    """

    def __init__(self, layers: Sequence[int], in_channels: int, base_width: int = 26, scale: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        channels = 64
        for stage, blocks in enumerate(layers):
            planes = 64 << stage
            stage_blocks = []
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 0 else 1
                stage_blocks.append(
                    _Res2NetBlock(channels, planes, stride, first=block == 0, width=base_width << stage, scale=scale)
                )
                channels = planes * _Res2NetBlock.expansion
            stages.append(nn.Sequential(*stage_blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = (64, 256, 512, 1024, 2048)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> Features:
        """Return the outputs of the stem, before its pooling, and of the four stages."""
        x0 = self.relu(self.bn1(self.conv1(x)))
        x1 = self.layer1(self.maxpool(x0))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x0, x1, x2, x3, self.layer4(x3)


ENCODERS: dict[str, Callable[[int], Encoder]] = {
    # 384 instead of 512 channels in the last stage: 7.7 M parameters and 9.0 M in Inf-Net, instead of 11.2 M and 12.6 M
    "resnet18_narrow": lambda in_channels: ResNetEncoder(
        "basic", (2, 2, 2, 2), in_channels, widths=(64, 128, 256, 384)
    ),
    "resnet50": lambda in_channels: ResNetEncoder("bottleneck", (3, 4, 6, 3), in_channels),
    "res2net50": lambda in_channels: Res2NetEncoder((3, 4, 6, 3), in_channels),
}
"""Encoders by name: each entry builds one for a number of input channels. A new encoder is one entry here."""


def build_encoder(name: str, in_channels: int) -> Encoder:
    """Build the encoder registered under a name.

    Args:
        name: a key of :data:`ENCODERS`.
        in_channels: channels of the image.

    Raises:
        ValueError: if no encoder has that name.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder is named {name!r}; choose one of {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name](in_channels)
