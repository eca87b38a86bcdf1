# SPDX-License-Identifier: Apache-2.0
"""Arrays and spacing in, numbers out: lungs, lobes, the twenty regions, and their scores."""

from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.compare import LESION_CODES, Agreement, MaskComparison, compare_masks, dice
from covid_monai.severity.evaluate import Evaluation, Proportion, evaluate
from covid_monai.severity.finding import Finding, find_opacities, peripheral_share
from covid_monai.severity.lobes import approximate_lobes, lobes_from_codes
from covid_monai.severity.lung_checks import lung_warnings
from covid_monai.severity.lungs import GivenLungs, LungFinder, Lungs, LungSearch
from covid_monai.severity.mask_slices import MaskSlices
from covid_monai.severity.regions import divide_regions, sides_of_regions
from covid_monai.severity.scores import (
    CUT_OFF,
    CUT_OFF_SOURCE,
    Involvement,
    NoiseFloor,
    Score,
    Severity,
    count,
    severity,
    slice_shares,
)
from covid_monai.severity.threshold_lungs import ThresholdLungs
from covid_monai.severity.uncertainty import THRESHOLDS, Spread, at_thresholds, spread

__all__ = [
    "CUT_OFF",
    "CUT_OFF_SOURCE",
    "LESION_CODES",
    "LOBES",
    "REGIONS",
    "SIDES",
    "THRESHOLDS",
    "Agreement",
    "Evaluation",
    "Finding",
    "GivenLungs",
    "Involvement",
    "LungFinder",
    "LungSearch",
    "Lungs",
    "MaskComparison",
    "MaskSlices",
    "NoiseFloor",
    "Proportion",
    "Score",
    "Severity",
    "Spread",
    "ThresholdLungs",
    "approximate_lobes",
    "at_thresholds",
    "compare_masks",
    "count",
    "dice",
    "divide_regions",
    "evaluate",
    "find_opacities",
    "lobes_from_codes",
    "lung_warnings",
    "peripheral_share",
    "severity",
    "sides_of_regions",
    "slice_shares",
    "spread",
]
