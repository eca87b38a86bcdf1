# SPDX-License-Identifier: Apache-2.0
"""The synthetic thorax as a DICOM CT series (CT Image Storage, PS3.3 A.3)."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

INTERCEPT = -1024  # HU of stored value 0
NOTE = "Synthetic thorax, no patient. Research use only."


def write_series(hu: np.ndarray, affine: np.ndarray, seed: int, folder: Path) -> Path:
    """Write one file a slice, the first one the most superior.

    UIDs follow from seed, grid and HU alone: the same phantom always gives the same series.

    Args:
        hu: ``(X, Y, Z)``, -1024..3071 HU.
        affine: 4x4 voxel to mm, RAS+, axes along R, A, S.
        seed: of the phantom; names the patient.
        folder: new or empty.

    Returns:
        ``folder``.

    Raises:
        ValueError: if the folder holds anything already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: a series needs one of its own")
    digest = hashlib.sha256()
    for plane in hu.T:
        digest.update(plane.tobytes())
    common = _common(affine, seed, [str(seed), affine.tobytes().hex(), digest.hexdigest()])
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for number, k in enumerate(reversed(range(hu.shape[2])), start=1):
            _slice(hu[::-1, ::-1, k].T, affine, k, number, common).save_as(
                temporary / f"slice-{number:04d}.dcm", enforce_file_format=True
            )
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _common(affine: np.ndarray, seed: int, entropy: list[str]) -> Dataset:
    """Attributes that all slices share."""
    dx, dy, dz = (float(step) for step in np.diag(affine)[:3])
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Modality = "CT"
    ds.Manufacturer = "covid_monai"
    ds.ManufacturerModelName = "synthetic thorax"
    ds.PatientName = f"PHANTOM^RESEARCH {seed}"
    ds.PatientID = f"PHANTOM-{seed}"
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.QualityControlSubject = "YES"
    ds.PatientComments = NOTE
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*entropy, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*entropy, "frame of reference"])
    ds.PositionReferenceIndicator = ""
    ds.StudyID = str(seed % 10**16)
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.SeriesNumber = 1
    ds.SeriesDescription = "synthetic thorax"
    ds.BodyPartExamined = "CHEST"
    ds.PatientPosition = "HFS"
    ds.KVP = ds.AcquisitionNumber = None
    ds.BurnedInAnnotation = "NO"
    ds.ImageComments = NOTE
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [f"{dy:.10g}", f"{dx:.10g}"]
    ds.SliceThickness = f"{dz:.10g}"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = INTERCEPT, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    return ds


def _slice(rows: np.ndarray, affine: np.ndarray, k: int, number: int, common: Dataset) -> Dataset:
    """Slice ``k``, upright ``(H, W)``, as instance ``number``."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[common.SeriesInstanceUID, str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.update(common)
    ds.file_meta = meta
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber = number
    height, width = rows.shape
    right, anterior, superior = (affine @ [width - 1, height - 1, k, 1])[:3]
    ds.ImagePositionPatient = [f"{value:.10g}" for value in (-right, -anterior, superior)]  # LPS
    ds.SliceLocation = f"{superior:.10g}"
    ds.Rows, ds.Columns = height, width
    ds.PixelData = (rows.astype(np.int32) - INTERCEPT).astype("<u2").tobytes()
    return ds
