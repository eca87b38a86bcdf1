# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_monai.analysis import Analysis
from covid_monai.reports import save_overview, summarise
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import TWO_CLASSES, make_analysis


def build(lesions: np.ndarray, lungs: np.ndarray) -> Analysis:
    """An analysis of a grey scan with these masks; its figures are those of another."""
    hu = np.full(lesions.shape, -600.0, dtype=np.float32)
    return make_analysis(told_apart=False, hu=hu, lesions=lesions, regions=lungs.astype(np.uint8))


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
    return replace(diseased, lesions=lesions, severity=make_analysis().severity, classes=TWO_CLASSES)


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
    assert image.shape == (850, 1400, 3)  # two rows of 370 and the margins
    red, blue = coloured(image)
    assert red > 5000
    assert blue > 1000


def yellow(image: np.ndarray) -> np.ndarray:
    """Which pixels are clearly yellow: as green as red, nearly, and less blue."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 60) & (red - green < 58)


def test_ground_glass_is_yellow_and_consolidation_red(told_apart: Analysis, tmp_path: Path):
    image = picture(replace(told_apart, lesions=told_apart.lesions[2:3], regions=told_apart.regions[2:3]), tmp_path)
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


@pytest.mark.parametrize(("slices", "height"), [(1, 480), (30, 1220)])
def test_any_number_of_slices_is_drawn(slices: int, height: int, tmp_path: Path):
    lungs = np.ones((slices, 20, 20), dtype=bool)
    assert picture(build(np.zeros(lungs.shape, np.uint8), lungs), tmp_path).shape == (height, 1400, 3)


def test_a_scan_without_lung_and_lengths_is_drawn_whole(tmp_path: Path):
    nothing = np.zeros((2, 40, 60), dtype=np.uint8)
    image = picture(build(nothing, nothing), tmp_path)
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
    for expected in (*summarise(diseased)[:3], "0123456789abcdef", "Red: lesion. Blue: lung.", "Research use only"):
        assert expected in text
    assert [f"slice {number} of 6" in text for number in range(0, 8)] == [False, *[True] * 6, False]


def test_the_legend_and_the_headline_name_the_classes(
    told_apart: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = texts(told_apart, tmp_path, monkeypatch)
    for expected in (*summarise(told_apart)[:3], "Yellow: ground glass. Red: consolidation. Blue: lung."):
        assert expected in text
    assert "Red: lesion" not in text


def test_unknown_figures_are_said_to_be_unknown(diseased: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unknown = make_analysis(known=False, missing=tuple(region.key for region in REGIONS)).severity
    text = texts(replace(diseased, severity=unknown), tmp_path, monkeypatch)
    assert "lesion share not available" in text
    assert "volumes unknown" in text
    assert "CT severity score 0-40 / 40" in text
    assert "None" not in text
