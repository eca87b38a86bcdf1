# SPDX-License-Identifier: Apache-2.0
"""What other scanners and protocols do to a bundle: Dice and marked lung under simulated shifts, one at a time.

    python benchmarks/shifts.py --bundle DIR [--weights FILE] [--datalist FILE --distance MM]

Scans are a phantom with lesions in slices of 3 and of 8 mm, one without, all in true HU, and, with a datalist, the
volumes of its validation side, each with every shift. Nothing outside the lungs is dropped. A shift that moves the body
moves the reference with it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from covid_monai.datasets import load_side
from covid_monai.datasets.phantom import Lesions, make_phantom, upright
from covid_monai.datasets.slices import read_slice
from covid_monai.inference import LesionSegmenter
from covid_monai.severity import dice
from covid_monai.transforms import GreyToHU

AIR = -1000.0
PHANTOM_DISTANCE = 10.0  # mm


class Scan(NamedTuple):
    """Upright slices (Z, H, W): HU, reference lesions and lungs as booleans, and mm from slice to slice where known."""

    hu: np.ndarray
    lesions: np.ndarray
    lungs: np.ndarray
    distance: float | None


Shift = Callable[[Scan], Scan]


def in_greys(change: Callable[[np.ndarray], np.ndarray]) -> Shift:
    """A shift that leaves everything in its place."""
    return lambda scan: scan._replace(hu=change(scan.hu).astype(np.float32))


def noise(std: float) -> Shift:
    """Independent noise of so many HU."""
    return in_greys(lambda hu: hu + np.random.default_rng(0).normal(0, std, hu.shape))


def sharp(hu: np.ndarray) -> np.ndarray:
    """A lung kernel: edges raised, and the noise with them."""
    noisy = hu + np.random.default_rng(0).normal(0, 25, hu.shape)
    return noisy + 1.5 * (noisy - ndimage.gaussian_filter(noisy, (0, 1, 1)))


def moved(turn: float = 0.0, by: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0) -> Shift:
    """Turned by degrees, moved by a share of height and width, enlarged about the middle."""

    def place(volume: np.ndarray, order: int, fill: float) -> np.ndarray:
        angle = np.deg2rad(turn)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        middle = (np.array(volume.shape[1:]) - 1) / 2
        offset = middle - matrix @ (middle + np.array(by) * volume.shape[1:])
        return np.stack([ndimage.affine_transform(plane, matrix, offset, order=order, cval=fill) for plane in volume])

    def shift(scan: Scan) -> Scan:
        lesions, lungs = (place(mask.astype(np.uint8), 0, 0) > 0 for mask in (scan.lesions, scan.lungs))
        return Scan(place(scan.hu, 1, AIR), lesions, lungs, scan.distance)

    return shift


def contrast(hu: np.ndarray) -> np.ndarray:
    """Soft tissue of the level of blood brightened by 180 HU where it is more than 5 pixels wide."""
    blood = ndimage.binary_opening((hu > 20) & (hu < 90), np.ones((1, 5, 5)))
    return hu + 180 * ndimage.gaussian_filter(blood.astype(np.float32), (0, 1, 1))


def arms(hu: np.ndarray) -> np.ndarray:
    """Upper arms at both sides, a tenth of the width each, with bone, and the streaks between them."""
    height, width = hu.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    changed = hu.copy()
    for column in (0.06, 0.94):
        distance = np.hypot(rows - 0.55 * height, columns - column * width) / width
        changed[:, (distance < 0.05) & (hu[0] < -500)] = 40
        changed[:, distance < 0.015] = 900
    streaks = 30 * np.sin(2 * np.pi * rows / 9) * np.exp(-(((rows / height - 0.55) / 0.08) ** 2))
    return changed + streaks


def text(hu: np.ndarray) -> np.ndarray:
    """Lines of text burnt into the corners."""
    height, width = hu.shape[1:]
    page = Image.new("L", (width, height))
    draw = ImageDraw.Draw(page)
    for place in ((4, 4), (width - 90, 4), (4, height - 30)):
        draw.multiline_text(place, "CHEST 1.0 B31\n120 kV 90 mA\nW 1500 L -600", fill=255)
    return np.where(np.asarray(page) > 127, 3000, hu)


def coarse(hu: np.ndarray) -> np.ndarray:
    """Half the matrix, enlarged again."""
    half = hu[:, : hu.shape[1] // 2 * 2, : hu.shape[2] // 2 * 2]
    half = half.reshape(len(hu), half.shape[1] // 2, 2, half.shape[2] // 2, 2).mean((2, 4))
    factors = [1, hu.shape[1] / half.shape[1], hu.shape[2] / half.shape[2]]
    return ndimage.zoom(half, factors, order=1)


SHIFTS: dict[str, Shift] = {
    "none": lambda scan: scan,
    "noise 60 HU": noise(60),
    "noise 120 HU": noise(120),
    "smooth kernel": in_greys(lambda hu: ndimage.gaussian_filter(hu, (0, 1.5, 1.5))),
    "sharp kernel": in_greys(sharp),
    "half the matrix": in_greys(coarse),
    "+40 HU": in_greys(lambda hu: hu + 40),
    "-40 HU": in_greys(lambda hu: hu - 40),
    "contrast agent": in_greys(contrast),
    "turned by 15 degrees": moved(turn=15),
    "off centre": moved(by=(0.1, -0.1)),
    "small in the frame": moved(zoom=0.6),
    "cut by the frame": moved(zoom=1.3),
    "arms beside the chest": in_greys(arms),
    "text burnt in": in_greys(text),
}


def phantom_scan(seed: int, lesions: Lesions | None, thickness: float = 3.0) -> Scan:
    """A synthetic thorax of slices of so many mm."""
    phantom = make_phantom(
        seed, (384, 384, 24), (360 / 384, 360 / 384, PHANTOM_DISTANCE), lesions, noise=20.0, thickness=thickness
    )
    hu, found, lungs = (upright(array) for array in (phantom.hu, phantom.lesions, phantom.lungs))
    return Scan(hu.astype(np.float32), found > 0, lungs > 0, PHANTOM_DISTANCE)


def volumes(datalist: Path, distance: float | None) -> Iterator[tuple[str, Scan]]:
    """The validation side's volumes, in approximate HU, their slices so many mm apart."""
    groups = defaultdict(list)
    for item in load_side(datalist, "validation"):
        groups[item["id"].rpartition("/")[0]].append(item)
    for name, items in groups.items():
        greys = [read_slice(Path(item["image"])) for item in items]
        hu = [
            GreyToHU()(grey[None].astype(np.float32), item.get("hu_line"))
            for grey, item in zip(greys, items, strict=True)
        ]
        masks = [
            np.stack([np.isin(read_slice(Path(item[key])), codes) for item in items])
            for key, codes in (("label", (1, 2)), ("lung", (1, 2, 3)))
        ]
        yield name, Scan(np.concatenate([np.asarray(plane) for plane in hu]), *masks, distance)


def figures(segmenter: LesionSegmenter, scan: Scan) -> str:
    """Dice where there is lesion, and the share of the lung marked against the reference's."""
    marked = segmenter.segment(scan.hu, scan.distance) > 0
    lung, lesion = scan.lungs.sum(), scan.lesions.sum()
    share = f"{100 * marked.sum() / lung:.2f} for {100 * lesion / lung:.2f} %"
    return f"{dice(marked, scan.lesions):.3f}, {share}" if lesion else share


def main() -> None:
    """Print a table: a row a shift, a column a scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with trained weights")
    parser.add_argument("--weights", type=Path, help="weights instead of its models/model.pt")
    parser.add_argument("--datalist", type=Path, help="datalist whose validation side is shifted too")
    parser.add_argument("--distance", type=float, help="mm between its slices, where it is known and the same for all")
    options = parser.parse_args()
    segmenter = LesionSegmenter.from_bundle(options.bundle, weights=options.weights)
    scans = {
        "phantom": phantom_scan(9100, Lesions()),
        "phantom, 8 mm": phantom_scan(9100, Lesions(), 8.0),
        "no lesion": phantom_scan(9101, None),
    }
    scans |= dict(volumes(options.datalist, options.distance)) if options.datalist else {}
    print(f"| shift | {' | '.join(scans)} |\n|{'---|' * (len(scans) + 1)}")
    for name, shift in SHIFTS.items():
        print(f"| {name} | {' | '.join(figures(segmenter, shift(scan)) for scan in scans.values())} |", flush=True)


if __name__ == "__main__":
    main()
