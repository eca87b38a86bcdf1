# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

from covid_monai.inference import FastNetwork
from covid_monai.inference.precision import has_bfloat16
from covid_monai.networks import FineInfNet, InfNet, InfNetCascade, MultiInfNet

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 instructions")


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def shaken(network: nn.Module) -> nn.Module:
    """The network with statistics of batch normalisation as after a training, not 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


def test_a_normalisation_folded_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    conv.weight.data.fill_(2)
    norm.running_mean.fill_(3)
    norm.running_var.fill_(4)
    norm.weight.data.fill_(5)
    norm.bias.data.fill_(7)
    fast = FastNetwork(nn.Sequential(conv, norm).eval(), torch.ones(1, 1, 2, 2), amp=False)
    (folded,) = (module for module in fast.modules() if isinstance(module, nn.Conv2d))
    assert (folded.weight.item(), folded.bias.item()) == (5.0, -0.5)  # 2 * 5 / 2, and 7 - 3 * 5 / 2
    assert fast(torch.full((1, 1, 2, 2), 1.5)).unique().tolist() == [7.0]
    assert (conv.weight.item(), norm.running_mean.item()) == (2.0, 3.0)


@pytest.mark.parametrize(
    "network",
    [
        InfNet(),
        InfNet(encoder="res2net50", out_channels=3),
        FineInfNet(),
        InfNetCascade(FineInfNet(), MultiInfNet()),
    ],
    ids=["InfNet", "Res2Net-50", "FineInfNet", "cascade"],
)
def test_our_networks_stay_the_same_function_without_normalisation(network: nn.Module):
    network = shaken(network)
    before = copy.deepcopy(network.state_dict())
    fast = FastNetwork(network, torch.rand(1, 1, 64, 96), amp=False)
    assert norms(fast) == 0
    x = torch.rand(3, 1, 96, 64)  # another size and number than the example
    with torch.no_grad():
        expected = network(x)
    scale = expected.abs().max()
    torch.testing.assert_close(fast(x) / scale, expected / scale, rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@needs_bfloat16
def test_bfloat16_is_near_and_comes_back_as_float32():
    torch.manual_seed(0)
    network = shaken(FineInfNet())
    fast = FastNetwork(network, torch.rand(1, 1, 64, 64))
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = network(x)
    found = fast(x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.05 * expected.std()


class Shared(nn.Module):
    """One convolution with two normalisations after it, and one normalisation without any before."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.alone(x)
        return self.second(self.conv(self.first(self.conv(x))))


class ReadTwice(nn.Module):
    """What the convolution gives is normalised, and added as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + self.norm(x)


@pytest.mark.parametrize(("network", "left"), [(Shared(), 3), (ReadTwice(), 1)])
def test_what_cannot_be_folded_stays(network: nn.Module, left: int):
    network = shaken(network)
    x = torch.rand(1, 2, 8, 8)
    fast = FastNetwork(network, x, amp=False)
    assert norms(fast) == left
    torch.testing.assert_close(fast(x), network(x).detach())


def test_nothing_needs_a_gradient():
    fast = FastNetwork(shaken(FineInfNet()), torch.rand(1, 1, 32, 32))
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not fast(torch.rand(1, 1, 32, 32)).requires_grad


@pytest.mark.parametrize(
    ("bfloat16", "amp", "precision"), [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")]
)
@pytest.mark.parametrize("network", [FineInfNet(), Shared()], ids=["bfloat16 throughout", "mixed"])
def test_it_tells_its_precision(
    network: nn.Module, bfloat16: bool, amp: bool, precision: str, monkeypatch: pytest.MonkeyPatch
):
    for module in ("fast", "precision"):
        monkeypatch.setattr(f"covid_monai.inference.{module}.has_bfloat16", lambda: bfloat16)
    channels = 1 if isinstance(network, FineInfNet) else 2
    assert FastNetwork(shaken(network), torch.rand(1, channels, 32, 32), amp).precision == precision
