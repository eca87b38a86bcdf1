# SPDX-License-Identifier: Apache-2.0
"""Figures of a registered version on a frozen split, and what it marks where there is no lesion.

The split is scored by the stage ``evaluating`` of the bundle that this package ships for as many classes, so that two
versions are scored by the same code, and none that came with a version is run. Network, size, window and threshold are
those of the version's ``configs/inference.yaml``, by which it is served.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from monai.bundle import ConfigParser

from covid_monai.analysis import analyse
from covid_monai.ct import CTScan, SourceFacts, read_ct
from covid_monai.datasets import data_hash, load_datalist, load_side
from covid_monai.datasets.phantoms import lesion_free_phantoms
from covid_monai.inference import LesionSegmenter, default_bundle
from covid_monai.registry.contents import WEIGHTS
from covid_monai.registry.faults import GateError
from covid_monai.training.experiments.cases import cases_of_run

__all__ = ["CLASS_METRICS", "METRIC", "Figures", "Split", "evaluate"]

METRIC = "val_volume_dice"
"""Hard Dice of the lesion, a value a patient."""
CLASS_METRICS = ("val_volume_dice_ggo", "val_volume_dice_consolidation")
CODE = {1: "lung_ct_infection_segmentation", 2: "lung_ct_ggo_consolidation_segmentation"}
"""Shipped bundle by whose configuration a network of so many classes is scored."""
PRINTING = ("ProgressBar", "StatsHandler")
"""Handlers that tell on the screen what the comparison tells in its table."""


@dataclass(frozen=True)
class Split:
    """The side of a datalist that versions are compared on.

    Args:
        datalist: file of ``covid-monai data prepare``.
        side: of it.

    Attributes:
        data_hash: hash of the slices and masks as they are now.

    Raises:
        GateError: when they are not those that were prepared.
        covid_monai.datasets.DatasetError: when the datalist cannot be used.
    """

    datalist: Path
    side: str = "testing"
    data_hash: str = field(init=False)

    def __post_init__(self) -> None:
        load_side(self.datalist, self.side)
        found, prepared = data_hash(self.datalist), load_datalist(self.datalist).get("data_hash")
        if found != prepared:
            raise GateError(
                f"{self.datalist} is not frozen: its slices were changed since they were prepared; restore them, or "
                "prepare the datalist anew."
            )
        object.__setattr__(self, "data_hash", found)


@dataclass(frozen=True)
class Figures:
    """What was measured of one version.

    Attributes:
        cases: Dice of each patient by hashed id, for :data:`METRIC` and, where classes are told apart,
            :data:`CLASS_METRICS`.
        false_positives: mL of lesion in each lesion-free scan.
        run_id: run of the evaluation.
    """

    cases: Mapping[str, Mapping[str, float]]
    false_positives: Mapping[str, float]
    run_id: str


def evaluate(
    bundle: Path,
    split: Split,
    lesion_free: Iterable[Path],
    tracking_uri: str,
    experiment: str,
    tags: Mapping[str, Any],
) -> Figures:
    """Measure a bundle on a split and on lesion-free scans, and record it as a run ``evaluating``.

    Args:
        bundle: folder of a whole bundle.
        split: what to score it on.
        lesion_free: scans without lesions, beside the package's phantoms.
        tracking_uri: where to record.
        experiment: of the run.
        tags: of the run; what has no value is left out.

    Raises:
        GateError: when the split gives no figure, or a lesion-free scan has no lengths.
        ValueError: when a scan or the bundle cannot be used.
    """
    segmenter = LesionSegmenter.from_bundle(bundle)
    false_positives = {}
    for name, scan in _lesion_free(lesion_free):
        ml = analyse(scan, segmenter, ranges=False).severity.whole.lesion_ml
        if ml is None:
            raise GateError(f"lesion-free scan {name} gives no lengths or shows no lung: leave it out.")
        false_positives[name] = ml
    run_id = _score(segmenter, bundle / WEIGHTS, split, tracking_uri, experiment, tags)
    client = MlflowClient(tracking_uri)
    cases = cases_of_run(client, client.get_run(run_id), (METRIC, *CLASS_METRICS))
    if not cases.get(METRIC):
        raise GateError(f"side {split.side} of {split.datalist} gives no {METRIC}: name a side with masks.")
    return Figures(cases, false_positives, run_id)


def _lesion_free(paths: Iterable[Path]) -> Iterator[tuple[str, CTScan]]:
    """Name by which it may be recorded, and scan."""
    for number, phantom in enumerate(lesion_free_phantoms(), 1):
        yield f"phantom {number}", CTScan(phantom.hu, phantom.affine, SourceFacts("phantom", 1))
    for path in paths:
        scan = read_ct(path)
        yield scan.id, scan


def _score(
    segmenter: LesionSegmenter,
    weights: Path,
    split: Split,
    tracking_uri: str,
    experiment: str,
    tags: Mapping[str, Any],
) -> str:
    """Run the shipped evaluation around this network and return the id of its run."""
    configs = default_bundle().parent / CODE[len(segmenter.classes)] / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([str(configs / "train.yaml"), str(configs / "evaluate.yaml")]))
    size = list(segmenter.inferer.size)
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
        settings = {
            "datalist": str(split.datalist.resolve()),
            "data_hash": split.data_hash,
            "side": split.side,
            "weights": str(weights),
            "output_dir": folder,
            "device": segmenter.device,
            "size": size,
            "threshold": segmenter.codes.threshold,
            "network": segmenter.network,
            "validate#inferer": segmenter.inferer,
            "validate#handlers": [
                each for each in parser["validate#handlers"] if each["_target_"].rpartition(".")[2] not in PRINTING
            ],
            "tracking_uri": tracking_uri,
            "experiment": experiment,
            "tracked#params": {"side": split.side, "size": size, "threshold": segmenter.codes.threshold},
            "lineage": dict(tags),
        }
        window = {"level": segmenter.window.level, "width": segmenter.window.width}
        for step, transform in enumerate(parser["load"]):
            if transform["_target_"].endswith(".LungWindowd"):
                settings |= {f"load#{step}#{key}": value for key, value in window.items()}
        for key, value in settings.items():
            parser[key] = value
        parser.parse()
        parser.get_parsed_content("evaluating")
        return parser.get_parsed_content("tracked").run_id
