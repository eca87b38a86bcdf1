# SPDX-License-Identifier: Apache-2.0
"""What the bundles' training configs name beyond MONAI's own engines and handlers."""

from covid_monai.training.batches import prepare_edge_batch
from covid_monai.training.checkpoints import Checkpoints, SeedEpochs
from covid_monai.training.distributed import BroadcastBuffers
from covid_monai.training.metrics import ThresholdAveraged
from covid_monai.training.sampling import balanced_weights

__all__ = [
    "BroadcastBuffers",
    "Checkpoints",
    "SeedEpochs",
    "ThresholdAveraged",
    "balanced_weights",
    "prepare_edge_batch",
]
