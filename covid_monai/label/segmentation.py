# SPDX-License-Identifier: Apache-2.0
"""A corrected label as DICOM SEG, with the codes that ``covid-monai analyse`` gives its own masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from covid_monai import __version__
from covid_monai.ct import CTScan
from covid_monai.reports.dicom_seg import SEG_FILE, segmentation

__all__ = ["write_label_seg"]

CONTENT = "lesions"


def write_label_seg(
    mask: np.ndarray, scan: CTScan, classes: Sequence[str], sources: Sequence[Dataset], folder: Path
) -> Path:
    """Write a label that a person corrected; its segments are of the type SEMIAUTOMATIC.

    A label without a voxel has all segments, empty: the newest segmentation of the series then says that there is no
    lesion.

    Args:
        mask: (Z, H, W) uint8, upright, with the codes of ``classes`` from 1 on.
        scan: the scan.
        classes: names of the codes.
        sources: headers of the scan's images, see :func:`covid_monai.ct.read_sources`.
        folder: where to write.

    Raises:
        SourceError: the mask does not lie on the images, or they cannot be referred to.
    """
    method = {"model": {"name": "corrected in MONAI Label", "version": __version__}}
    made = segmentation(CONTENT, mask, scan.upright_spacing, sources, classes, method)
    made.SeriesDescription = "covid_monai lesions, corrected (research use only)"
    for segment in made.SegmentSequence:
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    path = folder / SEG_FILE.format(CONTENT)
    made.save_as(path)
    return path
