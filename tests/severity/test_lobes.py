# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_monai.datasets.phantom import Phantom, make_phantom, upright
from covid_monai.severity.anatomy import LOBES
from covid_monai.severity.lobes import LOBE_SHARES, approximate_lobes, lobes_from_codes

Spacing = tuple[float, float, float]
CODES = {lobe.key: lobe.code for lobe in LOBES}
OF_LUNG = {1: (1, 2, 3), 2: (4, 5)}


def lungs_of(phantom: Phantom) -> tuple[np.ndarray, Spacing]:
    dx, dy, dz = np.diag(phantom.affine)[:3].tolist()
    return upright(phantom.lungs), (dz, dy, dx)


def two_ellipsoids(shape: tuple[int, int, int], stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Lungs (Z, H, W) as ellipsoids beside each other, the same on any grid; ``stretch`` below 1 flattens them."""
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in shape), indexing="ij")
    lungs = np.zeros(shape, dtype=np.uint8)
    for code, middle in ((1, -0.5), (2, 0.5)):
        inside = (z / 0.95 / stretch[0]) ** 2 + (y / 0.9 / stretch[1]) ** 2 + (
            (x - middle) / 0.42 / stretch[2]
        ) ** 2 < 1
        lungs[inside] = code
    return lungs


def shares(lobes: np.ndarray) -> dict[str, float]:
    """Share of each lobe in its own lung, 0 without one."""
    voxels = np.bincount(lobes.ravel(), minlength=6)
    return {
        lobe.key: voxels[lobe.code] / max(1, sum(voxels[code] for code in codes))
        for codes in OF_LUNG.values()
        for lobe in LOBES
        if lobe.code in codes
    }


# the published shares, each divided by the sum over its lung, by hand
EXPECTED = {
    "right_upper_lobe": 0.3333,
    "right_middle_lobe": 0.1732,
    "right_lower_lobe": 0.4935,
    "left_upper_lobe": 0.4989,
    "left_lower_lobe": 0.5011,
}


def test_published_shares_add_up_to_the_lungs():
    assert set(LOBE_SHARES) == set(CODES)
    assert sum(LOBE_SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(96, 96, 48), (128, 128, 12)])
def test_lobes_of_phantoms_have_the_published_shares(seed: int, shape: tuple[int, int, int]):
    lungs, spacing = lungs_of(make_phantom(seed, shape, lesions=None))
    lobes = approximate_lobes(lungs, spacing)
    assert (lobes.dtype, lobes.shape) == (np.uint8, lungs.shape)
    assert shares(lobes) == pytest.approx(EXPECTED, abs=0.005)


def test_lobes_lie_where_they_belong(phantom: Phantom):
    lungs, spacing = lungs_of(phantom)
    lobes = approximate_lobes(lungs, spacing)
    height, depth, _ = (
        {key: float(np.nonzero(lobes == code)[axis].mean() * spacing[axis]) for key, code in CODES.items()}
        for axis in range(3)
    )
    for side in ("right", "left"):
        assert height[f"{side}_lower_lobe"] < height[f"{side}_upper_lobe"] - 30
        assert depth[f"{side}_lower_lobe"] > depth[f"{side}_upper_lobe"] + 20
    assert height["right_middle_lobe"] < height["right_upper_lobe"] - 30
    assert depth["right_middle_lobe"] < depth["right_lower_lobe"] - 30


@pytest.mark.parametrize(("lung", "lower"), [(1, 3), (2, 5)])
def test_the_oblique_fissure_runs_from_the_back_above_to_the_front_below(lung: int, lower: int):
    lungs, spacing = lungs_of(make_phantom(1, (96, 96, 96), lesions=None))
    lobes = approximate_lobes(lungs, spacing)
    slices, rows = (np.flatnonzero((lungs == lung).any(axis=axes)) for axes in ((1, 2), (0, 2)))
    tops = [np.flatnonzero((lobes[:, row] == lower).any(axis=1)) for row in rows]
    reach = np.array([top[-1] if len(top) else slices[0] for top in tops])  # of the lower lobe, from front to back
    assert (np.diff(reach[: int(0.8 * len(reach))]) >= 0).all()
    share = (reach.max() - slices[0]) / (slices[-1] - slices[0])
    assert 0.7 < share < 0.92  # the third or fourth thoracic vertebra
    assert not (lobes[int(slices[0] + 0.45 * len(slices)), rows[: len(rows) // 4]] == lower).any()


@pytest.mark.parametrize(("lung", "lower", "outward"), [(1, 3, -1), (2, 5, 1)])
def test_above_the_lower_lobe_looks_outward(lung: int, lower: int, outward: int):
    plane = approximate_lobes(np.full((30, 40, 30), lung, dtype=np.uint8), (5.0, 2.0, 2.0))[20, :, ::outward]
    front = (plane == lower).argmax(axis=0)  # from the midline to the side
    assert (np.diff(front) >= 0).all()
    assert front[-1] - front[0] >= 5


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(2, 24)),
    stretch=st.tuples(*[st.floats(0.3, 1.0)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 12.0)] * 3),
)
def test_lobes_cover_the_lungs_and_stay_in_their_own(shape: tuple, stretch: tuple, spacing: Spacing):
    lungs = two_ellipsoids(shape, stretch)
    lobes = approximate_lobes(lungs, spacing)
    for lung, codes in OF_LUNG.items():
        assert np.array_equal(np.isin(lobes, codes), lungs == lung)
    assert np.array_equal(lobes, approximate_lobes(lungs, spacing))


@settings(max_examples=15, deadline=None)
@given(
    stretch=st.tuples(*[st.floats(0.6, 1.0)] * 3),
    shape=st.tuples(st.integers(20, 60), st.integers(30, 60), st.integers(60, 120)),
)
def test_lobes_do_not_depend_on_the_grid(stretch: tuple, shape: tuple):
    lungs = two_ellipsoids(shape, stretch)
    fine = two_ellipsoids((60, 60, 120), stretch)
    lobes, finer = approximate_lobes(lungs, (1, 1, 1)), approximate_lobes(fine, (1, 1, 1))
    assert shares(lobes) == pytest.approx(shares(finer), abs=0.01)
    near = np.ix_(*(((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, fine.shape, strict=True)))
    both = (lungs != 0) & (fine[near] != 0)
    assert np.mean(lobes[both] == finer[near][both]) > 0.95


@pytest.mark.parametrize("spacing", [(5.0, 0.7, 0.7), (1.0, 1.0, 1.0), (0.5, 3.0, 2.0)])
def test_lobes_do_not_depend_on_size_or_stretching(spacing: Spacing):
    lungs = two_ellipsoids((20, 30, 60))
    agree = approximate_lobes(lungs, spacing) == approximate_lobes(lungs, (2.0, 1.0, 1.0))
    assert agree.mean() > 0.999  # rounding may turn a voxel on the surface itself


@pytest.mark.parametrize("absent", [1, 2])
def test_a_lung_that_is_not_there_has_no_lobes(absent: int):
    lungs = two_ellipsoids((20, 30, 60))
    both = approximate_lobes(lungs, (5.0, 2.0, 2.0))
    alone = approximate_lobes(np.where(lungs == absent, 0, lungs), (5.0, 2.0, 2.0))
    assert np.array_equal(alone, np.where(lungs == absent, 0, both))


def test_without_lungs_there_are_no_lobes():
    assert not approximate_lobes(np.zeros((3, 4, 5), np.uint8), (5.0, 1.0, 1.0)).any()
    assert approximate_lobes(np.zeros((0, 4, 5), np.uint8), (5.0, 1.0, 1.0)).shape == (0, 4, 5)


@pytest.mark.parametrize("crop", [np.s_[:9], np.s_[9:], np.s_[:, :15], np.s_[:, :, 10:], np.s_[7:8]])
def test_cropped_lungs_are_cut_too(crop: tuple):
    lungs = two_ellipsoids((20, 30, 60))[crop]
    assert shares(approximate_lobes(lungs, (5.0, 2.0, 2.0))) == pytest.approx(EXPECTED, abs=0.02)


def test_a_mask_that_does_not_tell_the_lungs_apart_is_refused():
    with pytest.raises(ValueError, match=r"bool values: expected integer codes 0\.\.2"):
        approximate_lobes(np.ones((3, 4, 5), bool), (5.0, 1.0, 1.0))


def test_lobe_codes_are_no_lungs():
    with pytest.raises(ValueError, match=r"codes 5\.\.5: expected 0\.\.2"):
        approximate_lobes(np.full((3, 4, 5), 5, np.uint8), (5.0, 1.0, 1.0))


@pytest.mark.parametrize("volume", [2, 6])
def test_lobes_of_real_lungs_have_the_published_shares(volume: int, shared_data: Callable[[str], Path]):
    lungs = radiopaedia_lungs(shared_data("medseg_radiopaedia9"), volume)
    assert shares(approximate_lobes(lungs, (5.0, 0.7, 0.7))) == pytest.approx(EXPECTED, abs=0.003)


def radiopaedia_lungs(folder: Path, volume: int) -> np.ndarray:
    """(Z, H, W) 1 right, 2 left; the lungs are parted where the fewest of the middle columns are lung."""
    from PIL import Image

    lungs = np.stack([np.asarray(Image.open(path)) != 0 for path in sorted(folder.glob(f"lung_masks/v{volume}_z*"))])
    columns = lungs.sum(axis=(0, 1))
    inside = np.flatnonzero(columns)
    first, last = (int(inside[0] + part * (inside[-1] - inside[0])) for part in (0.4, 0.6))
    middle = first + int(np.argmin(columns[first:last]))
    return lungs * np.where(np.arange(lungs.shape[2]) < middle, np.uint8(1), np.uint8(2))


# codes of other tools ------------------------------------------------------------------------------------------------

TABLES = {
    "lungmask": ([0, 1, 2, 3, 4, 5], [0, 4, 5, 1, 2, 3]),
    "TotalSegmentator": ([0, 10, 11, 12, 13, 14], [0, 4, 5, 1, 2, 3]),
}


@pytest.mark.parametrize("tool", TABLES)
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_codes_of_other_tools_are_translated(tool: str, kind: type):
    theirs, ours = TABLES[tool]
    lobes = lobes_from_codes(np.array(theirs, dtype=kind).reshape(1, 2, 3))
    assert lobes.dtype == np.uint8
    assert lobes.tolist() == np.reshape(ours, (1, 2, 3)).tolist()


@pytest.mark.parametrize(
    ("theirs", "ours"), [([0, 1, 2], [0, 4, 5]), ([3, 5], [1, 3]), ([12, 14, 0], [1, 3, 0]), ([11], [5])]
)
def test_a_lobe_may_be_absent(theirs: list[int], ours: list[int]):
    assert lobes_from_codes(np.array([[theirs]], dtype=np.uint8)).ravel().tolist() == ours


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        ([0, 0], "holds no lobe"),
        ([0, 6], "holds the codes 6"),
        ([1, 10], "holds the codes 1, 10"),
        ([9, 10], "holds the codes 9, 10"),
        ([0, -1], "holds the codes -1"),
        ([0.0, 1.5], "holds the codes 1.5"),
        ([0.0, float("nan")], "holds the codes nan"),
        (list(range(118)), "holds the codes 1, 2, 3, 4, 5, 6, 7, 8, ...: expected those of lungmask"),
    ],
)
def test_other_codes_are_refused(codes: list[float], fault: str):
    with pytest.raises(ValueError, match=fault):
        lobes_from_codes(np.array([[codes]]))
