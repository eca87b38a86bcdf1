# SPDX-License-Identifier: Apache-2.0
"""A CT scan with its geometry, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from covid_monai.ct.checks import Units, check_affine

if TYPE_CHECKING:
    from monai.data import MetaTensor

# Slices from inferior to superior, rows from anterior to posterior, columns from the patient's right to left.
_UPRIGHT = axcodes2ornt(("S", "P", "L"))


def upright_view(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Turn an array (X, Y, Z) into upright slices (Z, H, W), a view, see :py:meth:`CTScan.upright`.

    Args:
        array: of any type.
        orientation: where its axes point, as ``nibabel.orientations.io_orientation`` gives it.
    """
    return apply_orientation(array, ornt_transform(orientation, _UPRIGHT))


@dataclass(frozen=True)
class SourceFacts:
    """Where a scan comes from, as far as it matters for reading it. Holds no patient data, date, free text or path.

    Args:
        format: ``"DICOM"``, ``"NIfTI"`` or ``"slice images"``.
        files: number of files the scan was read from.
        slice_thickness: nominal slice thickness in mm, or None when not stated.
        kernel: convolution kernel, or None.
        manufacturer: maker of the scanner, or None.
        model: the scanner's model name, or None.
        kvp: tube voltage in kV, or None.
        contrast: True when a contrast agent is recorded, False when its absence is, None when nothing is said.
    """

    format: str
    files: int
    slice_thickness: float | None = None
    kernel: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    kvp: float | None = None
    contrast: bool | None = None


@dataclass(frozen=True, eq=False)
class CTScan:
    """A CT scan on its own grid.

    Args:
        array: (X, Y, Z), any memory order, in the unit of ``units``. Memory is shared when it is int16 or float32
            without negative strides; all else is copied, other types into float32. For DICOM the axes are columns,
            rows, slices.
        affine: (4, 4), voxel indices to RAS+ patient coordinates in mm.
        source: facts about the source, without patient data.
        units: ``"HU"``, or ``"grey"`` for grey levels 0..255 under an unknown window.
        spacing_known: False when the source gives no lengths; ``affine`` then has nominal voxels of 1 mm.
        warnings: what a reader of the results must know, one sentence each.

    Raises:
        ValueError: ``array`` is not (X, Y, Z), or ``units`` is none of the two.
        MissingGeometry: the affine is not finite or not invertible.
        TiltedGantry: the affine is sheared.
    """

    array: np.ndarray
    affine: np.ndarray
    source: SourceFacts
    _: KW_ONLY
    units: Units = "HU"
    spacing_known: bool = True
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        array, affine = np.asarray(self.array), np.array(self.affine, dtype=np.float64)
        if array.ndim != 3:
            raise ValueError(f"array has shape {array.shape}: give (X, Y, Z).")
        if self.units not in ("HU", "grey"):
            raise ValueError(f'units is {self.units!r}: give "HU" or "grey".')
        check_affine(affine, "The volume")
        if array.dtype != np.int16:
            array = array.astype(np.float32, copy=False)
        if min(array.strides) < 0:  # which torch does not take
            array = array.copy()
        affine.setflags(write=False)
        for name, value in (("array", array), ("affine", affine), ("warnings", tuple(self.warnings))):
            object.__setattr__(self, name, value)

    @cached_property
    def id(self) -> str:
        """Name of the scan by its content, nothing of the patient, the same wherever it lies.

        The first 16 hexadecimal digits of the SHA-256 over the affine and the voxels in float32; computed once, so the
        voxels must not be changed afterwards.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.affine).tobytes())
        for plane in self.array.T:  # (Y, X), as the readers lay them down
            digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
        return digest.hexdigest()[:16]

    @property
    def volume(self) -> MetaTensor:
        """The scan for MONAI: (1, X, Y, Z) with its affine, as ``LoadImage`` gives it; memory is shared."""
        import torch  # not before: a scan is read in less time than these take
        from monai.data import MetaTensor
        from monai.utils import MetaKeys, SpaceKeys

        meta = {
            MetaKeys.ORIGINAL_AFFINE: self.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(self.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        return MetaTensor(torch.from_numpy(self.array)[None], affine=torch.tensor(self.affine), meta=meta)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each own axis, in mm (nominal unless ``spacing_known``)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float | None:
        """Volume of a voxel in mL, or None when the source gives no lengths."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000 if self.spacing_known else None

    def upright(self) -> np.ndarray:
        """The scan as a radiologist looks at it.

        Returns:
            (Z, H, W), of the type of ``array``: slices from inferior to superior, rows from anterior to posterior,
            columns from the patient's right to left, along the own axes closest to these directions. A view without a
            copy; its strides may be negative, so copy a slice (``np.ascontiguousarray``) before torch takes it.
        """
        return upright_view(self.array, io_orientation(self.affine))

    def from_upright(self, array: np.ndarray) -> np.ndarray:
        """Put an upright array, e.g. a mask, back on the scan's own grid.

        Args:
            array: (Z, H, W) of any type, in the order of :py:meth:`upright`.

        Returns:
            (X, Y, Z) view of ``array``.

        Raises:
            ValueError: ``array`` has another shape than the upright scan.
        """
        array = np.asarray(array)
        if array.shape != (expected := self.upright().shape):
            raise ValueError(f"The array has shape {array.shape}, the upright scan {expected}: give (Z, H, W).")
        return apply_orientation(array, ornt_transform(_UPRIGHT, io_orientation(self.affine)))

    @property
    def upright_spacing(self) -> tuple[float, float, float]:
        """(dz, dy, dx) in mm for the axes of :py:meth:`upright` (nominal unless ``spacing_known``)."""
        order = np.argsort(ornt_transform(io_orientation(self.affine), _UPRIGHT)[:, 0])
        z, y, x = (self.spacing[axis] for axis in order)
        return z, y, x
