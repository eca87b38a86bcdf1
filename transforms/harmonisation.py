# SPDX-License-Identifier: Apache-2.0
"""From 8-bit slices of unknown window to Hounsfield units: the line is estimated from the picture itself."""

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from monai.utils import convert_to_numpy
from scipy import ndimage
from scipy.special import ndtr

__all__ = ["estimate_hu_line"]

# Where nothing can be measured: the default lung window over 8 bits.
NOMINAL_LINE = (1500 / 255, -1350.0)

# Anchors of the dark end, (HU, its standard deviation between patients), measured on TCGA, LUNA16 and RICORD slices.
_OUTSIDE_AIR = (-985.0, 15.0)  # median of the air around the patient
_AIRWAY = (-978.0, 30.0)  # darkest spot within the chest, about 4 mm wide
_LUNG = (-915.0, 70.0)  # 20th percentile of the dark within the chest: aerated lung, also beside disease
# Windows in use, (HU, standard deviation): what grey 0 and the highest grey stand for.
_FLOOR = (-1280.0, 170.0)
_TOP = (140.0, 170.0)
# The bright end is a mixture of fat, soft tissue, what is brighter (contrast, bone) and partial volume.
_TISSUE_MEAN = np.array([-103.0, 42.0, 150.0, -250.0])
_TISSUE_SD = np.array([20.0, 20.0, 120.0, 250.0])
_TISSUE_SHARE = np.array([0.3, 0.5, 0.12, 0.08])
_NOISE_SD = np.array([15.0, 30.0, 50.0, 75.0])  # HU, of image noise; the best fitting is taken
_TISSUE_WEIGHT = 60.0  # independent pixels that a slice's bright end is worth
_SHARE_WEIGHT = 10.0  # and its expected shares
_TOPS = np.arange(-300.0, 520.0, 20.0)
_EM_STEPS = 8
_BIN = 4  # grey levels in a bin of the tissue histogram
_SMALL = 256  # a slice is measured on about so many pixels a side
_SLICES = 8  # and a stack on about so many slices
_FEW = 0.01  # share of the pixels below which nothing is read from a region


def estimate_hu_line(image: NdarrayOrTensor) -> tuple[float, float]:
    """Estimate the line from grey levels to HU of slices whose window is unknown.

    What grey 0 and the highest grey stand for is found as the most probable pair under three kinds of evidence:

    - anchors at the dark end: air around the patient, the darkest spot within the chest, aerated lung. Black
      frames, black annotations and greys clipped to 0 are left out;
    - the histogram of the bright end, as a mixture of fat, soft tissue and brighter matter seen through the window, the
      saturated share included (EM with the shares expected in a chest, maximum over the noise level);
    - the windows in common use, as a broad prior.

    The constants are HU of tissues, not fitted to an image set's grey levels; ``benchmarks/harmonisation.py`` has the
    errors. It is deterministic, and takes some milliseconds a slice.

    Args:
        image: grey levels, (C, H, W) or (C, X, Y, Z) with slices along the last axis, measured as one; any
            non-negative range: 0..255 is read as it is (also when the slice does not fill it), others from their
            lowest to their highest value.

    Returns:
        ``(slope, intercept)``, ``HU = slope * grey + intercept``. Where the image has no dark or no bright part, or
        they are less than a fifth of the range apart, it is the default lung window over 0..255.

    Raises:
        ValueError: another number of axes, no pixels, or, among the pixels measured, NaN, infinite values or values
            below 0 (already HU).
    """
    stack, low, high = _grey_stack(image)
    threshold = _otsu(np.bincount(stack.ravel(), minlength=256))
    outside, chest, spots, bright = (
        np.concatenate(parts) for parts in zip(*(_regions(s, threshold) for s in stack), strict=True)
    )
    few = _FEW * stack.size
    dark = np.concatenate([outside, chest])
    if dark.size < few or bright.size < few or bright.mean() - dark.mean() < 255 / 5:
        return NOMINAL_LINE
    anchors = _dark_anchors(outside, chest, spots, few)
    floor, top = _most_probable_window(anchors, np.bincount(bright, minlength=256)[threshold + 1 :])
    slope = (top - floor) / (high - low)
    return slope, floor - slope * low


def _grey_stack(image: NdarrayOrTensor) -> tuple[np.ndarray, float, float]:
    """Every few pixels and slices of the image as uint8 (N, h, w), and the greys that its 0 and 255 stand for."""
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(f"estimate_hu_line: image has shape {tuple(image.shape)}; give (C, H, W) or (C, X, Y, Z)")
    step = max(1, max(image.shape[1:3]) // _SMALL)
    stack = convert_to_numpy(image[:, ::step, ::step])
    if stack.ndim == 4:
        depth = stack.shape[-1]
        some = np.unique(np.linspace(0, depth - 1, min(depth, _SLICES)).round().astype(int))
        stack = np.moveaxis(stack[..., some], -1, 1).reshape(-1, *stack.shape[1:3])
    low, high = float(stack.min()), float(stack.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("estimate_hu_line: image has NaN or infinite values; replace them first")
    if low < 0:
        raise ValueError(
            f"estimate_hu_line: lowest value is {low:g}, no grey level; for an image in HU give the line (1, 0)"
        )
    if 1 < high <= 255:
        low, high = 0.0, 255.0
    return np.round((stack - low) * (255 / max(high - low, 1e-9))).astype(np.uint8), low, high


def _otsu(histogram: np.ndarray) -> int:
    """Otsu's threshold (IEEE TSMC 1979) of the greys 1..254; at most this grey is dark."""
    inner = np.where((np.arange(256) > 0) & (np.arange(256) < 255), histogram, 0) / max(1, histogram[1:255].sum())
    below, moment = np.cumsum(inner), np.cumsum(inner * np.arange(256))
    between = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return int(between.argmax())


def _regions(grey: np.ndarray, threshold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Greys of one slice (H, W): outside; chest, the dark in it as 3 x 3 means; of those, the ones over no 0; bright.

    A mean over a 0 is one over a black annotation or over what the window clipped.
    """
    dark = ndimage.maximum_filter(ndimage.minimum_filter((grey <= threshold).astype(np.uint8), 3), 3) > 0
    labels, _ = ndimage.label(dark)
    outside = dark & np.isin(labels, [labels[0, 0], labels[0, -1], labels[-1, 0], labels[-1, -1]])
    chest = ndimage.minimum_filter((dark & ~outside).astype(np.uint8), 3) > 0
    means = ndimage.uniform_filter(grey.astype(np.float32), 3)
    spots = means[chest & (ndimage.minimum_filter(grey, 3) > 0)]
    return grey[outside], means[chest], spots, grey[~dark & (grey > threshold)]


def _dark_anchors(outside: np.ndarray, chest: np.ndarray, spots: np.ndarray, few: float) -> np.ndarray:
    """Rows (grey, HU, standard deviation) of what the dark end shows, in greys 0..255."""
    anchors = []
    lung = np.percentile(chest, 20) if chest.size > few else np.inf
    air = outside[outside > 0]
    if air.size > max(few, 0.2 * outside.size):
        # lung of a slice cropped to it may reach a corner; then the outside is no darker than the chest
        level = np.median(air)
        anchors.append((level, *_OUTSIDE_AIR) if level <= lung else (np.percentile(air, 20), *_LUNG))
    if 1 < lung < np.inf:
        anchors.append((lung, *_LUNG))
    if spots.size > max(few, 0.99 * chest.size):
        anchors.append((np.percentile(spots, 0.1), *_AIRWAY))
    return np.array(anchors).reshape(-1, 3)


def _most_probable_window(anchors: np.ndarray, bright: np.ndarray) -> tuple[float, float]:
    """Floor and top of the window in HU: what grey 0 and grey 255 stand for.

    Args:
        anchors: rows (grey, HU, standard deviation).
        bright: histogram of the bright end; its last entry is grey 255, saturated.
    """
    # For each top, the floor that fits anchors and prior best, in closed form, and what is left of their misfit.
    part, weight = anchors[:, :1] / 255, anchors[:, 2:] ** -2.0
    missing = anchors[:, 1:2] - part * _TOPS
    floors = ((weight * (1 - part) * missing).sum(0) + _FLOOR[0] / _FLOOR[1] ** 2) / (
        (weight * (1 - part) ** 2).sum() + _FLOOR[1] ** -2.0
    )
    misfit = (weight * ((1 - part) * floors - missing) ** 2).sum(0)
    misfit += ((floors - _FLOOR[0]) / _FLOOR[1]) ** 2 + ((_TOPS - _TOP[0]) / _TOP[1]) ** 2
    score = _tissue_likelihood(bright, floors, _TOPS) - misfit / 2
    best = int(score.argmax())
    return float(floors[best]), float(_TOPS[best])


def _tissue_likelihood(bright: np.ndarray, floors: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """Weighted log-likelihood of the bright end's histogram under each window (floor, top)."""
    first = 256 - len(bright)
    edges = np.append(np.arange(first, 255, _BIN), 255)  # lower edges of the bins; the last is the saturated grey
    counts = np.add.reduceat(bright, edges - first).astype(float)
    counts /= counts.sum()
    hu = floors[:, None] + (tops - floors)[:, None] * (edges - 0.5) / 255
    sd = np.hypot(_TISSUE_SD, _NOISE_SD[:, None])
    # (window, noise, tissue, bin): share of the tissue above each edge, then within each bin
    above = ndtr((_TISSUE_MEAN[:, None] - hu[:, None, None, :]) / sd[..., None])
    within = -np.diff(above, axis=-1, append=0) / np.maximum(above[..., :1], 1e-3)
    within = np.maximum(within, 1e-6)
    share = np.broadcast_to(_TISSUE_SHARE, within.shape[:-1])
    for _ in range(_EM_STEPS):
        ratio = counts / (share[..., None, :] @ within)[..., 0, :]
        share = _TISSUE_WEIGHT * share * (within @ ratio[..., None])[..., 0] + _SHARE_WEIGHT * _TISSUE_SHARE
        share /= share.sum(-1, keepdims=True)
    fit = (counts * np.log((share[..., None, :] @ within)[..., 0, :])).sum(-1)
    prior = (_TISSUE_SHARE * np.log(share)).sum(-1)
    return (_TISSUE_WEIGHT * fit + _SHARE_WEIGHT * prior).max(1)
