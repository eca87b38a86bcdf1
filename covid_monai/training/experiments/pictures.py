# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report: metrics against the label fraction, and what a coach erased as it learnt."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from PIL import Image

__all__ = ["Line", "coach_masks", "metric_panels"]

Line = tuple[str, list[tuple[float, list[float]]]]
"""Title of an arm, and for each label fraction the values of its seeds."""

SLICES = 4
EPOCHS = 6
KEPT = 128  # a mask's grey levels below are erased
ERASED = (255, 140, 0)


def metric_panels(metrics: Sequence[tuple[str, Sequence[Line]]], fractions: Sequence[float]) -> bytes:
    """PNG with a panel a metric: the mean over seeds against the label fraction, a line an arm, with its s.d.

    Args:
        metrics: name of each metric and its lines, those of the same arms in the same order.
        fractions: all label fractions.
    """
    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows + 0.8), dpi=110, layout="constrained")
    handles: dict[str, Any] = {}
    for number, (metric, lines) in enumerate(metrics, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for position, (title, values) in enumerate(lines):
            shift = 0.8 * (position - (len(lines) - 1) / 2)  # percent, so that bars do not hide each other
            points = [(100 * fraction + shift, each) for fraction, each in values if each]
            handles[title] = axes.errorbar(
                [x for x, _ in points],
                [fmean(each) for _, each in points],
                yerr=[stdev(each) if len(each) > 1 else 0.0 for _, each in points],
                color=f"C{position}", marker="o", markersize=4, capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_xticks([100 * fraction for fraction in fractions])
        axes.set_xlim(0, 106)
        axes.set(xlabel="labelled share of the training slices (%)", title=metric)
        axes.grid(alpha=0.3)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=3, fontsize=8)
    return _png(figure)


def coach_masks(client: MlflowClient, run: Run) -> bytes | None:
    """PNG of what a coach erased of the same slices at several epochs of a pre-training.

    A row is a slice: as it is, then with the erased cells tinted, at each epoch. It is made of what
    :class:`covid_monai.tracking.TrackInpainting` has recorded.

    Returns:
        None where the run has no masks of a coach.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            masks, panels = (_pictures(client, run, name, Path(folder)) for name in ("coach_masks", "inpainting"))
        except (MlflowException, OSError):
            return None
    epochs = _spread(sorted(epoch for epoch, number in masks if (epoch, 0) in panels), EPOCHS)
    if not epochs:
        return None
    slices = [panels[key] for key in sorted(panels) if key[0] == epochs[0]][:SLICES]
    slices = [panel[: panel.shape[0] // 2, : panel.shape[1] // 4] for panel in slices]  # of 2 x 4 pictures the first
    figure = Figure(figsize=(1.7 * (1 + len(epochs)), 1.4 * len(slices) + 0.2), dpi=110, layout="constrained")
    grid = figure.subplots(len(slices), 1 + len(epochs), squeeze=False)
    for number, (row, image) in enumerate(zip(grid, slices, strict=True)):
        row[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        for axes, epoch in zip(row[1:], epochs, strict=True):
            axes.imshow(_tinted(image, _cell(masks[epoch, 0], image.shape, number) < KEPT))
    for axes in grid.flat:
        axes.axis("off")
    for axes, title in zip(grid[0], ["slice", *(f"epoch {epoch}" for epoch in epochs)], strict=True):
        axes.set_title(title, fontsize=8)
    return _png(figure)


def _pictures(client: MlflowClient, run: Run, name: str, folder: Path) -> dict[tuple[int, int], np.ndarray]:
    """Grey pictures ``epoch_0010.png`` or ``epoch_0010_2.png`` of an artifact folder, by epoch and number."""
    files = Path(client.download_artifacts(run.info.run_id, name, str(folder))).glob("*.png")
    found = {(re.fullmatch(r"epoch_(\d+)(?:_(\d+))?", file.stem)): file for file in files}
    return {
        (int(match[1]), int(match[2] or 0)): np.asarray(Image.open(file).convert("L"))
        for match, file in found.items() if match
    }  # fmt: skip


def _cell(grid: np.ndarray, shape: tuple[int, ...], number: int) -> np.ndarray:
    """Mask of a slice of this shape out of a picture of several, row by row, each with a line of a pixel around it."""
    height, width = shape
    row, column = divmod(number, grid.shape[1] // (width + 2))
    top, left = 1 + row * (height + 2), 1 + column * (width + 2)
    return grid[top : top + height, left : left + width]


def _tinted(image: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of a grey one with what is erased in colour."""
    colour = np.stack([image] * 3, axis=-1).astype(float)
    colour[erased] = 0.55 * colour[erased] + 0.45 * np.array(ERASED)
    return colour.round().astype(np.uint8)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most so many of sorted values, first and last among them, evenly by rank."""
    ranks = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[rank] for rank in ranks]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
