# SPDX-License-Identifier: Apache-2.0
"""A corrected label as DICOM SEG, with the codes that ``covid-monai analyse`` gives its own masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
from pydicom import Dataset, dcmread

from covid_monai import __version__
from covid_monai.ct import CTScan
from covid_monai.reports.dicom_seg import write_seg

if TYPE_CHECKING:
    from covid_monai.analysis import Analysis

__all__ = ["write_label_seg"]

CONTENT = "lesions"


def write_label_seg(
    mask: np.ndarray, scan: CTScan, classes: Sequence[str], sources: Sequence[Dataset], folder: Path
) -> Path:
    """Write a label that a person corrected; its segments are of the type SEMIAUTOMATIC.

    Args:
        mask: (Z, H, W) uint8, upright, with the codes of ``classes`` from 1 on; some voxel is not 0.
        scan: the scan.
        classes: names of the codes.
        sources: headers of the scan's images, see :func:`covid_monai.ct.read_sources`.
        folder: where to write.

    Raises:
        SourceError: the mask does not lie on the images, or they cannot be referred to.
    """
    method = {"model": {"name": "corrected in MONAI Label", "version": __version__}}
    nothing = np.zeros((1, 1, 1), dtype=np.uint8)  # neither lungs nor regions were corrected
    label = SimpleNamespace(
        lesions=mask,
        lungs=nothing,
        regions=nothing,
        spacing=scan.upright_spacing,
        classes=tuple(classes),
        record={"method": method},
    )
    path = write_seg(cast("Analysis", label), sources, folder, include=(CONTENT,))[CONTENT]
    written = dcmread(path)
    written.SeriesDescription = "covid_monai lesions, corrected (research use only)"
    for segment in written.SegmentSequence:
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    written.save_as(path, enforce_file_format=True)
    return path
