# SPDX-License-Identifier: Apache-2.0
"""Networks: encoders, Inf-Net, and their weights files."""

from covid_monai.networks.encoders import ENCODERS, Encoder, build_encoder
from covid_monai.networks.inf_net import InfNet, InfNetMaps
from covid_monai.networks.weights import WeightsError, load_weights, save_atomically, save_weights, weights_sha256

__all__ = [
    "ENCODERS",
    "Encoder",
    "InfNet",
    "InfNetMaps",
    "WeightsError",
    "build_encoder",
    "load_weights",
    "save_atomically",
    "save_weights",
    "weights_sha256",
]
