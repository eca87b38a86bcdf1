# SPDX-License-Identifier: Apache-2.0
"""Reading a chest CT with its geometry, and writing masks back in it."""

from covid_monai.ct.faults import (
    CTReadError,
    DuplicateSlices,
    ImplausibleValues,
    InconsistentSlices,
    IrregularSpacing,
    MissingGeometry,
    MissingRescale,
    MissingSlices,
    NoScanFound,
    NotCT,
    SeriesChoiceError,
    TiltedGantry,
    TooFewSlices,
    UnreadableFile,
    UnsupportedImage,
)
from covid_monai.ct.nifti import write_mask
from covid_monai.ct.reader import read_ct
from covid_monai.ct.scan import CTScan, SourceFacts

__all__ = [
    "CTReadError",
    "CTScan",
    "DuplicateSlices",
    "ImplausibleValues",
    "InconsistentSlices",
    "IrregularSpacing",
    "MissingGeometry",
    "MissingRescale",
    "MissingSlices",
    "NoScanFound",
    "NotCT",
    "SeriesChoiceError",
    "SourceFacts",
    "TiltedGantry",
    "TooFewSlices",
    "UnreadableFile",
    "UnsupportedImage",
    "read_ct",
    "write_mask",
]
