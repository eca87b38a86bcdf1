# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a whole `covid-monai analyse`, as a ratio to the bare network's forward over the same slices.

    python benchmarks/analyse.py [--slices 400] [--rounds 3] [--encoder resnet18_narrow] [--size 192 256]

Both run in processes of their own, in turn, on one machine, in the precision that `analyse` uses; the fastest round of
each counts. The scan is a phantom of 512 x 512 pixels a slice, the weights are random. The published network is
`--encoder res2net50 --size 352 352`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from covid_monai.inference import default_bundle

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
import torch
from covid_monai.ct import read_ct
from covid_monai.inference import LesionSegmenter, autocast
scan, bundle = map(Path, sys.argv[1:])
segmenter = LesionSegmenter.from_bundle(bundle)
slices = len(read_ct(scan).upright())
size = segmenter.inferer.size
batch = torch.rand(segmenter.inferer.batch_size, 1, *size).contiguous(memory_format=torch.channels_last)
with torch.inference_mode(), autocast("cpu"):
    segmenter.network(batch)
    start = time.perf_counter()
    for first, stop in segmenter.inferer.batches(slices):
        segmenter.network(batch[: stop - first])
    print(json.dumps({"seconds": time.perf_counter() - start, "size": size}))
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="resnet18_narrow", choices=("resnet18_narrow", "resnet50", "res2net50"))
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("ROWS", "COLUMNS"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = _bundle_with_random_weights(folder / "bundle", options.encoder, list(options.size))
        shape = ("512", "512", str(options.slices))
        _run("-m", "covid_monai.cli", "data", "phantom", "--output", folder, "--format", "nifti", "--shape", *shape)
        scan = folder / "image.nii.gz"
        analyse, forward = [], []
        for _ in range(options.rounds):
            line = _run("-c", ANALYSE, "analyse", scan, "--output", folder / "out", "--bundle", bundle)
            analyse.append(json.loads(line))
            forward.append(json.loads(_run("-c", FORWARD, scan, bundle)))
        seconds = json.loads((folder / "out" / "analysis.json").read_text())["seconds"]
    bare = min(entry["seconds"] for entry in forward)
    rows, columns = forward[0]["size"]
    print(f"scan                      512 x 512 x {options.slices}, the network sees {rows} x {columns}")
    print(f"bare network's forward    {bare:8.1f} s   {1000 * bare / options.slices:6.1f} ms a slice")
    whole = min(entry["seconds"] for entry in analyse)
    print(f"analyse, whole process    {whole:8.1f} s   ratio {whole / bare:.2f}")
    within = sum(seconds.values())
    print(f"  of it on the scan       {within:8.1f} s   ratio {within / bare:.2f} (segmentation, lungs; last round)")
    print(f"peak memory of analyse    {max(entry['peak_mib'] for entry in analyse):8.0f} MiB")


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
