# SPDX-License-Identifier: Apache-2.0
"""What the bundles' training configs name beyond MONAI's own engines and handlers."""

from covid_monai.training.batches import PreparePriorBatch, prepare_edge_batch, prepare_image_batch
from covid_monai.training.checkpoints import Checkpoints, SeedEpochs
from covid_monai.training.choices import choose
from covid_monai.training.coach_trainer import (
    CoachSchedule,
    Inpainting,
    KeepFraction,
    PretextTrainer,
)
from covid_monai.training.distributed import BroadcastBuffers
from covid_monai.training.metrics import ClassMeanDice, ThresholdAveraged
from covid_monai.training.pretext_evaluator import PretextEvaluator
from covid_monai.training.rotation import RotationHead, RotationPrediction
from covid_monai.training.sampling import balanced_weights, take_fraction

__all__ = [
    "BroadcastBuffers",
    "Checkpoints",
    "ClassMeanDice",
    "CoachSchedule",
    "Inpainting",
    "KeepFraction",
    "PreparePriorBatch",
    "PretextEvaluator",
    "PretextTrainer",
    "RotationHead",
    "RotationPrediction",
    "SeedEpochs",
    "ThresholdAveraged",
    "balanced_weights",
    "choose",
    "prepare_edge_batch",
    "prepare_image_batch",
    "take_fraction",
]
