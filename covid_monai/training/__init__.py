# SPDX-License-Identifier: Apache-2.0
"""What the bundles' training configs name beyond MONAI's own engines and handlers."""

from covid_monai.training.averaging import MeasureNorm, optimiser_steps
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
from covid_monai.training.metrics import (
    BestThreshold,
    ClassMeanDice,
    KnownDice,
    ThresholdAveraged,
    classes_are_guessed,
    mark_guessed_classes,
)
from covid_monai.training.pretext_evaluator import PretextEvaluator
from covid_monai.training.rotation import RotationHead, RotationPrediction
from covid_monai.training.sampling import balanced_weights, take_fraction
from covid_monai.training.volumes import VolumeMetrics, volume_of

__all__ = [
    "BestThreshold",
    "BroadcastBuffers",
    "Checkpoints",
    "ClassMeanDice",
    "CoachSchedule",
    "Inpainting",
    "KeepFraction",
    "KnownDice",
    "MeasureNorm",
    "PreparePriorBatch",
    "PretextEvaluator",
    "PretextTrainer",
    "RotationHead",
    "RotationPrediction",
    "SeedEpochs",
    "ThresholdAveraged",
    "VolumeMetrics",
    "balanced_weights",
    "choose",
    "classes_are_guessed",
    "mark_guessed_classes",
    "optimiser_steps",
    "prepare_edge_batch",
    "prepare_image_batch",
    "take_fraction",
    "volume_of",
]
