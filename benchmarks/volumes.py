# SPDX-License-Identifier: Apache-2.0
"""Lesions of whole scans, as `covid-monai analyse` finds them, against a reference: the volumes of validation sides.

    python benchmarks/volumes.py --bundle DIR --fold WEIGHTS DATALIST [--fold WEIGHTS DATALIST ...]
        [--distance 6 medseg_radiopaedia9/9=4] [--thresholds .5 .6]

Each fold's weights see the volumes of its datalist's validation side: one fold for weights and those held back from
them, several for a cross-validation. Logits are smoothed along the scan by its distance from slice to slice, in mm: one
for all volumes, others by name. Lesion outside the reference lungs is dropped. Dice and the share of the lung that is
marked, by volume, and their means over volumes and over patients.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shifts import volumes

from covid_monai.datasets import load_side
from covid_monai.inference import LesionSegmenter
from covid_monai.severity import dice


class Figures(NamedTuple):
    """Of a volume at each threshold: Dice, and the share of the lung that is marked; and the reference's share."""

    dice: np.ndarray
    found: np.ndarray
    reference: float

    @property
    def row(self) -> str:
        """Cells of a table."""
        cells = [
            f"{overlap:.3f}, {100 * found:.2f} for {100 * self.reference:.2f} %"
            for overlap, found in zip(self.dice, self.found, strict=True)
        ]
        return " | ".join(cells)


def figures(
    bundle: Path, weights: Path, datalist: Path, distances: dict[str, float], thresholds: list[float]
) -> Iterator[tuple[str, str, Figures]]:
    """Name, patient and figures of each volume."""
    segmenter = LesionSegmenter.from_bundle(bundle, weights=weights)
    items = load_side(datalist, "validation")
    patients = {item["id"].rpartition("/")[0]: item["patient"] for item in items}
    for name, scan in volumes(datalist, None):
        levels = segmenter.levels(scan.hu, thresholds, distances.get(name, distances.get("")))
        marked = [(levels.codes(threshold) > 0) & scan.lungs for threshold in thresholds]
        overlaps = np.array([dice(mask, scan.lesions) for mask in marked])
        *found, reference = (mask.sum() / scan.lungs.sum() for mask in (*marked, scan.lesions))
        yield name, patients[name], Figures(overlaps, np.array(found), reference)


def means(all_figures: list[Figures]) -> str:
    """Mean Dice and mean error of the share, cells of a table."""
    overlaps = np.mean([each.dice for each in all_figures], axis=0)
    error = np.mean([np.abs(each.found - each.reference) for each in all_figures], axis=0)
    cells = [f"{one:.3f}, off by {100 * other:.2f} points" for one, other in zip(overlaps, error, strict=True)]
    return " | ".join(cells)


def distance(text: str) -> tuple[str, float]:
    """``NAME=MM``, or ``MM`` for all that are not named."""
    name, _, value = text.rpartition("=")
    return name, float(value)


def main() -> None:
    """Print a table: a row a volume, a column a threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of the weights")
    parser.add_argument("--fold", type=Path, nargs=2, action="append", required=True, metavar=("WEIGHTS", "DATALIST"))
    parser.add_argument("--distance", type=distance, nargs="+", default=[], metavar="MM or NAME=MM")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5])
    options = parser.parse_args()
    thresholds, patients = sorted(options.thresholds), defaultdict(list)
    print(f"| volume | {' | '.join(f'Dice, share at {threshold:g}' for threshold in thresholds)} |")
    print(f"|{'---|' * (len(thresholds) + 1)}")
    for weights, datalist in options.fold:
        for name, patient, found in figures(options.bundle, weights, datalist, dict(options.distance), thresholds):
            patients[patient].append(found)
            print(f"| {name} | {found.row} |", flush=True)
    of_all = [each for found in patients.values() for each in found]
    print(f"| mean of {len(of_all)} volumes | {means(of_all)} |")
    overlaps = np.mean([np.mean([each.dice for each in found], axis=0) for found in patients.values()], axis=0)
    print(f"| mean of {len(patients)} patients | {' | '.join(f'{value:.3f}' for value in overlaps)} |")


if __name__ == "__main__":
    main()
