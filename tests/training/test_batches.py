# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.data import MetaTensor

from covid_monai.training import prepare_edge_batch


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
