# SPDX-License-Identifier: Apache-2.0
"""How far grey-to-HU harmonisation is from the truth, and from what one would do without it.

1. Slices of known HU are seen through random windows (level -700..-400, width 1000..1800; each with even odds stretched
   to its own minimum and maximum, cropped to the lungs, JPEG at quality 90; some with a black frame, text, an arrow).
   The error is the mean |HU estimated - HU true| of a slice after the default lung window's clip, over body and lung.
   `known line` is what the windows themselves lost. The Radiopaedia volumes bring the diseased lungs; their truth is
   approximate, and volumes 1, 6 and 7 are left out: their published line takes the fat's peak for soft tissue.
   The estimate's HU of air, airway and lung were measured on these sets, so its errors here are somewhat flattering.
2. Radiopaedia slices as they are, against the published lines.
3. SIRM slices as they are: no truth, but lesions and soft tissue should spread less over the slices after than before.

    python benchmarks/harmonisation.py --data ../shared/data
"""

import argparse
import csv
import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from covid_monai.transforms import estimate_hu_line

Line = tuple[float, float]
METHODS: dict[str, Callable[[np.ndarray], Line]] = {
    "estimate_hu_line": lambda grey: estimate_hu_line(grey[None]),
    "0..255 = -1350..150": lambda _: (1500 / 255, -1350.0),
    "min..max = -1350..150": lambda grey: _through(float(grey.min()), float(grey.max())),
}


def _through(low: float, high: float) -> Line:
    slope = 1500 / max(1.0, high - low)
    return slope, -1350 - slope * low


def read(path: Path) -> np.ndarray:
    """Pixels as float32."""
    return np.asarray(Image.open(path)).astype(np.float32)


def radiopaedia(data: Path) -> Iterator[tuple[str, np.ndarray, Line]]:
    """Name, grey levels and published line of every fifth slice of each volume."""
    rows = csv.DictReader((data / "medseg_radiopaedia9/volumes.csv").open())
    lines = {row["volume"]: (float(row["hu_slope"]), float(row["hu_intercept"])) for row in rows}
    for path in sorted((data / "medseg_radiopaedia9/images").glob("*.png"))[::5]:
        yield path.stem, read(path), lines[path.name[1]]


def known(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Set and HU of each slice of known HU."""
    for row in csv.DictReader((data / "tcga_lung62_hu/index.csv").open()):
        if row["has_lung"] == "1" and not row["duplicate_of"]:
            yield "TCGA", read(data / f"tcga_lung62_hu/images/{row['name']}.png") - 1024
    for path in sorted((data / "luna16_3pat_lungwin").glob("*/*.png"))[::4]:
        yield "LUNA16", read(path) * 1500 / 255 - 1350
    volume = np.asanyarray(nib.Nifti1Image.from_filename(data / "ricord1a_000082_hu15/image_hu.nii.gz").dataobj)
    for z in range(volume.shape[2]):
        yield "RICORD", volume[:, :, z].T.astype(np.float32)
    for name, grey, (slope, intercept) in radiopaedia(data):
        if name[1] not in "167":
            yield "Radiopaedia", grey * slope + intercept


def body_and_lung(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rough masks: all that is no dark region at a corner, and the large dark regions of the rest."""
    dark = ndimage.binary_opening(np.pad(hu < -400, 4, mode="edge"), iterations=2)[4:-4, 4:-4]
    labels, _ = ndimage.label(dark)
    outside = dark & np.isin(labels, labels[[0, 0, -1, -1], [0, -1, 0, -1]])
    body = ndimage.binary_opening(~outside, iterations=6)
    parts, count = ndimage.label(dark & body)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = 1 + np.flatnonzero(sizes > max(300, 0.1 * sizes.max(initial=0)))
    lung = ndimage.binary_closing(np.pad(np.isin(parts, large), 12), iterations=8)[12:-12, 12:-12]
    return body, lung & body


def simulate(hu: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Line]:
    """Grey levels, and HU, body, lung and line behind them, of a slice seen through a random window."""
    level, width = rng.uniform(-700, -400), rng.uniform(1000, 1800)
    stretch, crop, jpeg, frame, text, arrow = rng.random(6) < (0.5, 0.5, 0.5, 0.15, 0.25, 0.15)
    body, lung = body_and_lung(hu)
    crop &= lung.sum() > 3000
    if crop:
        pad = int(rng.integers(0, 12))
        y, x = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
        box = np.s_[max(0, y[0] - pad) : y[-1] + 1 + pad, max(0, x[0] - pad) : x[-1] + 1 + pad]
        hu, body, lung = hu[box], body[box], lung[box]
    seen = np.clip((hu - level) / width + 0.5, 0, 1)
    low, high = (seen.min(), seen.max()) if stretch else (0, 1)
    picture = Image.fromarray(np.round((seen - low) / (high - low) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    if frame and not crop:
        draw.ellipse([-60, -60, picture.width + 60, picture.height + 60], outline=0, width=60)
    if text:
        draw.text((3, 3), "R 120 kV 3 mm\nIm 42", fill=255)
    if arrow and lung.any():
        row, column = (int(i) for i in np.argwhere(lung)[rng.integers(lung.sum())])
        draw.line([column, row, column + 30, row + 25], fill=0, width=6)
    if jpeg:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        picture = Image.open(buffer)
    line = (width * (high - low) / 255, level - width / 2 + width * low)
    return np.asarray(picture), hu, body, lung, line


def window(hu: np.ndarray) -> np.ndarray:
    """The clip of the default lung window."""
    return np.clip(hu, -1350, 150)


def error(grey: np.ndarray, line: Line, hu: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error in the mask, HU."""
    return float(np.abs(window(grey[mask] * line[0] + line[1]) - window(hu[mask])).mean()) if mask.any() else np.nan


def summary(values: list[float]) -> str:
    """Median and 90th percentile."""
    return f"{np.nanmedian(values):4.0f} /{np.nanpercentile(values, 90):4.0f}"


def known_truth(data: Path, seed: int) -> None:
    """Part 1."""
    errors: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    seconds, sets = [], []
    for number, (name, hu) in enumerate(known(data)):
        sets.append(name)
        for repeat in range(2):
            grey, truth, body, lung, line = simulate(hu, np.random.default_rng([seed, number, repeat]))
            start = time.perf_counter()
            lines = {method: estimate(grey) for method, estimate in METHODS.items()}
            seconds.append(time.perf_counter() - start)
            for method, found in {**lines, "known line": line}.items():
                for region, mask in (("body", body), ("lung", lung)):
                    for group in (name, "all"):
                        errors[method, group, region].append(error(grey, found, truth, mask))
    groups = ["all", *dict.fromkeys(sets)]
    print(
        f"1. Known HU, {len(seconds)} slices; error in HU, median / 90th percentile; {np.median(seconds) * 1e3:.1f} ms"
    )
    print(f"{'':22}", *(f"{group:>25}" for group in groups))
    print(f"{'':22}", *(f"{'body':>12} {'lung':>12}" for _ in groups))
    for method in [*METHODS, "known line"]:
        cells = [f"{summary(errors[method, group, r]):>12}" for group in groups for r in ("body", "lung")]
        print(f"{method:22}", *cells)


def published_lines(data: Path) -> None:
    """Part 2."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, grey, line in radiopaedia(data):
        truth, lung = grey * line[0] + line[1], read(data / f"medseg_radiopaedia9/lung_masks/{name}.png") > 0
        for method, estimate in METHODS.items():
            errors[method, name[1]].append(error(grey, estimate(grey), truth, lung))
    print("\n2. Radiopaedia volumes as they are, lung, difference from the published line in HU")
    print(f"{'':22}", *(f"{'volume ' + v:>12}" for v in "123456789"))
    for method in METHODS:
        print(f"{method:22}", *(f"{summary(errors[method, v]):>12}" for v in "123456789"))


def spread(data: Path) -> None:
    """Part 3."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path in sorted((data / "medseg_sirm100/images").glob("*.png")):
        grey, mask = read(path), read(data / "medseg_sirm100/masks" / path.name)
        for method, estimate in METHODS.items():
            slope, intercept = estimate(grey)
            hu = window(grey * slope + intercept)
            for code, tissue in ((1, "ground glass"), (2, "consolidation")):
                if (mask == code).sum() > 300:
                    found[method, tissue].append(float(np.median(hu[mask == code])))
            counts, edges = np.histogram(hu[(hu > -300) & (hu < 149)], np.arange(-300, 150, 6))
            found[method, "bright peak"].append(edges[ndimage.gaussian_filter1d(counts.astype(float), 3).argmax()])
    print("\n3. SIRM slices as they are: HU over the slices, mean ± standard deviation")
    for method in METHODS:
        tissues = ("ground glass", "consolidation", "bright peak")
        cells = (f"{t} {np.mean(found[method, t]):5.0f} ± {np.std(found[method, t]):3.0f}" for t in tissues)
        print(f"{method:22}", *cells, sep="   ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    known_truth(arguments.data, arguments.seed)
    published_lines(arguments.data)
    spread(arguments.data)
