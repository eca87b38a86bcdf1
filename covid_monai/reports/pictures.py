# SPDX-License-Identifier: Apache-2.0
"""Slices of an analysis as pictures: lesions and lungs outlined, in the three planes, and all slices for a viewer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covid_monai.analysis import Analysis
from covid_monai.reports.planes import Areas, areas, box_around, slices_that_matter, spread_over_lung
from covid_monai.reports.wording import percent
from covid_monai.severity import sides_of_regions
from covid_monai.severity.anatomy import RIGHT_LUNG

__all__ = [
    "LESION_COLOURS",
    "LUNG_COLOUR",
    "LUNG_WINDOW",
    "SOFT_WINDOW",
    "Frame",
    "Picture",
    "Pictures",
    "Window",
    "draw_pictures",
    "outlined",
    "viewer_frames",
]

Colour = tuple[int, int, int]
LESION_COLOURS: dict[str, tuple[str, Colour]] = {
    "lesion": ("Red", (250, 45, 25)),
    "ground glass": ("Yellow", (255, 205, 25)),
    "consolidation": ("Red", (250, 45, 25)),
}
"""Name and colour of each class. Yellow and red differ in lightness too, which the colour-blind see."""
LUNG_COLOUR: Colour = (86, 180, 233)


class Window(NamedTuple):
    """HU that are black and white."""

    black: float
    white: float


LUNG_WINDOW, SOFT_WINDOW = Window(-1350, 150), Window(-160, 240)

KEY_SLICES, CORONAL, SAGITTAL_OF_EACH_LUNG = 6, 4, 2
LONGEST = 440  # pixels
MARGIN_MM = 20.0  # around the lungs, so that the chest wall is seen
FEWEST_SLICES = 8  # for coronal and sagittal planes
MOST_FRAMES = 300
FRAME_SIZES = ((150, 336), (MOST_FRAMES, 256))
"""Pixels of a frame's longer side by the number of frames up to which it holds, so that a report stays below 8 MB."""
FILL = 0.16  # how much of its colour a lesion gets within its outline


@dataclass(frozen=True)
class Picture:
    """A JPEG, its size in pixels, and what it shows."""

    jpeg: bytes
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures of an analysis.

    Attributes:
        axial: the slices that matter, superior to inferior.
        coronal: anterior to posterior; empty where the scan has no lengths, too few slices or no lung.
        sagittal: from the patient's right to left; likewise.
        missing: why there are no coronal and sagittal planes, or "".
    """

    axial: tuple[Picture, ...]
    coronal: tuple[Picture, ...]
    sagittal: tuple[Picture, ...]
    missing: str


@dataclass(frozen=True)
class Frame:
    """One slice for the viewer.

    Attributes:
        z: its index, from the lowest slice.
        lung: JPEG through the lung window.
        soft: JPEG through the soft-tissue window.
        overlay: PNG of the same size, transparent but for lesions and outlines.
        width: pixels of all three.
        height: pixels of all three.
    """

    z: int
    lung: bytes
    soft: bytes
    overlay: bytes
    width: int
    height: int


def draw_pictures(analysis: Analysis) -> Pictures:
    """Draw the planes that matter, one by one, so that no copy of the scan is made."""
    lesions, lungs = areas(analysis.lesions), areas(analysis.regions)
    box = _box(analysis, lungs)
    axial = tuple(_axial(analysis, z, box) for z in slices_that_matter(lesions.slices, lungs.slices, KEY_SLICES))
    missing = _why_axial_only(analysis, lungs)
    if missing:
        return Pictures(axial, (), (), missing)
    rows = spread_over_lung(lesions.rows, lungs.rows, CORONAL)
    right = areas(analysis.regions, lambda plane: sides_of_regions(plane) == RIGHT_LUNG.code).columns
    columns = [
        (side, x)
        for side, lung in (("right", right), ("left", lungs.columns - right))
        for x in spread_over_lung(lesions.columns, lung, SAGITTAL_OF_EACH_LUNG)
    ]
    return Pictures(
        axial,
        tuple(_coronal(analysis, y, box) for y in rows),
        tuple(_sagittal(analysis, x, side, box) for side, x in columns),
        "",
    )


def viewer_frames(analysis: Analysis) -> list[Frame]:
    """All slices at reduced size, inferior to superior; evenly chosen ones when there are more than 300."""
    _, rows, columns = _box(analysis, areas(analysis.regions))
    _, dy, dx = analysis.spacing
    chosen = range(0, len(analysis.hu), -(-len(analysis.hu) // MOST_FRAMES))
    longest = next(size for count, size in FRAME_SIZES if len(chosen) <= count)
    height, width = picture_size(rows, columns, dy, dx, longest)
    palette, transparency = _overlay_palette(analysis.classes)

    def frame(z: int) -> Frame:
        hu = resized(analysis.hu[z, rows, columns], height, width)
        codes = _overlay_codes(
            nearest(analysis.lesions[z, rows, columns], height, width),
            nearest(analysis.regions[z, rows, columns], height, width),
            len(analysis.classes),
        )
        overlay = Image.fromarray(codes)
        overlay.putpalette(palette)
        return Frame(
            z,
            jpeg(grey(hu, LUNG_WINDOW), quality=55),
            jpeg(grey(hu, SOFT_WINDOW), quality=40),  # of much noise
            _encoded(overlay, "PNG", transparency=transparency, compress_level=6),
            width,
            height,
        )

    with ThreadPoolExecutor() as workers:  # encoding lets others run
        return list(workers.map(frame, chosen))


def _why_axial_only(analysis: Analysis, lungs: Areas) -> str:
    if analysis.record["scan"]["spacing_mm"] is None:
        return "The source gives no lengths, so no coronal or sagittal planes can be drawn."
    if len(analysis.hu) < FEWEST_SLICES:
        return f"The scan has {len(analysis.hu)} slices, too few for coronal or sagittal planes."
    return "" if lungs.slices.any() else "No lung was found, so no coronal or sagittal planes are drawn."


def _box(analysis: Analysis, lungs: Areas) -> tuple[slice, slice, slice]:
    dz, dy, dx = (max(1, round(MARGIN_MM / length)) for length in analysis.spacing)
    return box_around(lungs, (dz, dy, dx))


def _axial(analysis: Analysis, z: int, box: tuple[slice, slice, slice]) -> Picture:
    share = analysis.slice_shares[z]
    found = "no lung" if share is None else f"{percent(share)} of the lung here is lesion"
    caption = f"Slice {z + 1} of {len(analysis.hu)}: {found}"
    return _picture(analysis, (z, box[1], box[2]), analysis.spacing[1:], "RL", caption)


def _coronal(analysis: Analysis, y: int, box: tuple[slice, slice, slice]) -> Picture:
    dz, _, dx = analysis.spacing
    caption = f"Coronal, row {y + 1} of {analysis.hu.shape[1]} from the front"
    return _picture(analysis, (box[0], y, box[2]), (dz, dx), "RL", caption)


def _sagittal(analysis: Analysis, x: int, side: str, box: tuple[slice, slice, slice]) -> Picture:
    dz, dy, _ = analysis.spacing
    caption = f"Sagittal through the {side} lung, column {x + 1} of {analysis.hu.shape[2]}"
    return _picture(analysis, (box[0], box[1], x), (dz, dy), "AP", caption)


def _picture(
    analysis: Analysis,
    plane: tuple[int | slice, int | slice, int | slice],
    spacing: tuple[float, float],
    letters: str,
    caption: str,
) -> Picture:
    """One plane through the lung window with lesions and lungs outlined, superior up where it is not axial."""
    hu, lesions, lungs = (volume[plane] for volume in (analysis.hu, analysis.lesions, analysis.regions))
    if isinstance(plane[0], slice):
        hu, lesions, lungs = hu[::-1], lesions[::-1], lungs[::-1]
    height, width = picture_size(slice(0, hu.shape[0]), slice(0, hu.shape[1]), *spacing, LONGEST)
    image = Image.fromarray(outlined(hu, lesions, lungs, analysis.classes, height, width))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for letter, x, anchor in zip(letters, (5, width - 5), ("lm", "rm"), strict=True):
        draw.text((x, height / 2), letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return Picture(jpeg(image, quality=82), width, height, caption)


def outlined(
    hu: np.ndarray,
    lesions: np.ndarray,
    lungs: np.ndarray,
    classes: Sequence[str],
    height: int,
    width: int,
    fill: float = FILL,
) -> np.ndarray:
    """A plane (H, W) through the lung window with lesions and lungs outlined, (height, width, 3) uint8."""
    picture = np.repeat(np.asarray(grey(resized(hu, height, width), LUNG_WINDOW))[..., None], 3, axis=-1)
    lesions, lungs = (nearest(mask, height, width) for mask in (lesions, lungs))
    tint(picture, edge(lungs != 0), LUNG_COLOUR, 0.6)
    for code, name in enumerate(classes, start=1):
        _, colour = LESION_COLOURS[name]
        tint(picture, lesions == code, colour, fill)
        tint(picture, edge(lesions == code), colour, 0.9)
    return picture


def picture_size(rows: slice, columns: slice, row_mm: float, column_mm: float, longest: int) -> tuple[int, int]:
    """Height and width in pixels of a plane whose longer side gets ``longest``, in its true proportions."""
    height, width = (rows.stop - rows.start) * row_mm, (columns.stop - columns.start) * column_mm
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(hu: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) HU on a grid of this size, float32: interpolated, or averaged where it is coarser."""
    return np.asarray(Image.fromarray(hu.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def grey(hu: np.ndarray, window: Window) -> Image.Image:
    """(H, W) HU as an 8-bit picture."""
    grey = (hu - np.float32(window.black)) * np.float32(255 / (window.white - window.black))
    return Image.fromarray(np.clip(grey, 0, 255, out=grey).astype(np.uint8))


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) codes on a grid of this size: each pixel has the code at its centre."""
    rows, columns = (
        ((np.arange(size) + 0.5) * length / size).astype(int)
        for size, length in zip((height, width), mask.shape, strict=True)
    )
    return mask[rows][:, columns]  # rows first, which lie together


def edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) that have a neighbour above, below, left or right outside it."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def tint(picture: np.ndarray, mask: np.ndarray, colour: Colour, strength: float) -> None:
    """Mix a colour into the pixels of a mask, in place."""
    picture[mask] = (1 - strength) * picture[mask] + strength * np.asarray(colour, dtype=np.float32)


def _overlay_codes(lesions: np.ndarray, lungs: np.ndarray, classes: int) -> np.ndarray:
    """Codes of the viewer's palette: 0 nothing, 1 edge of the lungs, then inside and edge of each class."""
    codes = edge(lungs != 0).astype(np.uint8)
    for code in range(1, classes + 1):
        mask = lesions == code
        codes[mask] = 2 * code
        codes[edge(mask)] = 2 * code + 1
    return codes


def _overlay_palette(classes: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Colours and opacities of :func:`_overlay_codes`."""
    colours: list[Colour] = [(0, 0, 0), LUNG_COLOUR]
    opacities = [0.0, 0.6]
    for name in classes:
        colours += [LESION_COLOURS[name][1]] * 2
        opacities += [FILL, 0.9]
    return bytes(value for colour in colours for value in colour), bytes(round(255 * each) for each in opacities)


def jpeg(image: Image.Image, quality: int) -> bytes:
    return _encoded(image, "JPEG", quality=quality)


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
