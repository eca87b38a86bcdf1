# SPDX-License-Identifier: Apache-2.0
"""Lesion mask of a whole scan with the 2-D network of a bundle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from covid_monai.ct import CTScan
from covid_monai.inference.bundle import BundleError, network_from, read_plain
from covid_monai.inference.fast import FastNetwork
from covid_monai.inference.levels import LesionLevels
from covid_monai.inference.slabs import Slabs
from covid_monai.inference.slice_inferer import Box, UprightSliceInferer, inside
from covid_monai.networks import WeightsError, load_weights, weights_sha256
from covid_monai.transforms import BOX_SLICES, GreyToHU, LesionCodes, LungWindow, lesion_odds

__all__ = ["LesionSegmenter", "ModelFacts", "slice_distance", "upright_hu"]

CLASSES = {1: ("lesion",), 3: ("ground glass", "consolidation")}
"""Names of the mask's codes from 1 on, by how many logits the network gives."""

CALIBRATED_ON = 4
"""Slabs of a scan, evenly spread, that show how large the inputs of each layer become."""
WORTH_CALIBRATING = 16
"""Slabs of a scan from which int8 gains more than the calibration takes."""

MOST_AT_ONCE = 4
"""Parts of a batch: with one slice each the network would be slower by more than its share of the cores gains."""
MOST_IN_PART = 2
"""Slabs; larger parts take more memory and no less time."""


@dataclass(frozen=True)
class ModelFacts:
    """What a mask was made with, for the record.

    Attributes:
        name: name of the bundle.
        version: version of the bundle.
        weights_sha256: SHA-256 of the weights file, in hexadecimal.
        network: class and arguments of the network.
    """

    name: str
    version: str
    weights_sha256: str
    network: dict[str, Any] = field(default_factory=dict)


class LesionSegmenter:
    """Segment lesions in a scan with a 2-D network.

    A network of one logit gives the codes 0 (background) and 1 (lesion). One of three class logits (background, ground
    glass, consolidation) gives 0, 1 and 2: lesion is where one minus the probability of background reaches the
    threshold, and its class is the more probable of the two, see :class:`covid_monai.transforms.LesionCodes`.

    Args:
        network: maps windowed slices (N, 1, H, W) in [0, 1] to logits (N, 1, H, W) or class logits (N, 3, H, W).
        inferer: how slices are cropped, resized and batched.
        window: Hounsfield units to [0, 1].
        threshold: probability from which a pixel is lesion.
        device: where the network runs; CUDA when there is one, else the CPU.
        facts: what is known of the network.

    Attributes:
        classes: names of the mask's codes from 1 on.
        codes: from logits to codes, with the threshold.

    Raises:
        ValueError: when the threshold is out of range, the device is not there, or the network gives something else.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: UprightSliceInferer | None = None,
        window: LungWindow | None = None,
        threshold: float = 0.5,
        device: torch.device | str | None = None,
        facts: ModelFacts | None = None,
    ) -> None:
        self.codes = LesionCodes(threshold)
        self.device = _device(device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.inferer = inferer or UprightSliceInferer()
        self.window = window or LungWindow()
        self.facts = facts or ModelFacts("unnamed", "0", "")
        self.classes = self._classes()

    @classmethod
    def from_bundle(
        cls, bundle: Path, device: torch.device | str | None = None, weights: Path | None = None
    ) -> LesionSegmenter:
        """Read network, window, size, threshold and weights from a bundle.

        Only plain values of ``configs/inference.yaml`` are read: no expression in it is run, and the network, and every
        network among its arguments, must be a class of :mod:`covid_monai.networks`. The weights must match their
        recorded SHA-256.

        Args:
            bundle: folder of a MONAI bundle with ``configs/inference.yaml``, ``configs/metadata.json`` and
                ``models/model.pt``; :func:`default_bundle` is the one that is shipped.
            device: where the network runs.
            weights: others than ``models/model.pt``, such as those of a training of one's own.

        Raises:
            BundleError: when a file or a value is missing or not what it must be.
            covid_monai.networks.WeightsError: when the weights are missing or were changed.
        """
        device = _device(device)
        config, metadata = (read_plain(bundle / "configs" / name) for name in ("inference.yaml", "metadata.json"))
        weights = weights or bundle / "models" / "model.pt"
        if not weights.is_file():
            raise WeightsError(
                f"no weights at {weights}: install the package again for those it comes with, or name those of a "
                "training with --weights FILE."
            )
        state = load_weights(weights)
        try:
            network = network_from(config["network_def"])
            window = LungWindow(level=config["window_level"], width=config["window_width"])
            inferer = UprightSliceInferer(
                size=config["size"],
                batch_size=config["batch_size"],
                slab=config.get("slab"),
                smoothing=config.get("smoothing"),
            )
            facts = ModelFacts(
                metadata.get("name", bundle.name), metadata["version"], weights_sha256(weights), config["network_def"]
            )
            segmenter = cls(network, inferer, window, config["threshold"], device, facts)
        except KeyError as error:
            raise BundleError(f"{bundle}/configs has no {error}: add it, or restore the bundle.") from error
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"{bundle}/configs/inference.yaml is wrong: {error}") from error
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BundleError(
                f"{weights} does not fit the network of {bundle}/configs/inference.yaml: restore one of the two."
            ) from error
        return segmenter

    def __call__(self, scan: CTScan, progress: Callable[[int], Any] | None = None) -> np.ndarray:
        """Lesion mask of a scan.

        Args:
            scan: the scan, in HU or in grey levels, which are brought to approximate HU first.
            progress: called with the number of slices done since the last call.

        Returns:
            (Z, H, W) uint8 in the order of :meth:`covid_monai.ct.CTScan.upright`: 0 and the codes of :attr:`classes`.
        """
        return self.segment(upright_hu(scan), slice_distance(scan), progress)

    @cached_property
    def _fast(self) -> FastNetwork:
        """What predicts: made of the network as it is when the first scan comes."""
        return FastNetwork(self.network, self._example(), self.inferer.amp)

    def segment(
        self, hu: np.ndarray, distance: float | None = None, progress: Callable[[int], Any] | None = None
    ) -> np.ndarray:
        """Lesion mask of upright slices (Z, H, W) in HU, so many mm apart, see :meth:`__call__`.

        Where the distance is not known, every slice is seen and decided alone.
        """
        box = self._box(hu)
        mask = np.zeros(hu.shape, dtype=np.uint8)
        slabs = self.inferer.slabs((0, len(hu)), len(hu), distance)

        def decide(logits: torch.Tensor) -> torch.Tensor:
            return self.codes.decide(logits, 1)

        self._decide(hu, slabs, box, decide, self.fitted(hu, slabs, box), inside(mask, box), progress)
        return mask

    def levels(
        self,
        hu: np.ndarray,
        thresholds: Sequence[float],
        distance: float | None = None,
        mirrored: bool = False,
        progress: Callable[[int], Any] | None = None,
        slices: slice = slice(None),
        sparing: Callable[[], bool] = lambda: False,
        network: FastNetwork | None = None,
    ) -> LesionLevels:
        """Lesions of upright slices at several thresholds, by one pass of the network.

        At the threshold of the segmenter, not mirrored and of every slice, they are those of :meth:`segment`.

        Args:
            hu: (Z, H, W) in HU.
            thresholds: probabilities between 0 and 1.
            distance: mm from slice to slice; None where it is not known.
            mirrored: show the network everything with left and right exchanged, and put it back. Each slab has one
                plane then, its middle, which stands for its slices.
            progress: called with the number of slices done since the last call, those that are left out included.
            slices: the range of slices to look at, widened to whole slabs; there is no lesion in others.
            sparing: asked for each batch whether to leave a core of the CPU, where there are few but more than one, to
                what runs beside; what it raises ends the pass.
            network: of the levels of an earlier pass over this scan; else it is :meth:`fitted`.
        """
        ascending = tuple(sorted(set(thresholds)))
        limits = torch.tensor(ascending, device=self.device).logit()

        def decide(logits: torch.Tensor) -> torch.Tensor:
            odds, dense = lesion_odds(logits, 1)
            reached = sum((odds >= limit).byte() for limit in limits)
            return 2 * reached + (dense & (odds >= limits[0])).byte()

        slabs = self.inferer.slabs(slices.indices(len(hu))[:2], len(hu), distance, every_slice=not mirrored)
        if progress is not None and (left_out := int((slabs.standing < 0).sum())):
            progress(left_out)
        box = self._box(hu)
        slots = len(slabs) if mirrored else len(hu)
        values = np.zeros((slots + 1, *hu.shape[1:]), dtype=np.uint8)
        fitted = self.fitted(hu, slabs, box) if network is None else network

        def mirror(batch: torch.Tensor) -> torch.Tensor:
            return fitted(batch.flip(-1)).flip(-1)

        self._decide(hu, slabs, box, decide, mirror if mirrored else fitted, inside(values, box), progress, sparing)
        return LesionLevels(ascending, values, np.where(slabs.standing < 0, slots, slabs.standing), fitted)

    def prepare(self) -> None:
        """Make ready for the first scan; else its first slices wait for that."""
        _ = self._fast

    def _box(self, hu: np.ndarray) -> Box:
        """Box of the body in slices (Z, H, W) in HU."""
        return self.inferer.box(self._windowed(hu[:: -(-len(hu) // BOX_SLICES)])[:, 0])  # the slices body_box looks at

    def _decide(
        self,
        hu: np.ndarray,
        slabs: Slabs,
        box: Box,
        decide: Callable[[torch.Tensor], torch.Tensor],
        network: Callable[[torch.Tensor], torch.Tensor],
        decided: np.ndarray,
        progress: Callable[[int], Any] | None,
        sparing: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write into ``decided`` (N, h, w), which is empty, what ``decide`` gives for the logits in the body's box."""
        seen: dict[int, torch.Tensor] = {}

        @torch.inference_mode()
        def look(start: int, stop: int) -> torch.Tensor:
            return self.inferer.look(self._bodies(hu, slabs, box, start, stop), network)

        @torch.inference_mode()
        def settle(start: int, stop: int) -> int:
            around = torch.stack([seen[number] for number in slabs.around(start, stop)])
            rows = decided[slabs.rows(start, stop)]
            at_once = stop - start  # a slab may have many slices, and these are large
            pieces = slabs.smooth(around, start, stop).split(at_once)
            for row, logits in zip(range(0, len(rows), at_once), pieces, strict=True):
                codes = decide(self.inferer.enlarge(logits, rows.shape[1:]))[:, 0].cpu().numpy()
                for plane, found in zip(rows[row : row + at_once], codes, strict=True):
                    if found.any():  # slices that are not written take no memory
                        plane[:] = found
            span = slabs.span(start, stop)
            return span.stop - span.start

        batches = self.parts(len(slabs))
        to_settle = deque(part for batch in batches for part in batch)
        nothing: list[tuple[int, int]] = []
        shares = self.shares(max(map(len, batches), default=1))
        with self.workers(shares) as workers:
            for batch in (*batches, nothing):
                looks = [partial(look, *part) for part in batch]
                ready = [part for part in to_settle if all(number in seen for number in slabs.around(*part))]
                settles = [partial(settle, *to_settle.popleft()) for _ in ready]
                idle = sparing() and shares == [1] * len(shares)
                begun = _in_lanes(workers, max(1, len(shares) - idle), [*looks, *settles])
                looked, settled = begun[: len(looks)], begun[len(looks) :]
                for done in settled:
                    slices = done.result()
                    if progress is not None:
                        progress(slices)
                for part, logits in zip(batch, looked, strict=True):
                    seen.update(zip(range(*part), logits.result(), strict=True))
                wanted = slabs.around(*to_settle[0]).start if to_settle else len(slabs)
                seen = {number: logits for number, logits in seen.items() if number >= wanted}

    def fitted(self, hu: np.ndarray, slabs: Slabs, box: Box) -> FastNetwork:
        """What predicts the slabs of a scan.

        Where this CPU gains by convolutions in 8-bit integers, and the slabs are many, some of them calibrate it.

        Args:
            hu: (Z, H, W) upright slices in HU.
            slabs: of the scan.
            box: of the body.
        """
        if not self._fast.gains_by_int8 or len(slabs) < WORTH_CALIBRATING:
            return self._fast
        places = ((np.arange(CALIBRATED_ON) + 0.5) * len(slabs) / CALIBRATED_ON).astype(int)
        bodies = torch.cat([self._bodies(hu, slabs, box, place, place + 1) for place in places])
        return self._fast.quantised(self.inferer.resize(bodies))

    def _bodies(self, hu: np.ndarray, slabs: Slabs, box: Box, start: int, stop: int) -> torch.Tensor:
        """Windowed (N, 1, h, w) of the slabs from ``start`` to ``stop``."""
        slices = self._windowed(inside(hu[slabs.span(start, stop)], box)).to(self.device, non_blocking=True)
        return slabs.means(slices, start, stop)

    def parts(self, slabs: int) -> list[list[tuple[int, int]]]:
        """The batches of so many slabs, each in parts for :meth:`workers`, which are ``(start, stop)``.

        On a CPU the parts of a batch, each on its own share of the cores, take less time than the whole of it on all of
        them, for much of the work of a layer is not shared out.
        """
        on_cpu = self.device.type == "cpu"
        most = min(torch.get_num_threads(), MOST_AT_ONCE) if on_cpu else 1
        return [
            [
                (int(part[0]), int(part[-1]) + 1)
                for part in np.array_split(np.arange(start, stop), min(most, stop - start))
            ]
            for start, stop in self.inferer.batches(slabs, MOST_IN_PART * most if on_cpu else None)
        ]

    def shares(self, parts: int) -> list[int]:
        """Cores of each of the workers that take a part of a batch each."""
        cores = torch.get_num_threads()
        count = max(1, min(cores, MOST_AT_ONCE, parts)) if self.device.type == "cpu" else 1
        return [cores // count + (number < cores % count) for number in range(count)]

    def workers(self, shares: Sequence[int]) -> ThreadPoolExecutor:
        """Threads, to be closed by the caller, that compute on so many cores each."""
        left = list(shares)
        return ThreadPoolExecutor(len(left), initializer=lambda: _limit_threads(left.pop()))

    @torch.inference_mode()
    def _classes(self) -> tuple[str, ...]:
        """Names of the codes by what the network gives for a slice."""
        example = self._example()
        found = self.network(example)
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        names = [names for count, names in CLASSES.items() if shape == (1, count, *example.shape[2:])]
        if not names:
            raise ValueError(
                f"the network gives {shape} for a slice, expected one logit or three class logits (1, 3, H, W)."
            )
        return names[0]

    def _example(self) -> torch.Tensor:
        """A small slice of noise."""
        height, width = (min(length, 64) for length in self.inferer.size)
        noise = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
        return noise.to(self.device)

    def _windowed(self, hu: np.ndarray) -> torch.Tensor:
        """(N, 1, H, W) in [0, 1] from (N, H, W) in HU."""
        return torch.as_tensor(self.window(torch.from_numpy(np.ascontiguousarray(hu))))[:, None]


def _in_lanes(workers: ThreadPoolExecutor, lanes: int, tasks: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    """Results to come of tasks, of which at most so many run at once."""
    results: list[Future[Any]] = [Future() for _ in tasks]
    left = deque(zip(results, tasks, strict=True))

    def work() -> None:
        with suppress(IndexError):  # another lane took the last one
            while True:
                result, task = left.popleft()
                try:
                    result.set_result(task())
                except BaseException as error:
                    result.set_exception(error)

    for _ in range(min(lanes, len(tasks))):
        workers.submit(work)
    return results


def _limit_threads(threads: int) -> None:
    """Let convolutions of this thread compute with so many threads, and those of no other."""
    torch.get_num_threads()  # sets this thread's number, which would else be set by its first operation
    threadpool_limits(threads, user_api="openmp")


def slice_distance(scan: CTScan) -> float | None:
    """Millimetres from slice to slice; None where the source gives no lengths."""
    return scan.upright_spacing[0] if scan.spacing_known else None


def upright_hu(scan: CTScan) -> np.ndarray:
    """Upright slices (Z, H, W) of a scan in HU; grey levels are harmonised, one line for the whole scan."""
    upright = scan.upright()
    if scan.units == "HU":
        return upright
    stack = np.clip(upright, 0, None).transpose(1, 2, 0)[None]  # interpolation may have undershot black
    return np.asarray(GreyToHU()(stack))[0].transpose(2, 0, 1)


def _device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or CUDA when there is one, else the CPU; refuse what this machine does not have."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: give cpu, cuda or cuda:N.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {found} here: torch finds {torch.cuda.device_count()} CUDA devices.")
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # which other threads would take for another one
    return found
