# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from covid_monai.analysis import Analysis, Figures
from covid_monai.reports import save_overview, slices_that_matter, summarise

# which slices --------------------------------------------------------------------------------------------------------


def areas(*areas: int) -> np.ndarray:
    """(Z, 1, 9) uint8 whose slices have so many voxels."""
    mask = np.zeros((len(areas), 1, 9), dtype=np.uint8)
    for plane, area in zip(mask, areas, strict=True):
        plane[0, :area] = 1
    return mask


NONE = areas(*[0] * 8)


@pytest.mark.parametrize(
    ("lesions", "lungs", "count", "expected"),
    [
        # slices 1..6 have lesion; in three runs (1, 2), (3, 4), (5, 6) the largest are 2, 3 and 5
        (areas(0, 1, 3, 5, 4, 2, 1, 0), areas(*[9] * 8), 3, [5, 3, 2]),
        (areas(0, 0, 3, 0, 0, 0, 1, 0), areas(*[9] * 8), 3, [6, 2, 0]),  # and one of the other slices with lung
        (NONE, areas(0, 0, 2, 5, 6, 4, 0, 0), 2, [4, 3]),  # no lesion: lung
        (NONE, NONE, 4, [6, 4, 2, 0]),  # no lung either: all
        (areas(2, 2, 2, 2, 2, 2, 2, 2), areas(*[9] * 8), 1, [0]),
    ],
)
def test_values_worked_out_by_hand(lesions: np.ndarray, lungs: np.ndarray, count: int, expected: list[int]):
    assert slices_that_matter(lesions, lungs != 0, count) == expected


masks = hnp.arrays(
    bool, st.tuples(st.integers(1, 12), st.just(2), st.just(2)), elements=st.sampled_from([False] * 3 + [True])
)


@given(masks, st.integers(1, 15), st.booleans())
def test_slices_are_valid_unique_and_from_superior_to_inferior(mask: np.ndarray, count: int, as_lesions: bool):
    other = np.zeros_like(mask)
    found = slices_that_matter(*((mask, other) if as_lesions else (other, mask)), count)
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    assert len(found) == min(count, len(marked) or len(mask))
    assert all(type(z) is int for z in found)
    assert found == sorted(set(found), reverse=True)
    assert set(found) <= set(marked if len(marked) else range(len(mask)))


@given(masks)
def test_the_slice_with_the_largest_area_is_among_them(lesions: np.ndarray):
    found = slices_that_matter(lesions, np.ones_like(lesions), 3)
    area = lesions.sum(axis=(1, 2))
    assert area[found].max() == area.max()


# the picture ---------------------------------------------------------------------------------------------------------


BINARY = Figures(12.0, None, None, 3000.0, 0.004, None, None, 3, 5)
CLASSES = Figures(12.0, 9.0, 3.0, 3000.0, 0.004, 0.003, 0.001, 3, 5)
NOTHING = Figures(None, None, None, None, None, None, None, 0, 0)


def build(lesions: np.ndarray, lungs: np.ndarray, figures: Figures = BINARY) -> Analysis:
    """An analysis of a grey scan with these masks."""
    hu = np.full(lesions.shape, -600.0, dtype=np.float32)
    return Analysis("0123456789abcdef", figures, (), {}, hu, lesions, lungs, ("lesion",))


@pytest.fixture
def diseased() -> Analysis:
    lesions, lungs = np.zeros((6, 80, 80), dtype=np.uint8), np.zeros((6, 80, 80), dtype=bool)
    lungs[:, 10:70, 10:70] = True
    lesions[1:5, 20:50, 20:35] = 1
    return build(lesions, lungs)


@pytest.fixture
def told_apart(diseased: Analysis) -> Analysis:
    """Ground glass, and consolidation below it on the other side."""
    lesions = diseased.lesions.copy()
    lesions[1:5, 52:66, 45:65] = 2
    return replace(diseased, lesions=lesions, figures=CLASSES, classes=("ground glass", "consolidation"))


def picture(analysis: Analysis, folder: Path) -> np.ndarray:
    """(H, W, 3) int."""
    save_overview(analysis, folder / "overview.png")
    with Image.open(folder / "overview.png") as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(image: np.ndarray) -> tuple[int, int]:
    """How many pixels are clearly red, and clearly blue."""
    red, _, blue = np.moveaxis(image, -1, 0)
    return int((red - blue > 60).sum()), int((blue - red > 60).sum())


def test_it_is_a_picture_of_the_expected_size_with_outlines(diseased: Analysis, tmp_path: Path):
    image = picture(diseased, tmp_path)
    assert image.shape == (830, 1400, 3)  # two rows of 370 and the margins
    red, blue = coloured(image)
    assert red > 5000
    assert blue > 1000


def yellow(image: np.ndarray) -> np.ndarray:
    """Which pixels are clearly yellow: as green as red, nearly, and less blue."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 60) & (red - green < 58)


def test_ground_glass_is_yellow_and_consolidation_red(told_apart: Analysis, tmp_path: Path):
    image = picture(replace(told_apart, lesions=told_apart.lesions[2:3], lungs=told_apart.lungs[2:3]), tmp_path)
    warm = image[..., 0] - image[..., 2] > 60
    rows, columns = np.nonzero(yellow(image))
    red_rows, red_columns = np.nonzero(warm & ~yellow(image))
    assert min(len(rows), len(red_rows)) > 2000
    assert rows.max() < red_rows.min()
    assert columns.max() < red_columns.min()


@pytest.mark.parametrize("code", [1, 2])
def test_one_class_alone_has_one_colour(told_apart: Analysis, code: int, tmp_path: Path):
    image = picture(replace(told_apart, lesions=told_apart.lesions * (told_apart.lesions == code)), tmp_path)
    warm = image[..., 0] - image[..., 2] > 60
    assert warm.sum() > 5000
    assert yellow(image).sum() == (warm.sum() if code == 1 else 0)


def test_red_is_for_lesions_alone(diseased: Analysis, tmp_path: Path):
    red, blue = coloured(picture(replace(diseased, lesions=np.zeros_like(diseased.lesions)), tmp_path))
    assert red == 0
    assert blue > 1000


def test_the_lesion_is_on_the_side_where_it_is(diseased: Analysis, tmp_path: Path):
    """Columns are drawn from the patient's right to left: the lesion is left of and above each slice's middle."""
    image = picture(build(diseased.lesions[2:3], diseased.lungs[2:3]), tmp_path)
    red = image[..., 0] - image[..., 2] > 60
    rows, columns = np.nonzero(red)
    blue = image[..., 2] - image[..., 0] > 60
    lung_rows, lung_columns = np.nonzero(blue)
    assert columns.max() < (lung_columns.min() + lung_columns.max()) / 2
    assert rows.mean() < (lung_rows.min() + lung_rows.max()) / 2


@pytest.mark.parametrize(("slices", "height"), [(1, 460), (30, 1200)])
def test_any_number_of_slices_is_drawn(slices: int, height: int, tmp_path: Path):
    lungs = np.ones((slices, 20, 20), dtype=bool)
    assert picture(build(np.zeros(lungs.shape, np.uint8), lungs), tmp_path).shape == (height, 1400, 3)


def test_a_scan_without_lung_and_lengths_is_drawn_whole(tmp_path: Path):
    nothing = np.zeros((2, 40, 60), dtype=np.uint8)
    image = picture(build(nothing, nothing.astype(bool), NOTHING), tmp_path)
    assert coloured(image) == (0, 0)
    assert ((image == 128).all(axis=2) | (image == 127).all(axis=2)).sum() > 10_000  # -600 HU is grey 127.5


def texts(analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that is written in the picture."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    found: list[str] = []
    save = Figure.savefig

    def listening(figure: Figure, *args: object, **kwargs: object) -> None:
        found.extend(text.get_text() for text in figure.findobj(Text))
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", listening)
    save_overview(analysis, tmp_path / "overview.png")
    return "\n".join(found)


def test_figures_slices_and_notice_are_written_in_it(
    diseased: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = texts(diseased, tmp_path, monkeypatch)
    for expected in (*summarise(BINARY), "0123456789abcdef", "Red: lesion. Blue: lung.", "Research use only"):
        assert expected in text
    assert [f"slice {number} of 6" in text for number in range(0, 8)] == [False, *[True] * 6, False]


def test_the_legend_and_the_headline_name_the_classes(
    told_apart: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = texts(told_apart, tmp_path, monkeypatch)
    for expected in (*summarise(CLASSES), "Yellow: ground glass. Red: consolidation. Blue: lung."):
        assert expected in text
    assert "Red: lesion" not in text


def test_unknown_figures_are_said_to_be_unknown(diseased: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = texts(replace(diseased, figures=NOTHING), tmp_path, monkeypatch)
    assert "lesion share not available" in text
    assert "volumes unknown" in text
    assert "None" not in text
