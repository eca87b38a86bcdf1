# SPDX-License-Identifier: Apache-2.0
import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from torch import nn

from covid_monai.inference import UprightSliceInferer
from covid_monai.inference.slice_inferer import OUTSIDE_LOGIT, inside
from tests.inference.networks import Echo, Fixed


def body(height: int, width: int, box: tuple[tuple[int, int], tuple[int, int]]) -> torch.Tensor:
    """(H, W): air, and a rectangle of tissue whose intensity grows by 0.2 down and by 0.2 across the frame."""
    rows, columns = torch.linspace(0, 0.2, height)[:, None], torch.linspace(0, 0.2, width)
    image = torch.zeros(height, width)
    (top, bottom), (left, right) = box
    image[top:bottom, left:right] = (0.6 + rows + columns)[top:bottom, left:right]
    return image


@st.composite
def bodies(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[tuple[int, int], tuple[int, int]]]:
    height, width = draw(st.integers(48, 120)), draw(st.integers(48, 120))
    (top, left) = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    box = (top, height - draw(st.integers(0, 12))), (left, width - draw(st.integers(0, 12)))
    return body(height, width, box), box


sizes = st.integers(32, 160)


@given(bodies(), st.tuples(sizes, sizes), st.integers(0, 3), st.booleans())
def test_a_network_that_returns_its_input_returns_the_image(
    drawn, size: tuple[int, int], quarter_turns: int, mirrored: bool
):
    image, box = drawn
    inside = torch.zeros(image.shape, dtype=torch.bool)
    inside[slice(*box[0]), slice(*box[1])] = True
    image, inside = (x.rot90(quarter_turns) for x in (image, inside))
    if mirrored:
        image, inside = image.flip(-1), inside.flip(-1)
    pred = UprightSliceInferer(size=size, margin=0)(image[None, None], Echo())
    assert pred.shape == (1, 1, *image.shape)
    assert pred.dtype == torch.float32
    torch.testing.assert_close(pred[0, 0][inside], image[inside], rtol=0, atol=0.02)
    assert (pred[0, 0][~inside] == OUTSIDE_LOGIT).all()


@pytest.mark.parametrize("box", [((10, 50), (5, 85)), ((4, 84), (20, 60))])
@pytest.mark.parametrize(("size", "seen"), [((48, 96), (48, 96)), ([64, 32], (64, 32)), (64, (64, 64))])
def test_the_network_sees_rows_and_columns_of_the_size(box, size, seen: tuple[int, int]):
    network = Echo()
    UprightSliceInferer(size=size, margin=0)(body(90, 90, box)[None, None], network)
    assert network.seen == [(1, 1, *seen)]


def test_a_body_of_the_wanted_size_is_not_resampled():
    image = torch.zeros(1, 1, 80, 90)
    image[..., 8:56, 10:74] = 0.6 + 0.3 * torch.rand(48, 64, generator=torch.Generator().manual_seed(0))
    pred = UprightSliceInferer(size=(48, 64), margin=0)(image, Echo())
    assert torch.equal(pred[..., 8:56, 10:74], image[..., 8:56, 10:74])


def test_the_margin_is_kept_around_the_body_up_to_the_frame():
    pred = UprightSliceInferer(size=64, margin=6)(body(80, 80, ((10, 60), (3, 70)))[None, None], Echo())
    rows, columns = ((pred[0, 0] != OUTSIDE_LOGIT).any(dim=1 - axis).nonzero().flatten() for axis in (0, 1))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (4, 65, 0, 75)


@pytest.mark.parametrize("depth", [None, 3], ids=["slices", "volume"])
@pytest.mark.parametrize("classes", [2, 3])
@torch.no_grad()
def test_outside_the_body_class_logits_say_background(classes: int, depth: int | None):
    box = ((10, 60), (3, 70))
    image = body(80, 80, box)[None, None]
    image = image if depth is None else image[..., None].expand(-1, -1, -1, -1, depth)
    logits = torch.full((classes, 48, 64), 1.0)
    logits[0] = -30.0  # inside, everything is lesion
    probability = UprightSliceInferer(size=(48, 64), margin=0)(image, Fixed(logits)).softmax(1)
    assert probability.shape == (1, classes, *image.shape[2:])
    inside = torch.zeros(80, 80, dtype=torch.bool)
    inside[slice(*box[0]), slice(*box[1])] = True
    assert (probability[0, 0][~inside] > 1 - 1e-6).all()
    torch.testing.assert_close(probability[0, 1:][:, inside].sum(0), torch.ones_like(probability[0, 0][inside]))


@torch.no_grad()
def test_the_logits_inside_a_box_are_those_that_are_put_back(network: nn.Module):
    inferer = UprightSliceInferer(size=48, amp=False)
    slices, box = volume(3)[0].movedim(-1, 0), ((5, 61), (7, 40))
    body = inside(slices, box)
    found = inferer.enlarge(inferer.look(body, network), body.shape[-2:])
    assert found.shape == (3, 2, 56, 33)
    assert torch.equal(inferer.predict(slices, box, network)[..., 5:61, 7:40], found)


def test_slices_without_a_body_are_predicted_whole():
    pred = UprightSliceInferer(size=64)(torch.zeros(1, 1, 40, 56), Echo())
    assert torch.equal(pred, torch.zeros(1, 1, 40, 56))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [(0, 1)]), (8, [(0, 8)]), (9, [(0, 8), (8, 9)]), (20, [(0, 8), (8, 16), (16, 20)])]
)
def test_batches_cover_every_slice_once(count: int, expected: list[tuple[int, int]]):
    assert list(UprightSliceInferer(batch_size=8).batches(count)) == expected


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Two maps that depend on what lies left, right, above and below."""
    torch.manual_seed(3)
    return nn.Conv2d(1, 2, 3, padding=1)


def volume(slices: int) -> torch.Tensor:
    """(1, 1, H, W, D) whose slices differ in size and place of the body."""
    planes = [body(70, 60, ((4 + k, 60), (6, 50 - 2 * k))) for k in range(slices)]
    return torch.stack(planes, -1)[None, None]


@torch.no_grad()
def test_a_volume_is_its_slices_in_the_box_of_all(network: nn.Module):
    inferer = UprightSliceInferer(size=48, batch_size=2, amp=False)
    scan = torch.cat([volume(5), volume(5).flip(2)])
    pred = inferer(scan, network)
    assert pred.shape == (2, 2, 70, 60, 5)
    for number, k in itertools.product(range(2), range(5)):
        box = inferer.box(scan[number].movedim(-1, 0))
        expected = inferer.predict(scan[number, ..., k][None], box, network)
        torch.testing.assert_close(pred[number, ..., k], expected[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_slices_have_a_box_each(network: nn.Module):
    inferer = UprightSliceInferer(size=48, amp=False)
    slices = volume(3)[0].movedim(-1, 0)
    pred = inferer(slices, network)
    for one, expected in zip(slices, pred, strict=True):
        torch.testing.assert_close(inferer(one[None, ..., None], network)[0, ..., 0], expected, rtol=0, atol=1e-5)


def test_the_network_sees_no_more_slices_than_a_batch():
    echo = Echo()
    UprightSliceInferer(size=32, batch_size=2)(volume(5), echo)
    assert [shape[0] for shape in echo.seen] == [2, 2, 1]


def test_arguments_reach_the_network():
    def shifted(x: torch.Tensor, by: float, times: float = 1.0) -> torch.Tensor:
        return times * (x + by)

    pred = UprightSliceInferer(size=32)(torch.zeros(1, 1, 32, 32), shifted, 2.0, times=3.0)
    assert torch.equal(pred, torch.full((1, 1, 32, 32), 6.0))


def test_monai_tensors_are_taken(network: nn.Module):
    plain = volume(2)
    pred = UprightSliceInferer(size=32)(MetaTensor(plain), network)
    assert torch.equal(torch.as_tensor(pred), UprightSliceInferer(size=32)(plain, network))


def test_a_mixed_precision_network_gives_float32():
    pred = UprightSliceInferer(size=32)(torch.ones(1, 1, 32, 32), lambda x: x.to(torch.bfloat16))
    assert pred.dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"slab": 0.0}, {"smoothing": -1.0}])
def test_lengths_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"of slices is .* mm: it must be positive and finite, or None"):
        UprightSliceInferer(**wrong)


@torch.no_grad()
def test_of_a_volume_at_a_known_distance_the_network_sees_slabs(network: nn.Module):
    inferer = UprightSliceInferer(size=48, amp=False, slab=3.0)
    affine = torch.tensor([[0, 0, 1.5, 9], [0, -0.7, 0, 8], [0.7, 0, 0, 7], [0, 0, 0, 1]])  # an axis, not a diagonal
    scan = volume(5)
    scans = [MetaTensor(scan[0], affine), MetaTensor(scan[0].flip(1), torch.eye(4) * 10)]
    batch = next(iter(DataLoader(Dataset(scans), batch_size=2)))
    known, thick = found = inferer(batch, network)
    assert torch.equal(found.affine, batch.affine)
    assert found.meta == batch.meta
    slabs = torch.stack([scan[..., :2].mean(-1), scan[..., 2:4].mean(-1), scan[..., 4]], -1)
    box = inferer.box(scan[0].movedim(-1, 0))
    for place, slab in enumerate([0, 0, 1, 1, 2]):
        expected = inferer.predict(slabs[..., slab], box, network)[0]
        torch.testing.assert_close(known[..., place], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(thick, inferer(scan.flip(2), network)[0])


@pytest.mark.parametrize("wrong", [{"size": 31}, {"size": (64, 31)}, {"batch_size": 0}, {"margin": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} .* got .*{re.escape(str(value))}"):
        UprightSliceInferer(**wrong)


@pytest.mark.parametrize("shape", [(1, 40, 40), (1, 1, 40, 40, 2, 2)])
def test_neither_slices_nor_volumes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\(B, C, H, W\) slices or \(B, C, H, W, D\) volumes"):
        UprightSliceInferer()(torch.zeros(shape), Echo())
