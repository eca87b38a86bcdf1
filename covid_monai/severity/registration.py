# SPDX-License-Identifier: Apache-2.0
"""An earlier scan laid over a later one of the same patient: lungs and vessels registered, label masks warped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from covid_monai.severity.registration_grid import (
    GRID_MM,
    Fit,
    LungGrid,
    LungScan,
    best_shift,
    fit,
    folded_share,
    hat,
    in_bounds,
)

__all__ = ["TRUSTED_DICE", "TRUSTED_VESSELS", "Registration", "RegistrationError", "elastix", "register"]

TRUSTED_DICE = 0.9
"""Agreement of the registered lungs below which change maps are not to be trusted; a choice of ours."""
TRUSTED_VESSELS = 0.4
"""Correlation of the vessels below which they are not the same ones. Phantoms and moved real scans have 0.93 or more,
scans of different patients, whose lungs can be made to agree as well, 0.28 or less; no repeated scan was at hand."""
TRUSTED_SEEN = 0.9
"""Share of the later lungs in the earlier scan's view below which a reader is warned."""
TRUSTED_FOLDING = 0.001
"""Share of the lungs in which the deformation may turn tissue inside out before a reader is warned."""
RIM_MM = 12.0
"""Metrics are sampled in the lungs and this far around them, so that the pleura counts on both sides."""

_BOTH = {
    "AutomaticParameterEstimation": "true",
    "AutomaticScalesEstimation": "true",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "ImageSampler": "RandomCoordinate",
    "NewSamplesEveryIteration": "true",
    "CheckNumberOfSamples": "true",
    "RequiredRatioOfValidSamples": "0.05",
    "RandomSeed": "121212",
    "Interpolator": "LinearInterpolator",
    "Optimizer": "AdaptiveStochasticGradientDescent",
    "WriteResultImage": "false",
    "WriteTransformParametersEachResolution": "false",
    "HowToCombineTransforms": "Compose",
    "NumberOfSpatialSamples": "2048",
}
AFFINE = {
    **_BOTH,
    "Registration": "MultiResolutionRegistration",
    "Metric": "AdvancedNormalizedCorrelation",
    "Transform": "AffineTransform",
    "AutomaticTransformInitialization": "false",
    "NumberOfResolutions": "3",
    "ImagePyramidSchedule": "4 4 4 2 2 2 1 1 1",
    "MaximumNumberOfIterations": "100",
}
B_SPLINE = {
    **_BOTH,
    "Registration": "MultiMetricMultiResolutionRegistration",
    "Metric": "AdvancedNormalizedCorrelation TransformBendingEnergyPenalty",
    "Metric0Weight": "1.0",
    "Metric1Weight": "50.0",
    "Transform": "BSplineTransform",
    "FinalGridSpacingInPhysicalUnits": "20",
    "GridSpacingSchedule": "4 2 1",
    "NumberOfResolutions": "3",
    "ImagePyramidSchedule": "4 4 4 2 2 2 1 1 1",
    "MaximumNumberOfIterations": "150",
}


class RegistrationError(ValueError):
    """Two scans cannot be registered."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Where each place of a later scan lies in the earlier one.

    Positions are in mm from the first voxel of their scan, along (slices, rows, columns) of the upright arrays.

    Attributes:
        displacement: (3, z, y, x) float32: position in the earlier scan less that in the later one, in mm.
        nodes: positions of its three axes in the later scan; they enclose the lungs.
        spacing: (dz, dy, dx) of the later scan.
        shape: (Z, H, W) of the later scan.
        earlier_spacing: (dz, dy, dx) of the earlier scan.
        earlier_shape: (Z, H, W) of the earlier scan.
        dice_before: agreement of the lungs when they are only shifted over each other.
        fit: agreement after the registration.
        folded: share of the later lungs in which the deformation is not one-to-one, 0..1.
        warnings: what a reader of change maps must know.
    """

    displacement: np.ndarray
    nodes: tuple[np.ndarray, np.ndarray, np.ndarray]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    earlier_spacing: tuple[float, float, float]
    earlier_shape: tuple[int, int, int]
    dice_before: float
    fit: Fit
    folded: float
    warnings: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether lungs and vessels agree well enough for change maps."""
        vessels = self.fit.vessels
        return self.fit.dice >= TRUSTED_DICE and (vessels is None or vessels >= TRUSTED_VESSELS)

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Slices, rows and columns of the later scan that were registered: the lungs and a margin."""
        bounds = (
            (int(np.ceil(nodes[0] / step - 1e-6)), int(np.floor(nodes[-1] / step + 1e-6)))
            for nodes, step in zip(self.nodes, self.spacing, strict=True)
        )
        z, y, x = (slice(low, min(high + 1, size)) for (low, high), size in zip(bounds, self.shape, strict=True))
        return z, y, x

    def positions(self, z: int) -> np.ndarray:
        """Where the voxels of one later slice lie in the earlier array.

        Args:
            z: index of the slice, inside :attr:`box`.

        Returns:
            (3, h, w) float32: indices (slice, row, column) into the earlier arrays, for the rows and columns of
            :attr:`box`; outside the earlier arrays where that scan saw nothing.
        """
        _, rows, columns = (
            np.arange(side.start, side.stop) * step for side, step in zip(self.box, self.spacing, strict=True)
        )
        height = z * self.spacing[0]
        (along,) = hat(np.array([height]), self.nodes[0], GRID_MM)
        down, across = hat(rows, self.nodes[1], GRID_MM), hat(columns, self.nodes[2], GRID_MM)
        near = np.flatnonzero(along)
        coarse = np.tensordot(self.displacement[:, near], along[near], axes=(1, 0))
        mm = down @ coarse @ across.T
        mm += np.stack(np.broadcast_arrays(np.float32(height), rows[:, None], columns)).astype(np.float32)
        return mm / np.array(self.earlier_spacing, dtype=np.float32)[:, None, None]

    def warp(self, labels: np.ndarray, outside: int = 0) -> np.ndarray:
        """Bring a label mask of the earlier scan onto the later scan's grid, by the nearest voxel.

        Args:
            labels: (Z, H, W) of the earlier scan, integers.
            outside: what voxels get that were not registered or that the earlier scan did not see.

        Returns:
            (Z, H, W) of the later scan and of the type of ``labels``.

        Raises:
            ValueError: ``labels`` does not have the earlier scan's shape.
        """
        if labels.shape != self.earlier_shape:
            raise ValueError(f"labels have shape {labels.shape}, the earlier scan {self.earlier_shape}: give its mask.")
        warped = np.full(self.shape, outside, dtype=labels.dtype)
        slices, rows, columns = self.box
        for z in range(slices.start, slices.stop):
            index = np.rint(self.positions(z)).astype(np.int32)
            inside = in_bounds(index, self.earlier_shape)
            index = np.where(inside, index, 0)
            warped[z, rows, columns] = np.where(inside, labels[index[0], index[1], index[2]], outside)
        return warped


def elastix() -> Any:
    """The package ``itk`` with elastix in it; loading takes seconds the first time.

    Raises:
        RegistrationError: itk-elastix is not installed.
    """
    try:
        import itk

        _ = itk.ElastixRegistrationMethod, itk.ParameterObject  # itk loads its parts when they are asked for
    except (ImportError, AttributeError) as error:
        raise RegistrationError(
            "follow-up needs itk-elastix, which is not installed: pip install 'covid_monai[registration]'."
        ) from error
    return itk


def register(earlier: LungScan, later: LungScan) -> Registration:
    """Find where each place of a later scan lies in an earlier one of the same patient.

    Two examinations share no coordinates, so the scans' own are not used. The lungs are first laid over each other by
    a shift: their centroids, or in height their tops or bottoms, whichever makes them agree most where both scans
    see. An affine transform and then a B-spline of 20 mm follow (elastix: Klein et al. 2010, IEEE Trans Med Imaging
    29:196), by normalised correlation of the lungs alone on a grid of 3 mm: everything around them is made one value,
    so that ribs, along which the lungs slide, do not pull; lesions get the value of healthy lung, so that disease
    that comes or goes is not mistaken for motion. Vessels and the pleura remain. Seeded: the same scans give the same
    result.

    Args:
        earlier: the earlier scan.
        later: the later scan; any grid, spacing and field of view.

    Raises:
        RegistrationError: a scan has no lungs, shapes that differ or no positive spacing; or itk-elastix is missing.
    """
    for scan, which in ((earlier, "earlier"), (later, "later")):
        _check(scan, which)
    itk = elastix()
    moving, fixed = LungGrid.of(earlier), LungGrid.of(later)
    shift = best_shift(moving, fixed)
    trouble: tuple[str, ...] = ()
    try:
        displacement = _displacement(itk, moving, fixed, shift)
    except RuntimeError:
        trouble = ("The registration found no solution: the scans are only shifted over each other.",)
        displacement = np.zeros((3, *fixed.image.shape), dtype=np.float32)
    displacement += shift[:, None, None, None].astype(np.float32)
    found = fit(moving, fixed, displacement)
    folded = folded_share(displacement, fixed.lungs != 0)
    return Registration(
        displacement=displacement,
        nodes=fixed.nodes,
        spacing=later.spacing,
        shape=_shape(later.hu),
        earlier_spacing=earlier.spacing,
        earlier_shape=_shape(earlier.hu),
        dice_before=fit(moving, fixed, shift[:, None, None, None]).dice,
        fit=found,
        folded=folded,
        warnings=(*trouble, *_warnings(found, folded)),
    )


def _shape(array: np.ndarray) -> tuple[int, int, int]:
    z, y, x = array.shape
    return z, y, x


def _check(scan: LungScan, which: str) -> None:
    lungs = scan.lungs
    shapes = {array.shape for array in (scan.hu, lungs, scan.lesions)}
    if len(shapes) > 1 or scan.hu.ndim != 3:
        raise RegistrationError(f"the {which} scan's arrays have the shapes {sorted(shapes)}: give one (Z, H, W).")
    if len(scan.spacing) != 3 or not min(scan.spacing) > 0:
        raise RegistrationError(f"the {which} scan has spacing {scan.spacing}: give three positive lengths in mm.")
    if not lungs.any():
        raise RegistrationError(f"no lung was found in the {which} scan: scans are registered by their lungs.")


def _warnings(found: Fit, folded: float) -> Iterator[str]:
    """What a reader of change maps must know."""
    if found.dice < TRUSTED_DICE:
        yield (
            f"The lungs agree by a Dice of {found.dice:.2f} after registration, below {TRUSTED_DICE:.2f}: "
            "change maps are not to be trusted."
        )
    if found.vessels is not None and found.vessels < TRUSTED_VESSELS:
        yield (
            f"The vessels in the lungs do not agree (correlation {found.vessels:.2f}, below {TRUSTED_VESSELS:.2f}): "
            "the scans may be of different patients, and change maps are not to be trusted."
        )
    if found.seen < TRUSTED_SEEN:
        yield (
            f"The earlier scan shows {100 * found.seen:.0f} % of the later lungs: lesions in the rest can be called "
            "neither new nor persisting."
        )
    if folded > TRUSTED_FOLDING:
        yield f"The deformation folds in {100 * folded:.1f} % of the lungs: change maps are doubtful in places."


def _displacement(itk: Any, moving: LungGrid, fixed: LungGrid, shift: np.ndarray) -> np.ndarray:
    """(3, z, y, x) float32 mm in order (z, y, x) that is left after the shift, by affine and B-spline."""
    around = ndimage.distance_transform_edt(fixed.lungs == 0) * GRID_MM <= RIM_MM
    start = np.array([points[0] for points in fixed.nodes])
    fixed_image = _itk_image(itk, fixed.image, start)
    moving_image = _itk_image(itk, moving.image, np.array([points[0] for points in moving.nodes]) - shift)
    _, found = itk.elastix_registration_method(
        fixed_image,
        moving_image,
        parameter_object=_parameters(itk),
        fixed_mask=_itk_image(itk, around.astype(np.uint8), start),
        log_to_console=False,
        log_to_file=False,
    )
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:  # transformix always writes the field to a file
        field = itk.transformix_deformation_field(
            moving_image, found, output_directory=folder, log_to_console=False, log_to_file=False
        )
        return np.moveaxis(itk.array_from_image(field), -1, 0)[::-1].astype(np.float32)


def _parameters(itk: Any) -> Any:
    """Both stages as elastix takes them: a list of words for each setting."""
    parameters = itk.ParameterObject.New()
    for stage in (AFFINE, B_SPLINE):
        parameters.AddParameterMap({name: tuple(words.split()) for name, words in stage.items()})
    return parameters


def _itk_image(itk: Any, array: np.ndarray, start: np.ndarray) -> Any:
    """An image of (z, y, x) on GRID_MM whose first voxel lies at ``start`` (z, y, x)."""
    image = itk.image_from_array(np.ascontiguousarray(array))
    image.SetSpacing([GRID_MM] * 3)
    image.SetOrigin([float(position) for position in start[::-1]])
    return image
