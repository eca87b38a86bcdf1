# SPDX-License-Identifier: Apache-2.0
"""How training scales over processes: slices a second of one process and of several, each with a core of its own.

    python benchmarks/processes.py [--processes 2] [--rounds 2]

Each is the bundle's own command, `multi_gpu_train.yaml` over torchrun for several, on phantom slices of 256 x 256. The
time is that from the end of the first epoch to the end of the last but one, by the records in MLflow: without start,
cache and last validation. The variants take turns, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from covid_monai.datasets import prepare

BUNDLE = Path(__file__).parents[1] / "bundles" / "lung_ct_infection_segmentation"
EPOCHS, SLICES = 4, 160


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare("phantom", None, folder / "data" / "datalist.json", seed=1, patients=9, slices=6, size=256, healthy=0.0)
        counts = (1, options.processes)
        best = dict.fromkeys(counts, 0.0)
        for number in range(options.rounds):
            for count in counts:
                best[count] = max(best[count], _slices_a_second(folder, count, number))
    print("| processes of one thread | slices a second | as fast as one |")
    print("|---|---|---|")
    for count, rate in best.items():
        print(f"| {count} | {rate:.1f} | {rate / best[1]:.2f} |", flush=True)


def _slices_a_second(folder: Path, processes: int, number: int) -> float:
    """Train for some epochs and read from the records how long they took."""
    bundle = folder / f"{processes}_{number}" / BUNDLE.name
    shutil.copytree(BUNDLE, bundle)
    configs = ["configs/train.yaml", *(["configs/multi_gpu_train.yaml"] if processes > 1 else [])]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    settings = {
        "dataset_dir": str(folder / "data"),
        "size": "[256,256]",
        "max_epochs": EPOCHS,
        "samples_per_epoch": SLICES,
        "val_interval": EPOCHS,
        "num_workers": 0,
    }
    subprocess.run(
        [sys.executable, "-m", *launcher, "monai.bundle", "run", "training", "--config_file", str(configs)]
        + [word for key, value in settings.items() for word in (f"--{key}", str(value))],
        cwd=bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    client = MlflowClient(f"sqlite:///{bundle / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(BUNDLE.name).experiment_id])
    ends = [metric.timestamp / 1000 for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    return (EPOCHS - 2) * SLICES / (ends[-2] - ends[0])


if __name__ == "__main__":
    main()
