# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch

from covid_monai.networks import FineInfNet, FineInfNetMaps, InfNet, InfNetCascade, MultiInfNet, with_inpainting_heads
from tests.networks.network_tester import ExportTester, FeaturesTester, NetworkTester

MAPS = dict.fromkeys(FineInfNetMaps._fields, 1)
THREE_CLASS_MAPS = {**dict.fromkeys(MAPS, 3), "edge": 1}


class TestFineInfNet(NetworkTester, FeaturesTester, ExportTester):
    build = staticmethod(FineInfNet)
    maps = MAPS


class TestFineInfNetOfThreeClasses(NetworkTester):
    build = staticmethod(partial(FineInfNet, out_channels=3))
    out_channels = 3
    maps = THREE_CLASS_MAPS


class TestFineInfNetRebuilding(NetworkTester, FeaturesTester):
    build = staticmethod(lambda: with_inpainting_heads(FineInfNet()))
    maps = MAPS


def test_the_prediction_is_the_finest_map():
    net = FineInfNet().eval()
    x = torch.rand(1, 1, 40, 70)
    with torch.no_grad():
        assert torch.equal(net(x), net.maps(x).s_1)
        assert torch.equal(net.predict(x), net.maps(x).s_1)


def test_up_to_s_3_it_is_inf_net():
    fine, plain = FineInfNet().eval(), InfNet().eval()
    missing, unexpected = fine.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("fine.") for name in missing)
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        fine_maps, maps = fine.maps(x), plain.maps(x)
    for name in ("s_g", "s_5", "s_4", "s_3", "edge"):
        torch.testing.assert_close(getattr(fine_maps, name), getattr(maps, name))


def test_its_map_has_details_of_two_pixels():
    """A map made at stride 2 and resized bilinearly is linear between its cells' centres, not between coarser ones."""
    torch.manual_seed(0)
    net = FineInfNet().eval()
    with torch.no_grad():
        maps = net.maps(torch.rand(1, 1, 64, 64))
    bends = {name: getattr(maps, name).diff(dim=-1).diff(dim=-1).abs().gt(1e-4).double().mean() for name in MAPS}
    assert bends["s_3"] < 0.5 < bends["s_1"]


def test_it_makes_the_prior_of_the_cascade():
    single = FineInfNet().eval()
    cascade = InfNetCascade(single, MultiInfNet())
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(cascade.prior(x), single(x).sigmoid())


def test_other_channels_and_encoders_are_refused():
    with pytest.raises(ValueError, match="in_channels is 4"):
        FineInfNet(in_channels=4)
    with pytest.raises(ValueError, match="no encoder is named 'vgg16'"):
        FineInfNet(encoder="vgg16")
