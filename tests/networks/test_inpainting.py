# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch
from torch import nn

from covid_monai.networks import (
    FineInfNet,
    InfNet,
    InfNetMaps,
    MultiInfNet,
    UNetMaps,
    WeightsError,
    load_trunk,
    with_inpainting_heads,
    with_segmentation_heads,
)
from covid_monai.networks.encoders import ENCODERS, ResNetEncoder
from tests.networks.network_tester import FeaturesTester, NetworkTester

INF_NET_HEADS = ("decoder.head", "edge.head", "reverse4.head", "reverse3.head", "reverse2.head")
INF_NET_WIDTHS = (96, 64, 48, 64, 64)  # 48: an eighth of the light encoder's 384
FINE_HEADS = {"fine.head": 16}
NETWORKS = {
    "inf_net": (InfNet, dict(zip(INF_NET_HEADS, INF_NET_WIDTHS, strict=True))),
    "fine_inf_net": (FineInfNet, dict(zip(INF_NET_HEADS, INF_NET_WIDTHS, strict=True)) | FINE_HEADS),
    "unet": (MultiInfNet, {"trunk.head": 8}),
    "multi_inf_net": (
        partial(MultiInfNet, "inf_net"),
        {f"trunk.{name}": width for name, width in zip(INF_NET_HEADS, INF_NET_WIDTHS, strict=True)},
    ),
}
each_network = pytest.mark.parametrize(("build", "heads"), NETWORKS.values(), ids=NETWORKS)


def rebuilder(network, *args):
    return with_inpainting_heads(network(*args))


class TestInfNetRebuilding(NetworkTester, FeaturesTester):
    build = staticmethod(partial(rebuilder, InfNet))
    maps = dict.fromkeys(InfNetMaps._fields, 1)


class TestMultiInfNetRebuilding(NetworkTester, FeaturesTester):
    build = staticmethod(partial(rebuilder, MultiInfNet))
    in_channels = 2
    stride = 16
    maps = dict.fromkeys(UNetMaps._fields, 1)


class TestMultiInfNetOnInfNetRebuilding(NetworkTester, FeaturesTester):
    build = staticmethod(partial(rebuilder, MultiInfNet, "inf_net"))
    in_channels = 2
    maps = dict.fromkeys(InfNetMaps._fields, 1)


def copied(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def is_of(heads, name: str) -> bool:
    return name.startswith(tuple(f"{head}." for head in heads))


@each_network
def test_heads_that_rebuild_are_linear(build, heads):
    net = with_inpainting_heads(build())
    for name, width in heads.items():
        head = net.get_submodule(name)
        assert type(head) is nn.Conv2d
        assert (head.in_channels, head.out_channels, head.kernel_size, head.stride) == (width, 1, (1, 1), (1, 1))
        assert head.bias is not None


@each_network
def test_changing_heads_and_back_leaves_every_other_tensor_as_it_was(build, heads):
    net = build()
    first = copied(net)
    assert with_inpainting_heads(net) is net
    between = copied(net)
    assert with_segmentation_heads(net) is net
    last = copied(net)

    others = [name for name in first if not is_of(heads, name)]
    assert others == [name for name in between if not is_of(heads, name)]
    assert list(first) == list(last)
    assert len(others) > 0.9 * len(first)
    for name in others:
        assert torch.equal(first[name], between[name]), name
        assert torch.equal(first[name], last[name]), name
    assert {name for name in between if is_of(heads, name)} == {f"{h}.{p}" for h in heads for p in ("weight", "bias")}
    for name in (name for name in first if is_of(heads, name)):
        assert first[name].shape == last[name].shape, name
        if "conv" in name or name.endswith("head.weight"):
            assert not torch.equal(first[name], last[name]), name


@each_network
def test_fresh_heads_are_drawn_as_in_a_new_network(build, heads):
    torch.manual_seed(0)
    net, new = with_segmentation_heads(with_inpainting_heads(build())), build()
    for name in heads:
        ours, expected = (max(n.get_submodule(name).parameters(), key=torch.numel) for n in (net, new))
        scale = ours[0].numel() ** -0.5  # standard deviation of weights that keep the variance
        for weight in (ours, expected):
            assert 0.7 * scale < weight.square().mean().sqrt() < 1.3 * scale, name


@each_network
@pytest.mark.parametrize("give", [with_inpainting_heads, with_segmentation_heads])
def test_heads_take_mode_precision_device_and_memory_format_of_the_network(give, build, heads):
    net = build().to(torch.float64).to(memory_format=torch.channels_last).eval()
    give(net)
    assert not any(module.training for module in net.modules())
    assert {tensor.dtype for tensor in net.state_dict().values()} <= {torch.float64, torch.int64}
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    plain = give(build())
    assert all(parameter.is_contiguous() for parameter in plain.parameters())
    assert all(module.training for module in plain.modules())
    assert {p.device.type for p in give(build().to("meta")).parameters()} == {"meta"}


@each_network
@pytest.mark.parametrize("before", [with_inpainting_heads, with_segmentation_heads])
@pytest.mark.parametrize("after", [with_inpainting_heads, with_segmentation_heads])
def test_trunk_loads_between_both_forms(after, before, build, heads):
    source, net = before(build()), after(build())
    with torch.no_grad():
        for buffer in source.buffers():
            buffer.add_(1)
    own = copied(net)
    assert load_trunk(net, source.state_dict()) is net
    given = source.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, own[name] if is_of(heads, name) else given[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("rfb2.fuse.bn.bias"), r"missing: rfb2\.fuse\.bn\.bias$"),
        (lambda s: s.update({"reverse4.heads.weight": torch.zeros(1)}), r"unexpected: reverse4\.heads\.weight$"),
        (lambda s: s.update({"rfb2.fuse.bn.bias": torch.zeros(3)}), r"of another shape: rfb2\.fuse\.bn\.bias$"),
        (lambda s: s.clear(), r"missing: encoder\.conv1\.weight, .* and \d+ more$"),
    ],
)
def test_weights_of_another_trunk_are_refused_and_none_is_loaded(change, message):
    net = InfNet()
    before = copied(net)
    state = with_inpainting_heads(InfNet()).state_dict()
    change(state)
    with pytest.raises(WeightsError, match=rf"^the weights are not those of this InfNet's trunk: {message}"):
        load_trunk(net, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_of_another_encoder_are_refused(monkeypatch):
    monkeypatch.setitem(ENCODERS, "tiny", lambda c: ResNetEncoder("basic", (1, 1, 1, 1), c, widths=(8, 8, 16, 16)))
    with pytest.raises(
        WeightsError, match=r"missing: encoder.*; unexpected|unexpected: encoder.*of another shape: enc"
    ):
        load_trunk(InfNet(encoder="tiny"), InfNet().state_dict())


@pytest.mark.parametrize("use", [with_inpainting_heads, with_segmentation_heads, partial(load_trunk, state_dict={})])
def test_networks_without_output_heads_are_refused(use):
    with pytest.raises(ValueError, match="a Linear has no output heads; give an InfNet or a MultiInfNet"):
        use(nn.Linear(2, 2))
