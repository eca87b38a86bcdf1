# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor

from covid_monai.ct import CTScan, SourceFacts, read_ct
from covid_monai.inference import BundleError, LesionSegmenter, UprightSliceInferer, upright_hu
from covid_monai.networks import (
    FineInfNet,
    InfNet,
    InfNetCascade,
    MultiInfNet,
    WeightsError,
    load_weights,
    pack_weights,
    save_weights,
    weights_sha256,
)
from covid_monai.transforms import LungWindow, estimate_hu_line
from tests.inference.networks import Band, ClassBands, Constant, Echo, Fixed

# thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "logit"), [(0.5, 0.0), (0.8, 1.38629), (0.1, -2.19722)])  # ln(p / (1 - p))
def test_lesion_is_what_reaches_the_threshold(threshold: float, logit: float):
    hu = np.zeros((2, 40, 40), dtype=np.float32)
    for difference, expected in ((0.01, 1), (-0.01, 0)):
        segmenter = LesionSegmenter(Constant(logit + difference), threshold=threshold, device="cpu")
        assert (segmenter.segment(hu) == expected).all()


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold: float):
    with pytest.raises(ValueError, match="give a probability between 0 and 1"):
        LesionSegmenter(Echo(), threshold=threshold)


# classes -------------------------------------------------------------------------------------------------------------


def segment(logits: torch.Tensor, threshold: float = 0.5) -> np.ndarray:
    """Mask (H, W) that follows from logits (K, H, W), which are neither cropped nor resized."""
    size = logits.shape[-2:]
    segmenter = LesionSegmenter(Fixed(logits), UprightSliceInferer(size), threshold=threshold, device="cpu")
    return segmenter.segment(np.zeros((1, *size), dtype=np.float32))[0]


@pytest.mark.parametrize(
    ("threshold", "probabilities", "code"),
    [
        (0.5, (0.49, 0.31, 0.20), 1),
        (0.5, (0.51, 0.25, 0.24), 0),
        (0.5, (0.40, 0.35, 0.25), 1),  # background is the most probable, but lesion is 0.6
        (0.5, (0.40, 0.25, 0.35), 2),
        (0.7, (0.40, 0.25, 0.35), 0),
        (0.2, (0.75, 0.10, 0.15), 2),
        (0.5, (0.40, 0.30, 0.30), 1),  # of two that are equal, ground glass
        (0.9, (0.01, 0.00, 0.99), 2),
    ],
)
def test_class_codes_worked_out_by_hand(threshold: float, probabilities: tuple[float, ...], code: int):
    logits = torch.tensor(probabilities).log().clamp(min=-40)[:, None, None]
    for offset in (0.0, -7.5):  # logits count by their differences
        assert (segment(logits.expand(-1, 32, 32) + offset, threshold) == code).all()


class_logits = hnp.arrays(np.float32, (3, 4, 8), elements=st.floats(-30, 30, width=32)).map(
    lambda logits: logits.repeat(8, axis=1).repeat(4, axis=2)  # 32 x 32, the smallest slice
)


@given(class_logits, st.sampled_from([0.05, 0.3, 0.5, 0.9]))
@settings(max_examples=50, deadline=None)
def test_class_codes_are_those_of_the_softmax(logits: np.ndarray, threshold: float):
    background = torch.from_numpy(logits).double().softmax(0).numpy()[0]
    lesion = 1 - background >= threshold
    expected = np.where(lesion, np.where(logits[2] > logits[1], 2, 1), 0)
    clear = np.abs(1 - background - threshold) > 1e-5
    found = segment(torch.from_numpy(logits), threshold)
    assert np.array_equal(found[clear], expected[clear])


@given(class_logits)
@settings(max_examples=50, deadline=None)
def test_a_higher_threshold_only_takes_lesion_away(logits: np.ndarray):
    low, high = (segment(torch.from_numpy(logits), threshold) for threshold in (0.3, 0.6))
    assert np.array_equal(high[high != 0], low[high != 0])


def test_the_classes_are_told(tiny_bundle: Path):
    assert LesionSegmenter(Constant(0), device="cpu").classes == ("lesion",)
    told_apart = LesionSegmenter(ClassBands((-700, -300), (-300, -100)), device="cpu")
    assert told_apart.classes == ("ground glass", "consolidation")
    assert LesionSegmenter.from_bundle(tiny_bundle, "cpu").classes == ("lesion",)


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (Fixed(torch.zeros(2, 192, 256)), r"\(1, 2, 192, 256\)"),
        (Fixed(torch.zeros(4, 192, 256)), r"\(1, 4, 192, 256\)"),
        (Fixed(torch.zeros(1, 6, 8)), r"\(1, 1, 6, 8\)"),
        (torch.nn.AdaptiveMaxPool2d((192, 256), return_indices=True), "tuple"),
    ],
    ids=["two", "four", "small", "tuple"],
)
def test_networks_that_give_something_else_are_refused(network: torch.nn.Module, found: str):
    with pytest.raises(ValueError, match=f"the network gives {found} for a slice, expected one logit or three class"):
        LesionSegmenter(network, device="cpu")


@pytest.mark.parametrize(("network", "code"), [(Constant(5), 1), (Fixed(torch.tensor([-9.0, 0, 1])), 2)])
def test_outside_the_body_is_no_lesion(network: torch.nn.Module, code: int):
    if isinstance(network, Fixed):
        network = Fixed(network.logits[:, None, None].expand(-1, 64, 64))
    hu = np.full((3, 80, 70), -1000, dtype=np.float32)
    hu[:, 20:60, 10:50] = 40
    mask = LesionSegmenter(network, UprightSliceInferer(64, margin=2), device="cpu").segment(hu)
    expected = np.zeros_like(mask)
    expected[:, 18:62, 8:52] = code
    assert np.array_equal(mask, expected)


def test_classes_are_found_where_they_are():
    hu = np.full((3, 64, 64), 40, dtype=np.float32)
    hu[:, 10:50, 10:50] = -850
    hu[1, 20:30, 20:30] = -500
    hu[1:, 32:40, 20:30] = -200
    network = ClassBands((-700, -350), (-350, -100))
    mask = LesionSegmenter(network, UprightSliceInferer(64), device="cpu").segment(hu)
    assert np.array_equal(mask, np.select([hu == -500, hu == -200], [1, 2]))


# scans ---------------------------------------------------------------------------------------------------------------


def test_a_probability_of_a_half_is_lesion_and_the_window_comes_first():
    hu = np.full((1, 40, 40), -600, dtype=np.float32)
    hu[0, :, 20:] = -700
    to_logits = UprightSliceInferer(size=40)
    network = torch.nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        network.weight.fill_(1)
        network.bias.fill_(-0.5)  # logit 0 at 0.5, the middle of the window
    narrow = LesionSegmenter(network, to_logits, LungWindow(-650, 100), device="cpu")  # -600 -> 1, -700 -> 0
    assert np.array_equal(narrow.segment(hu)[0], (hu[0] == -600).astype(np.uint8))
    low = LesionSegmenter(network, to_logits, LungWindow(-2000, 100), device="cpu")  # all of it above the window
    assert low.segment(hu).all()


def test_the_mask_is_one_of_whole_slices_and_progress_counts_them(phantom_folder: Path):
    scan = read_ct(phantom_folder / "image.nii.gz")
    done: list[int] = []
    segmenter = LesionSegmenter(Band(-700, -100), UprightSliceInferer(size=(65, 96), batch_size=6), device="cpu")
    mask = segmenter(scan, done.append)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((16, 96, 96), np.uint8, {0, 1})
    assert sum(done) == 16
    assert len(done) >= 3  # told on the way
    assert np.array_equal(mask, segmenter.segment(np.ascontiguousarray(scan.upright())))


@pytest.mark.parametrize("slices", [3, 200])
def test_lesions_are_found_wherever_a_slice_has_body(slices: int):
    hu = np.full((slices, 64, 64), -1000, dtype=np.float32)
    hu[:, 24:40, 24:40] = 40
    hu[slices // 2 :, 4:60, 4:60] = 40  # the body of the lowest slices is small
    hu[-1, 10:20, 44:56] = -400
    mask = LesionSegmenter(Band(-700, -100), UprightSliceInferer(size=64, batch_size=50), device="cpu").segment(hu)
    assert np.array_equal(mask, hu == -400)


def test_slices_that_are_left_out_have_no_lesion_and_the_others_what_they_had(phantom_folder: Path):
    hu = upright_hu(read_ct(phantom_folder / "image.nii.gz"))
    segmenter = LesionSegmenter(Band(-700.0, -100.0), device="cpu")
    whole = np.stack([*segmenter.levels(hu, (0.5,)).planes()])
    done: list[int] = []
    part = np.stack([*segmenter.levels(hu, (0.5,), progress=done.append, slices=slice(3, 9)).planes()])
    assert whole[:3].any()
    assert np.array_equal(part[3:9], whole[3:9])
    assert not part[:3].any()
    assert not part[9:].any()
    assert sum(done) == len(hu)


SLABS = {"slab": 3.0, "smoothing": 3.0, "batch_size": 2}


def test_mirrored_slabs_stand_for_their_slices(phantom_folder: Path):
    hu = upright_hu(read_ct(phantom_folder / "image.nii.gz"))  # 16 slices
    segmenter = LesionSegmenter(Band(-700.0, -100.0), UprightSliceInferer(**SLABS), device="cpu")
    done: list[int] = []
    levels = segmenter.levels(hu, (0.5,), 1.0, mirrored=True, progress=done.append, slices=slice(3, 12))
    planes = np.stack([*levels.planes()])
    assert len(levels.values) == 4  # a plane for each slab, and an empty one
    assert all(np.array_equal(planes[place], planes[place // 3 * 3 + 1]) for place in range(3, 12))
    assert planes[3:12].any()
    assert not planes[[0, 1, 2, 12, 13, 14, 15]].any()
    assert (done[0], sum(done)) == (7, 16)


def test_levels_become_the_mask_in_their_own_memory(phantom_folder: Path):
    hu = upright_hu(read_ct(phantom_folder / "image.nii.gz"))
    segmenter = LesionSegmenter(ClassBands((-700, -300), (-300, -100)), UprightSliceInferer(**SLABS), device="cpu")
    levels = segmenter.levels(hu, (0.3, 0.5), 1.0, slices=slice(3, 12))
    within = np.zeros(hu.shape, dtype=bool)
    within[:, 20:40] = True
    expected = levels.codes(0.5) * within
    assert set(np.unique(expected)) == {0, 1, 2}
    assert np.array_equal(np.stack([*levels.lesions(0.5)]) & within, expected > 0)
    codes = levels.into_codes(0.5, within)
    assert np.array_equal(codes, expected)
    assert np.shares_memory(codes, levels.values)


def test_mirrored_levels_do_not_become_a_mask():
    segmenter = LesionSegmenter(Band(-700.0, -100.0), UprightSliceInferer(**SLABS, size=64), device="cpu")
    hu = np.zeros((6, 32, 32), dtype=np.int16)
    levels = segmenter.levels(hu, (0.5,), 1.0, mirrored=True)
    with pytest.raises(ValueError, match="ask for codes, which makes a copy"):
        levels.into_codes(0.5, hu)


@pytest.mark.parametrize("distance", [None, 0.8, 1.6, 10.0])
def test_levels_mask_and_inferer_agree_on_slabs(phantom_folder: Path, distance: float | None):
    scan = read_ct(phantom_folder / "image.nii.gz")
    hu = upright_hu(scan)
    segmenter = LesionSegmenter(Band(-700.0, -100.0), UprightSliceInferer(**SLABS, amp=False), device="cpu")
    mask = segmenter.segment(hu, distance)
    assert np.array_equal(segmenter.levels(hu, (0.5,), distance).codes(0.5), mask)
    windowed = torch.as_tensor(segmenter.window(torch.from_numpy(hu.astype(np.float32)))).movedim(0, -1)[None, None]
    if distance is not None:
        windowed = MetaTensor(windowed[0], torch.diag(torch.tensor([1.0, 1.0, distance, 1.0])))[None]
    logits = segmenter.inferer(windowed, segmenter.network)
    assert np.array_equal((logits[0, 0] >= 0).movedim(-1, 0).numpy(), mask > 0)
    alone = segmenter.segment(hu)
    assert np.array_equal(mask, alone) == (distance in (None, 10.0))  # at 10 mm neighbours are too far away to count


def test_a_lesion_in_one_thin_slice_alone_is_smoothed_away():
    hu = np.full((21, 64, 64), 40, dtype=np.float32)
    hu[10, 20:40, 20:40] = -400
    segmenter = LesionSegmenter(Band(-700.0, -100.0), UprightSliceInferer(64, smoothing=3.0), device="cpu")
    assert segmenter.segment(hu, 10.0)[10].any()
    assert not segmenter.segment(hu, 1.0).any()


def test_what_fails_on_the_way_ends_the_whole():
    hu = np.zeros((200, 64, 64), dtype=np.float32)
    inferer = UprightSliceInferer(64, batch_size=2)
    seen: list[int] = []

    class Failing(Band):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            if sum(seen) > 20:
                raise RuntimeError("out of memory")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="out of memory"):
        LesionSegmenter(Failing(-700.0, -100.0), inferer, device="cpu").segment(hu)
    assert 20 < sum(seen) < 40
    segmenter = LesionSegmenter(Band(-700.0, -100.0), inferer, device="cpu")
    told: list[int] = []

    def stop(slices: int) -> None:
        told.append(slices)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segmenter.segment(hu, progress=stop)
    assert len(told) == 1
    assert segmenter.segment(hu).shape == hu.shape  # nothing is left of what was begun


@pytest.mark.parametrize(
    ("threads", "parts", "shares"),
    [(1, 9, [1]), (3, 9, [1, 1, 1]), (6, 9, [2, 2, 1, 1]), (6, 2, [3, 3]), (6, 0, [6])],
)
def test_cores_are_shared_out_among_parts(threads: int, parts: int, shares: list[int]):
    before = torch.get_num_threads()
    segmenter = LesionSegmenter(Band(-700, -100), device="cpu")
    together = Barrier(len(shares))

    def own(_: int) -> int:
        together.wait(30)
        return torch.get_num_threads()

    torch.set_num_threads(threads)
    try:
        assert segmenter.shares(parts) == shares
        with segmenter.workers(shares) as workers:
            assert sorted(workers.map(own, shares)) == sorted(shares)
        with ThreadPoolExecutor() as another:
            assert (torch.get_num_threads(), another.submit(torch.get_num_threads).result()) == (threads, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "most"), [(2, 1), (6, 4)])
def test_a_core_is_spared_where_there_are_few_for_as_long_as_asked(threads: int, most: int):
    hu = np.full((32, 64, 64), -400, dtype=np.float32)
    running, at_once = [0], [0]
    lock = Lock()

    class Counting(Band):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with lock:
                running[0] += 1
                at_once.append(running[0])
            sleep(0.02)
            with lock:
                running[0] -= 1
            return super().forward(x)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        segmenter = LesionSegmenter(Counting(-700.0, -100.0), UprightSliceInferer(64, batch_size=8), device="cpu")
        plain = segmenter.levels(hu, [0.5]).codes(0.5)
        assert max(at_once) == min(threads, 4)
        at_once.clear()
        spared = segmenter.levels(hu, [0.5], sparing=lambda: True).codes(0.5)
        assert max(at_once) == most
        at_once.clear()
        segmenter.levels(hu, [0.5], sparing=lambda: not at_once)  # until the first batch has begun
        assert max(at_once) == min(threads, 4)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(plain, spared)


def test_the_mask_does_not_depend_on_the_batch(phantom_folder: Path):
    scan = read_ct(phantom_folder / "image.nii.gz")
    masks = [
        LesionSegmenter(Band(-700, -100), UprightSliceInferer(size=64, batch_size=size), device="cpu")(scan)
        for size in (1, 16)
    ]
    assert np.array_equal(*masks)


def test_grey_levels_are_brought_to_hu_by_one_line_for_the_scan(phantom_folder: Path):
    hu = read_ct(phantom_folder / "image.nii.gz")
    grey = np.round(255 * np.asarray(LungWindow()(hu.array)))
    scan = CTScan(grey, hu.affine, SourceFacts("NIfTI", 1), units="grey")
    slope, intercept = estimate_hu_line(scan.upright().transpose(1, 2, 0)[None])
    np.testing.assert_allclose(upright_hu(scan), slope * scan.upright() + intercept, atol=0.01)
    assert np.array_equal(upright_hu(hu), hu.upright())


# devices -------------------------------------------------------------------------------------------------------------


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="unknown device 'gpu': give cpu, cuda or cuda:N"):
        LesionSegmenter(Echo(), device="gpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no device cuda:99 here"):
        LesionSegmenter(Echo(), device="cuda:99")


def test_the_network_is_put_into_evaluation_mode():
    assert not LesionSegmenter(Echo().train(), device="cpu").network.training


# bundles -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of its own for a test, whose weights are linked."""
    shutil.copytree(tiny_bundle / "configs", tmp_path / "configs")
    (tmp_path / "models").mkdir()
    for file in (tiny_bundle / "models").iterdir():
        os.link(file, tmp_path / "models" / file.name)
    return tmp_path


@pytest.fixture
def edit(bundle: Path) -> Callable[..., Path]:
    """Change the values of a bundle's inference config; ``...`` takes one out."""

    def change(**values: Any) -> Path:
        path = bundle / "configs" / "inference.yaml"
        config = {**yaml.safe_load(path.read_text()), **values}
        path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not ...}))
        return bundle

    return change


def test_a_bundle_gives_its_network_weights_and_values(edit: Callable[..., Path], phantom_folder: Path):
    bundle = edit(window_level=-500, window_width=1400, threshold=0.25, batch_size=5)
    segmenter = LesionSegmenter.from_bundle(bundle, "cpu")
    assert (segmenter.window.level, segmenter.window.width, segmenter.codes.threshold) == (-500, 1400, 0.25)
    assert (segmenter.inferer.size, segmenter.inferer.batch_size) == ((48, 64), 5)
    network = FineInfNet(encoder="resnet18_narrow")
    network.load_state_dict(load_weights(bundle / "models" / "model.pt"))
    by_hand = LesionSegmenter(network, UprightSliceInferer((48, 64), 5), LungWindow(-500, 1400), 0.25, "cpu")
    scan = read_ct(phantom_folder / "image.nii.gz")
    mask = segmenter(scan)
    assert 0 < mask.mean() < 1
    assert np.array_equal(mask, by_hand(scan))


def test_a_bundle_says_what_it_is(bundle: Path):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    facts = LesionSegmenter.from_bundle(bundle, "cpu").facts
    assert (facts.name, facts.version) == ("lung_ct_infection_segmentation", metadata["version"])
    assert facts.weights_sha256 == weights_sha256(bundle / "models" / "model.pt")
    assert facts.network == {
        "_target_": "covid_monai.networks.FineInfNet",
        "in_channels": 1,
        "encoder": "resnet18_narrow",
    }


@pytest.mark.parametrize("name", ["inference.yaml", "metadata.json"])
@pytest.mark.parametrize(
    "content", [None, b"- a\n- list\n", b"{", b"\xff\xfe\x00"], ids=["missing", "list", "torn", "bytes"]
)
def test_a_config_that_cannot_be_read_is_refused(bundle: Path, name: str, content: bytes | None):
    path = bundle / "configs" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} (cannot be read|is not a configuration): .*--bundle"):
        LesionSegmenter.from_bundle(bundle, "cpu")


@pytest.mark.parametrize("key", ["network_def", "window_level", "window_width", "size", "batch_size", "threshold"])
def test_a_missing_value_is_refused(edit: Callable[..., Path], key: str):
    with pytest.raises(BundleError, match=f"has no '{key}'"):
        LesionSegmenter.from_bundle(edit(**{key: ...}), "cpu")


def test_a_missing_version_is_refused(bundle: Path):
    (bundle / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(BundleError, match="has no 'version'"):
        LesionSegmenter.from_bundle(bundle, "cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threshold", 1.5),
        ("threshold", "0.5"),
        ("slab", 0),
        ("smoothing", "3 mm"),
        ("smoothing", float("inf")),
        ("size", 16),
        ("size", None),
        ("size", [64]),
        ("size", [64, 64, 64]),
        ("size", ["64", "64"]),
        ("batch_size", 0),
        ("window_width", 0),
        ("window_level", "low"),
        ("network_def", "covid_monai.networks.InfNet"),
        ("network_def", {"_target_": "covid_monai.networks.InfNet", "encoder": "vgg7"}),
        ("network_def", {"_target_": "covid_monai.networks.InfNet", "depth": 3}),
        ("network_def", {"_target_": "covid_monai.networks.InfNet", "in_channels": 3}),
        ("network_def", {"_target_": "covid_monai.networks.InfNet", "out_channels": 2}),
        ("network_def", {"_target_": "covid_monai.networks.MultiInfNet"}),
        ("network_def", [{"_target_": "covid_monai.networks.InfNet"}]),
    ],
)
def test_a_wrong_value_is_refused(edit: Callable[..., Path], key: str, value: Any):
    with pytest.raises(BundleError, match=r"inference\.yaml is wrong: "):
        LesionSegmenter.from_bundle(edit(**{key: value}), "cpu")


@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1},
        {"_target_": "InfNet"},
        {"_target_": "covid_monai.networks.inf_net.InfNet"},
        {"_target_": "covid_monai.networks.VNet"},
        {"_target_": "covid_monai.networks.WeightsError"},
        {"_target_": "covid_monai.networks.ENCODERS"},
        {"_target_": "os.system", "command": "touch {victim}"},
        {"_target_": "covid_monai.networks.save_atomically", "state": "mine", "path": "{victim}"},
    ],
    ids=lambda definition: definition["_target_"],
)
def test_only_our_networks_are_built(edit: Callable[..., Path], tmp_path: Path, definition: dict[str, Any]):
    victim = tmp_path / "victim"
    definition = {k: v.format(victim=victim) if isinstance(v, str) else v for k, v in definition.items()}
    with pytest.raises(BundleError, match=f"{definition['_target_']} is no network of covid_monai.networks"):
        LesionSegmenter.from_bundle(edit(network_def=definition), "cpu")
    assert not victim.exists()


# a network among the arguments of another ----------------------------------------------------------------------------

SINGLE = {"_target_": "covid_monai.networks.InfNet", "encoder": "resnet18_narrow"}
MULTI = {"_target_": "covid_monai.networks.MultiInfNet", "trunk": "unet", "features": [8, 8, 8, 8, 8]}
CASCADE = {"_target_": "covid_monai.networks.InfNetCascade", "single": SINGLE, "multi": MULTI}


def test_a_cascade_is_built_from_nested_values(edit: Callable[..., Path], phantom_folder: Path):
    bundle = edit(network_def=CASCADE)
    torch.manual_seed(0)
    network = InfNetCascade(InfNet(), MultiInfNet("unet", features=(8, 8, 8, 8, 8)))
    for file in (bundle / "models").iterdir():
        file.unlink()
    save_weights(network.state_dict(), bundle / "models" / "model.pt")
    segmenter = LesionSegmenter.from_bundle(bundle, "cpu")
    assert segmenter.classes == ("ground glass", "consolidation")
    assert segmenter.facts.network == CASCADE
    by_hand = LesionSegmenter(network, UprightSliceInferer((48, 64), 8), device="cpu")
    scan = read_ct(phantom_folder / "image.nii.gz")
    mask = segmenter(scan)
    assert len(np.unique(mask)) > 1
    assert np.array_equal(mask, by_hand(scan))


@pytest.mark.parametrize(
    ("definition", "fault"),
    [
        ({**CASCADE, "single": {**SINGLE, "_target_": "torch.nn.Identity"}}, "torch.nn.Identity is no network of"),
        ({**CASCADE, "multi": {**MULTI, "_target_": "os.system"}}, "os.system is no network of"),
        ({**CASCADE, "multi": {**MULTI, "features": [{"_target_": "os.getcwd"}]}}, "os.getcwd is no network of"),
        ({**CASCADE, "single": {"encoder": "resnet18_narrow"}}, "has no '_target_'"),
        ({**CASCADE, "single": "covid_monai.networks.InfNet"}, "is wrong: "),
        ({**CASCADE, "single": "@other"}, "holds the expression '@other': it is not run, write the value"),
        ({**CASCADE, "single": MULTI}, "is wrong: "),
        ({key: CASCADE[key] for key in ("_target_", "multi")}, "is wrong: "),
    ],
)
def test_a_nested_network_that_cannot_be_is_refused(edit: Callable[..., Path], definition: dict[str, Any], fault: str):
    with pytest.raises(BundleError, match=re.escape(fault)) as caught:
        LesionSegmenter.from_bundle(edit(network_def=definition), "cpu")
    assert "\n" not in str(caught.value)


def test_a_definition_within_itself_is_refused(bundle: Path):
    path = bundle / "configs" / "inference.yaml"
    text = re.sub(r"(?ms)^network_def:.*?(?=^\S)", "", path.read_text())
    path.write_text(text + "network_def: &again\n  _target_: covid_monai.networks.InfNetCascade\n  single: *again\n")
    with pytest.raises(BundleError, match=r"inference\.yaml is wrong"):
        LesionSegmenter.from_bundle(bundle, "cpu")


@pytest.mark.parametrize("prefix", ["$", "@", "%"])
def test_an_expression_anywhere_in_the_network_is_refused(edit: Callable[..., Path], prefix: str):
    definition = {**CASCADE, "multi": {**MULTI, "features": [8, 8, 8, f"{prefix}width", 8]}}
    with pytest.raises(BundleError, match=re.escape(f"holds the expression '{prefix}width'")):
        LesionSegmenter.from_bundle(edit(network_def=definition), "cpu")


@pytest.mark.parametrize("key", ["network_def", "window_level", "size", "threshold", "argument", "nested"])
def test_an_expression_is_refused_and_not_run(edit: Callable[..., Path], tmp_path: Path, key: str):
    victim = tmp_path / "victim"
    expression = f"$__import__('pathlib').Path({str(victim)!r}).touch()"
    definition = {"_target_": "covid_monai.networks.InfNet", "encoder": expression}
    nested = {**CASCADE, "single": {**SINGLE, "encoder": expression}}
    values = {"argument": {"network_def": definition}, "nested": {"network_def": nested}}.get(key, {key: expression})
    with pytest.raises(BundleError):
        LesionSegmenter.from_bundle(edit(**values), "cpu")
    assert not victim.exists()


def test_what_is_not_read_is_not_run(edit: Callable[..., Path], tmp_path: Path):
    victim = tmp_path / "victim"
    expression = f"$__import__('pathlib').Path({str(victim)!r}).touch()"
    bundle = edit(imports=[expression], network=expression, initialize=[expression], device=expression)
    assert LesionSegmenter.from_bundle(bundle, "cpu").inferer.size == (48, 64)
    assert not victim.exists()


def test_a_yaml_object_is_refused_and_not_made(bundle: Path):
    victim = bundle / "victim"
    (bundle / "configs" / "inference.yaml").write_text(f"size: !!python/object/apply:os.mkdir [{victim}]\n")
    with pytest.raises(BundleError, match="cannot be read"):
        LesionSegmenter.from_bundle(bundle, "cpu")
    assert not victim.exists()


def test_missing_weights_are_refused(bundle: Path):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match=r"no weights at .*model\.pt: install the package again .*--weights FILE"):
        LesionSegmenter.from_bundle(bundle, "cpu")


def test_weights_that_are_named_are_taken_and_recorded(bundle: Path, tmp_path: Path):
    own = bundle / "models" / "model.pt"
    state = {name: tensor + 1 for name, tensor in load_weights(own).items()}
    digest = save_weights(state, tmp_path / "training" / "model.pt")
    segmenter = LesionSegmenter.from_bundle(bundle, "cpu", tmp_path / "training" / "model.pt")
    assert segmenter.facts.weights_sha256 == digest != weights_sha256(own)
    assert all(torch.equal(tensor, state[name]) for name, tensor in segmenter.network.state_dict().items())


def test_weights_in_half_precision_are_computed_with_in_the_network_s_own(bundle: Path, tmp_path: Path):
    pack_weights(bundle / "models" / "model.pt", tmp_path / "model.pt")
    segmenter = LesionSegmenter.from_bundle(bundle, "cpu", tmp_path / "model.pt")
    assert {parameter.dtype for parameter in segmenter.network.parameters()} == {torch.float32}


def test_changed_weights_are_refused(bundle: Path):
    path = bundle / "models" / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the link, not the file
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="was changed"):
        LesionSegmenter.from_bundle(bundle, "cpu")


def test_weights_of_another_network_are_refused(bundle: Path):
    path = bundle / "models" / "model.pt"
    for file in path.parent.iterdir():
        file.unlink()
    save_weights(torch.nn.Conv2d(1, 1, 3).state_dict(), path)
    with pytest.raises(BundleError, match=r"model\.pt does not fit the network") as caught:
        LesionSegmenter.from_bundle(bundle, "cpu")
    assert "\n" not in str(caught.value)
