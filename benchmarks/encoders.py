# SPDX-License-Identifier: Apache-2.0
"""What an encoder costs inside Inf-Net: parameters, operations, time of a slice and of a training step, side by side.

    python benchmarks/encoders.py [--rounds 3]

The registered encoders and the light candidates among which the default was chosen take turns in each round; the
fastest round of each counts. One channel, 256 x 256, batches of 8, channels-last, on the CPU.
"""

from __future__ import annotations

import argparse
import time

import torch
from monai.networks.nets import EfficientNetBNFeatures
from torch.utils.flop_counter import FlopCounterMode

from covid_monai.losses import InfNetLoss
from covid_monai.networks import ENCODERS, InfNet
from covid_monai.networks.encoders import Encoder, ResNetEncoder

BATCH, SIDE = 8, 256
COLUMNS = ("float32 slice", "bfloat16 slice", "float32 step", "bfloat16 step")


class EfficientNetB0(Encoder):
    """EfficientNet-B0's features at strides 2 to 32."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.channels = (16, 24, 40, 112, 320)
        self.net = EfficientNetBNFeatures("efficientnet-b0", pretrained=False, in_channels=in_channels)
        for name in ("_conv_head", "_bn1", "_fc"):
            setattr(self.net, name, torch.nn.Identity())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Five features."""
        return self.net(x)[:5]


CANDIDATES = {
    "resnet10": lambda channels: ResNetEncoder("basic", (1, 1, 1, 1), channels),
    "resnet18, full width": lambda channels: ResNetEncoder("basic", (2, 2, 2, 2), channels),
    "efficientnet-b0": EfficientNetB0,
    **ENCODERS,
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    networks = {}
    for name, build in CANDIDATES.items():
        ENCODERS["candidate"] = build
        networks[name] = InfNet(encoder="candidate").to(memory_format=torch.channels_last)
    seconds = {name: dict.fromkeys(COLUMNS, float("inf")) for name in networks}
    for _ in range(rounds + 1):  # the first round warms up too
        for name, network in networks.items():
            for column, value in _round(network).items():
                seconds[name][column] = min(seconds[name][column], value)
    print(f"{'encoder':22}{'M':>7}{'GMAC':>7}" + "".join(f"{column + ' ms':>19}" for column in COLUMNS))
    for name, network in networks.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(torch.rand(1, 1, SIDE, SIDE))
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        times = "".join(f"{1000 * seconds[name][column]:19.1f}" for column in COLUMNS)
        print(f"{name:22}{millions:7.2f}{counter.get_total_flops() / 2e9:7.2f}{times}")


def _round(network: InfNet) -> dict[str, float]:
    """Seconds of a slice in evaluation and of a training step, in both precisions."""
    image = torch.rand(BATCH, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    mask = (torch.rand(BATCH, 1, SIDE, SIDE) > 0.9).float()
    loss, found = InfNetLoss("published"), {}
    for precision, amp in (("float32", False), ("bfloat16", True)):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            start = time.perf_counter()
            network.eval()(image)
            found[f"{precision} slice"] = (time.perf_counter() - start) / BATCH
        network.train().zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            maps = network(image)
        loss(maps, mask, mask).backward()
        found[f"{precision} step"] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    main()
