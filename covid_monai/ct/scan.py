# SPDX-License-Identifier: Apache-2.0
"""A CT scan with its geometry, whatever it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from covid_monai.ct.checks import Units, check_affine

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
        volume: MetaTensor (1, X, Y, Z), int16 where all values are whole and float32 else, in the unit of ``units``,
            with the 4x4 affine from voxel indices to RAS+ patient coordinates in mm. For DICOM the axes are columns,
            rows, slices.
        units: ``"HU"``, or ``"grey"`` for grey levels 0..255 under an unknown window.
        spacing_known: False when the source gives no lengths; ``affine`` then has nominal voxels of 1 mm.
        source: facts about the source, without patient data.
        warnings: what a reader of the results must know, one sentence each.

    Raises:
        ValueError: ``volume`` is no MetaTensor of shape (1, X, Y, Z) or ``units`` is none of the two.
        MissingGeometry: the affine is not finite or not invertible.
        TiltedGantry: the affine is sheared.
    """

    volume: MetaTensor
    units: Units
    spacing_known: bool
    source: SourceFacts
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.volume, MetaTensor) or self.volume.ndim != 4 or self.volume.shape[0] != 1:
            found = f"{type(self.volume).__name__} of shape {tuple(np.shape(self.volume))}"
            raise ValueError(f"volume is a {found}: give a MetaTensor of shape (1, X, Y, Z).")
        if self.units not in ("HU", "grey"):
            raise ValueError(f'units is {self.units!r}: give "HU" or "grey".')
        check_affine(self.affine, "The volume")

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        affine: np.ndarray,
        source: SourceFacts,
        *,
        units: Units = "HU",
        spacing_known: bool = True,
        warnings: Sequence[str] = (),
    ) -> CTScan:
        """A scan from an array; memory is shared when ``array`` is int16 or float32, which all else becomes.

        Args:
            array: (X, Y, Z), any memory order without negative strides.
            affine: (4, 4), voxel indices to RAS+ coordinates in mm.
            source: facts about the source.
            units: unit of the values.
            spacing_known: False when the lengths in ``affine`` are nominal.
            warnings: what a reader of the results must know.
        """
        array = np.asarray(array)
        tensor = torch.from_numpy(array if array.dtype == np.int16 else array.astype(np.float32, copy=False))
        matrix = torch.as_tensor(affine, dtype=torch.float64)
        meta = {
            MetaKeys.ORIGINAL_AFFINE: matrix.numpy().copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(tensor.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        volume = MetaTensor(tensor[None], affine=matrix, meta=meta)
        return cls(volume, units, spacing_known, source, tuple(warnings))

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS+ coordinates in mm, (4, 4) float64."""
        return self.volume.affine.numpy().astype(np.float64)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        x, y, z = self.volume.shape[1:]
        return int(x), int(y), int(z)

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
            (Z, H, W), of the type of ``volume``: slices from inferior to superior, rows from anterior to posterior,
            columns from the patient's right to left, along the own axes closest to these directions. A view without a
            copy; its strides may be negative, so copy a slice (``np.ascontiguousarray``) before torch takes it.
        """
        return upright_view(self.volume[0].numpy(), io_orientation(self.affine))

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
