# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity import ThresholdLungs
from covid_monai.severity.mask_slices import Reached
from tests.severity.chest import chest

volumes = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 3), elements=st.integers(0, 5))


@given(volumes, st.integers(1, 5), st.data())
def test_a_mask_by_a_limit_reads_like_its_array(values: np.ndarray, limit: int, data: st.DataObject):
    standing = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=6)))
    mask, array = Reached(values, limit, standing), values[standing] >= limit
    assert (mask.shape, len(mask)) == (array.shape, len(array))
    assert np.array_equal(np.stack([*mask]), array)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(array))] * 2)))
    assert np.array_equal(mask[start:stop], array[start:stop])


def test_lungs_are_the_same_for_lesions_that_are_read_slice_by_slice():
    spacing = (6.0, 3.0, 3.0)
    hu, lungs, _ = chest(spacing)
    values = np.zeros(hu.shape, dtype=np.uint8)
    low = np.flatnonzero(lungs.any(axis=(1, 2)))[0]
    values[low : low + 6] = 3 * (lungs[low : low + 6] > 0)
    values[low + 6 : low + 9] = 2 * (lungs[low + 6 : low + 9] > 0)  # less than the limit
    hu[values == 3] = 40
    lesions = values == 3
    found = ThresholdLungs()(hu, spacing, Reached(values, 3, np.arange(len(hu))))
    given = ThresholdLungs()(hu, spacing, lesions)
    assert np.array_equal(found.mask, given.mask)
    assert found.mask[lesions].any()
    assert found.warnings == given.warnings
