# SPDX-License-Identifier: Apache-2.0
"""Rotation prediction, a pretext task beside inpainting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.optim import Optimizer

from covid_monai.networks import InfNet, MultiInfNet
from covid_monai.training.coach_trainer import PretextStep

__all__ = ["RotationHead", "RotationPrediction", "turned"]


class RotationHead(nn.Module):
    """Which of four rotations a slice was turned by, read from the network's deepest features.

    Args:
        channels: of those features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, 4) for 0, 90, 180 and 270 degrees from features (B, channels, h, w)."""
        return self.classifier(features.mean((2, 3)))


class RotationPrediction:
    """Tell by how many quarter turns a slice was rotated: trains the encoder only (named in the paper as another task).

    The central square of each slice is turned. Slices must not be flipped or turned by augmentation beforehand, beyond
    what leaves the answer clear.

    Args:
        network: has ``features(x)``, its deepest features.
        head: reads the rotation from them.
        optimizer: of both.
        inferer: runs the network.
    """

    def __init__(
        self, network: InfNet | MultiInfNet, head: RotationHead, optimizer: Optimizer, inferer: Inferer | None = None
    ) -> None:
        self.network = network
        self.head = head
        self.optimizer = optimizer
        self.inferer = inferer or SimpleInferer()

    def step(self, inputs: torch.Tensor, epoch: int, step: int) -> PretextStep:
        """Turn each slice at random and predict the turn."""
        self.network.train()
        turns = torch.randint(4, (len(inputs),), device="cpu")
        logits = self.head(self.inferer(turned(inputs, turns), self.network.features).float())
        target = turns.to(logits.device)
        loss = F.cross_entropy(logits, target)
        accuracy = float((logits.argmax(1) == target).float().mean())
        return PretextStep(loss, self.optimizer, {"accuracy": accuracy})


def turned(inputs: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the central square of each slice.

    Args:
        inputs: (B, C, H, W).
        turns: (B,) quarter turns, counter-clockwise.

    Returns:
        (B, C, S, S), S the smaller of H and W.
    """
    height, width = inputs.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = inputs[..., top : top + side, left : left + side]
    rotated = torch.stack([torch.rot90(x, int(k), (1, 2)) for x, k in zip(square, turns, strict=True)])
    return rotated.contiguous(memory_format=torch.channels_last)
