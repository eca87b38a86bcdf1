# SPDX-License-Identifier: Apache-2.0
"""The DICOM gate: one CT series on a regular grid comes through, anything else is refused.

Headers are read for the listed attributes only. Every fault of the geometry is found before a pixel is decoded, and
the slices are then decoded one by one into one array.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom.spatial import create_affine_matrix_from_attributes, get_normal_vector
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from covid_monai.ct.checks import TILT_TOLERANCE, check_depth, check_extent, geometry_warnings
from covid_monai.ct.faults import (
    DuplicateSlices,
    InconsistentSlices,
    IrregularSpacing,
    MissingGeometry,
    MissingRescale,
    MissingSlices,
    NoScanFound,
    NotCT,
    SeriesChoiceError,
    TiltedGantry,
    UnreadableFile,
)
from covid_monai.ct.scan import CTScan, SourceFacts
from covid_monai.ct.voxels import Voxels

#: Distances between slices may differ from the spacing by this share of it, ...
SPACING_RTOL = 0.01
#: ... or by this many mm, which positions rounded to 0.01 mm explain.
SPACING_ATOL = 0.02
#: Direction cosines may differ from slice to slice, or from a right angle, by this much (rounded to 3 decimals).
ORIENTATION_ATOL = 2e-3
#: Pixel spacings may differ from slice to slice by this many mm.
PIXEL_SPACING_ATOL = 1e-3

_SUFFIXES = (".dcm", ".dicom", ".ima")
# The patient's name and id are read for one purpose: to keep them out of the list of series.
_TAGS = [
    *("SOPClassUID", "ImageType", "Modality", "Manufacturer", "ManufacturerModelName"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PatientName", "PatientID"),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence", "SliceThickness", "SpacingBetweenSlices"),
    *("KVP", "ConvolutionKernel", "GantryDetectorTilt", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SamplesPerPixel", "NumberOfFrames", "Rows", "Columns", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True)
class _Slice:
    """A slice: its file, its name in messages, its header, and its frame where the file is enhanced multi-frame."""

    file: Path
    name: str
    header: Dataset
    frame: int | None = None

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        """Value of an attribute as ``count`` finite numbers; MissingGeometry where it has none."""
        try:
            found = np.atleast_1d(np.asarray(self.header.get(keyword), dtype=np.float64))
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.shape != (count,) or not np.isfinite(found).all():
            raise MissingGeometry(f"{self.name} has no usable {keyword}: give the original CT series.")
        return found

    def number(self, keyword: str) -> float | None:
        """Value of an attribute as one finite number, or None."""
        try:
            return float(self.numbers(keyword, 1)[0])
        except MissingGeometry:
            return None

    @property
    def position(self) -> np.ndarray:
        return self.numbers("ImagePositionPatient", 3)

    @property
    def orientation(self) -> np.ndarray:
        return self.numbers("ImageOrientationPatient", 6)

    @property
    def pixel_spacing(self) -> np.ndarray:
        return self.numbers("PixelSpacing", 2)


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its magic word, or claims to be by its suffix."""
    return file.suffix.lower() in _SUFFIXES or _has_magic(file)


@dataclass(frozen=True)
class Stack:
    """The slices of one CT series on a regular grid, in order, before a pixel is decoded.

    Attributes:
        slices: in the order of their position, right-handed with columns and rows.
        spacing: their distance in mm.
        files: number of files they lie in.
        warnings: what a reader of the results must know.
    """

    slices: list[_Slice]
    spacing: float
    files: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def affine(self) -> np.ndarray:
        """Indices (column, row, slice) to RAS+ coordinates in mm, (4, 4)."""
        first = self.slices[0]
        to_lps = create_affine_matrix_from_attributes(
            image_position=first.position.tolist(),
            image_orientation=first.orientation.tolist(),
            pixel_spacing=first.pixel_spacing.tolist(),
            spacing_between_slices=self.spacing,
            index_convention="RD",  # our axes: columns, rows, slices
        )
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps


def read_dicom(path: Path, files: Sequence[Path], series: str | int | None = None) -> CTScan:
    """Read one CT series as a scan in HU.

    Values below -1024 HU (padding) become -1024. DICOMDIR, files that are not DICOM, DICOM objects that are no images
    (reports, segmentations) and stray localiser images within the series are left out with a warning.

    Args:
        path: names the scan in messages.
        files: the files of the scan: one a slice, or enhanced multi-frame.
        series: SeriesInstanceUID or number in the list of series; needed when there are several.

    Raises:
        CTReadError: by a subclass for each fault, see :py:mod:`covid_monai.ct.faults`.
    """
    stack = find_stack(path, files, series)
    first = stack.slices[0]
    shape = (len(stack.slices), int(first.header.Rows), int(first.header.Columns))
    check_extent(stack.affine, shape[::-1], str(path))
    voxels = Voxels(str(path), shape)
    for number, part in enumerate(stack.slices):
        voxels.put(number, _decode(part), part.name)

    doubts = list(stack.warnings)
    source = _facts(first, files=stack.files)
    if source.contrast:
        doubts.append("Contrast agent was given: enhanced vessels and tissue may be taken for lesions.")
    units, guess = voxels.range.units()
    doubts += [*geometry_warnings(stack.affine, 2, source.slice_thickness), *guess]
    return CTScan(voxels.array.T, stack.affine, source, units=units, warnings=doubts)


def find_stack(path: Path, files: Sequence[Path], series: str | int | None = None) -> Stack:
    """The slices that :py:func:`read_dicom` reads, in its order; arguments and errors are those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's complaints about odd values print them
        images, doubts = _read_headers(path, files)
    chosen, set_aside = _without_localisers(_choose(path, images, series))
    if set_aside:
        doubts.append(f"Localiser images within the series set aside: {set_aside}.")
    slices = [part for image in chosen for part in _split(image)]
    _check_kind(slices)
    check_depth(len(slices), str(path))
    _check_attributes(slices)
    slices, spacing = _order(slices)
    return Stack(slices, spacing, len(chosen), tuple(doubts))


def stack_of(images: Sequence[Dataset]) -> Stack:
    """The slices of a series that was read before, in the order of :py:func:`read_dicom`.

    Args:
        images: headers of one series, whole: one a slice, or enhanced multi-frame.

    Raises:
        CTReadError: the slices lie on no regular grid.
    """
    named = [_Slice(Path(), f"source image {number}", image) for number, image in enumerate(images, start=1)]
    slices, spacing = _order([part for image in named for part in _split(image)])
    return Stack(slices, spacing)


def _has_magic(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError as error:
        raise _unreadable(file.name, "cannot be opened") from error


def _unreadable(name: str, why: str) -> UnreadableFile:
    return UnreadableFile(f"{name} {why}: copy or export the series again.")


def _read_headers(path: Path, files: Sequence[Path]) -> tuple[list[_Slice], list[str]]:
    """Headers of all images among the files, and a warning about what was left out."""
    images = []
    left_out: Counter[str] = Counter()
    for file in files:
        name = str(file.relative_to(path)) if path != file else file.name
        if not _has_magic(file):
            if file.suffix.lower() in _SUFFIXES:
                raise _unreadable(name, "is named like DICOM but is none (truncated or encrypted)")
            left_out["not DICOM"] += 1
            continue
        try:
            with file.open("rb") as stream:
                header = dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
                cut = not stream.read(1) and header.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian
                header.decode()
                kind = UID(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")
        except Exception as error:  # pydicom raises what the damaged bytes lead it to
            raise _unreadable(name, "has a damaged header") from error
        known = kind.type == "SOP Class"
        if kind == MediaStorageDirectoryStorage:
            left_out["DICOM directory"] += 1
        elif not kind.name.endswith("Image Storage") and (known or "Rows" not in header):
            left_out["DICOM without image"] += 1
        elif cut or "SeriesInstanceUID" not in header:
            raise _unreadable(name, "is truncated, it ends before the pixel data")
        else:
            images.append(_Slice(file, name, header))
    found = ", ".join(f"{count} {what}" for what, count in left_out.items())
    if not images:
        raise NoScanFound(f"{path} holds no DICOM image ({found}): give the folder of a CT series.")
    return images, [f"Files left out: {found}."] if found else []


def _choose(path: Path, images: Sequence[_Slice], series: str | int | None) -> list[_Slice]:
    """The images of the one series, or of the one that is asked for."""
    groups: dict[str, list[_Slice]] = defaultdict(list)
    for image in images:
        groups[str(image.header.SeriesInstanceUID)].append(image)
    if series is None and len(groups) == 1:
        return next(iter(groups.values()))
    listed = dict(sorted(groups.items(), key=lambda item: (item[1][0].number("SeriesNumber") or 0, item[0])))
    if str(series) in listed:
        return listed[str(series)]
    if str(series).isdecimal() and 1 <= int(str(series)) <= len(listed):
        return list(listed.values())[int(str(series)) - 1]
    found = f"{path} holds {len(listed)} series" + ("" if series is None else f", none of them is {series}")
    entries = "; ".join(f"[{number}] {_describe(group)}" for number, group in enumerate(listed.values(), 1))
    raise SeriesChoiceError(
        f"{found}: {entries}. Choose one by its number in [] or its SeriesInstanceUID: --series, in Python series=."
    )


def _describe(images: Sequence[_Slice]) -> str:
    """A series in a few words, without patient data."""
    header = images[0].header
    text = " ".join(str(header.get("SeriesDescription", "")).split())
    secrets = re.split(r"[\^=\s,]+", str(header.get("PatientName", ""))) + [str(header.get("PatientID", ""))]
    secret = any(len(word) > 2 and word.lower() in text.lower() for word in secrets)
    text = "" if secret else re.sub(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{6,}", "...", text)[:40]
    kind = "localiser" if all(map(_is_localiser, images)) else str(header.get("Modality") or "unknown modality")
    count = sum(int(image.number("NumberOfFrames") or 1) for image in images)
    number = "" if header.get("SeriesNumber") is None else f" (series number {header.SeriesNumber})"
    return f"{kind}{f' {text!r}' if text else ''}{number}, {count} slice{'s' * (count != 1)}"


def _is_localiser(image: _Slice) -> bool:
    return "LOCALIZER" in np.atleast_1d(image.header.get("ImageType") or "")


def _without_localisers(images: Sequence[_Slice]) -> tuple[list[_Slice], int]:
    """The images that are no localisers, and the number of those that are."""
    kept = [image for image in images if not _is_localiser(image)]
    if not kept:
        raise NotCT(f"The series is a localiser ({len(images)} images), not a volume: give the CT series itself.")
    return kept, len(images) - len(kept)


def _split(image: _Slice) -> list[_Slice]:
    """The frames of an enhanced image, each with a header that reads like a single slice's; else the image itself."""
    groups = image.header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [image]
    frames = []
    for frame, own in enumerate(groups):
        header = Dataset()
        header.update({element.tag: element for element in image.header if element.VR != "SQ"})
        for group in (*image.header.get("SharedFunctionalGroupsSequence", ()), own):
            for element in group:
                if element.VR == "SQ" and element.value:
                    header.update(element.value[0])
        frames.append(_Slice(image.file, f"{image.name}, frame {frame + 1}", header, frame))
    return frames


def _check_kind(slices: Sequence[_Slice]) -> None:
    """Refuse what is no CT in HU."""
    for part in slices:
        header = part.header
        if (modality := header.get("Modality")) != "CT":
            raise NotCT(f"{part.name} has modality {modality or 'unknown'}, not CT: give a CT series.")
        if int(header.get("SamplesPerPixel") or 1) != 1:
            raise NotCT(f"{part.name} is a colour image, not a CT slice: give the original series.")
        if part.frame is None and (part.number("NumberOfFrames") or 1) > 1:
            raise MissingGeometry(f"{part.name} holds frames without positions: give the original CT series.")
        if not part.number("RescaleSlope") or part.number("RescaleIntercept") is None:
            raise MissingRescale(
                f"{part.name} has no rescale slope and intercept, so its values are not HU: give the original series."
            )
        if (kind := header.get("RescaleType") or "HU") not in ("HU", "US", "HU_MOD"):
            raise NotCT(f"{part.name} holds values of type {kind}, not HU: give the CT series in HU.")


def _check_attributes(slices: Sequence[_Slice]) -> None:
    """Refuse slices without geometry, with a tilt, or that differ from each other."""
    first = slices[0]
    for part in slices:
        if not part.number("Rows") or not part.number("Columns"):
            raise _unreadable(part.name, "states no image size")
        row, column = part.orientation.reshape(2, 3)
        if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], rtol=0, atol=ORIENTATION_ATOL):
            raise MissingGeometry(f"{part.name} has an orientation without right angles: give the original CT series.")
        if part.pixel_spacing.min() <= 0:
            raise MissingGeometry(f"{part.name} has a pixel spacing that is not above 0: give the original CT series.")
        if abs(tilt := part.number("GantryDetectorTilt") or 0.0) > TILT_TOLERANCE:
            raise TiltedGantry(
                f"{part.name} was taken with the gantry tilted by {tilt:g} degrees: "
                "give a series reconstructed without tilt."
            )
        for keyword, what, tolerance in (
            ("Rows", "rows", 0.0),
            ("Columns", "columns", 0.0),
            ("PixelSpacing", "pixel spacing", PIXEL_SPACING_ATOL),
            ("ImageOrientationPatient", "orientation", ORIENTATION_ATOL),
        ):
            here, there = (np.asarray(one.header[keyword].value, dtype=np.float64) for one in (part, first))
            if not np.allclose(here, there, rtol=0, atol=tolerance):
                raise InconsistentSlices(
                    f"The series mixes slices of different {what}: {there.tolist()} in {first.name}, {here.tolist()} "
                    f"in {part.name}: give slices of one reconstruction."
                )


def _order(slices: Sequence[_Slice]) -> tuple[list[_Slice], float]:
    """Sort slices along their normal and refuse any but an even stack.

    Returns:
        The slices in order, right-handed with columns and rows, and their distance in mm.
    """
    first = slices[0]
    normal = get_normal_vector(first.orientation.tolist(), index_convention="RD")
    positions = np.stack([part.position for part in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    heights = positions @ normal
    steps = np.diff(heights)
    twice = np.flatnonzero(steps < SPACING_ATOL)
    if len(twice):
        k = twice[0]
        raise DuplicateSlices(
            f"Duplicate slices: {slices[k].name} and {slices[k + 1].name} both lie at {heights[k]:.2f} mm (such pairs: "
            f"{len(twice)}): remove copies, or keep one reconstruction."
        )
    sideways = np.linalg.norm((positions - positions[0]) - np.outer(heights - heights[0], normal), axis=1)
    angle = float(np.degrees(np.arctan2(sideways[-1], heights[-1] - heights[0])))
    if angle > TILT_TOLERANCE or sideways.max() > first.pixel_spacing.min() / 2:
        raise TiltedGantry(
            f"The slices are not stacked along their normal (by {angle:.1f} degrees, up to {sideways.max():.1f} mm "
            "sideways), as with a tilted gantry: give a series reconstructed without tilt."
        )
    counts = np.round(steps / steps.min())
    if counts.max() > 1 and np.abs(steps / steps.min() - counts).max() < 0.1:
        k = int(np.argmax(counts > 1))
        missing = int((counts - 1).sum())
        raise MissingSlices(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing, first between {slices[k].name} and "
            f"{slices[k + 1].name} ({heights[k]:.2f} and {heights[k + 1]:.2f} mm, spacing {steps.min():g} mm): "
            "give the complete series."
        )
    spacing = float(steps.mean())
    uneven = np.abs(steps - spacing) > max(SPACING_RTOL * spacing, SPACING_ATOL)
    if uneven.any():
        k = int(np.argmax(uneven))
        raise IrregularSpacing(
            f"The slices are unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm, first between "
            f"{slices[k].name} and {slices[k + 1].name}: give a series of even spacing."
        )
    return slices, spacing


def _decode(part: _Slice) -> np.ndarray:
    """A slice's values (rows, columns) in HU: int32 where the slope is 1 and all is whole and small, else float32."""
    try:
        stored = pixel_array(part.file, index=part.frame)
    except Exception as error:  # decoders raise what the damaged bytes lead them to
        raise _unreadable(
            part.name, "has pixel data that cannot be decoded (truncated, encrypted or unsupported)"
        ) from error
    slope, intercept = (float(part.numbers(name, 1)[0]) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope == 1 and intercept.is_integer() and abs(intercept) < 1 << 24 and stored.dtype.itemsize <= 2:
        return stored.astype(np.int32) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _facts(part: _Slice, files: int) -> SourceFacts:
    """Source facts from a slice's header."""

    def text(keyword: str) -> str | None:
        found = part.header.get(keyword)
        return "/".join(map(str, np.atleast_1d(found))).strip() or None if found is not None else None

    agent = text("ContrastBolusAgent")
    contrast = None if agent is None else agent.upper() not in ("NONE", "NO", "N", "NOT GIVEN", "NATIVE")
    if agent is None and part.header.get("ContrastBolusAgentSequence"):
        contrast = True
    return SourceFacts(
        format="DICOM",
        files=files,
        slice_thickness=part.number("SliceThickness") or None,
        kernel=text("ConvolutionKernel"),
        manufacturer=text("Manufacturer"),
        model=text("ManufacturerModelName"),
        kvp=part.number("KVP") or None,
        contrast=contrast,
    )
