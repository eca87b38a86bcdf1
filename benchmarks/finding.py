# SPDX-License-Identifier: Apache-2.0
"""How well the lesion share of a slice tells COVID-19 from the rest, on the SARS-CoV-2 CT-scan dataset (Soares et al.).

    python benchmarks/finding.py --source ../shared/data/sarscov2_ct_soares --bundle DIR [--limit N] [--table FILE]

Each slice is read and brought to approximate HU as `covid-monai analyse` does with a slice image; the lungs are those
of the threshold method, at a nominal 1 mm a pixel. Slices differ in size and go one by one; those without lung have no
score and are counted. It prints the area under the ROC curve and sets no threshold. The data set does not say which
slices are of one patient; the interval takes all to be independent and is too narrow.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from covid_monai.ct import read_ct
from covid_monai.inference import LesionSegmenter, upright_hu
from covid_monai.severity import ThresholdLungs, evaluate, slice_shares


def slices(source: Path, limit: int | None) -> list[tuple[Path, str]]:
    """Image and outcome of each slice, every n-th where fewer are wanted."""
    with (source / "index.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file) if not row["note"].startswith("dup_of:")]
    chosen = names if limit is None else names[:: -(-len(names) // limit)]
    return [(source / f"{name}.jpg", name.partition("/")[0]) for name in chosen]


def share(path: Path, segmenter: LesionSegmenter) -> float | None:
    """Share of the lungs on a slice that is lesion; None without lung."""
    scan = read_ct(path)
    hu = upright_hu(scan)
    lesions = segmenter.segment(hu)
    return slice_shares(lesions, ThresholdLungs()(hu, scan.upright_spacing, lesions).mask)[0]


def summary(scores: list[float]) -> Iterator[str]:
    """Quartiles in per cent."""
    return (f"{100 * value:.1f} %" for value in np.percentile(scores, (25, 50, 75)))


def main() -> None:
    """Score every slice and print the area."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the data set, with index.csv")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with trained weights")
    parser.add_argument("--limit", type=int, help="about this many slices, evenly from both sides")
    parser.add_argument("--table", type=Path, help="CSV file to write the scores to")
    options = parser.parse_args()
    segmenter = LesionSegmenter.from_bundle(options.bundle)
    chosen = slices(options.source, options.limit)
    scores = [share(path, segmenter) for path, _ in tqdm(chosen, unit="slice", mininterval=10)]
    outcomes = [outcome for _, outcome in chosen]
    if options.table:
        with options.table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("slice", "outcome", "lesion_share"))
            rows.writerows((path.stem, outcome, score) for (path, outcome), score in zip(chosen, scores, strict=True))
    for side in ("covid", "noncovid"):
        known = [
            score for score, outcome in zip(scores, outcomes, strict=True) if outcome == side and score is not None
        ]
        print(f"{side:9} {outcomes.count(side):5} slices, {outcomes.count(side) - len(known)} without lung; "
              f"lesion share, quartiles: {', '.join(summary(known))}")  # fmt: skip
    found = evaluate(scores, outcomes, ["covid"], negative=["noncovid"])
    interval = "" if found.auc_low is None else f" ({found.auc_low:.3f} to {found.auc_high:.3f})"
    print(f"AUC of the lesion share {found.auc:.3f}{interval}, {found.positives} against {found.negatives} slices")


if __name__ == "__main__":
    main()
