# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from covid_monai.severity import cuts
from covid_monai.severity.cuts import Cut, Place, Plane, Sectors, divide

SPACING = (5.0, 2.0, 2.0)
HALVES = ((1 / 2, 7), (1 / 2, 9))


def one(cut: Cut, side: str = "right_lung") -> dict[int, Place]:
    return {1: Place(side, cut)}


def box(shape: tuple[int, int, int]) -> np.ndarray:
    return np.ones(shape, dtype=np.uint8)


def test_a_cut_by_height_counts_from_the_feet():
    divided = divide(box((8, 3, 3)), one(Cut(Plane(height=1.0), ((1 / 4, 7), (3 / 4, 9)))), SPACING)
    assert divided.dtype == np.uint8
    assert (divided[:2] == 7).all()
    assert (divided[2:] == 9).all()


def test_a_cut_by_depth_counts_from_the_front():
    divided = divide(box((2, 6, 3)), one(Cut(Plane(depth=1.0), HALVES)), SPACING)
    assert (divided[:, :3] == 7).all()
    assert (divided[:, 3:] == 9).all()


@pytest.mark.parametrize(("side", "medial"), [("right_lung", np.s_[..., 3:]), ("left_lung", np.s_[..., :3])])
def test_a_cut_by_laterality_counts_from_the_midline_in_either_lung(side: str, medial: tuple):
    divided = divide(box((2, 4, 6)), one(Cut(Plane(lateral=1.0), HALVES), side), SPACING)
    assert (divided[medial] == 7).all()
    assert np.count_nonzero(divided == 7) == np.count_nonzero(divided == 9) == 24


def test_a_plane_is_the_weighted_sum_of_the_coordinates():
    points = np.array([[1.0, 0.0], [2.0, -1.0], [3.0, 0.5]])
    # 1 + 0.5 * 2 + (0.25 + 2 * 1) * 3; 0 - 0.5 + (0.25 + 0) * 0.5
    assert Plane(1.0, 0.5, 0.25, 2.0)(points) == pytest.approx([8.75, -0.375])


@pytest.mark.parametrize(("side", "medial", "lateral"), [("right_lung", 8, 0), ("left_lung", 0, 8)])
def test_sectors_go_from_medial_by_way_of_anterior(side: str, medial: int, lateral: int):
    cut = Cut(Sectors(border=-45.0), tuple((1 / 4, code) for code in (1, 2, 3, 4)))
    divided = divide(box((3, 9, 9)), one(cut, side), SPACING)
    middle = 4
    assert divided[1, middle, medial] == 1
    assert divided[1, 0, middle] == 2
    assert divided[1, middle, lateral] == 3
    assert divided[1, 8, middle] == 4


def test_the_axis_of_sectors_follows_the_lobe_down():
    leaning = np.zeros((6, 40, 12), dtype=np.uint8)
    for z in range(6):
        leaning[z, 5 * z : 5 * z + 10] = 1
    divided = divide(leaning, one(Cut(Sectors(border=0.0), ((1 / 2, 7), (1 / 2, 9)))), SPACING)
    for z in range(6):  # the front half of every slice, though the back of one is the front of another
        assert (divided[z, 5 * z : 5 * z + 5, 1:-1] == 7).all()
        assert (divided[z, 5 * z + 5 : 5 * z + 10, 1:-1] == 9).all()


def test_a_part_is_cut_further():
    below = Cut(Plane(depth=1.0), ((1 / 2, 1), (1 / 2, 2)))
    divided = divide(box((6, 4, 5)), one(Cut(Plane(height=1.0), ((1 / 2, below), (1 / 2, 3)))), SPACING)
    assert (divided[:3, :2] == 1).all()
    assert (divided[:3, 2:] == 2).all()
    assert (divided[3:] == 3).all()


def test_a_place_is_cut_in_its_own_coordinates():
    labels = np.zeros((4, 12, 8), dtype=np.uint8)
    labels[:, :4, :4], labels[:, 4:, 4:] = 1, 2
    places = {
        1: Place("right_lung", Cut(Plane(depth=1.0), ((1 / 2, 1), (1 / 2, 2)))),
        2: Place("left_lung", Cut(Plane(depth=1.0), ((1 / 2, 3), (1 / 2, 4)))),
    }
    divided = divide(labels, places, SPACING)
    assert (divided[:, :2, :4] == 1).all()
    assert (divided[:, 4:8, 4:] == 3).all()
    assert np.array_equal(divided != 0, labels != 0)


def test_surfaces_placed_on_a_sample_leave_the_wanted_shares(monkeypatch: pytest.MonkeyPatch):
    shape = (31, 40, 37)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = (z**2 + y**2 + x**2 < 1).astype(np.uint8)
    cut = Cut(Plane(height=1.0, depth=-0.8, lateral=0.3), ((0.2, 1), (0.3, 2), (0.5, 3)))
    monkeypatch.setattr(cuts, "SAMPLE", 1000)
    shares = np.bincount(divide(ball, one(cut), SPACING).ravel(), minlength=4)[1:] / ball.sum()
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 1, 1), (1, 3, 1), (1, 2, 2)])
def test_a_place_of_a_few_voxels_is_still_covered(shape: tuple[int, int, int]):
    around = Cut(Sectors(-30.0), tuple((1 / 4, code) for code in (1, 2, 3, 4)))
    divided = divide(box(shape), one(Cut(Plane(height=1.0, lateral=0.1), ((4 / 5, around), (1 / 5, 5)))), SPACING)
    assert divided.all()


def test_the_mask_is_left_as_it_is():
    labels = box((4, 4, 4))
    divide(labels, one(Cut(Plane(height=1.0), HALVES)), SPACING)
    assert (labels == 1).all()


@pytest.mark.parametrize(
    ("labels", "spacing", "fault"),
    [
        (np.ones((4, 4), np.uint8), SPACING, r"got shape \(4, 4\)"),
        (np.ones((2, 4, 4), np.uint8), (5.0, 0.0, 1.0), "positive spacings"),
        (np.ones((2, 4, 4), np.uint8), (5.0, float("nan"), 1.0), "positive spacings"),
        (np.ones((2, 4, 4), np.uint8), (5.0, 1.0), "three positive spacings"),
        (np.ones((2, 4, 4), bool), SPACING, r"holds bool values: expected integer codes 0\.\.1"),
        (np.ones((2, 4, 4), np.float32), SPACING, "holds float32 values"),
        (np.full((2, 4, 4), 3, np.uint8), SPACING, r"codes 3\.\.3: expected 0\.\.1"),
        (np.full((2, 4, 4), -1, np.int8), SPACING, r"codes -1\.\.-1"),
    ],
)
def test_what_is_no_such_mask_is_refused(labels: np.ndarray, spacing: tuple, fault: str):
    with pytest.raises(ValueError, match=fault):
        divide(labels, one(Cut(Plane(height=1.0), HALVES)), spacing)
