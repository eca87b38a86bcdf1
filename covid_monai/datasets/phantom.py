# SPDX-License-Identifier: Apache-2.0
"""A synthetic chest CT in HU with lesions of known volume: seeded, like no patient, free to publish."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from covid_monai.datasets.faults import DatasetError
from covid_monai.datasets.grid import Field, Grid, paint
from covid_monai.datasets.phantom_dicom import write_series
from covid_monai.datasets.thorax import BLOOD, Thorax
from covid_monai.whole_files import unfinished_folder

FIELD_OF_VIEW = (360.0, 360.0, 288.0)  # mm, when no spacing is asked for
IMAGE = "image.nii.gz"
TRUTH = ("lesions.nii.gz", "lungs.nii.gz", "truth.json")


@dataclass(frozen=True)
class Lesions:
    """What is wrong with the lungs of a phantom.

    Attributes:
        share: share of the lung volume inside lesions, 0..0.8; met to about a tenth of itself, counted exactly in the
            truth.
        consolidation: share of the lesions that is consolidated, 0..1.
    """

    share: float = 0.12
    consolidation: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 0.8 and 0 <= self.consolidation <= 1):
            raise ValueError(f"lesions {self}: share must be 0..0.8 and consolidation 0..1")


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan and its truth.

    Attributes:
        hu: int16 ``(X, Y, Z)`` in HU, RAS+ axes.
        lesions: uint8 ``(X, Y, Z)``: 0 background, 1 ground-glass opacity, 2 consolidation.
        lungs: uint8 ``(X, Y, Z)``: 1 right lung, 2 left lung, lesions included, trachea and main bronchi not.
        affine: 4x4, voxel to mm, RAS+.
        seed: that made it.
        truth: figures counted from the masks: volumes in mL, ``lesion_share`` 0..1 of the lungs.
    """

    hu: np.ndarray
    lesions: np.ndarray
    lungs: np.ndarray
    affine: np.ndarray
    seed: int
    truth: dict[str, float] = field(default_factory=dict)

    def write_nifti(self, folder: Path) -> Path:
        """Write ``image.nii.gz`` (int16, HU) and the truth, see `write_truth`; returns the path of the image.

        Raises:
            DatasetError: if one of these files is there already; nothing is written then.
        """
        self._write(Path(folder), (IMAGE, *TRUTH))
        return Path(folder) / IMAGE

    def write_truth(self, folder: Path) -> None:
        """Write ``lesions.nii.gz``, ``lungs.nii.gz`` (uint8 codes on the grid of the image) and ``truth.json``.

        Raises:
            DatasetError: if one of these files is there already; nothing is written then.
        """
        self._write(Path(folder), TRUTH)

    def write_dicom(self, folder: Path) -> Path:
        """Write a CT series into an empty or new folder, see `phantom_dicom.write_series`; returns the folder.

        Its truth belongs beside the folder and is written after it, see `write_truth`.

        Raises:
            ValueError: if the folder holds anything, or a truth lies beside it already; nothing is written then.
        """
        folder = Path(folder)
        _refuse_present(folder.absolute().parent, TRUTH)
        return write_series(self.hu, self.affine, self.seed, folder)

    def _write(self, folder: Path, names: tuple[str, ...]) -> None:
        """Write files under temporary names and rename them when all are whole."""
        _refuse_present(folder, names)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {IMAGE: self.hu, "lesions.nii.gz": self.lesions, "lungs.nii.gz": self.lungs}
        with unfinished_folder(folder) as unfinished:
            for name in names:
                if name in arrays:
                    _save_nifti(arrays[name], self.affine, unfinished / name)
                else:
                    (unfinished / name).write_text(json.dumps(self.truth, indent=1) + "\n", encoding="utf-8")
            for name in names:
                (unfinished / name).rename(folder / name)


def _refuse_present(folder: Path, names: tuple[str, ...]) -> None:
    if present := [name for name in names if (folder / name).exists()]:
        raise DatasetError(f"{folder} holds {', '.join(present)} already: choose another folder or remove them")


def upright(array: np.ndarray) -> np.ndarray:
    """View of an array ``(X, Y, Z)`` of a phantom as slices ``(Z, H, W)``: anterior up, patient's right on the left."""
    return array[::-1, ::-1].T


def _save_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic thorax; research use only"
    nib.save(image, path)


class _Disease:
    """Where lesions are: scores that grow from patch to patch, towards ribs and diaphragm, the back and the bases."""

    def __init__(self, rng: np.random.Generator, thorax: Thorax, lesions: Lesions) -> None:
        self.patches, self.lumps, self.edge, self.dense = (Field(rng, mm) for mm in (38.0, 17.0, 7.0, 22.0))
        self.ggo_threshold = self.dense_threshold = np.inf
        if lesions.share == 0:
            return
        grid = Grid(np.arange(-140.0, 141.0, 5.0), np.arange(-100.0, 101.0, 5.0), 5.0)
        values = []
        for z in np.arange(-140.0, 130.0, 7.0):
            depth = thorax.lung(grid, z)
            values.append(np.stack([score[depth > 0] for score in self.scores(grid, z, thorax.costal(grid, z))]))
        score, dense = np.concatenate(values, axis=1)
        self.ggo_threshold = float(np.quantile(score, 1 - lesions.share))
        if lesions.consolidation > 0:
            self.dense_threshold = float(np.quantile(dense[score >= self.ggo_threshold], 1 - lesions.consolidation))

    def scores(self, grid: Grid, z: float, costal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores ``(Y, X)`` of lesion and of consolidation; ``costal``: distance from ribs and diaphragm."""
        outer = np.exp(-np.maximum(costal, 0) / 16)
        score = self.patches(grid, z) + 0.6 * self.lumps(grid, z) + 0.22 * self.edge(grid, z)
        score += 1.5 * outer - 0.006 * grid.y[:, None] - 0.004 * z
        return score, score + 0.9 * self.dense(grid, z)


def _soft(score: np.ndarray, threshold: float, width: float) -> np.ndarray:
    """Smooth step 0..1 that passes 0.5 at the threshold."""
    t = np.clip((score - threshold) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _noise(rng: np.random.Generator, shape: tuple[int, int], deviation: float) -> np.ndarray:
    """Noise with the band-like spectrum of a filtered back projection: ramp times low pass."""
    white = rng.standard_normal(shape, dtype=np.float32)
    band = ndimage.gaussian_filter(white, 0.75) - 0.75 * ndimage.gaussian_filter(white, 1.8)
    return band * (deviation / max(float(band.std()), 1e-6))


def make_phantom(
    seed: int = 0,
    shape: tuple[int, int, int] = (256, 256, 48),
    spacing: tuple[float, float, float] | None = None,
    lesions: Lesions | None = Lesions(),
    *,
    noise: float = 16.0,
    thickness: float | None = None,
) -> Phantom:
    """Make one patient.

    Args:
        seed: everything random comes from it.
        shape: voxels along X, Y, Z.
        spacing: mm; None divides the field of view of 360 x 360 x 288 mm, which holds the whole thorax, by ``shape``.
            A smaller field shows the middle of the thorax.
        lesions: None for healthy lungs.
        noise: standard deviation in HU.
        thickness: of a slice, mm; None for that of the spacing.

    Raises:
        ValueError: if shape or spacing has not three entries, or one of them, the noise or the thickness is too small.
    """
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"phantom shape {shape}: expected three numbers of at least 2")
    spacing = spacing or (FIELD_OF_VIEW[0] / shape[0], FIELD_OF_VIEW[1] / shape[1], FIELD_OF_VIEW[2] / shape[2])
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(f"phantom spacing {spacing}: expected three positive numbers of mm")
    thickness = spacing[2] if thickness is None else thickness
    if not (noise >= 0 and thickness > 0):
        raise ValueError(f"phantom noise {noise}, thickness {thickness}: expected HU of at least 0 and mm above 0")
    anatomy_rng, disease_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    thorax = Thorax(anatomy_rng)
    disease = _Disease(disease_rng, thorax, lesions or Lesions(0.0))
    first = [-(n - 1) / 2 * step for n, step in zip(shape, spacing, strict=True)]
    x, y, heights = (
        np.float32(start) + np.float32(step) * np.arange(n, dtype=np.float32)
        for start, step, n in zip(first, spacing, shape, strict=True)
    )
    grid = Grid(x, y, thickness)
    hu, lesion, lung = (np.zeros(shape[::-1], dtype=kind) for kind in (np.int16, np.uint8, np.uint8))  # (Z, Y, X)
    for k, z in enumerate(heights.tolist()):
        values, lesion[k], lung[k] = _slice(thorax, disease, grid, z)
        values = ndimage.gaussian_filter(values, 0.45)
        values += _noise(noise_rng, values.shape, noise)
        np.clip(np.rint(values), -1024, 3071, out=values)
        hu[k] = values
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first
    phantom = Phantom(hu.T, lesion.T, lung.T, affine, seed)
    phantom.truth.update(_figures(phantom))
    return phantom


def _slice(thorax: Thorax, disease: _Disease, grid: Grid, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU without noise, lesion codes and lung codes of one slice, each ``(Y, X)``."""
    hu = thorax.paint_outside_lungs(grid, z, thorax.cavity(grid, z))
    depth = thorax.lung(grid, z)
    lung = (depth > 0) & (thorax.airways.cover(grid, z, widen=1.0) < 0.5) | (depth > 4)
    lesion = np.zeros(hu.shape, dtype=np.uint8)
    if lung.any():
        air = thorax.lung_hu + 18 * thorax.density(grid, z) - 0.25 * grid.y[:, None]
        if np.isfinite(disease.ggo_threshold):
            score, dense = disease.scores(grid, z, thorax.costal(grid, z))
            haze = _soft(score, disease.ggo_threshold, 0.55)
            solid = _soft(dense, disease.dense_threshold, 0.4) * (score >= disease.ggo_threshold)
            air += haze * (320 + 45 * disease.dense(grid, z))
            paint(air, 15 + 18 * disease.lumps(grid, z), solid)
            lesion[lung & (score >= disease.ggo_threshold)] = 1
            lesion[(lesion == 1) & (dense >= disease.dense_threshold)] = 2
        vessels = thorax.vessels.cover(grid, z)
        np.maximum(air, air + vessels * (45 - air), out=air)
        paint(hu, air, grid.cover(depth))
        paint(hu, BLOOD, thorax.great_vessels.cover(grid, z))  # hilar vessels reach into the lungs
    thorax.paint_airways(hu, grid, z, depth)
    return hu, lesion, lung * np.where(grid.x[None] > 0, np.uint8(1), np.uint8(2))


def _figures(phantom: Phantom) -> dict[str, float]:
    """Volumes (mL) and shares (0..1) counted from the masks."""
    voxel_ml = math.prod(np.diag(phantom.affine)[:3].tolist()) / 1000
    right, left = (int(np.count_nonzero(phantom.lungs == code)) for code in (1, 2))
    ggo, solid = (int(np.count_nonzero(phantom.lesions == code)) for code in (1, 2))
    return {
        "lung_ml": (right + left) * voxel_ml,
        "right_lung_ml": right * voxel_ml,
        "left_lung_ml": left * voxel_ml,
        "lesion_ml": (ggo + solid) * voxel_ml,
        "ground_glass_ml": ggo * voxel_ml,
        "consolidation_ml": solid * voxel_ml,
        "lesion_share": (ggo + solid) / (right + left) if right + left else 0.0,
    }
