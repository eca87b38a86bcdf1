# SPDX-License-Identifier: Apache-2.0
"""How much faster the bundles' training steps are than plain float32 training of the same networks.

    python benchmarks/training_step.py [--rounds 5]

Plain is float32 and contiguous; the bundles train channels-last and, on CPUs that have it, in bfloat16. The variants of
a step (forward, loss, backward, optimiser) take turns in each round; the fastest round of each counts. One process, 256
x 256, batches of 8, AdamW, on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch

from covid_monai.losses import CoachLoss, InfNetLoss, InpaintingLoss, MultiInfNetLoss
from covid_monai.networks import CoachNet, FineInfNet, InfNet, InfNetCascade, MultiInfNet, with_inpainting_heads

BATCH, SIDE = 8, 256
VARIANTS = {
    "float32": (torch.contiguous_format, False),
    "float32, channels-last": (torch.channels_last, False),
    "bfloat16": (torch.contiguous_format, True),
    "bfloat16, channels-last": (torch.channels_last, True),
}

Step = Callable[[torch.Tensor], torch.Tensor]


def segmentation(network: torch.nn.Module) -> Step:
    """Single Inf-Net."""
    target, loss = (torch.rand(BATCH, 1, SIDE, SIDE) > 0.9).float(), InfNetLoss("published")
    return lambda image: loss(network(image), target, target)


def classes(network: torch.nn.Module) -> Step:
    """The cascade's multi network, its prior predicted in the step."""
    target, loss = torch.randint(3, (BATCH, 1, SIDE, SIDE)), MultiInfNetLoss()
    return lambda image: loss(network(image), target, (target > 0).float())


def inpainting(network: torch.nn.Module) -> Step:
    """The network's step of pre-training, masks by the coach."""
    coach, loss = CoachNet(width=16), InpaintingLoss()

    def step(image: torch.Tensor) -> torch.Tensor:
        mask = coach.masks(image)
        return loss(network(image * mask), image, mask)

    return step


def coaching(coach: torch.nn.Module) -> Step:
    """The coach's step of pre-training, through a network that stands still."""
    network = with_inpainting_heads(InfNet()).eval().requires_grad_(False)
    loss, coach_loss = InpaintingLoss(), CoachLoss()

    def step(image: torch.Tensor) -> torch.Tensor:
        mask, mean, log_variance = coach(image)
        return coach_loss(loss(network.maps(image * mask), image, mask), mean, log_variance)

    return step


STEPS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[torch.nn.Module], Step]]] = {
    "training, InfNet": (InfNet, segmentation),
    "training, FineInfNet": (FineInfNet, segmentation),
    "training, InfNetCascade": (lambda: InfNetCascade(InfNet(), MultiInfNet()), classes),
    "pre-training, network": (lambda: with_inpainting_heads(InfNet()), inpainting),
    "pre-training, coach": (lambda: CoachNet(width=16), coaching),
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"| step | {' | '.join(VARIANTS)} |\n|{'---|' * (len(VARIANTS) + 1)}")
    for name, (build, make) in STEPS.items():
        network = build().train()
        runs = {variant: _runner(copy.deepcopy(network), make, *how) for variant, how in VARIANTS.items()}
        seconds = dict.fromkeys(VARIANTS, float("inf"))
        for _ in range(rounds + 1):  # the first round warms up too
            for variant, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[variant] = min(seconds[variant], time.perf_counter() - start)
        plain = seconds["float32"]
        cells = " | ".join(f"{1000 * each:.0f} ms, {plain / each:.2f} x" for each in seconds.values())
        print(f"| {name} | {cells} |", flush=True)


def _runner(
    network: torch.nn.Module, make: Callable[[torch.nn.Module], Step], layout: torch.memory_format, amp: bool
) -> Callable[[], None]:
    """One training step, ready to run."""
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.rand(BATCH, 1, SIDE, SIDE).contiguous(memory_format=layout)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)
    step = make(network)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = step(image)
        loss.backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
