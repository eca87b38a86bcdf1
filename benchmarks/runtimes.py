# SPDX-License-Identifier: Apache-2.0
"""Run times, precisions and batches of a network, against eager float32 in contiguous memory in the same run.

    python benchmarks/runtimes.py [--rounds 5] [--batches 1 8]

Networks are the shipped cascade, and the published Inf-Net (Res2Net-50, 352 x 352, random weights). The run times are
measured one after the other; the fastest round of each counts. Those that are not installed are left out. Beside each
is the Dice of its lesions with those of eager float32, on slices of a phantom with lesions (of the published network,
whose weights are random, that of the pixels above its median logit). OpenVINO is told its precision, it would choose
one itself.
"""

from __future__ import annotations

import argparse
import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from machine import fastest
from torch.nn.functional import interpolate

from covid_monai.datasets.phantom import make_phantom, upright
from covid_monai.inference import FastNetwork, LesionSegmenter, autocast, default_bundle
from covid_monai.inference.int8 import is_exact
from covid_monai.networks import InfNet
from covid_monai.severity import dice
from covid_monai.transforms import LungWindow

Run = Callable[[], torch.Tensor]
PLAIN = "eager, float32, contiguous"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    segmenter = LesionSegmenter.from_bundle(default_bundle(), "cpu")
    torch.manual_seed(0)
    published = InfNet(encoder="res2net50").eval()
    networks = {
        "shipped cascade": (segmenter.network, segmenter.inferer.size),
        "published Inf-Net": (published, (352, 352)),
    }
    print("| network | run time | batch | ms a slice | times plain | Dice with plain |\n|---|---|---|---|---|---|")
    for name, (network, size) in networks.items():
        for batch in options.batches:
            _compare(name, network, _slices(size, batch), options.rounds)


@torch.inference_mode()
def _compare(name: str, network: torch.nn.Module, slices: torch.Tensor, rounds: int) -> None:
    seconds, masks = {}, {}
    limit = None
    for title, run in _run_times(network, slices):
        logits = run()
        found = logits[:, 1:].logsumexp(1) - logits[:, 0] if logits.shape[1] > 1 else logits[:, 0]
        limit = limit if limit is not None else (found.median() if logits.shape[1] == 1 else torch.tensor(0.0))
        masks[title] = (found > limit).numpy()
        seconds[title] = fastest(run, rounds) / len(slices)
    for title, each in seconds.items():
        same = dice(masks[title], masks[PLAIN])
        print(f"| {name} | {title} | {len(slices)} | {1000 * each:.1f} | {seconds[PLAIN] / each:.2f} | {same:.4f} |",
              flush=True)  # fmt: skip


def _run_times(network: torch.nn.Module, slices: torch.Tensor) -> Iterator[tuple[str, Run]]:
    """Name and forward pass of each run time that this machine has; plain first."""
    last = slices.contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    yield PLAIN, lambda: plain(slices)
    near = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    yield "eager, float32, channels-last", lambda: near(last)
    whole = FastNetwork(network, slices[:1], amp=False)
    yield "folded, float32, channels-last", lambda: whole(slices)
    fast = FastNetwork(network, slices[:1])
    if fast.dtype == torch.bfloat16:

        def autocasted() -> torch.Tensor:
            with autocast("cpu"):
                return near(last).float()

        yield "eager, autocast to bfloat16, channels-last", autocasted
        yield "**folded, bfloat16, channels-last: `FastNetwork`**", lambda: fast(slices)
        frozen = torch.jit.optimize_for_inference(
            torch.jit.freeze(torch.jit.trace(fast.network, last.to(fast.dtype), check_trace=False))
        )
        yield "the same by TorchScript, frozen and optimised", lambda: frozen(last.to(fast.dtype)).float()
    if is_exact():
        whole_numbers = whole.quantised(_slices(slices.shape[-2:], 8, phantom=12))
        yield "**folded, int8, channels-last: `FastNetwork` without bfloat16**", lambda: whole_numbers(slices)
    yield from _onnx(plain, slices)
    yield from _openvino(plain, slices)


def _onnx(network: torch.nn.Module, slices: torch.Tensor) -> Iterator[tuple[str, Run]]:
    try:
        import onnxruntime
    except ImportError:
        return
    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(network, (slices.clone(),), file, dynamo=False, input_names=["image"])
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), threads, providers=["CPUExecutionProvider"])
    given = {"image": slices.numpy()}
    yield "ONNX Runtime, float32", lambda: torch.from_numpy(session.run(None, given)[0])


def _openvino(network: torch.nn.Module, slices: torch.Tensor) -> Iterator[tuple[str, Run]]:
    try:
        import openvino
    except ImportError:
        return
    model = openvino.convert_model(network, example_input=slices.clone())
    model.reshape(list(slices.shape))
    for precision in ("f32", "bf16"):
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        given = slices.numpy()

        def run(request: openvino.InferRequest = request, given: np.ndarray = given) -> torch.Tensor:
            return torch.from_numpy(np.array(next(iter(request.infer([given]).values()))))

        yield f"OpenVINO, {'float32' if precision == 'f32' else 'bfloat16'}", run


def _slices(size: Sequence[int], batch: int, phantom: int = 11) -> torch.Tensor:
    """Windowed slices of a phantom, as the network sees them."""
    hu = np.ascontiguousarray(upright(make_phantom(phantom, (256, 256, 16)).hu))[4:12]
    windowed = torch.as_tensor(LungWindow()(torch.from_numpy(hu.astype(np.float32))))[:, None]
    return interpolate(windowed, size=tuple(size), mode="bilinear", antialias=True)[-batch:].contiguous()


if __name__ == "__main__":
    main()
