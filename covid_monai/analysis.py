# SPDX-License-Identifier: Apache-2.0
"""Scan in, :class:`Analysis` out: the one place where reading, network and severity meet."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from covid_monai import __version__
from covid_monai.ct import CTScan
from covid_monai.inference import LesionLevels, LesionSegmenter, slice_distance, upright_hu
from covid_monai.severity import (
    CUT_OFF,
    CUT_OFF_SOURCE,
    LOBES,
    REGIONS,
    THRESHOLDS,
    Finding,
    LungFinder,
    Lungs,
    NoiseFloor,
    Severity,
    Spread,
    ThresholdLungs,
    approximate_lobes,
    at_thresholds,
    count,
    divide_regions,
    find_opacities,
    lung_warnings,
    peripheral_share,
    severity,
    sides_of_regions,
    slice_shares,
    spread,
)
from covid_monai.severity.in_plane import bounding_box, in_slices

__all__ = ["NOTICE", "SCHEMA", "Analysis", "analyse", "method_of"]

SCHEMA = "covid_monai/analysis/3"
NOTICE = "Research use only, not a medical device."


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found in a scan, and how.

    Attributes:
        scan_id: :attr:`covid_monai.ct.CTScan.id`.
        severity: volumes, shares and scores of the lungs, their lobes and the 20 regions.
        spread: ranges of the figures over flips and thresholds; None when they were not made.
        finding: opacities consistent with viral pneumonia, or not.
        slice_shares: share (0..1) of the lung that is lesion in each slice, inferior to superior; None without lung.
        lesion_slices: slices with lesion.
        warnings: what a reader of the numbers must know.
        record: scan, method, software and seconds, as plain values for JSON.
        hu: (Z, H, W) upright slices in HU, int16 or float32.
        spacing: (dz, dy, dx) in mm, nominal where the source gives no lengths.
        lesions: (Z, H, W) uint8: 0 background, and the codes that ``classes`` names; nothing outside the lungs.
        regions: (Z, H, W) uint8: codes of :data:`covid_monai.severity.REGIONS`, which partition the lungs, lesions
            included.
        classes: names of the lesion codes from 1 on: lesion, or ground glass and consolidation.
    """

    scan_id: str
    severity: Severity
    spread: Spread | None
    finding: Finding
    slice_shares: tuple[float | None, ...]
    lesion_slices: int
    warnings: tuple[str, ...]
    record: dict[str, Any]
    hu: np.ndarray
    spacing: tuple[float, float, float]
    lesions: np.ndarray
    regions: np.ndarray
    classes: tuple[str, ...]

    @property
    def lungs(self) -> np.ndarray:
        """(Z, H, W) uint8: 0 outside, 1 right lung, 2 left lung; made of :attr:`regions` when it is asked for."""
        lungs = np.zeros(self.regions.shape, dtype=np.uint8)
        for z, plane in in_slices(self.regions):
            lungs[z] = sides_of_regions(plane)
        return lungs

    @property
    def lung_slices(self) -> int:
        """Slices with lung."""
        return sum(share is not None for share in self.slice_shares)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON; None where a figure cannot be had."""
        content = {
            "schema": SCHEMA,
            "notice": NOTICE,
            "scan_id": self.scan_id,
            "severity": {**asdict(self.severity), "cut_off": CUT_OFF, "cut_off_source": CUT_OFF_SOURCE},
            "spread": None if self.spread is None else asdict(self.spread),
            "finding": asdict(self.finding),
            "slices": {
                "lung": self.lung_slices,
                "lesion": self.lesion_slices,
                "lesion_shares": [None if share is None else round(share, 6) for share in self.slice_shares],
            },
            "warnings": self.warnings,
            **self.record,
        }
        return json.loads(json.dumps(content, allow_nan=False))


def analyse(
    scan: CTScan,
    segmenter: LesionSegmenter,
    lungs: LungFinder | None = None,
    floor: NoiseFloor | None = None,
    ranges: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> Analysis:
    """Segment the lesions of a scan and measure them against its lungs, lobes and regions.

    Lesion outside the lungs is dropped.

    Args:
        scan: the scan.
        segmenter: makes the lesion mask.
        lungs: finds the lungs; by threshold when not given.
        floor: below which a place counts as free of lesion.
        ranges: make the figures again at other thresholds and on mirrored slabs, for which it sees the scan twice.
        progress: called with the number of slices that the network has done since the last call.
    """
    start = time.perf_counter()
    hu, spacing, distance = upright_hu(scan), scan.upright_spacing, slice_distance(scan)
    threshold = segmenter.codes.threshold
    thresholds = tuple(sorted({*THRESHOLDS, threshold})) if ranges else (threshold,)
    with ThreadPoolExecutor(max_workers=1) as beside:
        prepared = beside.submit(segmenter.prepare)
        beside.submit(getattr, scan, "id")
        search = (lungs or ThresholdLungs()).begin(hu, spacing)
        searching = beside.submit(search.search)

        def still_searching() -> bool:
            """Whether the lungs need a core; raise what ended their search."""
            if searching.done():
                searching.result()
            return not searching.done()

        prepared.result()
        searched = time.perf_counter()
        levels = segmenter.levels(hu, thresholds, distance, False, progress, search.slices, still_searching)
        looked, wanted = search.slices, searching.result()
        if not looked.start <= wanted.start <= wanted.stop <= looked.stop:
            del levels
            looked = slice(0, len(hu))
            levels = segmenter.levels(hu, thresholds, distance)
        segmented, network = time.perf_counter(), levels.network
        measuring = Event()
        measuring.set()
        if ranges:  # the network sees mirrored slices while the rest is measured, for which a core is spared
            mirrored = beside.submit(
                segmenter.levels, hu, thresholds, distance, True, progress, looked, measuring.is_set, network
            )
        places = _places(search.finish(levels.lesions(threshold)), scan)
        del search  # it holds what the rest has no use for
        lungs_done = time.perf_counter()
        regions = places.regions
        lung = (slice(None), *bounding_box(np.any(regions, axis=0), 0.0, (1.0, 1.0)))
        counts = _counts(levels, regions, lung)
        lesions = levels.into_codes(threshold, regions)
        del levels
        shares = slice_shares(lesions[lung], regions[lung])
        peripheral = peripheral_share(lesions, map(sides_of_regions, regions), spacing)
        measuring.clear()
        counted = time.perf_counter()
        if ranges:
            counts += _counts(mirrored.result(), regions, lung)
    finished = time.perf_counter()
    told_apart = len(segmenter.classes) > 1
    variants = [severity(each, scan.voxel_ml, told_apart, floor or NoiseFloor(), places.assessable) for each in counts]
    figures = variants[thresholds.index(threshold)]
    ranged = spread(variants, thresholds, mirrored=True) if ranges else None
    record = {
        "scan": {
            "units": scan.units,
            "shape": list(scan.shape),
            "spacing_mm": [round(length, 4) for length in scan.spacing] if scan.spacing_known else None,
            "voxel_ml": scan.voxel_ml,
            **asdict(scan.source),
        },
        "method": {
            **method_of(segmenter),
            **places.method,
            "device": segmenter.device.type,
            "precision": network.precision,
        },
        "software": {
            "covid_monai": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("monai", "torch", "numpy")},
        },
        "seconds": {
            "segmentation": round(segmented - searched, 3),
            "lungs and regions": round(searched - start + lungs_done - segmented, 3),
            "scores": round(counted - lungs_done, 3),
            "mirrored slices": round(finished - counted, 3),  # what was not done beside the rest
        },
    }
    return Analysis(
        scan_id=scan.id,
        severity=figures,
        spread=ranged,
        finding=find_opacities(figures, ranged, peripheral),
        slice_shares=shares,
        lesion_slices=sum(bool(share) for share in shares),
        warnings=places.warnings,
        record=record,
        hu=hu,
        spacing=spacing,
        lesions=lesions,
        regions=regions,
        classes=segmenter.classes,
    )


class _Places(NamedTuple):
    """Of the lungs what the figures need.

    Attributes:
        regions: (Z, H, W) codes of the regions.
        assessable: codes of those that can be scored.
        method: how lungs and regions were found, for the record.
        warnings: of the scan and its lungs.
    """

    regions: np.ndarray
    assessable: set[int]
    method: dict[str, str]
    warnings: tuple[str, ...]


def _places(lungs: Lungs, scan: CTScan) -> _Places:
    """Divide the lungs of a scan: the regions, and before them lobes that are not given, lie in the mask's memory."""
    spacing = scan.upright_spacing
    assessable = _assessable(lungs, scan)
    warnings = (*scan.warnings, *lung_warnings(lungs, spacing, scan.spacing_known, scan.source.contrast))
    lobes = approximate_lobes(lungs.mask, spacing, out=lungs.mask) if lungs.lobes is None else lungs.lobes
    regions = divide_regions(lobes, spacing, out=lungs.mask)
    source = "lungs" if lungs.lobes is None else "lobes"
    return _Places(regions, assessable, {"lungs": lungs.method, "regions_from": source}, warnings)


def _counts(levels: LesionLevels, regions: np.ndarray, lung: tuple[slice, ...]) -> list[np.ndarray]:
    """Voxels by region and lesion code at each threshold, ascending, in the box of the lungs."""
    thresholds = len(levels.thresholds)
    planes = (plane[lung[1:]] for plane in levels.planes())
    return at_thresholds(count(planes, regions[lung], 2 * thresholds + 2), thresholds)


def method_of(segmenter: LesionSegmenter) -> dict[str, Any]:
    """What decides on the lesions of a scan, as plain values for JSON."""
    return {
        "model": asdict(segmenter.facts),
        "classes": {str(code): name for code, name in enumerate(segmenter.classes, start=1)},
        "threshold": segmenter.codes.threshold,
        "window_hu": {"level": segmenter.window.level, "width": segmenter.window.width},
        "size": list(segmenter.inferer.size),
        "slab_mm": segmenter.inferer.slab,
        "smoothing_mm": segmenter.inferer.smoothing,
    }


def _assessable(lungs: Lungs, scan: CTScan) -> set[int]:
    """Codes of the regions that can be scored, in a scan that gives lengths: those of lobes that no end of it cuts.

    Lobes that were guessed from a lung which is cut lie in the wrong places, so all of them are left out.
    """
    if not scan.spacing_known:
        return set()
    cut: set[str] = set()
    for side, end in lungs.cut:
        on_end = None if lungs.lobes is None else _codes_at(lungs.lobes, end)
        cut |= {lobe.key for lobe in LOBES if lobe.side == side and (on_end is None or lobe.code in on_end)}
    return {region.code for region in REGIONS if region.lobe not in cut}


def _codes_at(lobes: np.ndarray, end: str) -> set[int]:
    """Codes of the lobes that touch an end of the scan, "lower" or "upper", or the "frame" of its slices."""
    ends = {"lower": [lobes[0]], "upper": [lobes[-1]]}
    frame = [lobes[:, 0], lobes[:, -1], lobes[:, :, 0], lobes[:, :, -1]]
    return {int(code) for plane in ends.get(end, frame) for code in np.unique(plane)}
