# SPDX-License-Identifier: Apache-2.0
"""Slabs: hand-computed weights, and what must hold for every scan."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.inference import Slabs


@st.composite
def slabs(draw: st.DrawFn) -> tuple[Slabs, int]:
    """Slabs of a part of a scan, and the number of the scan's slices."""
    count = draw(st.integers(1, 60))
    first = draw(st.integers(0, count - 1))
    end = draw(st.integers(first + 1, count))
    length = st.one_of(st.none(), st.floats(0.3, 12))
    return Slabs((first, end), count, draw(length), draw(length), draw(length), draw(st.booleans())), count


def smooth(found: Slabs, seen: torch.Tensor, size: int) -> torch.Tensor:
    """All rows of logits, made from those of the slabs in parts of so many."""
    parts = [(start, min(start + size, len(found))) for start in range(0, len(found), size)]
    return torch.cat([found.smooth(seen[found.around(*part)], *part) for part in parts])


@pytest.mark.parametrize(
    ("distance", "thickness", "expected"),
    [
        (1.0, 3.0, [(0, 3), (3, 6), (6, 8)]),
        (1.25, 3.0, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (0.1, 0.3, [(0, 3), (3, 6), (6, 8)]),  # 0.3 / 0.1 is less than 3 in binary
        (5.0, 3.0, [(number, number + 1) for number in range(8)]),
        (None, 3.0, [(number, number + 1) for number in range(8)]),
        (1.0, None, [(number, number + 1) for number in range(8)]),
    ],
)
def test_slabs_are_no_thicker_than_asked_for(distance, thickness, expected):
    found = Slabs((0, 8), 8, distance, thickness)
    assert [(each.start, each.stop) for each in found.slabs] == expected


def test_a_part_is_widened_to_the_slabs_of_the_whole_scan():
    assert Slabs((4, 7), 20, 1.0, 3.0).slabs == [slice(3, 6), slice(6, 9)]
    assert Slabs((19, 20), 20, 1.0, 3.0).slabs == [slice(18, 20)]
    assert Slabs((4, 4), 20, 1.0, 3.0).slabs == []


def test_the_network_sees_the_mean_of_a_slabs_slices():
    slices = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0])[:, None]
    assert Slabs((0, 5), 5, 1.0, 3.0).means(slices, 0, 2).flatten().tolist() == [3.0, 15.0]


def test_slices_apart_by_a_standard_deviation_count_by_the_gaussian():
    near, far = math.exp(-1 / 2), math.exp(-4 / 2)
    found = Slabs((0, 5), 5, distance=4.0, smoothing=4.0)
    middle = smooth(found, torch.eye(5), 5)[2]
    total = 1 + 2 * near + 2 * far
    torch.testing.assert_close(middle, torch.tensor([far, near, 1, near, far]) / total)
    first = smooth(found, torch.eye(5), 5)[0]
    third = math.exp(-9 / 2)  # three standard deviations away still counts, four does not
    torch.testing.assert_close(first, torch.tensor([1, near, far, third, 0]) / (1 + near + far + third))


def test_slices_between_the_middles_of_slabs_get_something_of_both():
    found = Slabs((0, 4), 4, distance=1.0, thickness=2.0, smoothing=0.5)  # middles at 0.5 and 2.5 mm
    own, other = math.exp(-((0.5 / 0.5) ** 2) / 2), math.exp(-((1.5 / 0.5) ** 2) / 2)
    torch.testing.assert_close(
        smooth(found, torch.tensor([0.0, 1.0]), 2)[[1, 2]], torch.tensor([other, own]) / (own + other)
    )


def test_without_smoothing_a_slice_has_the_logits_of_its_slab():
    found = Slabs((0, 5), 5, distance=1.0, thickness=3.0)
    assert smooth(found, torch.tensor([1.0, 2.0]), 1).tolist() == [1, 1, 1, 2, 2]
    found = Slabs((0, 5), 5, distance=1.0, thickness=3.0, every_slice=False)
    assert smooth(found, torch.tensor([1.0, 2.0]), 1).tolist() == [1, 2]


@given(slabs())
def test_slabs_partition_their_slices(drawn: tuple[Slabs, int]):
    found, count = drawn
    slices = [number for each in found.slabs for number in range(each.start, each.stop)]
    assert slices == [*range(slices[0], slices[-1] + 1)]
    assert 0 <= slices[0] <= slices[-1] < count


@given(slabs(), st.integers(1, 9))
def test_smoothing_keeps_what_is_constant_and_does_not_depend_on_the_parts(drawn: tuple[Slabs, int], size: int):
    found, _ = drawn
    constant = smooth(found, torch.full((len(found), 2), -7.5), size)
    torch.testing.assert_close(constant, torch.full_like(constant, -7.5))
    seen = torch.randn(len(found), 4, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(smooth(found, seen, size), smooth(found, seen, len(found)), rtol=1e-4, atol=1e-5)


@given(slabs(), st.integers(1, 9))
def test_every_slice_of_the_part_has_a_row(drawn: tuple[Slabs, int], size: int):
    found, count = drawn
    smoothed = len(smooth(found, torch.zeros(len(found), 1), size))
    span = found.span(0, len(found))
    rows = [*range(span.start, span.stop)] if found._every_slice else [*range(len(found))]
    assert len(found.standing) == count and len(rows) == smoothed
    assert set(found.standing[span]) == {*rows}
    assert (np.delete(found.standing, np.arange(span.start, span.stop)) == -1).all()
    parts = [found.rows(n, n + 1) for n in range(len(found))]
    assert [row for part in parts for row in range(part.start, part.stop)] == rows


@given(slabs())
def test_what_is_smoothed_lies_between_what_was_seen(drawn: tuple[Slabs, int]):
    found, _ = drawn
    seen = torch.randn(len(found), 3, generator=torch.Generator().manual_seed(len(found)))
    smoothed = smooth(found, seen, len(found))
    assert (smoothed <= seen.amax(0) + 1e-5).all()
    assert (smoothed >= seen.amin(0) - 1e-5).all()


@given(st.integers(1, 40), st.floats(0.5, 8), st.floats(0.5, 8))
def test_upside_down_is_smoothed_alike(count: int, distance: float, smoothing: float):
    found = Slabs((0, count), count, distance, None, smoothing)
    seen = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(
        smooth(found, seen.flip(0), count).flip(0), smooth(found, seen, count), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["distance", "thickness", "smoothing"])
@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_lengths_that_are_none_are_refused(name: str, length: float):
    with pytest.raises(ValueError, match=f"{name} of slices is {length} mm: it must be positive and finite, or None"):
        Slabs((0, 1), 1, **{name: length})
