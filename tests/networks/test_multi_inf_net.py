# SPDX-License-Identifier: Apache-2.0
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from covid_monai.networks import (
    LIGHT_FEATURES,
    PUBLISHED_FEATURES,
    InfNet,
    InfNetCascade,
    InfNetMaps,
    MultiInfNet,
    UNetMaps,
)
from tests.networks.network_tester import ExportTester, FeaturesTester, NetworkTester

UNET_MAPS = {"pred": 3}
INF_NET_MAPS = {"s_g": 3, "s_5": 3, "s_4": 3, "s_3": 3, "edge": 1}


class TestMultiInfNet(NetworkTester, FeaturesTester, ExportTester):
    build = staticmethod(MultiInfNet)
    in_channels = 2
    out_channels = 3
    stride = 16
    maps = UNET_MAPS


class OnInfNet:
    build = staticmethod(partial(MultiInfNet, "inf_net"))
    in_channels = 2
    out_channels = 3
    maps = INF_NET_MAPS


class TestMultiInfNetOnInfNet(OnInfNet, NetworkTester, FeaturesTester):
    pass


@pytest.mark.slow
class TestExportsOfMultiInfNetOnInfNet(OnInfNet, ExportTester):
    pass


@pytest.mark.slow
class TestMultiInfNetAsPublished(NetworkTester, FeaturesTester, ExportTester):
    build = staticmethod(partial(MultiInfNet, features=PUBLISHED_FEATURES))
    in_channels = 2
    out_channels = 3
    stride = 16
    maps = UNET_MAPS


def cascade(trunk: str = "unet", single_share: float = 0.0) -> InfNetCascade:
    """A cascade whose single network has seen a batch, so that its statistics are not the initial ones."""
    single = InfNet()
    with torch.no_grad():
        single(torch.rand(2, 1, 64, 64))
    return InfNetCascade(single, MultiInfNet(trunk), single_share=single_share)


class CascadeTester(NetworkTester, ExportTester):
    out_channels = 3
    multi_stride = 32
    frozen = ("single.",)

    def set_training(self, script):
        script.train()
        script.single.eval()
        return script

    @pytest.mark.parametrize(("height", "width"), [(70, 33), (31, 32), (1, 5)])
    def test_odd_sizes_are_padded_with_the_last_row_and_column(self, net, height, width):
        # the prior is predicted on the slice itself; then each network pads what it is given
        x = self.images(1, height, width)
        with torch.no_grad():
            prediction = net(x)
            both = torch.cat([x, net.single(x).sigmoid()], 1)
            expected = net.multi(
                F.pad(both, (0, -width % self.multi_stride, 0, -height % self.multi_stride), mode="replicate")
            )
        assert prediction.shape == (1, 3, height, width)
        torch.testing.assert_close(prediction, expected[..., :height, :width])


class TestInfNetCascade(CascadeTester):
    build = staticmethod(cascade)
    multi_stride = 16
    maps = UNET_MAPS


class TestInfNetCascadeThatDecidesByBoth(ExportTester):
    """Exported, the mean of both networks' logits is in it."""

    build = staticmethod(partial(cascade, single_share=0.5))
    out_channels = 3
    maps = UNET_MAPS
    set_training = CascadeTester.set_training


@pytest.mark.slow
class TestInfNetCascadeOnInfNet(CascadeTester):
    build = staticmethod(partial(cascade, "inf_net"))
    maps = INF_NET_MAPS


def test_default_unet_is_light():
    assert 2e6 < sum(p.numel() for p in MultiInfNet().parameters()) < 5e6


@pytest.mark.parametrize("features", [LIGHT_FEATURES, PUBLISHED_FEATURES])
def test_features_are_the_widths_of_the_five_levels(features):
    net = MultiInfNet(features=features)
    body = net.trunk.body
    levels = (body.conv_0, body.down_1, body.down_2, body.down_3, body.down_4)
    widths = [[m for m in level.modules() if isinstance(m, nn.Conv2d)][-1].out_channels for level in levels]
    assert tuple(widths) == features
    assert net.feature_channels == features[-1]


@pytest.mark.parametrize(("trunk", "maps"), [("unet", UNetMaps), ("inf_net", InfNetMaps)])
def test_maps_in_evaluation_mode_hold_the_prediction(trunk, maps):
    net = MultiInfNet(trunk).eval()
    x = torch.rand(1, 2, 40, 64)
    with torch.no_grad():
        found = net.maps(x)
        assert isinstance(found, maps)
        assert torch.equal(net(x), found.pred if trunk == "unet" else found.s_3)


def test_other_trunks_are_refused():
    with pytest.raises(ValueError, match="no trunk is named 'vgg'; choose unet or inf_net"):
        MultiInfNet("vgg")


@pytest.mark.parametrize("features", [(), (8, 8, 8, 8), (8, 8, 8, 8, 8, 8), (8, 8, 8, 8, 0)])
def test_other_than_five_widths_are_refused(features):
    with pytest.raises(ValueError, match=r"features are \[.*\]; give the widths of the U-Net's five levels"):
        MultiInfNet(features=features)


class HandMade(nn.Module):
    """A single network whose logit is 4 x - 2."""

    in_channels = 1
    out_channels = 1

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x - 2


class Recorder(MultiInfNet):
    """A multi network that keeps what it was given."""

    def forward(self, x):
        self.given = x
        return super().forward(x)


@pytest.mark.parametrize("training", [True, False])
def test_prior_is_the_single_networks_prediction_on_the_same_image(training):
    multi = Recorder()
    net = InfNetCascade(HandMade(), multi).train(training)
    x = torch.rand(2, 1, 40, 48)
    net(x)
    assert torch.equal(multi.given[:, :1], x)
    torch.testing.assert_close(multi.given[:, 1:], 1 / (1 + torch.exp(2 - 4 * x)))


def test_prior_dropout_empties_the_prior_of_some_slices_in_training_only():
    torch.manual_seed(0)
    multi = Recorder()
    net = InfNetCascade(HandMade(), multi, prior_dropout=0.5)
    x = torch.rand(64, 1, 16, 16)
    net.train()(x)
    empty = (multi.given[:, 1] == 0).flatten(1)
    assert torch.equal(empty.any(1), empty.all(1))  # whole slices
    assert 20 <= int(empty.all(1).sum()) <= 44
    assert torch.equal(multi.given[:, :1], x)
    net.eval()(x)
    assert (multi.given[:, 1] > 0).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_prior_dropout_is_a_probability(probability):
    with pytest.raises(ValueError, match="prior_dropout"):
        InfNetCascade(InfNet(), MultiInfNet(), probability)


class Classes(MultiInfNet):
    """Logits 0 for background, 1 for ground glass and 3 for consolidation everywhere."""

    def forward(self, x):
        logits = torch.tensor([0.0, 1.0, 3.0])[:, None, None].expand(len(x), 3, *x.shape[2:])
        return UNetMaps(logits) if self.training else logits


def test_lesion_is_the_mean_of_both_networks_logits_where_the_cascade_predicts():
    x = torch.rand(2, 1, 16, 16)  # the single network's logit is 4 x - 2
    odds = torch.tensor(math.log(math.exp(1) + math.exp(3)))
    for share in (0.0, 0.25, 1.0):
        net = InfNetCascade(HandMade(), Classes(), single_share=share)
        found = net.eval()(x)
        lesion = torch.logsumexp(found[:, 1:], 1, keepdim=True) - found[:, :1]
        torch.testing.assert_close(lesion, share * (4 * x - 2) + (1 - share) * odds.expand_as(x))
        torch.testing.assert_close(found[:, 2] - found[:, 1], torch.full((2, 16, 16), 2.0))  # classes as they were
        assert torch.equal(net.train()(x).pred[0, :, 0, 0], torch.tensor([0.0, 1.0, 3.0]))  # what is trained


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_single_share_is_a_share(share):
    with pytest.raises(
        ValueError, match=r"single_share is .*; give the single network's share in the decision, 0 to 1"
    ):
        InfNetCascade(InfNet(), MultiInfNet(), single_share=share)


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x[..., 16:, :32]])
def test_prior_moves_with_the_image(turn):
    multi = Recorder()
    net = InfNetCascade(HandMade(), multi)
    x = torch.rand(2, 1, 48, 64)
    net(x)
    first = multi.given
    net(turn(x))
    assert torch.equal(multi.given, turn(first))
    assert not torch.equal(multi.given[:, 1], multi.given[:, 0])


def test_single_network_is_the_same_after_training_steps():
    net = cascade()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        net.train()
        optimiser.zero_grad()
        net(torch.rand(2, 1, 64, 64)).pred.square().mean().backward()
        optimiser.step()
    after = net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("multi.")}


def test_no_gradient_reaches_the_single_network_even_when_asked_for():
    net = cascade().requires_grad_(True).train()
    x = torch.rand(2, 1, 64, 64, requires_grad=True)
    assert not net.prior(x).requires_grad
    net(x).pred.sum().backward()
    assert all(p.grad is None for p in net.single.parameters())


def test_single_network_stays_in_evaluation_mode():
    net = InfNetCascade(InfNet().train(), MultiInfNet().train())
    for _ in range(2):
        assert net.multi.trunk.body.training
        assert not any(module.training for module in net.single.modules())
        net.eval().train()
    assert not any(module.training for module in net.eval().modules())


def test_state_holds_both_networks():
    net = cascade()
    names = [f"single.{name}" for name in net.single.state_dict()] + [
        f"multi.{name}" for name in net.multi.state_dict()
    ]
    assert list(net.state_dict()) == names


@pytest.mark.parametrize(
    ("single", "found"),
    [(partial(InfNet, 3), "3 channels in and 1 out"), (partial(InfNet, out_channels=3), "1 channels in and 3 out")],
)
def test_single_networks_of_other_channels_are_refused(single, found):
    with pytest.raises(ValueError, match=f"the single network has {found}; the cascade wants"):
        InfNetCascade(single(), MultiInfNet())


def test_multi_networks_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="the multi network takes 1 channels; the cascade gives it 2"):
        InfNetCascade(InfNet(), InfNet())
