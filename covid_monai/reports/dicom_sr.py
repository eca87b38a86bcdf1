# SPDX-License-Identifier: Apache-2.0
"""Figures as a DICOM Structured Report: Enhanced SR with template TID 1500 (PS3.16), by highdicom."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from highdicom import UID
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage, generate_uid

from covid_monai import __version__
from covid_monai.analysis import NOTICE, Analysis
from covid_monai.ct.sources import SourceError
from covid_monai.reports.dicom_codes import (
    CT_OF_CHEST,
    CT_SS,
    CT_SS_RANGE,
    EQUIPMENT,
    FINDINGS,
    GRADES,
    LOBAR,
    LOBAR_RANGE,
    LOBE_SCORE,
    MILLILITRE,
    NO_UNITS,
    NOT_ASSESSABLE,
    PERCENT,
    REGION_SCORE,
    RESULTS,
    SEVERITY,
    SHARE,
    UTF_8,
    VIRAL_PNEUMONIA,
    VOLUME,
    Place,
    algorithm_of_lesions,
    scheme_identification,
)
from covid_monai.severity.scores import Involvement, Score
from covid_monai.whole_files import replacing

__all__ = ["write_sr"]

APPROXIMATE = {
    "lungs": "Lobes and regions are a geometric approximation, not anatomical lobes and segments.",
    "lobes": "Regions are a geometric approximation, not anatomical segments.",
}
"""What a reader must know, by what the regions were made from."""
_SERIES_NUMBER = 9010
_DEVICE_UID = generate_uid(entropy_srcs=["covid_monai", __version__])  # the same for every report of a version

_Concept = Code | CodedConcept
_Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def write_sr(
    analysis: Analysis, sources: Sequence[Dataset], segmentations: Mapping[str, Path], path: str | os.PathLike
) -> Path:
    """Write the figures as a structured report that carries the patient's identity.

    It holds one group of measurements for each place (both lungs, the lungs, lobes and regions: lung volume and
    scores), one for the lesions at each place and, but for regions, one for each class of them (volume, percentage of
    the place's lung). Groups whose region of interest is a segment refer to it. Figures that are not known are left
    out, scores that cannot be given are coded "Value indeterminate". Every number is one of the analysis's JSON; shares
    are percentages here. The report is complete, preliminary and unverified.

    Args:
        analysis: what was found.
        sources: headers of the images it was found in, see :py:func:`covid_monai.ct.sources.read_sources`.
        segmentations: path of each segmentation by its content, as :py:func:`covid_monai.reports.dicom_seg.write_seg`
            returns them; may be empty.
        path: file to write; an existing one is replaced.

    Returns:
        ``path``.

    Raises:
        SourceError: the sources, or the segmentations, are of another study or cannot be referred to.
    """
    path = Path(path)
    masks = {content: _header(file) for content, file in segmentations.items()}
    if any(mask.StudyInstanceUID != sources[0].StudyInstanceUID for mask in masks.values()):
        raise SourceError("The segmentations are of another study than the source images: write them from one scan.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's complaints about odd values of the source print them
            report = EnhancedSR(
                evidence=[*sources, *masks.values()],
                content=_Writer(analysis, sources[0].SeriesInstanceUID, masks).report(),
                series_instance_uid=UID(),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=UID(),
                instance_number=1,
                series_description="covid_monai report (research use only)",
                is_complete=True,
                is_final=False,
                is_verified=False,
                coding_schemes=[scheme_identification()],
                **EQUIPMENT,
            )
            report.SpecificCharacterSet = UTF_8
    except (AttributeError, TypeError, ValueError) as error:
        raise SourceError(
            f"A report in DICOM cannot refer to the source images ({error}): give the original series."
        ) from error
    with replacing(path) as unfinished:
        report.save_as(unfinished, enforce_file_format=True)
    return path


def _header(file: Path) -> Dataset:
    """What is needed to refer to a segmentation, without its pixels and frames."""
    return dcmread(
        file,
        stop_before_pixels=True,
        specific_tags=["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SegmentSequence"],
    )


class _Writer:
    """The content tree of one report."""

    def __init__(self, analysis: Analysis, source_series: str, masks: Mapping[str, Dataset]) -> None:
        self.analysis = analysis
        self.algorithm = AlgorithmIdentification(*algorithm_of_lesions(analysis.record["method"]))
        self.segments = {
            (content, segment.SegmentLabel): ReferencedSegment(
                SegmentationStorage,
                mask.SOPInstanceUID,
                int(segment.SegmentNumber),
                source_series=SourceSeriesForSegmentation(source_series),
            )
            for content, mask in masks.items()
            for segment in mask.SegmentSequence
        }

    def report(self) -> MeasurementReport:
        device = DeviceObserverIdentifyingAttributes(
            uid=_DEVICE_UID,
            name="covid_monai",
            manufacturer_name="covid_monai",
            model_name=f"covid_monai {__version__}",
        )
        observer = ObserverContext(codes.DCM.Device, device)
        return MeasurementReport(
            observation_context=ObservationContext(observer_device_context=observer),
            procedure_reported=CT_OF_CHEST,
            imaging_measurements=list(self._groups()),
            title=codes.DCM.ImagingMeasurementReport,
        )

    def _groups(self) -> Iterator[_Group]:
        severity = self.analysis.severity
        yield self._whole()
        yield from self._findings(severity.whole)
        for place in severity.lungs:
            yield self._place(place, [], [], ("lungs", place.name))
            yield from self._findings(place)
        for lobe in severity.lobes:
            yield self._place(lobe, *_score(LOBE_SCORE, lobe.score))
            yield from self._findings(lobe)
        for region in severity.regions:
            yield self._place(region, *_score(REGION_SCORE, region.score), ("regions", region.name))
            yield from self._findings(region, classes=("lesion",))

    def _whole(self) -> _Group:
        """Both lungs: the sums, the grade, the finding, and what a reader must know."""
        analysis, severity = self.analysis, self.analysis.severity
        measurements, evaluations = [], []
        for names, total in ((CT_SS, *CT_SS_RANGE), severity.ct_ss), ((LOBAR, *LOBAR_RANGE), severity.lobar):
            numbers, words = _total(names, total)
            measurements += numbers
            evaluations += words
        evaluations.append(QualitativeEvaluation(SEVERITY, GRADES[severity.grade]))
        if analysis.finding.result is not None:
            evaluations.append(QualitativeEvaluation(VIRAL_PNEUMONIA, RESULTS[analysis.finding.result]))
        group = self._place(severity.whole, measurements, evaluations)
        approximate = APPROXIMATE[analysis.record["method"]["regions_from"]]
        group[0].ContentSequence.extend(
            TextContentItem(codes.DCM.Comment, text, relationship_type=RelationshipTypeValues.CONTAINS)
            for text in (NOTICE, approximate, f"Finding by this rule: {analysis.finding.rule}", *analysis.warnings)
        )
        return group

    def _place(
        self,
        place: Involvement,
        measurements: Sequence[Measurement],
        evaluations: Sequence[QualitativeEvaluation],
        segment: tuple[str, str] | None = None,
    ) -> _Group:
        """A place's lung: its volume, and the scores that are given."""
        volume = _measured(VOLUME, place.lung_ml, MILLILITRE)
        return self._group(place, place.name, Place(place.key).kind, [*volume, *measurements], evaluations, segment)

    def _findings(self, place: Involvement, classes: Sequence[str] = tuple(FINDINGS)) -> Iterator[_Group]:
        """Each class of lesion at a place: volume and share. Both lungs' classes are the segments of the lesions."""
        for label in classes:
            key = label.replace(" ", "_")
            share = getattr(place, f"{key}_share")
            measurements = [
                *_measured(VOLUME, getattr(place, f"{key}_ml"), MILLILITRE),
                *_measured(SHARE, None if share is None else 100 * share, PERCENT),
            ]
            if measurements:
                segment = ("lesions", label) if place.key == "whole" else None
                yield self._group(place, f"{place.name}: {label}", FINDINGS[label], measurements, [], segment)

    def _group(
        self,
        place: Involvement,
        label: str,
        finding: _Concept,
        measurements: Sequence[Measurement],
        evaluations: Sequence[QualitativeEvaluation],
        segment: tuple[str, str] | None,
    ) -> _Group:
        common: dict[str, Any] = {
            "tracking_identifier": TrackingIdentifier(UID(), label),
            "finding_type": finding,
            "algorithm_id": self.algorithm,
            "finding_sites": [Place(place.key).site],
            "measurements": measurements,
            "qualitative_evaluations": evaluations,
        }
        if segment in self.segments:
            return VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=self.segments[segment], **common
            )
        return MeasurementsAndQualitativeEvaluations(**common)


def _measured(name: _Concept, value: float | None, unit: _Concept) -> list[Measurement]:
    """A measurement, or none where the value is not known."""
    return [] if value is None else [Measurement(name, value, unit)]


def _score(name: _Concept, score: int | None) -> tuple[list[Measurement], list[QualitativeEvaluation]]:
    """A score, or its evaluation as indeterminate."""
    return _measured(name, score, NO_UNITS), [] if score is not None else [QualitativeEvaluation(name, NOT_ASSESSABLE)]


def _total(names: Sequence[_Concept], total: Score) -> tuple[list[Measurement], list[QualitativeEvaluation]]:
    """A sum as :py:func:`_score`, and between what it lies: names are of the sum, the lowest and the highest."""
    numbers, words = _score(names[0], total.score)
    ends = zip(names[1:], (total.lowest, total.highest), strict=True)
    return numbers + [Measurement(name, value, NO_UNITS) for name, value in ends], words
