# SPDX-License-Identifier: Apache-2.0
"""Labels as the viewers send them: NIfTI, NRRD or raw voxels, with codes that may be numbered the viewer's way."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from nibabel.orientations import io_orientation

from covid_monai.ct import CTScan, read_mask
from covid_monai.ct.scan import upright_view
from covid_monai.label.faults import LabelError

__all__ = ["read_label"]


def read_label(
    path: Path, scan: CTScan, classes: Mapping[str, int], segments: Sequence[Mapping[str, Any]] | None = None
) -> np.ndarray:
    """Read a label that lies on the grid of a scan.

    Args:
        path: NIfTI, NRRD, or raw bytes of voxels (``.bin``), the first axis fastest.
        scan: the scan.
        classes: code of each class of lesion by its name.
        segments: what 3D Slicer sends along: for each segment its ``name`` and its code ``idx`` in the file, which is
            its place in the list, from 1, where it is missing.

    Returns:
        (Z, H, W) uint8, upright, with 0 and the codes of ``classes``.

    Raises:
        LabelError: it is no label of this scan, or holds a code without a class.
    """
    mask = _named(_raw(path, scan) if path.suffix == ".bin" else _image(path, scan), classes, segments or ())
    if unknown := sorted(set(np.unique(mask).tolist()) - {0, *classes.values()}):
        known = ", ".join(f"{code} ({name})" for name, code in classes.items())
        raise LabelError(
            f"the label holds the code {unknown[0]}: give 0 and {known}, without segments of other things."
        )
    return mask


def _raw(path: Path, scan: CTScan) -> np.ndarray:
    values = np.fromfile(path, dtype=np.uint8)
    if values.size != np.prod(scan.shape):
        raise LabelError(
            f"the label has {values.size} voxels, its scan {np.prod(scan.shape)}: open that scan and save again."
        )
    return upright_view(values.reshape(scan.shape, order="F"), io_orientation(scan.affine)).copy()


def _image(path: Path, scan: CTScan) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        nifti = path
        if not path.name.endswith((".nii", ".nii.gz")):
            nifti = Path(folder, "label.nii")
            try:
                SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(nifti))
            except RuntimeError as error:
                raise LabelError("the label cannot be read: send it as .nii.gz, .nii, .nrrd or .bin.") from error
        try:
            return read_mask(nifti, scan).copy()
        except ValueError as error:
            raise LabelError(f"this is no label of that scan: {str(error).replace(nifti.name, 'it')}") from error


def _named(mask: np.ndarray, classes: Mapping[str, int], segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The mask with the codes that its segments' names have here; other segments must be empty."""
    if not segments:
        return mask
    table = np.zeros(256, dtype=np.uint8)
    given = [
        (int(segment.get("idx") or place), str(segment.get("name", ""))) for place, segment in enumerate(segments, 1)
    ]
    for code, name in given:
        if not 0 < code < 256:
            raise LabelError(f"the segment {name[:40]!r} has the code {code}: codes are 1 to 255.")
        if name not in classes and np.any(mask == code):
            raise LabelError(f"the segment {name[:40]!r} is none of {', '.join(classes)}: rename it, or take it out.")
        table[code] = classes.get(name, 0)
    if unlisted := sorted(set(np.unique(mask).tolist()) - {0, *(code for code, _ in given)}):
        raise LabelError(f"the label holds the code {unlisted[0]}, which none of its segments has: save it again.")
    return table[mask]
