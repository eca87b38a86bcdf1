# SPDX-License-Identifier: Apache-2.0
"""Networks: encoders, Inf-Net, Multi Inf-Net, the cascade of both, their output heads and weights files."""

from covid_monai.networks.coach import CoachNet, CoachOutput
from covid_monai.networks.encoders import ENCODERS, Encoder, build_encoder
from covid_monai.networks.fine_inf_net import FineInfNet, FineInfNetMaps
from covid_monai.networks.inf_net import InfNet, InfNetMaps
from covid_monai.networks.inpainting import load_trunk, with_inpainting_heads, with_segmentation_heads
from covid_monai.networks.multi_inf_net import (
    LIGHT_FEATURES,
    PUBLISHED_FEATURES,
    InfNetCascade,
    MultiInfNet,
    UNetMaps,
)
from covid_monai.networks.weights import (
    WeightsError,
    load_network,
    load_weights,
    pack_weights,
    save_atomically,
    save_weights,
    weights_sha256,
)

__all__ = [
    "ENCODERS",
    "LIGHT_FEATURES",
    "PUBLISHED_FEATURES",
    "CoachNet",
    "CoachOutput",
    "Encoder",
    "FineInfNet",
    "FineInfNetMaps",
    "InfNet",
    "InfNetCascade",
    "InfNetMaps",
    "MultiInfNet",
    "UNetMaps",
    "WeightsError",
    "build_encoder",
    "load_network",
    "load_trunk",
    "load_weights",
    "pack_weights",
    "save_atomically",
    "save_weights",
    "weights_sha256",
    "with_inpainting_heads",
    "with_segmentation_heads",
]
