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
from covid_monai.ct.masks import names_of_codes, read_mask, read_mask_pair
from covid_monai.ct.nifti import write_mask
from covid_monai.ct.reader import read_ct
from covid_monai.ct.scan import CTScan, SourceFacts
from covid_monai.ct.sources import SourceError, read_sources

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
    "SourceError",
    "SourceFacts",
    "TiltedGantry",
    "TooFewSlices",
    "UnreadableFile",
    "UnsupportedImage",
    "names_of_codes",
    "read_ct",
    "read_mask",
    "read_mask_pair",
    "read_sources",
    "write_mask",
]
