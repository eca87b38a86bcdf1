# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.severity.blocks import any_in_blocks, block_means, block_steps, interpolate_codes, repeat_blocks

RAMP = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5) * 10


@pytest.mark.parametrize(
    ("spacing", "steps", "grid"),
    [
        ((5.0, 0.75, 0.75), (1, 2, 2), (5.0, 1.5, 1.5)),
        ((0.6, 0.98, 2.0), (3, 1, 1), (1.8, 0.98, 2.0)),
        ((1.0, 1.0, 0.5), (2, 1, 3), (2.0, 1.0, 1.5)),
        ((1.5, 0.5, 0.3), (1, 3, 5), (1.5, 1.5, 1.5)),
    ],
)
def test_blocks_are_about_one_and_a_half_millimetres_and_two_across_slices(spacing: tuple, steps: tuple, grid: tuple):
    found = block_steps(spacing)
    assert found[0] == steps
    assert found[1] == pytest.approx(grid)


def test_means_worked_out_by_hand():
    # of 0 10 / 50 60, of 20 30 / 70 80, and of 40 40 / 90 90: the last column makes the last block whole
    assert block_means(RAMP[:1], (1, 2, 2))[0, 0].tolist() == [30, 50, 65]
    assert block_means(RAMP, (2, 3, 5)).tolist() == [[[145]]]
    assert block_means(RAMP[:, :1, :1], (2, 1, 1)).tolist() == [[[75]]]  # of 0 and 150
    assert block_means(np.full((1, 1, 2), -3024.0), (1, 1, 2)).tolist() == [[[-1024]]]
    assert block_means(np.array([[[-3024.0, 0.0]]]), (1, 1, 2)).tolist() == [[[-512]]]  # padding counts as air


def test_blocks_with_something_in_them():
    mask = np.zeros((3, 4, 5), dtype=np.uint8)
    mask[2, 3, 4] = mask[0, 0, 1] = 2
    found = any_in_blocks(mask, (2, 2, 2))
    assert np.argwhere(found).tolist() == [[0, 0, 0], [1, 1, 2]]
    assert found.shape == (2, 2, 3)


def test_blocks_are_repeated():
    assert repeat_blocks(np.array([[1, 2], [3, 0]]), (9, 1, 2), (4, 2, 3)).tolist() == [[1, 1, 2], [3, 3, 0]]


def test_codes_are_interpolated_between_the_middles_of_the_blocks():
    codes = np.zeros((1, 1, 3), dtype=np.uint8)
    codes[..., 1] = 2
    # middles of the blocks at 1.5, 5.5, 9.5: more than half between 3.5 and 7.5
    assert interpolate_codes(codes, (1, 1, 4), (1, 1, 12))[0, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0]
    codes[..., 0] = 1
    assert interpolate_codes(codes, (1, 1, 4), (1, 1, 12))[0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    assert interpolate_codes(codes, (1, 1, 1), (1, 1, 3)).tolist() == codes.tolist()


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2))
def test_what_is_the_same_everywhere_stays_it(shape: tuple, steps: tuple, code: int):
    volume = np.full(shape, float(code * 100))
    blocks = block_means(volume, steps)
    assert (blocks == code * 100).all()
    codes = (blocks / 100).astype(np.uint8)
    assert np.array_equal(interpolate_codes(codes, steps, shape), np.full(shape, code))
    assert any_in_blocks(volume, steps).all() == (code > 0)
    assert (
        blocks.shape
        == any_in_blocks(volume, steps).shape
        == tuple(-(-n // k) for n, k in zip(shape, steps, strict=True))
    )
