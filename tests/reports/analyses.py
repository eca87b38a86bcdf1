# SPDX-License-Identifier: Apache-2.0
"""Analyses whose every figure is known: lungs of twenty boxes, each with lesion in so many of its thousand voxels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from covid_monai.analysis import Analysis
from covid_monai.severity.anatomy import REGIONS, SIDES
from covid_monai.severity.finding import Finding
from covid_monai.severity.scores import NoiseFloor, count, severity, slice_shares
from covid_monai.severity.uncertainty import Spread

BOX = 10  # voxels along each edge of a region
SPACING = (5.0, 2.0, 1.0)  # mm along slices, rows, columns: a voxel has 0.01 mL, a region 10 mL
TWO_CLASSES = ("ground glass", "consolidation")
SPREAD = Spread((0.3, 0.4, 0.5, 0.6, 0.7), True, 12, (30.0, 50.0), (0.15, 0.25), (0.01, 0.02), (3, 9), (2, 6))
FINDING = Finding("found", "The rule, in words.", "It was met.", True, 0.75, 0.25)
SICK = {"right_upper_apical": (600, 0), "right_lower_posterior_basal": (200, 100), "left_upper_anterior": (100, 0)}
"""Voxels of ground glass and of consolidation: scores of 2, 1 and 1; 1000 of 20 000 voxels."""


def make_analysis(
    sick: Mapping[str, tuple[int, int]] = SICK,
    *,
    known: bool = True,
    told_apart: bool = True,
    not_assessable: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
    **changes: Any,
) -> Analysis:
    """An analysis of a body with twenty boxes of lung: per lung two columns of five boxes, the first region on top.

    Args:
        sick: voxels of ground glass and of consolidation by the key of a region.
        known: whether the source gives lengths; where not, nothing is assessable.
        told_apart: whether there are two classes.
        not_assessable: keys of regions that are not.
        missing: keys of regions that have no voxel.
        changes: of the analysis.
    """
    shape = (5 * BOX + 4, BOX + 8, 4 * BOX + 12)
    regions, codes, hu = (np.zeros(shape, dtype) for dtype in (np.uint8, np.uint8, np.float32))
    for side, left in zip(SIDES, (4, 8 + 2 * BOX), strict=True):
        for number, region in enumerate(each for each in REGIONS if each.side == side.key):
            top, column = shape[0] - 2 - BOX * (number // 2), left + BOX * (number % 2)
            box = (slice(top - BOX, top), slice(4, 4 + BOX), slice(column, column + BOX))
            if region.key not in missing:
                regions[box] = region.code
                ground_glass, consolidation = sick.get(region.key, (0, 0))
                marked = np.zeros(BOX**3, np.uint8)
                marked[:ground_glass] = 1
                marked[ground_glass : ground_glass + consolidation] = 2 if told_apart else 1
                codes[box] = marked.reshape(BOX, BOX, BOX)
    lungs = np.array([0, *(1 if region.side == "right_lung" else 2 for region in REGIONS)], np.uint8)[regions]
    hu[:] = np.select([codes == 2, codes == 1, lungs != 0], [0.0, -600.0, -850.0], 40.0)
    assessable = {region.code for region in REGIONS if region.key not in not_assessable} if known else set()
    figures = severity(
        count(codes, regions), 0.01 if known else None, told_apart, NoiseFloor(ml=0.5, share=0.005), assessable
    )
    shares = slice_shares(codes, lungs)
    classes = TWO_CLASSES if told_apart else ("lesion",)
    spread = SPREAD if known else replace(SPREAD, lesion_ml=None)
    analysis = Analysis(
        scan_id="0123456789abcdef",
        severity=figures,
        spread=spread if told_apart else replace(spread, consolidation_share=None),
        finding=FINDING,
        slice_shares=shares,
        lesion_slices=int(codes.any(axis=(1, 2)).sum()),
        warnings=(),
        record=_record(shape, known, classes),
        hu=hu,
        spacing=SPACING if known else (1.0, 1.0, 1.0),
        lesions=codes,
        regions=regions,
        classes=classes,
    )
    return replace(analysis, **changes)


def only_slices(analysis: Analysis, slices: slice) -> Analysis:
    """The same with the pictures of some slices; figures stay as they are."""
    arrays = {name: getattr(analysis, name)[slices] for name in ("hu", "lesions", "regions")}
    return replace(analysis, slice_shares=analysis.slice_shares[slices], **arrays)


def _record(shape: tuple[int, int, int], known: bool, classes: tuple[str, ...]) -> dict[str, Any]:
    facts = {"name": "test bundle", "version": "1.2.3", "weights_sha256": "ab" * 32, "network": {"_target_": "Net"}}
    return {
        "scan": {
            "units": "HU",
            "shape": list(shape[::-1]),
            "spacing_mm": list(SPACING[::-1]) if known else None,
            "voxel_ml": 0.01 if known else None,
            "format": "NIfTI",
            "files": 1,
            "kernel": None,
        },
        "method": {
            "model": facts,
            "classes": {str(code): name for code, name in enumerate(classes, start=1)},
            "threshold": 0.5,
            "lungs": "threshold",
            "regions_from": "lungs",
        },
        "software": {"covid_monai": "0.1.0", "python": "3.11"},
        "seconds": {"segmentation": 1.5},
    }
