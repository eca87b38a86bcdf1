# SPDX-License-Identifier: Apache-2.0
"""One picture of an analysis: the slices that matter, the lesions on them, and the figures."""

from __future__ import annotations

import math
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports.summary import summarise

__all__ = ["save_overview", "slices_that_matter"]

MOST, COLUMNS, PANEL_INCHES = 12, 4, 3.45
WINDOW_HU = (-1350, 150)
RED, YELLOW, BLUE = (ListedColormap([colour]) for colour in ((1.0, 0.15, 0.1), (1.0, 0.8, 0.1), (0.3, 0.8, 1.0)))
COLOURS = {"lesion": ("Red", RED), "ground glass": ("Yellow", YELLOW), "consolidation": ("Red", RED)}


def slices_that_matter(lesions: np.ndarray, lungs: np.ndarray, count: int) -> list[int]:
    """Indices of up to ``count`` slices, from superior to inferior.

    The slices with lesion are cut into ``count`` equal runs, and each run gives its slice with the largest area. What
    is left of ``count`` goes in the same way to the other slices with lung; all slices serve where there is neither.

    Args:
        lesions: (Z, H, W), non-zero for lesion.
        lungs: (Z, H, W) bool.
        count: how many slices at the most.
    """
    lesion_area, lung_area = (np.count_nonzero(mask, axis=(1, 2)) for mask in (lesions, lungs))
    chosen = _largest_of_runs(lesion_area, count)
    chosen += _largest_of_runs(np.where(lesion_area, 0, lung_area), count - len(chosen))
    return sorted(chosen or _largest_of_runs(np.ones(len(lesions)), count), reverse=True)


def _largest_of_runs(area: np.ndarray, count: int) -> list[int]:
    """The slices with area, cut into up to ``count`` equal runs: the largest of each."""
    candidates = np.flatnonzero(area)
    runs = np.array_split(candidates, min(count, len(candidates))) if count and len(candidates) else []
    return [int(run[np.argmax(area[run])]) for run in runs]


def save_overview(analysis: Analysis, path: str | os.PathLike) -> None:
    """Draw up to twelve axial slices with lesions and lungs outlined, and save them as PNG.

    Ground glass is yellow and consolidation red; lesions of which neither is known are red.

    Args:
        analysis: what to draw.
        path: file to write.
    """
    box = _frame(analysis.lungs)
    chosen = slices_that_matter(analysis.lesions, analysis.lungs, MOST)
    rows, columns = math.ceil(len(chosen) / COLUMNS), min(len(chosen), COLUMNS)
    height, width = analysis.hu[0][box].shape
    figure = Figure(figsize=(14, 0.9 + rows * (PANEL_INCHES * height / width + 0.25)), facecolor="black")
    FigureCanvasAgg(figure)
    for number, z in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_axis_off()
        axes.imshow(analysis.hu[z][box], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        outline = find_boundaries(analysis.lungs[z][box], mode="inner")
        axes.imshow(_only(outline), cmap=BLUE, alpha=0.6, interpolation="nearest")
        for code, name in enumerate(analysis.classes, start=1):
            part, (_, colour) = analysis.lesions[z][box] == code, COLOURS[name]
            axes.imshow(_only(part), cmap=colour, alpha=0.3, interpolation="nearest")
            axes.imshow(_only(find_boundaries(part, mode="outer")), cmap=colour, interpolation="nearest")
        axes.set_title(f"slice {z + 1} of {len(analysis.hu)}", color="white", fontsize=9, pad=3)
    inches = figure.get_figheight()
    share, volumes = summarise(analysis.figures)
    headline = f"{share}    scan {analysis.scan_id}\n{volumes}"
    figure.suptitle(headline, color="white", fontsize=12, y=1 - 0.08 / inches)
    colours = " ".join(f"{COLOURS[name][0]}: {name}." for name in analysis.classes)
    legend = f"{colours} Blue: lung. Slices count from inferior; the patient's right is left. {NOTICE}"
    figure.text(0.5, 0.12 / inches, legend, color="0.75", fontsize=9, ha="center")
    edges = {"left": 0.005, "right": 0.995, "top": 1 - 0.75 / inches, "bottom": 0.35 / inches}
    figure.subplots_adjust(**edges, wspace=0.02, hspace=0.09)
    figure.savefig(path, dpi=100, facecolor="black", format="png")


def _only(mask: np.ndarray) -> np.ma.MaskedArray:
    """The mask with everything outside it transparent."""
    return np.ma.masked_where(~mask, np.ones(mask.shape))


def _frame(lungs: np.ndarray, margin: int = 12) -> tuple[slice, slice]:
    """Rows and columns around the lungs of the whole scan, or everything where there is no lung."""
    rows, columns = np.flatnonzero(lungs.any(axis=(0, 2))), np.flatnonzero(lungs.any(axis=(0, 1)))
    if not len(rows):
        return slice(None), slice(None)
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )
