# SPDX-License-Identifier: Apache-2.0
"""Losses: segmentation of one map and Inf-Net's total."""

from covid_monai.losses.segmentation import InfNetLoss, SegmentationLoss

__all__ = ["InfNetLoss", "SegmentationLoss"]
