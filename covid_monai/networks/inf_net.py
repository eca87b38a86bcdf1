# SPDX-License-Identifier: Apache-2.0
"""Inf-Net: lesion segmentation of one CT slice by parallel partial decoding and reverse attention.

Fan et al., "Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images", IEEE TMI 39(8), 2020.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from covid_monai.networks.encoders import Features, build_encoder
from covid_monai.networks.inpainting import OutputModule, initialise, state_faults

__all__ = ["InfNet", "InfNetMaps"]

WIDTH = 32
"""Channels of each receptive field block's output."""

GUIDANCE = 64
"""Channels of the edge guidance and of the two finer reverse attentions."""


class InfNetMaps(NamedTuple):
    """Inf-Net's five maps, logits of the image's size: ``(B, out_channels, H, W)``, the edge map ``(B, 1, H, W)``.

    ``s_g`` is the global map; ``s_5``, ``s_4`` and ``s_3`` refine it in turn at strides 32, 16 and 8; ``edge`` is the
    lesions' outline. ``s_3`` is the prediction.
    """

    s_g: torch.Tensor
    s_5: torch.Tensor
    s_4: torch.Tensor
    s_3: torch.Tensor
    edge: torch.Tensor


def pad_to(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last row and column until both sides are multiples of a network's coarsest stride."""
    bottom = (multiple - x.shape[-2] % multiple) % multiple
    right = (multiple - x.shape[-1] % multiple) % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate")


def restore(logits: torch.Tensor, padded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Resize a strided map to the padded image and crop it to the image."""
    return resize(logits, padded)[..., : x.shape[-2], : x.shape[-1]]


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize bilinearly to the height and width of another tensor, pixel centres as in the published maps."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _double(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize as the published decoder does, corners aligned, to the height and width of a tensor twice as large."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class _ConvNorm(nn.Sequential):
    """Convolution without bias that keeps the size, and batch normalisation; no activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], dilation: int = 1) -> None:
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class _ReceptiveField(nn.Module):
    """Receptive field block: four branches of growing reach, fused, plus a shortcut."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(_ConvNorm(in_channels, WIDTH, 1))])
        for reach in (3, 5, 7):
            branch = nn.Sequential(
                _ConvNorm(in_channels, WIDTH, 1),
                _ConvNorm(WIDTH, WIDTH, (1, reach)),
                _ConvNorm(WIDTH, WIDTH, (reach, 1)),
                _ConvNorm(WIDTH, WIDTH, 3, dilation=reach),
            )
            self.branches.append(branch)
        self.fuse = _ConvNorm(4 * WIDTH, WIDTH, 3)
        self.shortcut = _ConvNorm(in_channels, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fuse(torch.cat([branch(x) for branch in self.branches], 1)) + self.shortcut(x))


class _PartialDecoder(OutputModule):
    """Parallel partial decoder: three features, each gated by those coarser than it, merged into the global map."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.gate_4_to_3 = _ConvNorm(WIDTH, WIDTH, 3)
        self.gate_4_to_2 = _ConvNorm(WIDTH, WIDTH, 3)
        self.gate_3_to_2 = _ConvNorm(WIDTH, WIDTH, 3)
        self.lift_4 = _ConvNorm(WIDTH, WIDTH, 3)
        self.lift_3 = _ConvNorm(2 * WIDTH, 2 * WIDTH, 3)
        self.merge_3 = _ConvNorm(2 * WIDTH, 2 * WIDTH, 3)
        self.merge_2 = _ConvNorm(3 * WIDTH, 3 * WIDTH, 3)
        self.refine = _ConvNorm(3 * WIDTH, 3 * WIDTH, 3)
        self.head = self.segmentation_head()

    def segmentation_head(self) -> nn.Module:
        return nn.Conv2d(3 * WIDTH, self.out_channels, 1)

    def forward(self, f2: torch.Tensor, f3: torch.Tensor, f4: torch.Tensor) -> torch.Tensor:
        f4_up = _double(f4, f3)
        gated_3 = self.gate_4_to_3(f4_up) * f3
        gated_2 = self.gate_4_to_2(_double(f4_up, f2)) * self.gate_3_to_2(_double(f3, f2)) * f2
        merged_3 = self.merge_3(torch.cat([gated_3, self.lift_4(f4_up)], 1))
        merged_2 = self.merge_2(torch.cat([gated_2, self.lift_3(_double(merged_3, f2))], 1))
        return self.head(self.refine(merged_2))


class _EdgeBranch(OutputModule):
    """Edge guidance from the finest feature, and the edge map read from it."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.guidance = nn.Sequential(
            _ConvNorm(in_channels, GUIDANCE, 1), _ConvNorm(GUIDANCE, GUIDANCE, 3), _ConvNorm(GUIDANCE, GUIDANCE, 3)
        )
        self.head = self.segmentation_head()

    def segmentation_head(self) -> nn.Module:
        return _ConvNorm(GUIDANCE, 1, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        guidance = self.guidance(x)
        return guidance, self.head(guidance)


class _ReverseAttention(OutputModule):
    """Look again where the coarser map saw nothing: the feature times one minus that map, with edge guidance.

    Of a map of classes it is the probability of class 0, the background, that says where nothing was seen.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel: int, depth: int, head_kernel: int
    ) -> None:
        super().__init__()
        self.width = width
        self.out_channels = out_channels
        self.head_kernel = head_kernel
        self.reduce = _ConvNorm(in_channels, width, 1)
        self.convs = nn.ModuleList(
            _ConvNorm(width + GUIDANCE if i == 0 else width, width, kernel) for i in range(depth)
        )
        self.head = self.segmentation_head()

    def segmentation_head(self) -> nn.Module:
        return _ConvNorm(self.width, self.out_channels, self.head_kernel)

    def forward(self, feature: torch.Tensor, coarser: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        coarser = resize(coarser, feature)
        unseen = 1 - torch.sigmoid(coarser) if coarser.shape[1] == 1 else torch.softmax(coarser, 1)[:, :1]
        x = self.reduce(unseen * feature)
        x = torch.cat([x, resize(guidance, feature)], 1)
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x) + coarser


class InfNet(nn.Module):
    """Inf-Net: for each pixel of a CT slice infected or not, or one of several classes.

    Slices of any size are taken: right and bottom are padded (edge values repeated) to a multiple of 32, and the maps
    cropped back. The coarsest reverse attention has an eighth of the encoder's last channels: 256, as published, after
    Res2Net-50 and ResNet-50, fewer after a light encoder.

    Args:
        in_channels: 1; 2 for a slice and a prior; or 3 for weights trained on grey slices repeated as colours.
        encoder: a name in :data:`covid_monai.networks.encoders.ENCODERS`.
        out_channels: 1 for the infection's logit, or the number of classes, class 0 being the background. Reverse
            attention then looks where the coarser map's softmax says background.

    Attributes:
        feature_channels: channels of :meth:`features`.

    Raises:
        ValueError: for other channel counts or an unknown encoder.

    Example:
        >>> net = InfNet()
        >>> net(torch.rand(2, 1, 70, 64)).edge.shape
        torch.Size([2, 1, 70, 64])
        >>> net.eval()(torch.rand(2, 1, 70, 64)).shape
        torch.Size([2, 1, 70, 64])
    """

    def __init__(self, in_channels: int = 1, encoder: str = "resnet18_narrow", out_channels: int = 1) -> None:
        super().__init__()
        if in_channels not in (1, 2, 3):
            raise ValueError(f"in_channels is {in_channels}; Inf-Net takes slices of 1, 2 or 3 channels")
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; ask for 1, or the number of classes with background")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = 32
        self.encoder = build_encoder(encoder, in_channels)
        _, c1, c2, c3, c4 = self.encoder.channels
        self.feature_channels = c4
        self.rfb2 = _ReceptiveField(c2)
        self.rfb3 = _ReceptiveField(c3)
        self.rfb4 = _ReceptiveField(c4)
        self.decoder = _PartialDecoder(out_channels)
        self.edge = _EdgeBranch(c1)
        self.reverse4 = _ReverseAttention(c4, c4 // 8, out_channels, kernel=5, depth=3, head_kernel=1)
        self.reverse3 = _ReverseAttention(c3, GUIDANCE, out_channels, kernel=3, depth=2, head_kernel=3)
        self.reverse2 = _ReverseAttention(c2, GUIDANCE, out_channels, kernel=3, depth=2, head_kernel=3)
        for name, module in self.named_children():
            if name != "encoder":
                initialise(module)

    def forward(self, x: torch.Tensor) -> InfNetMaps | torch.Tensor:
        """Segment slices.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].

        Returns:
            In training mode the five maps, otherwise the prediction ``s_3`` alone, logits ``(B, out_channels, H, W)``.
        """
        if self.training:
            return self.maps(x)
        return self.predict(x)

    @torch.jit.export
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the prediction ``s_3`` alone, whichever mode the network is in; see :meth:`forward`."""
        self._check(x)
        padded = pad_to(x, self.stride)
        return restore(self._strided_maps(padded).s_3, padded, x)

    @torch.jit.export
    def maps(self, x: torch.Tensor) -> InfNetMaps:
        """Compute all five maps, whichever mode the network is in.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].
        """
        self._check(x)
        padded = pad_to(x, self.stride)
        maps = self._strided_maps(padded)
        return InfNetMaps(
            restore(maps.s_g, padded, x),
            restore(maps.s_5, padded, x),
            restore(maps.s_4, padded, x),
            restore(maps.s_3, padded, x),
            restore(maps.edge, padded, x),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the encoder's deepest feature, for pretexts that need no map.

        Args:
            x: slices ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, feature_channels, h, w)``, h and w a 32nd of the sides, rounded up.
        """
        self._check(x)
        return self.encoder(pad_to(x, self.stride))[4]

    def _check(self, x: torch.Tensor) -> None:
        if not torch.jit.is_tracing() and (x.ndim != 4 or x.shape[1] != self.in_channels):
            raise ValueError(f"slices have shape {list(x.shape)}; this Inf-Net wants (B, {self.in_channels}, H, W)")

    def _strided_maps(self, x: torch.Tensor) -> InfNetMaps:
        """Compute the five maps at the strides they arise at: 8, 32, 16, 8 and 4."""
        features = self.encoder(x)
        guidance, edge = self.edge(features[1])
        return self._decode(features, guidance, edge)

    def _decode(self, features: Features, guidance: torch.Tensor, edge: torch.Tensor) -> InfNetMaps:
        """Compute the lesion maps from the encoder's features; the edge map goes with them as it is."""
        _, _, x2, x3, x4 = features
        s_g = self.decoder(self.rfb2(x2), self.rfb3(x3), self.rfb4(x4))
        s_5 = self.reverse4(x4, s_g, guidance)
        s_4 = self.reverse3(x3, s_5, guidance)
        s_3 = self.reverse2(x2, s_4, guidance)
        return InfNetMaps(s_g, s_5, s_4, s_3, edge)

    @classmethod
    def from_published(cls, checkpoint: str | os.PathLike[str] | Mapping[str, torch.Tensor]) -> "InfNet":
        """Build the network from a checkpoint in the layout of Inf-Net's authors.

        The encoder (Res2Net-50 v1b or ResNet-50) and the input channels follow from the tensors; the classifier some
        checkpoints carry is not used.

        Args:
            checkpoint: path of a file ``torch.save`` wrote, loaded with ``weights_only=True``, or the state dictionary.

        Raises:
            ValueError: if the file is no plain state dictionary, or keys are missing or unexpected, or shapes differ.
        """
        state = checkpoint if isinstance(checkpoint, Mapping) else _load(checkpoint)
        if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise ValueError(
                f"the checkpoint is a {type(state).__name__} of other things; give a dictionary of tensors"
            )
        encoder = next((name for name, stem in _PUBLISHED_STEMS.items() if stem in state), None)
        if encoder is None:
            raise ValueError(
                "the checkpoint has neither resnet.conv1.0.weight (Res2Net-50) nor resnet.conv1.weight (ResNet-50); "
                "give one that Inf-Net's authors' code wrote with either encoder"
            )
        net = cls(in_channels=state[_PUBLISHED_STEMS[encoder]].shape[1], encoder=encoder)
        own = net.state_dict()
        names = {name: _published_name(name) for name in own}
        used = {key: tensor for key, tensor in state.items() if not key.startswith("resnet.fc.")}
        if faults := state_faults({names[name]: tensor for name, tensor in own.items()}, used):
            raise ValueError(f"the checkpoint is not a published Inf-Net with encoder {encoder}: {faults}")
        net.load_state_dict({name: state[key] for name, key in names.items()})
        return net


_PUBLISHED_STEMS = {"res2net50": "resnet.conv1.0.weight", "resnet50": "resnet.conv1.weight"}
"""The tensor by which each encoder is known in the authors' files."""

_PUBLISHED_NAMES = [
    (r"^encoder\.", "resnet."),
    (r"^(rfb\d)\.branches\.(\d)\.", r"\1_1.branch\2."),
    (r"^(rfb\d)\.fuse\.", r"\1_1.conv_cat."),
    (r"^(rfb\d)\.shortcut\.", r"\1_1.conv_res."),
    (r"^decoder\.gate_4_to_3\.", "ParDec.conv_upsample1."),
    (r"^decoder\.gate_4_to_2\.", "ParDec.conv_upsample2."),
    (r"^decoder\.gate_3_to_2\.", "ParDec.conv_upsample3."),
    (r"^decoder\.lift_4\.", "ParDec.conv_upsample4."),
    (r"^decoder\.lift_3\.", "ParDec.conv_upsample5."),
    (r"^decoder\.merge_3\.", "ParDec.conv_concat2."),
    (r"^decoder\.merge_2\.", "ParDec.conv_concat3."),
    (r"^decoder\.refine\.", "ParDec.conv4."),
    (r"^decoder\.head\.", "ParDec.conv5."),
    (r"^edge\.guidance\.0\.", "edge_conv1."),
    (r"^edge\.guidance\.1\.", "edge_conv2."),
    (r"^edge\.guidance\.2\.", "edge_conv3."),
    (r"^edge\.head\.", "edge_conv4."),
    (r"^reverse(\d)\.reduce\.", r"ra\1_conv1."),
    (r"^reverse(\d)\.convs\.0\.", r"ra\1_conv2."),
    (r"^reverse(\d)\.convs\.1\.", r"ra\1_conv3."),
    (r"^reverse4\.convs\.2\.", "ra4_conv4."),
    (r"^reverse4\.head\.", "ra4_conv5."),
    (r"^reverse(\d)\.head\.", r"ra\1_conv4."),
]
"""Start of a tensor's name here, and of the same tensor's in the authors' files; the first that fits counts."""


def _published_name(name: str) -> str:
    for pattern, replacement in _PUBLISHED_NAMES:
        published, fits = re.subn(pattern, replacement, name)
        if fits:
            return published
    return name


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever foreign bytes lead it to
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{os.fspath(path)} is not a file of plain tensors: {reason}") from error
