# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a whole `covid-monai analyse` by the length of the scan, beside its network alone.

    python benchmarks/analyse.py [--slices 100 300 800] [--rounds 2] [--encoder res2net50 --size 352 352]

Both run in cold processes of their own, in turn; the fastest round of each counts. "Network" is its forward pass over
the scan's slabs, as they are and mirrored, by the same threads. The scan is a phantom of 512 x 512 pixels; a longer one
shows each slice several times, thinner. The model is the shipped one, or Inf-Net with another encoder and random
weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from covid_monai.inference import default_bundle

SLICES = 100

ANALYSE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.executable, "-m", "covid_monai.cli", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": time.perf_counter() - start, "peak_mib": peak}))
"""

FORWARD = """
import json, sys, time
from pathlib import Path
import numpy as np
import torch
from covid_monai.inference import LesionSegmenter
bundle, slices, distance = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
segmenter = LesionSegmenter.from_bundle(bundle, "cpu")
batch = torch.rand(segmenter.inferer.batch_size, 1, *segmenter.inferer.size)
slabs = segmenter.inferer.slabs((0, slices), slices, distance)
hu = np.random.default_rng(0).uniform(-1000, 200, (slices, 64, 64)).astype(np.float32)
network = segmenter.fitted(hu, slabs, ((0, 64), (0, 64)))
network(batch)
start = time.perf_counter()
parts = segmenter.parts(2 * len(slabs))  # once as they are, once mirrored
with segmenter.workers(segmenter.shares(len(parts[0]))) as workers:
    list(workers.map(lambda at: network(batch[: at[1] - at[0]]), sum(parts, [])))
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[100, 300, 800])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--encoder", choices=("resnet18_narrow", "resnet50", "res2net50"))
    parser.add_argument("--size", type=int, nargs=2, default=(352, 352), metavar=("ROWS", "COLUMNS"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = default_bundle()
        if options.encoder:
            bundle = _bundle_with_random_weights(folder / "bundle", options.encoder, list(options.size))
        shape = ("512", "512", str(SLICES))
        _run("-m", "covid_monai.cli", "data", "phantom", "--output", folder, "--format", "nifti", "--shape", *shape)
        columns = (
            "slices",
            "scan, float32",
            "whole process",
            "network",
            "ratio",
            "on the scan",
            "peak",
            "beyond the scan",
        )
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for slices in options.slices:
            scan = _lengthened(folder, slices)
            distance = nib.load(scan).header.get_zooms()[2]
            whole, bare = [], []
            for _ in range(options.rounds):
                words = ("analyse", scan, "--output", folder / "out", "--bundle", bundle, "--overwrite")
                whole.append(json.loads(_run("-c", ANALYSE, *words)))
                bare.append(json.loads(_run("-c", FORWARD, bundle, slices, distance))["seconds"])
            seconds, peak = (min(each[key] for each in whole) for key in ("seconds", "peak_mib"))
            within = json.loads((folder / "out" / "analysis.json").read_text())["seconds"]
            size = 512 * 512 * slices * 4 / 2**20
            parts = ", ".join(f"{name} {value:.1f}" for name, value in within.items())
            times = f"{seconds:.1f} s | {min(bare):.1f} s | {seconds / min(bare):.2f} | {parts} s"
            print(f"| {slices} | {size:.0f} MiB | {times} | {peak:.0f} MiB | {peak - size:.0f} MiB |", flush=True)


def _lengthened(folder: Path, slices: int) -> Path:
    """The phantom with as many slices, over the same length."""
    image = nib.load(folder / "image.nii.gz")
    which = np.arange(slices) * SLICES // slices
    affine = image.affine @ np.diag([1, 1, SLICES / slices, 1])
    path = folder / f"{slices}.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., which], affine), path)
    return path


def _bundle_with_random_weights(folder: Path, encoder: str, size: list[int]) -> Path:
    from covid_monai.networks import InfNet, save_weights

    shutil.copytree(
        default_bundle().parent / "lung_ct_infection_segmentation",
        folder,
        ignore=shutil.ignore_patterns("*.pt", "*.sha256"),
    )
    config = folder / "configs" / "inference.yaml"
    values = yaml.safe_load(config.read_text())
    values["network_def"]["encoder"], values["size"] = encoder, size
    config.write_text(yaml.safe_dump(values))
    save_weights(InfNet(encoder=encoder).state_dict(), folder / "models" / "model.pt")
    return folder


def _run(*words: object) -> str:
    """Run Python and return the last line that it printed."""
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
