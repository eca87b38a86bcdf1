# SPDX-License-Identifier: Apache-2.0
"""Cutting a lung or a lobe into parts of given volume, by smooth surfaces in its own coordinates.

The coordinates of a place (a lung, a lobe) are height (towards the head), depth (towards the back) and laterality (away
from the midline), in mm, each less its mean over the place and divided by its standard deviation there. A surface is
put where the wanted share of the volume lies below it. Neither depends on the grid, nor on how large the place is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covid_monai.severity.anatomy import LEFT_LUNG, RIGHT_LUNG
from covid_monai.severity.in_plane import bounding_box

__all__ = ["Cut", "Place", "Plane", "Sectors", "divide"]

SAMPLE = 250_000
"""Surfaces are placed on about this many voxels of a place, evenly spaced in reading order, or on all of fewer."""
Points = np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray]
"""Height, depth and laterality: (3, N), or three arrays that broadcast to a grid."""
OUTWARD = {RIGHT_LUNG.key: -1.0, LEFT_LUNG.key: 1.0}
"""Columns run from the patient's right to left, so that laterality runs against them in the right lung."""


@dataclass(frozen=True)
class Plane:
    """Coordinate ``height * h + depth * d + (lateral + twist * h) * l``; with a twist its level sets are no planes.

    Attributes:
        height: weight of the height.
        depth: weight of the depth.
        lateral: weight of the laterality.
        twist: how much that weight grows with the height.
    """

    height: float = 0.0
    depth: float = 0.0
    lateral: float = 0.0
    twist: float = 0.0

    def fitted(self, points: np.ndarray) -> Plane:
        """The coordinate itself: it needs nothing of the part that it cuts."""
        return self

    def __call__(self, points: Points) -> np.ndarray:
        """Values of points, or of a grid of them."""
        h, d, lateral = points
        return self.height * h + self.depth * d + (self.lateral + self.twist * h) * lateral


@dataclass(frozen=True)
class Sectors:
    """Coordinate: the angle about the part's own axis, by way of medial, anterior, lateral, posterior.

    Attributes:
        border: where the angle starts: degrees from medial towards anterior.
    """

    border: float

    def fitted(self, points: np.ndarray) -> _Angle:
        """The angle about the straight line along which the part's middle moves with the height."""
        h, *across = points
        rise, spread = h - h.mean(), float(h.var())
        slopes = [float(np.mean(rise * x)) / spread if spread > 0 else 0.0 for x in across]
        off_axis = [x - slope * h for x, slope in zip(across, slopes, strict=True)]
        return _Angle(
            np.deg2rad(self.border),
            slopes=(slopes[0], slopes[1]),
            centre=(float(off_axis[0].mean()), float(off_axis[1].mean())),
            radii=(_spread(off_axis[0]), _spread(off_axis[1])),
        )


@dataclass(frozen=True)
class _Angle:
    """A fitted `Sectors`: the axis in (depth, laterality), and the spread about it."""

    border: float
    slopes: tuple[float, float]
    centre: tuple[float, float]
    radii: tuple[float, float]

    def __call__(self, points: Points) -> np.ndarray:
        h, *across = points
        depth, lateral = (
            (x - slope * h - centre) / radius
            for x, slope, centre, radius in zip(across, self.slopes, self.centre, self.radii, strict=True)
        )
        return (np.arctan2(-depth, -lateral) - self.border) % (2 * np.pi)


@dataclass(frozen=True)
class Cut:
    """A part cut along a coordinate.

    Attributes:
        along: the coordinate.
        parts: from its low end to its high end: share of the volume, 0..1, and what lies there: a code or a further
            cut.
    """

    along: Plane | Sectors
    parts: tuple[tuple[float, Cut | int], ...]


@dataclass(frozen=True)
class Place:
    """What is cut: the key of the lung in which it lies, and how."""

    side: str
    cut: Cut


@dataclass(frozen=True)
class _Fitted:
    """A cut whose surfaces have been placed."""

    along: Plane | _Angle
    borders: np.ndarray
    parts: tuple[_Fitted | int, ...]

    def __call__(self, points: Points) -> np.ndarray:
        """Codes uint8 of points, or of a grid of them."""
        values = self.along(points)
        codes, *further = (np.uint8(part) if isinstance(part, int) else part(points) for part in self.parts)
        for border, beyond in zip(self.borders, further, strict=True):
            codes = np.where(values >= border, beyond, codes)
        return codes


def divide(
    labels: np.ndarray,
    places: Mapping[int, Place],
    spacing: tuple[float, float, float],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut every place of a mask into its parts.

    Args:
        labels: (Z, H, W) integers, upright: 0 or a code of ``places``.
        places: what is cut, by its code in ``labels``; codes that do not occur are passed over.
        spacing: (dz, dy, dx) in mm.
        out: (Z, H, W) uint8, where to put the codes: zero where ``labels`` is, or ``labels`` itself.

    Returns:
        (Z, H, W) uint8, the codes of the parts; zero exactly where ``labels`` is.

    Raises:
        ValueError: when ``labels`` is not three-dimensional, holds other codes or is boolean, or a spacing is not
            positive.
    """
    _check(labels, places, spacing)
    divided = np.zeros(labels.shape, dtype=np.uint8) if out is None else out
    box = (slice(None), *bounding_box(np.asarray(labels.any(axis=0)), 0, (1, 1)))
    labels, inside = labels[box], divided[box]
    cutters = {code: cutter for code, place in places.items() if (cutter := _cutter(labels, code, place, spacing))}
    rows, columns = (np.arange(length) for length in labels.shape[1:])
    for z, plane in enumerate(labels):
        shapes = [plane == code for code in cutters]  # before any of them is written, perhaps into the same memory
        for shape, cutter in zip(shapes, cutters.values(), strict=True):
            around = bounding_box(shape, 0, (1, 1))
            codes = cutter((np.array(z), rows[around[0], None], columns[around[1]]))
            np.copyto(inside[z][around], codes, where=shape[around])
    return divided


@dataclass(frozen=True)
class _Cutter:
    """From voxels to the codes of the parts of one place."""

    mean: np.ndarray  # (3,) index
    scale: np.ndarray  # (3,) mm towards head, back and side, over the place's standard deviation
    parts: _Fitted

    def __call__(self, indices: Points) -> np.ndarray:
        """Codes uint8 of voxels, or of a grid of them."""
        h, d, lateral = ((x - mean) * scale for x, mean, scale in zip(indices, self.mean, self.scale, strict=True))
        return self.parts((h, d, lateral))


def _cutter(labels: np.ndarray, code: int, place: Place, spacing: tuple[float, float, float]) -> _Cutter | None:
    """Coordinates and surfaces of a place, or None where its code does not occur."""
    voxels = sum(int(np.count_nonzero(plane == code)) for plane in labels)
    if not voxels:
        return None
    indices = _every(labels, code, -(-voxels // SAMPLE))
    towards = (spacing[0], spacing[1], OUTWARD[place.side] * spacing[2])
    mean = np.array([x.mean() for x in indices])
    scale = np.array([step / _spread(x * abs(step)) for x, step in zip(indices, towards, strict=True)])
    return _Cutter(mean, scale, _fit(place.cut, (indices - mean[:, None]) * scale[:, None]))


def _every(labels: np.ndarray, code: int, step: int) -> np.ndarray:
    """Indices (3, N) of every ``step``-th voxel of a code, in reading order; slice by slice, for the sake of memory."""
    found, before = [], 0
    for z, plane in enumerate(labels):
        voxels = np.flatnonzero(plane == code)
        rows, columns = np.unravel_index(voxels[-before % step :: step], plane.shape)
        found.append(np.stack([np.full(rows.shape, z), rows, columns]))
        before += len(voxels)
    return np.concatenate(found, axis=1)


def _fit(cut: Cut, points: np.ndarray) -> _Fitted:
    """Place the surfaces of a cut, and of those below it, by the quantiles of points (3, N); N may be 0."""
    if not points.size:
        points = np.zeros((3, 1))
    along = cut.along.fitted(points)
    values = along(points)
    borders = np.quantile(values, np.cumsum([share for share, _ in cut.parts])[:-1])
    found = np.searchsorted(borders, values, side="right")
    parts = tuple(
        part if isinstance(part, int) else _fit(part, points[:, found == number])
        for number, (_, part) in enumerate(cut.parts)
    )
    return _Fitted(along, borders, parts)


def _spread(values: np.ndarray) -> float:
    """Standard deviation, or 1 where there is none to divide by."""
    return float(values.std()) or 1.0


def _check(labels: np.ndarray, places: Mapping[int, Place], spacing: tuple[float, float, float]) -> None:
    if labels.ndim != 3 or len(spacing) != 3 or not all(0 < step < np.inf for step in spacing):
        raise ValueError(
            f"expected (Z, H, W) and three positive spacings in mm, got shape {labels.shape} and spacing {spacing}."
        )
    highest = max(places)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"the mask holds {labels.dtype} values: expected integer codes 0..{highest}.")
    if labels.size and not (labels.min() >= 0 and labels.max() <= highest):
        raise ValueError(f"the mask holds codes {labels.min()}..{labels.max()}: expected 0..{highest}.")
