# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.data import MetaTensor

from covid_monai.networks import InfNet, InfNetCascade, MultiInfNet
from covid_monai.training import PreparePriorBatch, prepare_edge_batch, prepare_image_batch


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {key: MetaTensor(torch.rand(2, 3, 4, 5)) for key in ("image", "label", "edge", "unused")}


def test_image_label_and_edge_are_taken_as_plain_tensors(batch: dict[str, torch.Tensor]):
    image, (label, edge) = prepare_edge_batch(batch, "cpu")
    for found, key in ((image, "image"), (label, "label"), (edge, "edge")):
        assert type(found) is torch.Tensor
        assert torch.equal(found, batch[key].as_tensor())


def test_the_image_is_channels_last(batch: dict[str, torch.Tensor]):
    assert prepare_edge_batch(batch)[0].stride() == (3 * 4 * 5, 1, 3 * 5, 3)


def test_arguments_of_the_move_are_passed_on(batch: dict[str, torch.Tensor]):
    image, (label, edge) = prepare_edge_batch(batch, torch.device("meta"), non_blocking=True, dtype=torch.float64)
    assert {(x.device.type, x.dtype) for x in (image, label, edge)} == {("meta", torch.float64)}


def test_a_batch_without_edges_is_refused(batch: dict[str, torch.Tensor]):
    del batch["edge"]
    with pytest.raises(KeyError, match="edge"):
        prepare_edge_batch(batch)


def test_an_image_batch_needs_no_label():
    image = MetaTensor(torch.rand(2, 1, 4, 5))
    found = prepare_image_batch({"image": image})
    assert type(found) is torch.Tensor
    assert torch.equal(found, image.as_tensor())


def test_the_prior_is_the_single_networks_prediction_on_the_very_image():
    torch.manual_seed(0)
    cascade = InfNetCascade(InfNet(), MultiInfNet(features=(4, 4, 4, 4, 4)))
    image = torch.rand(2, 1, 32, 64)
    found = PreparePriorBatch(cascade)({"image": image, "label": torch.ones(2, 1, 32, 64)})
    assert found.shape == (2, 2, 32, 64)
    assert torch.equal(found[:, :1], image)
    with torch.no_grad():
        assert torch.allclose(found[:, 1:], cascade.single.eval()(image).sigmoid(), atol=1e-6)
    assert not found.requires_grad
