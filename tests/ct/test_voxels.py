# SPDX-License-Identifier: Apache-2.0
"""The values of a scan while it is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.ct.faults import ImplausibleValues
from covid_monai.ct.voxels import Voxels

WHOLE = st.integers(-1024, 32767).map(float)
ANY = st.one_of(WHOLE, st.floats(-1024, 1e6, width=32))


def gather(planes: np.ndarray) -> Voxels:
    voxels = Voxels("scan", planes.shape)
    for number, plane in enumerate(planes):
        voxels.put(number, plane, f"slice {number + 1}")
    return voxels


@given(hnp.arrays(np.float32, (4, 3, 2), elements=WHOLE))
def test_whole_values_take_two_bytes(planes):
    array = gather(planes).array
    assert array.dtype == np.int16 and np.array_equal(array, planes)


@given(hnp.arrays(np.float32, (4, 3, 2), elements=ANY))
def test_nothing_is_lost_whatever_the_values(planes):
    voxels = gather(planes)
    assert np.array_equal(voxels.array, planes)
    assert (voxels.range.low, voxels.range.high) == (planes.min(), planes.max())


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "f2", ">f4", "f8"])
def test_planes_of_any_type(dtype):
    planes = np.array([[[0, 1], [1, 0]]] * 3 if dtype == "?" else [[[0, 7], [100, 127]]] * 3).astype(dtype)
    given = planes.copy()
    array = gather(planes).array
    assert array.dtype == np.int16 and np.array_equal(array, planes)
    assert np.array_equal(planes, given)


@pytest.mark.parametrize(("dtype", "value"), [("u2", 32768), ("i4", 70000), ("u4", 1 << 20), ("i8", 40000)])
def test_large_whole_numbers_make_all_float32(dtype, value):
    planes = np.zeros((3, 2, 2), dtype=dtype)
    planes[1, 1, 0] = value
    array = gather(planes).array
    assert array.dtype == np.float32 and np.array_equal(array, planes)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_padding_is_raised_in_any_type(dtype):
    assert (gather(np.full((3, 2, 2), -3024, dtype=dtype)).array == -1024).all()


@pytest.mark.parametrize("value", [0.5, 32768.0, 70000.0])
@pytest.mark.parametrize("number", [0, 2])
def test_a_value_that_int16_does_not_hold_makes_all_float32(value, number):
    planes = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    planes[number, 1, 1] = value
    array = gather(planes).array
    assert array.dtype == np.float32 and np.array_equal(array, planes)


def test_nan_is_refused_by_name():
    planes = np.zeros((3, 2, 2), dtype=np.float32)
    planes[1, 0, 0] = np.nan
    with pytest.raises(ImplausibleValues, match=r"scan holds 1 NaN or infinite values in slice 2"):
        gather(planes)
