# SPDX-License-Identifier: Apache-2.0
import csv
import zlib
from functools import cache, partial

import numpy as np
import pytest
import torch

from covid_monai.networks import InfNet, InfNetMaps
from tests.conftest import DATA
from tests.networks.network_tester import ExportTester, FeaturesTester, NetworkTester

PARITY = DATA / "infnet_parity"
PUBLISHED = ("res2net50", "resnet50")
MAPS = {"s_g": 1, "s_5": 1, "s_4": 1, "s_3": 1, "edge": 1}
FOUR_CLASS_MAPS = {**dict.fromkeys(MAPS, 4), "edge": 1}


class TestInfNet(NetworkTester, FeaturesTester, ExportTester):
    build = staticmethod(InfNet)
    maps = MAPS


class TestInfNetOnColour(NetworkTester):
    build = staticmethod(partial(InfNet, in_channels=3))
    in_channels = 3
    maps = MAPS


class TestInfNetOfFourClasses(NetworkTester):
    build = staticmethod(partial(InfNet, out_channels=4))
    out_channels = 4
    maps = FOUR_CLASS_MAPS


@pytest.mark.slow
class TestInfNetRes2Net50(NetworkTester, ExportTester):
    build = staticmethod(partial(InfNet, encoder="res2net50"))
    maps = MAPS


@pytest.mark.slow
class TestInfNetResNet50(NetworkTester, ExportTester):
    build = staticmethod(partial(InfNet, encoder="resnet50"))
    maps = MAPS


@cache
def published_state(encoder: str, seed: int = 2020) -> dict[str, torch.Tensor]:
    """The published network's tensors, filled by the rule in tests/data/infnet_parity/README.md."""
    with (PARITY / f"{encoder}_state_dict.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {row["key"]: fill(row["key"], row["shape"], seed) for row in rows}


def fill(name: str, shape: str, seed: int) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    sizes = tuple(int(size) for size in shape.split("x"))
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    x = random.standard_normal(sizes).astype(np.float32)
    if name.endswith("running_var"):
        x = np.abs(x) * np.float32(0.2) + np.float32(0.8)
    elif name.endswith("running_mean"):
        x = np.float32(0.05) * x
    elif len(sizes) >= 2:
        x = x * np.float32(np.sqrt(1.2 / np.prod(sizes[1:])))
    elif name.endswith("weight"):
        x = np.float32(0.9) + np.float32(0.1) * x
    else:
        x = np.float32(0.02) * x
    return torch.from_numpy(x)


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_all_five_maps_are_those_of_the_published_network(encoder):
    net = InfNet.from_published(published_state(encoder)).eval()
    with np.load(PARITY / f"{encoder}_seed2020.npz") as expected:
        x = torch.from_numpy(expected["input"])
        with torch.no_grad():
            maps = net.maps(x)
            prediction = net(x)
        for name, found in zip(("S_g", "S_5", "S_4", "S_3", "edge"), maps, strict=True):
            np.testing.assert_allclose(found.numpy(), expected[name], rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(prediction.numpy(), expected["S_3"], rtol=0, atol=1e-4)


def test_published_checkpoint_is_read_from_a_file(tmp_path):
    state = published_state("resnet50")
    torch.save(state, tmp_path / "Inf-Net.pth")
    own = InfNet.from_published(tmp_path / "Inf-Net.pth").state_dict()
    assert torch.equal(own["encoder.layer4.2.conv3.weight"], state["resnet.layer4.2.conv3.weight"])
    assert torch.equal(own["decoder.head.bias"], state["ParDec.conv5.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ra3_conv4.bn.weight"), r"resnet50: missing: ra3_conv4\.bn\.weight$"),
        (lambda s: s.update({"ra1_conv1.bias": torch.zeros(1)}), r"resnet50: unexpected: ra1_conv1\.bias$"),
        (lambda s: s.update({"ParDec.conv5.bias": torch.zeros(3)}), r"of another shape: ParDec\.conv5\.bias$"),
        (lambda s: s.pop("resnet.conv1.weight"), "neither resnet.conv1.0.weight"),
        (lambda s: s.update(epoch=3), "give a dictionary of tensors"),
        (lambda s: [s.pop(key) for key in list(s) if key.startswith("rfb")], r"missing: rfb2_1.* and \d+ more$"),
    ],
)
def test_other_checkpoints_are_refused_naming_the_fault(change, message):
    state = dict(published_state("resnet50"))
    change(state)
    with pytest.raises(ValueError, match=message):
        InfNet.from_published(state)


class Stranger:
    """Something a pickle could run."""


@pytest.mark.parametrize("content", [Stranger(), b"text"])
def test_files_of_anything_but_tensors_are_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth is not a file of plain tensors"):
        InfNet.from_published(path)


def test_default_network_is_light():
    parameters = sum(p.numel() for p in InfNet().parameters())
    assert 4e6 < parameters < 12e6


def test_maps_in_evaluation_mode_hold_the_prediction():
    net = InfNet().eval()
    x = torch.rand(1, 1, 40, 64)
    with torch.no_grad():
        maps = net.maps(x)
        assert isinstance(maps, InfNetMaps)
        assert torch.equal(net(x), maps.s_3)


@pytest.mark.parametrize("in_channels", [0, 4])
def test_other_channel_counts_are_refused(in_channels):
    with pytest.raises(ValueError, match=f"in_channels is {in_channels}; Inf-Net takes slices of 1, 2 or 3 channels"):
        InfNet(in_channels=in_channels)


@pytest.mark.parametrize("out_channels", [0, -1])
def test_no_output_channels_are_refused(out_channels):
    with pytest.raises(ValueError, match=f"out_channels is {out_channels}; ask for 1, or the number of classes"):
        InfNet(out_channels=out_channels)


# One map: 1 - sigmoid(log 3) = 1 - 3/4. Three classes: softmax(log 2, 0, 0) = 1/2, 1/4, 1/4, background first.
@pytest.mark.parametrize(
    ("coarser", "unseen"), [([np.log(3)], 0.25), ([np.log(2), 0, 0], 0.5), ([0, np.log(2), 0], 0.25)]
)
def test_reverse_attention_looks_where_the_coarser_map_saw_nothing(coarser, unseen):
    module = InfNet(out_channels=len(coarser)).eval().reverse2
    seen = []
    module.reduce.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    feature = torch.rand(2, module.reduce.conv.in_channels, 8, 8)
    logits = torch.tensor(coarser, dtype=torch.float32).reshape(1, -1, 1, 1).expand(2, -1, 4, 4)
    with torch.no_grad():
        module(feature, logits, torch.rand(2, 64, 16, 16))
    torch.testing.assert_close(seen[0], unseen * feature)


def test_one_more_channel_in_or_out_changes_no_name():
    assert InfNet(2, out_channels=3).state_dict().keys() == InfNet().state_dict().keys()
