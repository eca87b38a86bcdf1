# SPDX-License-Identifier: Apache-2.0
"""Masks as DICOM Segmentation (PS3.3 A.51), by highdicom, on the images that the scan was read from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from covid_monai import __version__
from covid_monai.analysis import NOTICE, Analysis
from covid_monai.ct.sources import SourceError, on_sources
from covid_monai.reports.dicom_codes import (
    EQUIPMENT,
    FINDINGS,
    LUNG,
    UTF_8,
    Place,
    algorithm_of_lesions,
    scheme_identification,
)
from covid_monai.reports.pictures import LESION_COLOURS, LUNG_COLOUR
from covid_monai.severity.anatomy import REGIONS, SIDES
from covid_monai.whole_files import unfinished_folder

__all__ = ["CONTENTS", "SEG_FILE", "segmentation", "write_seg"]

CONTENTS = ("lesions", "lungs", "regions")
SEG_FILE = "{}.seg.dcm"
"""Name of a file by its content."""

_DESCRIPTIONS = {
    "lesions": NOTICE,
    "lungs": NOTICE,
    "regions": f"Approximate regions. {NOTICE}",
}
_FIRST_SERIES_NUMBER = 9001


class _Segment(NamedTuple):
    """What a code of a mask means; ``place`` is None for a lesion, which may lie anywhere in the lungs."""

    label: str
    category: Code
    kind: Code | CodedConcept
    place: Place | None
    colour: tuple[int, int, int]


def write_seg(
    analysis: Analysis, sources: Sequence[Dataset], folder: str | os.PathLike, include: Collection[str] = CONTENTS
) -> dict[str, Path]:
    """Write masks as DICOM Segmentations that carry the patient's identity and refer to the source images.

    Each content has a file, a SOP instance and a series of its own, as viewers expect that show one segmentation a
    series and no segments that overlap. Segmentations are BINARY, uncompressed, and hold the frames with voxels only. A
    class, lung or region without voxels is no segment; **a content without voxels gets no file**, for a segmentation
    has at least one frame, and the report says the volume is 0.

    All files are made under temporary names and renamed when the last one is whole; existing ones are replaced.

    Args:
        analysis: what was found.
        sources: headers of the images it was found in, see :py:func:`covid_monai.ct.sources.read_sources`.
        folder: where to write; made when missing.
        include: which of ``"lesions"`` (a segment a class), ``"lungs"`` (right, left) and ``"regions"`` (the 20).

    Returns:
        Path of each file written, by its content.

    Raises:
        SourceError: the masks do not lie on the sources, or the sources cannot be referred to.
        ValueError: an unknown name in ``include``.
    """
    if unknown := sorted(set(include) - set(CONTENTS)):
        raise ValueError(f"include names {', '.join(unknown)}: give some of {', '.join(CONTENTS)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as unfinished:
        made = {}
        for content in CONTENTS:
            mask = getattr(analysis, content)
            if content in include and mask.any():
                path = unfinished / SEG_FILE.format(content)
                method = analysis.record["method"]
                segmentation(content, mask, analysis.spacing, sources, analysis.classes, method).save_as(path)
                made[content] = path
        return {content: path.replace(folder / path.name) for content, path in made.items()}


def segmentation(
    content: str,
    mask: np.ndarray,
    spacing: Sequence[float],
    sources: Sequence[Dataset],
    classes: Sequence[str],
    method: Mapping[str, Any],
) -> Segmentation:
    """One mask as a DICOM Segmentation, not written yet.

    Args:
        content: one of :data:`CONTENTS`.
        mask: (Z, H, W) uint8, upright. A code without voxels is no segment; of a mask without any voxel all codes are
            segments, whose frames are empty.
        spacing: of the mask in mm, (dz, dy, dx).
        sources: headers of the images that it lies on, see :py:func:`covid_monai.ct.sources.read_sources`.
        classes: names of the codes of ``"lesions"``, from 1 on.
        method: what made the mask, as the record of an analysis tells it.

    Raises:
        SourceError: the mask does not lie on the sources, or they cannot be referred to.
    """
    planes = on_sources(mask, spacing, sources)
    parts = _segments(content, classes)
    there = np.any([np.bincount(plane.ravel(), minlength=256) for plane in planes], axis=0)
    there[0] = False
    if not there.any():
        there[list(parts)] = True
    segments = [segment for code, segment in parts.items() if there[code]]
    numbers = np.cumsum(there, dtype=np.uint8)  # the codes that are there become 1, 2 …
    numbers[0] = 0
    kind, algorithm = _algorithm(content, method)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's complaints about odd values of the source print them
            found = Segmentation(
                source_images=sources,
                pixel_array=numbers[planes],
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=[
                    _description(number, segment, kind, algorithm) for number, segment in enumerate(segments, start=1)
                ],
                series_instance_uid=UID(),
                series_number=_FIRST_SERIES_NUMBER + CONTENTS.index(content),
                sop_instance_uid=UID(),
                instance_number=1,
                series_description=f"covid_monai {content} (research use only)",
                content_label=content.upper(),
                content_description=_DESCRIPTIONS[content],
                coding_schemes=[scheme_identification()] if content == "regions" else None,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                **EQUIPMENT,
            )
            found.SpecificCharacterSet = UTF_8
            return found
    except (AttributeError, TypeError, ValueError) as error:
        raise SourceError(
            f"A segmentation in DICOM cannot refer to the source images ({error}): give the original series."
        ) from error


def _segments(content: str, classes: Sequence[str]) -> dict[int, _Segment]:
    """The segments that a content may have, by the codes of its mask."""
    if content == "lesions":
        return {
            code: _Segment(
                name, codes.SCT.MorphologicallyAbnormalStructure, FINDINGS[name], None, LESION_COLOURS[name][1]
            )
            for code, name in enumerate(classes, start=1)
        }
    parts = SIDES if content == "lungs" else REGIONS
    found = {}
    for part in parts:
        place = Place(part.key)
        colour = LUNG_COLOUR if content == "lungs" else _hue(part.code / len(parts))
        found[part.code] = _Segment(part.name, codes.SCT.AnatomicalStructure, place.kind, place, colour)
    return found


def _hue(turn: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in hsv_to_rgb(turn * 7 % 1, 0.6, 0.9))  # neighbours far apart
    return red, green, blue


def _algorithm(
    content: str, method: Mapping[str, Any]
) -> tuple[SegmentAlgorithmTypeValues, AlgorithmIdentificationSequence]:
    """What made a mask; a mask that was given counts as semi-automatic, for who made it is not known."""
    automatic = SegmentAlgorithmTypeValues.AUTOMATIC
    learned, computed = codes.DCM.ArtificialIntelligence, codes.DCM.MorphologicalOperations
    if content == "lesions":
        name, version = algorithm_of_lesions(method)
        return automatic, AlgorithmIdentificationSequence(name, learned, version)
    made_by = str(method["lungs"])
    if content == "regions":
        return automatic, AlgorithmIdentificationSequence(f"covid_monai regions ({made_by})", computed, __version__)
    kind = SegmentAlgorithmTypeValues.SEMIAUTOMATIC if made_by.startswith("given") else automatic
    family = learned if made_by.startswith("lungmask") else computed
    return kind, AlgorithmIdentificationSequence(f"covid_monai lungs ({made_by})", family, __version__)


def _description(
    number: int,
    segment: _Segment,
    kind: SegmentAlgorithmTypeValues,
    algorithm: AlgorithmIdentificationSequence,
) -> SegmentDescription:
    found = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=kind,
        algorithm_identification=algorithm,
        tracking_uid=UID(),
        tracking_id=segment.label,
        anatomic_regions=[segment.place.anatomy if segment.place else LUNG],
        display_color=CIELabColor.from_rgb(*segment.colour),
    )
    if segment.place:
        segment.place.modify(found.SegmentedPropertyTypeCodeSequence[0], "SegmentedPropertyTypeModifierCodeSequence")
        segment.place.modify(found.AnatomicRegionSequence[0], "AnatomicRegionModifierSequence")
    return found
