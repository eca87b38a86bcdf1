# SPDX-License-Identifier: Apache-2.0
"""Scan in, :class:`Analysis` out: the one place where reading, network and severity meet."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from covid_monai import __version__
from covid_monai.ct import CTScan
from covid_monai.inference import LesionSegmenter, upright_hu
from covid_monai.severity import lung_mask, lung_sides, touching_lung

__all__ = ["Analysis", "Figures", "analyse"]

SCHEMA = "covid_monai/analysis/2"
NOTICE = "Research use only, not a medical device."
PLAUSIBLE_LUNG_ML = (1000.0, 10000.0)
PLAUSIBLE_SIDES = 0.5
"""Volume of the smaller lung as a share of the larger; healthy ones differ by about a tenth."""
LESION_OUTSIDE = 0.25
"""Share of the lesions outside the lungs that the threshold finds, from which the picture must be looked at."""


@dataclass(frozen=True)
class Figures:
    """Figures of a scan; volumes are None where the source gives no lengths.

    Figures of ground glass and of consolidation are None where the model does not tell them apart; where it does, they
    add up to those of the lesions.

    Attributes:
        lesion_ml: lesion volume in mL.
        ground_glass_ml: volume of ground-glass opacity in mL.
        consolidation_ml: volume of consolidation in mL.
        lung_ml: lung volume in mL, lesions included.
        lesion_share: share of the lungs that is lesion, 0..1; None when no lung was found.
        ground_glass_share: share of the lungs that is ground-glass opacity, 0..1.
        consolidation_share: share of the lungs that is consolidation, 0..1.
        lesion_slices: slices with lesion.
        lung_slices: slices with lung.
    """

    lesion_ml: float | None
    ground_glass_ml: float | None
    consolidation_ml: float | None
    lung_ml: float | None
    lesion_share: float | None
    ground_glass_share: float | None
    consolidation_share: float | None
    lesion_slices: int
    lung_slices: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found in a scan, and how.

    Attributes:
        scan_id: the first 16 hexadecimal digits of the SHA-256 over the scan's voxels and affine.
        figures: the numbers.
        warnings: what a reader of the numbers must know.
        record: scan, method, software and seconds, as plain values for JSON.
        hu: (Z, H, W) upright slices in HU.
        lesions: (Z, H, W) uint8: 0 background, and the codes that ``classes`` names.
        lungs: (Z, H, W) bool, lesions included.
        classes: names of the codes from 1 on: lesion, or ground glass and consolidation.
    """

    scan_id: str
    figures: Figures
    warnings: tuple[str, ...]
    record: dict[str, Any]
    hu: np.ndarray
    lesions: np.ndarray
    lungs: np.ndarray
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON; None where a figure cannot be had."""
        return {
            "schema": SCHEMA,
            "notice": NOTICE,
            "scan_id": self.scan_id,
            "figures": asdict(self.figures),
            "warnings": list(self.warnings),
            **self.record,
        }


def analyse(scan: CTScan, segmenter: LesionSegmenter, progress: Callable[[int], Any] | None = None) -> Analysis:
    """Segment the lesions of a scan and measure them against its lungs.

    Lesion parts that lie wholly outside the lungs are dropped, and the lungs are united with what is left.

    Args:
        scan: the scan.
        segmenter: makes the lesion mask.
        progress: called with the number of slices done since the last call.
    """
    start = time.perf_counter()
    hu = upright_hu(scan)
    lesions = segmenter.segment(hu, progress)
    segmented = time.perf_counter()
    lungs = lung_mask(hu, scan.upright_spacing)
    outside = 0
    if lungs.any():
        lesions = touching_lung(lesions, lungs)
        outside = int(np.count_nonzero(lesions[~lungs]))
        lungs |= lesions != 0
    figures = _figures(scan, lesions, lungs, told_apart=len(segmenter.classes) > 1)
    finished = time.perf_counter()
    record = {
        "scan": {
            "units": scan.units,
            "shape": list(scan.shape),
            "spacing_mm": [round(length, 4) for length in scan.spacing] if scan.spacing_known else None,
            "voxel_ml": scan.voxel_ml,
            **asdict(scan.source),
        },
        "method": {
            "model": asdict(segmenter.facts),
            "classes": {str(code): name for code, name in enumerate(segmenter.classes, start=1)},
            "threshold": segmenter.codes.threshold,
            "window_hu": {"level": segmenter.window.level, "width": segmenter.window.width},
            "size": list(segmenter.inferer.size),
            "lungs": "threshold",
            "device": segmenter.device.type,
        },
        "software": {
            "covid_monai": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("monai", "torch", "numpy")},
        },
        "seconds": {"segmentation": round(segmented - start, 3), "lungs": round(finished - segmented, 3)},
    }
    warnings = (
        *scan.warnings,
        *_lung_warnings(figures, lung_sides(lungs, hu)),
        *_lesion_warnings(lesions, outside),
    )
    return Analysis(scan_id(scan), figures, warnings, record, hu, lesions, lungs, segmenter.classes)


def scan_id(scan: CTScan) -> str:
    """Name of a scan by its content: 16 hexadecimal digits, the same wherever it lies, nothing of the patient."""
    digest = hashlib.sha256(np.ascontiguousarray(scan.affine).tobytes())
    for plane in scan.volume[0].numpy().T:  # (Y, X), as the readers lay them down
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()[:16]


def _figures(scan: CTScan, lesions: np.ndarray, lungs: np.ndarray, told_apart: bool) -> Figures:
    lung, lesion = int(np.count_nonzero(lungs)), int(np.count_nonzero(lesions))
    consolidation = int(np.count_nonzero(lesions == 2)) if told_apart else None
    ground_glass = None if consolidation is None else lesion - consolidation

    def ml(voxels: int | None) -> float | None:
        return None if voxels is None or scan.voxel_ml is None else voxels * scan.voxel_ml

    def share(voxels: int | None) -> float | None:
        return None if voxels is None or not lung else voxels / lung

    return Figures(
        lesion_ml=ml(lesion),
        ground_glass_ml=ml(ground_glass),
        consolidation_ml=ml(consolidation),
        lung_ml=ml(lung),
        lesion_share=share(lesion),
        ground_glass_share=share(ground_glass),
        consolidation_share=share(consolidation),
        lesion_slices=int(np.any(lesions, axis=(1, 2)).sum()),
        lung_slices=int(np.any(lungs, axis=(1, 2)).sum()),
    )


def _lung_warnings(figures: Figures, sides: tuple[int, int]) -> Iterator[str]:
    """What is implausible about the lungs; ``sides`` are the voxels on the patient's right and left."""
    if figures.lesion_share is None:
        yield "No lung was found: the lesion share cannot be given and the lesion mask is not to be trusted."
        return
    if figures.lung_ml is not None and not PLAUSIBLE_LUNG_ML[0] <= figures.lung_ml <= PLAUSIBLE_LUNG_ML[1]:
        yield (
            f"The lungs measure {figures.lung_ml:.0f} mL, which is not plausible for whole adult lungs: the scan may "
            "be cropped, or the lung mask wrong."
        )
    if min(sides) < PLAUSIBLE_SIDES * max(sides):
        side = "right" if sides[0] < sides[1] else "left"
        yield (
            f"The {side} lung has {100 * min(sides) / max(sides):.0f} % of the other's volume: consolidated lung, "
            "effusion or collapse may be missing from the lung mask, and the lesion share be wrong."
        )


def _lesion_warnings(lesions: np.ndarray, outside: int) -> Iterator[str]:
    """What is implausible about the lesions; ``outside`` are their voxels outside the lungs found by threshold."""
    total = int(np.count_nonzero(lesions))
    if outside > LESION_OUTSIDE * total:
        yield (
            f"{100 * outside / total:.0f} % of the lesion volume lies outside the lungs that the threshold found: "
            "dense consolidation, or lesion drawn into the chest wall or below the diaphragm; look at the picture."
        )
