# SPDX-License-Identifier: Apache-2.0
"""Losses: segmentation of one map and the networks' totals, and inpainting with the coach's."""

from covid_monai.losses.inpainting import CoachLoss, InpaintingLoss
from covid_monai.losses.segmentation import InfNetLoss, MultiInfNetLoss, SegmentationLoss

__all__ = ["CoachLoss", "InfNetLoss", "InpaintingLoss", "MultiInfNetLoss", "SegmentationLoss"]
