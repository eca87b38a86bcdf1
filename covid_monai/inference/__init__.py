# SPDX-License-Identifier: Apache-2.0
"""Slice-wise prediction over scans."""

from covid_monai.inference.bundle import BundleError, default_bundle
from covid_monai.inference.fast import FastNetwork
from covid_monai.inference.levels import LesionLevels
from covid_monai.inference.precision import AutocastInferer, autocast
from covid_monai.inference.segmenter import (
    LesionSegmenter,
    ModelFacts,
    slice_distance,
    upright_hu,
)
from covid_monai.inference.slabs import Slabs
from covid_monai.inference.slice_inferer import UprightSliceInferer

__all__ = [
    "AutocastInferer",
    "BundleError",
    "FastNetwork",
    "LesionLevels",
    "LesionSegmenter",
    "ModelFacts",
    "Slabs",
    "UprightSliceInferer",
    "autocast",
    "default_bundle",
    "slice_distance",
    "upright_hu",
]
