# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from covid_monai.networks.encoders import ENCODERS, Encoder, ResNetEncoder, build_encoder


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_features_have_the_declared_channels_at_strides_2_to_32(name, in_channels):
    encoder = build_encoder(name, in_channels).eval()
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        features = encoder(torch.rand(1, in_channels, 64, 96))
    expected = [
        (1, c, 64 // stride, 96 // stride) for c, stride in zip(encoder.channels, (2, 4, 8, 16, 32), strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == expected


# The classifier's 2,049,000 parameters are left out of both: 25,557,032 in torchvision's ResNet-50, 25,718,352 in
# Res2Net-50 v1b 26w4s.
@pytest.mark.parametrize(("name", "count"), [("resnet50", 23_508_032), ("res2net50", 23_669_352)])
def test_published_encoders_have_the_published_number_of_parameters(name, count):
    assert sum(p.numel() for p in build_encoder(name, 3).parameters()) == count


def test_a_new_encoder_is_one_entry(monkeypatch):
    from covid_monai.networks import InfNet

    monkeypatch.setitem(ENCODERS, "tiny", lambda c: ResNetEncoder("basic", (1, 1, 1, 1), c, widths=(8, 8, 16, 16)))
    net = InfNet(encoder="tiny").eval()
    assert net.encoder.channels == (8, 8, 8, 16, 16)
    assert net(torch.rand(1, 1, 64, 64)).shape == (1, 1, 64, 64)


def test_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'vgg16'; choose one of res2net50, resnet18_narrow, resnet50"):
        build_encoder("vgg16", 1)
