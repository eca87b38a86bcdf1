# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import distance_transform_edt

from covid_monai.severity.in_plane import bounding_box, closed, dilated, eroded

planes = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))
lengths = st.sampled_from([0.5, 0.7, 1.0, 1.4, 3.0])
radii = st.sampled_from([0.0, 0.9, 1.3, 2.5, 5.1, 12.0])


def test_a_disc_by_hand():
    plane = np.zeros((3, 5), dtype=bool)
    plane[1, 2] = True
    assert dilated(plane, 2.0, (2.0, 1.0)).astype(int).tolist() == [[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert eroded(~plane, 2.0, (2.0, 1.0)).sum() == 0  # all is within 2 mm of the hole or of the frame


@given(planes, radii, st.tuples(lengths, lengths))
def test_growing_and_shrinking_are_distances(plane: np.ndarray, radius: float, spacing: tuple[float, float]):
    away = distance_transform_edt(~plane, sampling=spacing) if plane.any() else np.full(plane.shape, np.inf)
    np.testing.assert_array_equal(dilated(plane, radius, spacing), away <= radius)
    depth = distance_transform_edt(np.pad(plane, 1), sampling=spacing)[1:-1, 1:-1]
    np.testing.assert_array_equal(eroded(plane, radius, spacing), depth > radius)


def test_closing_by_hand():
    plane = np.zeros((7, 9), dtype=bool)
    plane[2:5, [1, 3, 7]] = True
    expected = plane.copy()
    expected[3, 2] = True  # its four neighbours lie within 1 mm of what is set; those of (2, 2) do not
    assert np.array_equal(closed(plane, 1.0, (1.0, 1.0)), expected)
    assert np.array_equal(closed(plane, 0.9, (1.0, 1.0)), plane)


def test_closing_does_not_reach_the_frame():
    plane = np.zeros((5, 5), dtype=bool)
    plane[2, 1] = True
    assert np.array_equal(closed(plane, 3.0, (1.0, 1.0)), plane)


@given(planes, radii, st.tuples(lengths, lengths))
def test_closing_twice_is_closing(plane: np.ndarray, radius: float, spacing: tuple[float, float]):
    once = closed(plane, radius, spacing)
    assert (once >= plane).all()
    np.testing.assert_array_equal(closed(once, radius, spacing), once)


def test_a_box_has_its_margin_within_the_plane():
    plane = np.zeros((9, 9), dtype=bool)
    plane[1, 4:6] = True
    rows, columns = bounding_box(plane, 3.0, (1.0, 2.0))
    assert (rows.start, columns.start, columns.stop) == (0, 2, 8)  # one pixel more than the margin
    assert plane[rows, columns].shape == (6, 6)
    assert plane[bounding_box(np.zeros_like(plane), 3.0, (1.0, 1.0))].size == 0
