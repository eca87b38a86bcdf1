# SPDX-License-Identifier: Apache-2.0
"""One picture of an analysis: the slices that matter, the lesions on them, and the figures."""

from __future__ import annotations

import math
import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports.pictures import LESION_COLOURS, outlined
from covid_monai.reports.planes import areas, box_around, slices_that_matter
from covid_monai.reports.summary import summarise

__all__ = ["save_overview"]

MOST, COLUMNS, PANEL_INCHES, PANEL_PIXELS = 12, 4, 3.45, 345
FILL = 0.3  # how much of its colour a lesion gets, which is small here
MARGIN = 12  # pixels around the lungs of the whole scan


def save_overview(analysis: Analysis, path: str | os.PathLike) -> None:
    """Draw up to twelve axial slices with lesions and lungs outlined, and save them as PNG.

    Ground glass is yellow and consolidation red; lesions of which neither is known are red.

    Args:
        analysis: what to draw.
        path: file to write.
    """
    lesions, lungs = areas(analysis.lesions), areas(analysis.regions)
    box = box_around(lungs, (0, MARGIN, MARGIN))[1:]
    chosen = slices_that_matter(lesions.slices, lungs.slices, MOST)
    rows, columns = math.ceil(len(chosen) / COLUMNS), min(len(chosen), COLUMNS)
    height, width = analysis.hu[0][box].shape
    figure = Figure(figsize=(14, 1.1 + rows * (PANEL_INCHES * height / width + 0.25)), facecolor="black")
    FigureCanvasAgg(figure)
    for number, z in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_axis_off()
        hu, lesion, lung = (volume[z][box] for volume in (analysis.hu, analysis.lesions, analysis.regions))
        size = round(PANEL_PIXELS * height / width), PANEL_PIXELS
        axes.imshow(outlined(hu, lesion, lung, analysis.classes, *size, FILL), interpolation="nearest")
        axes.set_title(f"slice {z + 1} of {len(analysis.hu)}", color="white", fontsize=9, pad=3)
    inches = figure.get_figheight()
    scores, share, volumes, _ = summarise(analysis)
    headline = f"{scores}    scan {analysis.scan_id}\n{share}\n{volumes}"
    figure.suptitle(headline, color="white", fontsize=12, y=1 - 0.08 / inches)
    colours = " ".join(f"{LESION_COLOURS[name][0]}: {name}." for name in analysis.classes)
    legend = f"{colours} Blue: lung. Slices count from inferior; the patient's right is left. {NOTICE}"
    figure.text(0.5, 0.12 / inches, legend, color="0.75", fontsize=9, ha="center")
    edges = {"left": 0.005, "right": 0.995, "top": 1 - 0.95 / inches, "bottom": 0.35 / inches}
    figure.subplots_adjust(**edges, wspace=0.02, hspace=0.09)
    figure.savefig(path, dpi=100, facecolor="black", format="png")
