# SPDX-License-Identifier: Apache-2.0
"""Networks whose output is known without training."""

import torch
from torch import nn
from torch.nn.functional import max_pool2d

LEVEL, WIDTH = -600.0, 1500.0  # the default lung window


class Echo(nn.Module):
    """Returns its input, and keeps the shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        return x


class Constant(nn.Module):
    """One logit everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, :1], self.logit)


class Band(nn.Module):
    """Positive where the intensity lies between two HU, but not on rims one pixel thin, which partial volume makes."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = ((hu - LEVEL) / WIDTH + 0.5 for hu in (low, high))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.minimum(x - self.low, self.high - x)
        eroded = -max_pool2d(-inside, 3, stride=1, padding=1)
        return 100 * max_pool2d(eroded, 3, stride=1, padding=1)


class Fixed(nn.Module):
    """The same logits (K, H, W) for every slice."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), *self.logits.shape)


class ClassBands(nn.Module):
    """Class logits: background 0, ground glass and consolidation each a :class:`Band`."""

    def __init__(self, ground_glass: tuple[float, float], consolidation: tuple[float, float]) -> None:
        super().__init__()
        self.bands = nn.ModuleList([Band(*ground_glass), Band(*consolidation)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), *(band(x) for band in self.bands)], 1)
