# SPDX-License-Identifier: Apache-2.0
"""The planes in which most has changed: the earlier scan laid over the later one, the later scan, and the change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from covid_monai.analysis import Analysis
from covid_monai.reports.pictures import (
    FILL,
    LESION_COLOURS,
    LUNG_COLOUR,
    LUNG_WINDOW,
    Colour,
    Picture,
    edge,
    grey,
    jpeg,
    nearest,
    picture_size,
    resized,
    tint,
)
from covid_monai.reports.planes import areas, largest_of_each_run, slices_that_matter
from covid_monai.severity.follow_up import Interval
from covid_monai.severity.lesion_change import CHANGES

__all__ = ["CHANGE_COLOURS", "Row", "draw_rows"]

CHANGE_COLOURS: dict[int, tuple[str, Colour]] = {
    1: ("white", (245, 245, 245)),
    2: ("magenta", (255, 70, 190)),
    3: ("green", (0, 190, 120)),
    4: ("blue", (70, 110, 255)),
}
"""Name and colour of the codes of a change map: other ones than those of the lesion classes beside it."""
AXIAL, CORONAL = 5, 2
LONGEST = 400  # pixels
CHANGE_FILL = 0.35
SEEN_HU = -1024.0  # of what the earlier scan does not show


@dataclass(frozen=True)
class Row:
    """One plane: what it is, and its three pictures."""

    caption: str
    earlier: Picture
    later: Picture
    change: Picture


@dataclass(frozen=True, eq=False)
class _Plane:
    """A plane of the later scan, (h, w): superior up where it is coronal."""

    caption: str
    spacing: tuple[float, float]
    earlier_hu: np.ndarray
    earlier_lesions: np.ndarray
    hu: np.ndarray
    lesions: np.ndarray
    lungs: np.ndarray
    change: np.ndarray


def draw_rows(interval: Interval, earlier: Analysis, later: Analysis) -> tuple[Row, ...]:
    """Draw the axial slices, superior to inferior, and then the coronal planes with the most new and resolved lesion.

    Slices with lesion, or else with lung, serve where nothing has changed.

    Args:
        interval: between the two.
        earlier: the earlier analysis.
        later: the later analysis, on whose grid everything is drawn.
    """
    new, resolved = (areas(interval.change, partial(np.equal, code)) for code in (2, 3))
    slices = largest_of_each_run(new.slices + resolved.slices, AXIAL)
    if not slices:
        slices = slices_that_matter(areas(later.lesions).slices, areas(later.regions).slices, AXIAL)
    rows = largest_of_each_run(new.rows + resolved.rows, CORONAL)
    planes = [_axial(interval, earlier, later, z) for z in sorted(slices, reverse=True)]
    planes += [_coronal(interval, earlier, later, y) for y in rows]
    return tuple(_row(plane, interval, later.classes) for plane in planes)


def _axial(interval: Interval, earlier: Analysis, later: Analysis, z: int) -> _Plane:
    _, rows, columns = interval.registration.box
    caption = f"Slice {z + 1} of {len(later.hu)} of scan {interval.later}"
    return _plane(
        interval, earlier, later, (z, rows, columns), interval.registration.positions(z), later.spacing[1:], caption
    )


def _coronal(interval: Interval, earlier: Analysis, later: Analysis, y: int) -> _Plane:
    slices, rows, columns = interval.registration.box
    upwards = range(slices.stop - 1, slices.start - 1, -1)
    positions = np.stack([interval.registration.positions(z)[:, y - rows.start] for z in upwards], axis=1)
    downwards = slice(slices.stop - 1, slices.start - 1 if slices.start else None, -1)
    caption = f"Coronal, row {y + 1} of {later.hu.shape[1]} from the front, of scan {interval.later}"
    spacing = (later.spacing[0], later.spacing[2])
    return _plane(interval, earlier, later, (downwards, y, columns), positions, spacing, caption)


def _plane(
    interval: Interval,
    earlier: Analysis,
    later: Analysis,
    where: tuple[int | slice, int | slice, int | slice],
    positions: np.ndarray,
    spacing: tuple[float, float],
    caption: str,
) -> _Plane:
    return _Plane(
        caption,
        spacing,
        ndimage.map_coordinates(earlier.hu, positions, np.float32, order=1, cval=SEEN_HU),
        ndimage.map_coordinates(earlier.lesions, positions, order=0),
        later.hu[where],
        later.lesions[where],
        later.regions[where],
        interval.change[where],
    )


def _row(plane: _Plane, interval: Interval, classes: Sequence[str]) -> Row:
    lesion_colours = {code: LESION_COLOURS[name][1] for code, name in enumerate(classes, start=1)}
    change_colours = {code: colour for code, (_, colour) in CHANGE_COLOURS.items()}
    warped = f"Scan {interval.earlier}, laid over scan {interval.later}"
    return Row(
        plane.caption,
        _picture(plane, plane.earlier_hu, plane.earlier_lesions, lesion_colours, FILL, warped),
        _picture(plane, plane.hu, plane.lesions, lesion_colours, FILL, f"Scan {interval.later}"),
        _picture(plane, plane.hu, plane.change, change_colours, CHANGE_FILL, f"Change: {', '.join(_found(plane))}"),
    )


def _found(plane: _Plane) -> list[str]:
    """What the change map holds here."""
    return [CHANGES[code] for code in np.unique(plane.change).tolist() if code] or ["none here"]


def _picture(
    plane: _Plane, hu: np.ndarray, codes: np.ndarray, colours: dict[int, Colour], fill: float, caption: str
) -> Picture:
    """A plane through the lung window with the later lungs and coded areas outlined; patient's right on the left."""
    height, width = picture_size(slice(0, hu.shape[0]), slice(0, hu.shape[1]), *plane.spacing, LONGEST)
    picture = np.repeat(np.asarray(grey(resized(hu, height, width), LUNG_WINDOW))[..., None], 3, axis=-1)
    tint(picture, edge(nearest(plane.lungs, height, width) != 0), LUNG_COLOUR, 0.6)
    codes = nearest(codes, height, width)
    for code, colour in colours.items():
        tint(picture, codes == code, colour, fill)
        tint(picture, edge(codes == code), colour, 0.9)
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for letter, x, anchor in (("R", 5, "lm"), ("L", width - 5, "rm")):
        draw.text((x, height / 2), letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return Picture(jpeg(image, quality=80), width, height, caption)
