# SPDX-License-Identifier: Apache-2.0
"""Public data sets, and the synthetic phantom, as MONAI datalists."""

from covid_monai.datasets.datalist import data_hash, load_datalist, load_side
from covid_monai.datasets.faults import DatasetError, LayoutError, SplitError
from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom
from covid_monai.datasets.registry import DATASETS, Dataset, Summary, describe, prepare

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetError",
    "LayoutError",
    "Lesions",
    "Phantom",
    "SplitError",
    "Summary",
    "data_hash",
    "describe",
    "load_datalist",
    "load_side",
    "make_phantom",
    "prepare",
]
