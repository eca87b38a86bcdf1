# SPDX-License-Identifier: Apache-2.0
"""The checks every scan passes, whatever it is read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from covid_monai.ct.faults import ImplausibleValues, MissingGeometry, TiltedGantry, TooFewSlices

#: Air. What lies below is padding of the scanner (-2000, -3024) and is set to it.
LOWEST_HU = -1024.0
#: A whole scan within these bounds holds 8-bit grey levels (a little interpolation overshoot allowed), not HU.
GREY_BOUNDS = (-50.0, 300.0)
#: Largest angle, in degrees, between the slice normal and the stacking direction that rounded positions explain.
TILT_TOLERANCE = 0.5
#: Slices thicker than this, in mm, blur small lesions.
THICK_SLICE = 5.0
#: Fewer slices do not make a volume: one interval alone cannot show whether the spacing is regular.
FEWEST_SLICES = 3
#: Distances, in mm, between which voxel edges of a chest CT lie.
PLAUSIBLE_SPACING = (0.1, 20.0)
#: mm; a whole body on the longest couch is shorter.
LARGEST_EXTENT = 2500.0

Units = Literal["HU", "grey"]


def check_affine(affine: np.ndarray, where: str) -> None:
    """Refuse an affine that is not finite, not invertible or sheared.

    Args:
        affine: (4, 4), voxel indices to mm.
        where: begins the message, e.g. the file's name.

    Raises:
        MissingGeometry: it is not finite or not invertible.
        TiltedGantry: two axes are more than ``TILT_TOLERANCE`` degrees off the right angle.
    """
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all() or abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise MissingGeometry(
            f"{where} has an affine that is not finite or not invertible: convert the original DICOM series again."
        )
    cosines = np.abs((axes / lengths).T @ (axes / lengths) - np.eye(3)).max()
    angle = float(np.degrees(np.arcsin(min(cosines, 1.0))))
    if angle > TILT_TOLERANCE:
        raise TiltedGantry(
            f"{where} has a grid sheared by {angle:.1f} degrees (gantry tilt?): resample it onto a rectangular grid."
        )


def check_extent(affine: np.ndarray, shape: Sequence[int], where: str) -> None:
    """Refuse a grid that is larger than any patient.

    Args:
        affine: (4, 4), voxel indices to mm.
        shape: (X, Y, Z).
        where: begins the message, e.g. the file's name.

    Raises:
        MissingGeometry: it is more than ``LARGEST_EXTENT`` long.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    longest = float((spacing * shape).max())
    if longest > LARGEST_EXTENT:
        size = " x ".join(f"{length:g}" for length in spacing)
        raise MissingGeometry(
            f"{where} is {longest / 1000:.1f} m long, with voxels of {size} mm: its lengths are wrong (micrometres?), "
            "export it again."
        )


class ValueRange:
    """Follows the values of a scan while its slices are read.

    Args:
        where: begins the messages, e.g. the file's name.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.low = np.inf
        self.high = -np.inf

    def take(self, plane: np.ndarray, place: str) -> None:
        """Note the range of a slice and raise its padding to ``LOWEST_HU``, in place.

        Args:
            plane: float32, or signed integers of two bytes or more.
            place: which slice, for the message.

        Raises:
            ImplausibleValues: a value is NaN or infinite.
        """
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            count = int(plane.size - np.isfinite(plane).sum())
            raise ImplausibleValues(
                f"{self.where} holds {count} NaN or infinite values in {place}: export the scan again without them."
            )
        np.maximum(plane, plane.dtype.type(LOWEST_HU), out=plane)
        self.low = min(self.low, float(plane.min()))
        self.high = max(self.high, float(plane.max()))

    def units(self) -> tuple[Units, list[str]]:
        """Which unit these values are in.

        Returns:
            The unit, and a warning when it is a guess.

        Raises:
            ImplausibleValues: all values lie in 0..10.
        """
        found = f"{self.low:g} to {self.high:g}"
        if self.low >= 0 and self.high <= 10:
            raise ImplausibleValues(
                f"{self.where} holds values from {found} only, a mask or a rescaled image: give the CT in HU."
            )
        if self.low >= GREY_BOUNDS[0] and self.high <= GREY_BOUNDS[1]:
            return "grey", [
                f"The values ({found}) look like grey levels of an unknown window, not HU: densities are approximate."
            ]
        if self.low > -500:
            return "HU", [
                f"No air in the scan (lowest value {self.low:g} HU): the values may be shifted, or this is no chest CT."
            ]
        return "HU", []


def check_depth(slices: int, where: str) -> None:
    """Refuse what is not a volume.

    Raises:
        TooFewSlices: fewer than ``FEWEST_SLICES``.
    """
    if slices < FEWEST_SLICES:
        raise TooFewSlices(
            f"{where} has {slices} slice{'s' * (slices != 1)}, a volume needs at least {FEWEST_SLICES}: "
            "give the whole series (or a single slice as PNG or JPEG)."
        )


def geometry_warnings(affine: np.ndarray, slice_axis: int, thickness: float | None) -> list[str]:
    """What is unusual about a grid, in words for a radiologist.

    Args:
        affine: (4, 4), voxel indices to RAS+ mm.
        slice_axis: own axis along which the slices are stacked.
        thickness: nominal slice thickness in mm, or None.

    Returns:
        Sentences; none for axial slices of usual thickness.
    """
    found = []
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    distance = float(spacing[slice_axis])
    direction = np.abs(axes[:, slice_axis]) / distance
    closest = int(np.argmax(direction))
    if closest != 2:
        plane = ("sagittal", "coronal")[closest]
        found.append(f"The slices are {plane}, not axial: resolution in the axial plane is that of a reformat.")
    elif (angle := float(np.degrees(np.arccos(min(direction[2], 1.0))))) > 10:
        found.append(f"The slices are {angle:.0f} degrees off the axial plane: regions may be assigned inexactly.")
    depth = max(thickness or 0.0, distance)
    if depth > THICK_SLICE + 0.01:
        found.append(
            f"Slices are {depth:g} mm thick or apart, more than {THICK_SLICE:g} mm: small lesions may be missed."
        )
    if thickness and distance > 1.5 * thickness:
        found.append(
            f"Slices of {thickness:g} mm lie {distance:g} mm apart: what lies between is unseen, volumes are estimates."
        )
    low, high = PLAUSIBLE_SPACING
    if spacing.min() < low or spacing.max() > high:
        size = " x ".join(f"{length:g}" for length in spacing)
        found.append(f"Voxels of {size} mm are implausible for a chest CT: check the lengths before using any volume.")
    return found
