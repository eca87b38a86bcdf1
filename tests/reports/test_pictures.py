# SPDX-License-Identifier: Apache-2.0
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from covid_monai.analysis import Analysis
from covid_monai.reports.pictures import MOST_FRAMES, Picture, draw_pictures, viewer_frames
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import make_analysis, only_slices


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis()


def pixels(content: bytes) -> np.ndarray:
    """(H, W, 4) int."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(int)


def coloured(picture: Picture) -> np.ndarray:
    """(H, W) bool: clearly yellow or red."""
    red, _, blue, _ = np.moveaxis(pixels(picture.jpeg), -1, 0)
    return red - blue > 60


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Row and column as shares of the picture."""
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


def test_the_most_affected_slices_come_first_from_above(analysis: Analysis):
    axial = draw_pictures(analysis).axial
    numbers = [int(picture.caption.split()[1]) for picture in axial]
    assert len(axial) == 6
    assert numbers == sorted(numbers, reverse=True)
    shares = [analysis.slice_shares[number - 1] or 0 for number in numbers]
    assert max(shares) == max(share for share in analysis.slice_shares if share is not None)


def test_the_right_upper_apical_lesion_is_left_and_up_in_the_planes(analysis: Analysis):
    pictures = draw_pictures(make_analysis({"right_upper_apical": (1000, 0)}))
    _, column = centre(coloured(pictures.axial[0]))
    assert column < 0.5
    row, column = centre(coloured(pictures.coronal[0]))
    assert row < 0.3
    assert column < 0.5
    row, _ = centre(coloured(pictures.sagittal[0]))
    assert row < 0.3
    assert "right lung" in pictures.sagittal[0].caption
    assert not coloured(pictures.sagittal[-1]).any()  # of the left lung


def test_pictures_have_the_proportions_of_the_body(analysis: Analysis):
    """Voxels of 5 x 2 x 1 mm: 54 slices are 270 mm high, 52 columns 52 mm wide."""
    pictures = draw_pictures(analysis)
    assert pictures.coronal[0].height / pictures.coronal[0].width == pytest.approx(270 / 52, rel=0.02)
    assert pictures.sagittal[0].height / pictures.sagittal[0].width == pytest.approx(270 / 36, rel=0.02)
    assert pictures.axial[0].width / pictures.axial[0].height == pytest.approx(52 / 36, rel=0.02)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (make_analysis(known=False), "gives no lengths"),
        (only_slices(make_analysis(), slice(20, 23)), "has 3 slices"),
        (make_analysis({}, missing=tuple(region.key for region in REGIONS)), "No lung"),
    ],
    ids=["no lengths", "few slices", "no lung"],
)
def test_where_only_axial_slices_make_sense_it_is_said_why(changed: Analysis, reason: str):
    pictures = draw_pictures(changed)
    assert pictures.axial
    assert (pictures.coronal, pictures.sagittal) == ((), ())
    assert reason in pictures.missing


def test_every_slice_has_a_frame(analysis: Analysis):
    frames = list(viewer_frames(analysis))
    assert [frame.z for frame in frames] == list(range(54))
    for name in ("lung", "soft", "overlay"):
        assert {pixels(getattr(frame, name)).shape[:2] for frame in frames} == {(frames[0].height, frames[0].width)}


def test_the_overlay_lies_on_the_lesion_and_is_clear_elsewhere():
    frames = list(viewer_frames(make_analysis({"left_upper_apical": (1000, 0)})))
    opaque = pixels(frames[-5].overlay)[..., 3] > 0
    yellow = opaque & (pixels(frames[-5].overlay)[..., 0] > 200)
    assert centre(yellow)[1] > 0.5
    assert 0.1 < yellow.mean() < 0.5
    assert not pixels(frames[0].overlay)[..., 3].any()  # no lung on the lowest slices


def test_windows_differ():
    """Lung at -850 HU is dark grey through the lung window and black through the other; 40 HU is white and grey."""
    frame = list(viewer_frames(make_analysis({})))[20]
    lung, soft = (pixels(content)[..., 0] for content in (frame.lung, frame.soft))
    middle = lung.shape[0] // 2
    assert lung[middle, lung.shape[1] // 4] == pytest.approx(255 * 500 / 1500, abs=6)
    assert soft[middle, lung.shape[1] // 4] < 8
    assert lung[2, 2] == pytest.approx(255 * 1390 / 1500, abs=6)
    assert soft[2, 2] == pytest.approx(255 * 200 / 400, abs=6)


def test_long_scans_are_thinned_evenly():
    few = only_slices(make_analysis(), slice(20, 21))
    count = 2 * MOST_FRAMES + 1
    arrays = {
        name: np.broadcast_to(getattr(few, name), (count, *few.hu.shape[1:])) for name in ("hu", "lesions", "regions")
    }
    frames = list(viewer_frames(replace(few, slice_shares=few.slice_shares * count, **arrays)))
    assert [frame.z for frame in frames] == list(range(0, count, 3))


@pytest.mark.parametrize("slices", [slice(20, 21), slice(0, 1)], ids=["with lung", "without"])
def test_one_slice_is_enough(analysis: Analysis, slices: slice):
    one = only_slices(analysis, slices)
    assert len(draw_pictures(one).axial) == 1
    assert len(list(viewer_frames(one))) == 1


def test_the_scan_is_not_touched(analysis: Analysis):
    before = {name: getattr(analysis, name).copy() for name in ("hu", "lesions", "regions")}
    draw_pictures(analysis)
    list(viewer_frames(analysis))
    assert all(np.array_equal(getattr(analysis, name), array) for name, array in before.items())
