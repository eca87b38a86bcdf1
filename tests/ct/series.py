# SPDX-License-Identifier: Apache-2.0
"""Small CT series whose values tell where they lie: the HU of a voxel follow from its position in the patient."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
ROWS, COLUMNS = 16, 12
PIXEL_SPACING = (0.75, 0.5)  # between rows, between columns
SPACING = 2.0


def hu_at(lps: np.ndarray) -> np.ndarray:
    """HU at positions (..., 3) in mm, LPS; another slope along each axis, integers on the straight grids used here."""
    return np.round(-600 + lps @ np.array([4.0, 8.0, 20.0]))


def slice_dataset(position: Sequence[float], orientation: Sequence[float] = AXIAL, series: str = "1.2.3") -> Dataset:
    """A CT slice with all that a scanner writes and that is looked at here, patient data included."""
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyDate, ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "20200309", "CT", "ACME", "Ring 64"
    ds.SeriesDescription = "CHEST 1.0"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Jane", "PID4711", "19500102"
    ds.KVP, ds.ConvolutionKernel, ds.GantryDetectorTilt, ds.SliceThickness = 120, "B70f", 0, SPACING
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, "1.2", "1.2.9"
    ds.SeriesNumber = 3
    ds.ImagePositionPatient, ds.ImageOrientationPatient = list(position), list(orientation)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.PixelSpacing = ROWS, COLUMNS, list(PIXEL_SPACING)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1000, "HU"
    i, j = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    lps = position + j[..., None] * row * PIXEL_SPACING[1] + i[..., None] * column * PIXEL_SPACING[0]
    ds.PixelData = (hu_at(lps) + 1000).astype("<i2").tobytes()
    return ds


def datasets(
    slices: int = 6,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-4, -6, 0),
    step: Sequence[float] | None = None,
    series: str = "1.2.3",
) -> list[Dataset]:
    """The slices of a series in order of their position; ``step`` (mm, LPS) is along the normal unless given."""
    normal = np.cross(orientation[:3], orientation[3:])
    step = SPACING * normal if step is None else np.asarray(step, dtype=float)
    return [slice_dataset(np.asarray(origin, dtype=float) + k * step, orientation, series) for k in range(slices)]


def write(folder: Path, slices: Sequence[Dataset], name: Callable[[int], str] = "{:03d}.dcm".format) -> Path:
    """Write slices so that the order of file names is none of their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, k in enumerate(np.random.default_rng(0).permutation(len(slices))):
        slices[k].save_as(folder / name(number), enforce_file_format=True)
    return folder


def enhanced(slices: Sequence[Dataset]) -> Dataset:
    """The same slices as one enhanced multi-frame image."""
    first = slices[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    for keyword in (
        *("ImageType", "Modality", "SeriesInstanceUID", "SeriesNumber", "SamplesPerPixel"),
        *("PhotometricInterpretation", "Rows", "Columns"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    ):
        setattr(ds, keyword, first[keyword].value)
    ds.NumberOfFrames = len(slices)
    ds.SharedFunctionalGroupsSequence = [
        groups(
            PixelMeasuresSequence=("PixelSpacing", "SliceThickness"),
            PlaneOrientationSequence=("ImageOrientationPatient",),
            PixelValueTransformationSequence=("RescaleSlope", "RescaleIntercept", "RescaleType"),
        )(first)
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        groups(PlanePositionSequence=("ImagePositionPatient",))(one) for one in slices
    ]
    ds.PixelData = b"".join(one.PixelData for one in slices)
    return ds


def groups(**macros: Sequence[str]) -> Callable[[Dataset], Dataset]:
    """Functional groups that hold the named attributes of a slice."""

    def build(source: Dataset) -> Dataset:
        found = Dataset()
        for sequence, keywords in macros.items():
            item = Dataset()
            for keyword in keywords:
                setattr(item, keyword, source[keyword].value)
            setattr(found, sequence, [item])
        return found

    return build
