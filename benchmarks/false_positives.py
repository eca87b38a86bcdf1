# SPDX-License-Identifier: Apache-2.0
"""How much lung a bundle marks as lesion where there is none: lesion-free phantoms, and slices of other patients.

    python benchmarks/false_positives.py --bundle DIR [--datalist FILE] [--pictures DIR] [--phantoms N]

The datalist is one that `covid-monai data prepare` made of sets without COVID-19, such as `luna16_3pat_lungwin` (normal
lungs) and `tcga_lung62_hu` (lung cancer); its unlabelled slices are taken, each patient's together, but none of a set
that names no patients. Lungs are those of the threshold method, slice by slice; all that is marked counts, wherever it
lies. The worst slices are drawn, window -600/1500 HU, with what was marked in red.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from covid_monai.datasets import load_side
from covid_monai.datasets.phantom import upright
from covid_monai.datasets.phantoms import lesion_free_phantoms
from covid_monai.datasets.slices import read_slice
from covid_monai.inference import LesionSegmenter
from covid_monai.reports.pictures import LUNG_WINDOW, grey, nearest, resized, tint
from covid_monai.severity import ThresholdLungs
from covid_monai.transforms import GreyToHU

WORST = 6
SIDE = 256

Case = tuple[str, str, np.ndarray]
"""Set, patient, and one upright slice (H, W) in HU."""


def phantoms(count: int) -> Iterator[Case]:
    """Slices of lesion-free thoraces of several slice thicknesses and noise levels."""
    for number, phantom in enumerate(lesion_free_phantoms(count, size=384)):
        for plane in upright(phantom.hu):
            yield "phantom", f"phantom {number}", plane.astype(np.float32)


def slices(datalist: Path) -> Iterator[Case]:
    """The unlabelled slices of the datalist whose patients are known."""
    for item in load_side(datalist, "unlabelled"):
        if item.get("patient") is not None:
            hu = GreyToHU()(read_slice(Path(item["image"]))[None].astype(np.float32), item.get("hu_line"))
            yield item["dataset"], item["patient"], np.asarray(hu)[0]


def main() -> None:
    """Segment every slice, print the marked share a set and the worst patients, draw the worst slices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with trained weights")
    parser.add_argument("--datalist", type=Path, help="datalist of slices without COVID-19")
    parser.add_argument("--pictures", type=Path, help="folder to draw the worst slices into")
    parser.add_argument("--phantoms", type=int, default=3, help="lesion-free phantoms to make")
    options = parser.parse_args()
    segmenter = LesionSegmenter.from_bundle(options.bundle)
    found: dict[str, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2, dtype=int)))
    worst: dict[str, list[tuple[int, str, np.ndarray, np.ndarray]]] = defaultdict(list)
    cases = [phantoms(options.phantoms)] + ([slices(options.datalist)] if options.datalist else [])
    for dataset, patient, hu in tqdm((case for source in cases for case in source), unit="slice", mininterval=10):
        marked = segmenter.segment(hu[None])[0] > 0
        lungs = ThresholdLungs()(hu[None], (1.0, 1.0, 1.0), np.zeros((1, *hu.shape), np.uint8)).mask[0] > 0
        found[dataset][patient] += np.count_nonzero(marked), np.count_nonzero(lungs)
        worst[dataset] = sorted(
            [*worst[dataset], (int(np.count_nonzero(marked)), patient, hu, marked)], key=lambda case: -case[0]
        )[:WORST]
    for dataset, patients in found.items():
        shares = {patient: marked / max(lung, 1) for patient, (marked, lung) in patients.items()}
        marked, lung = sum(patients.values())
        few = ", ".join(
            f"{patient} {100 * shares[patient]:.2f} %" for patient in sorted(shares, key=lambda p: -shares[p])[:3]
        )
        clean = sum(share < 0.001 for share in shares.values())
        print(f"{dataset}: {100 * marked / lung:.3f} % of the lung marked; {clean} of {len(shares)} patients under "
              f"0.1 %; worst: {few}")  # fmt: skip
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            draw(worst[dataset]).save(options.pictures / f"{dataset}.png")


def draw(cases: list[tuple[int, str, np.ndarray, np.ndarray]]) -> Image.Image:
    """Slices above, the same with what was marked below."""
    columns = []
    for _, _, hu, marked in cases:
        plain = np.asarray(grey(resized(hu, SIDE, SIDE), LUNG_WINDOW).convert("RGB"))
        tinted = plain.copy()
        tint(tinted, nearest(marked, SIDE, SIDE), (255, 0, 0), 0.5)
        columns.append(np.concatenate([plain, tinted]))
    return Image.fromarray(np.concatenate(columns, 1))


if __name__ == "__main__":
    main()
