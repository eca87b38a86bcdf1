# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: pictures, style and viewer are inside it."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib.resources import files

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from covid_monai.analysis import Analysis
from covid_monai.reports import slice_plot
from covid_monai.reports.body_map import BANDS, NOT_ASSESSABLE, body_map
from covid_monai.reports.contents import COLUMNS, contents
from covid_monai.reports.drawing import to_svg
from covid_monai.reports.pictures import Frame, Pictures, draw_pictures, viewer_frames
from covid_monai.reports.wording import percent
from covid_monai.whole_files import write_whole

__all__ = ["save_html"]


def save_html(
    analysis: Analysis, path: str | os.PathLike, title: str | None = None, pictures: Pictures | None = None
) -> None:
    """Write the report as one self-contained HTML file.

    Its content security policy lets it load nothing from anywhere; of the patient it shows nothing but the anatomy.

    Args:
        analysis: what to report.
        path: file to write.
        title: name of the scan for the heading; the scan id when None. It may tell who the patient is.
        pictures: of the analysis, where they are drawn already.

    Raises:
        OSError: when the file cannot be written.
    """
    write_whole(path, _render(analysis, title, pictures or draw_pictures(analysis)).encode())


def _render(analysis: Analysis, title: str | None, pictures: Pictures) -> str:
    style, script = static("report.css") + _band_style(), static("viewer.js")
    frames = [_frame(frame, analysis) for frame in viewer_frames(analysis)]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=contents(analysis, title),
            columns=COLUMNS,
            pictures=pictures,
            body_map=Markup(body_map(analysis.severity)),
            slice_plot=Markup(to_svg(slice_plot.draw_slice_plot(analysis.slice_shares))),
            viewer={
                "frames": frames,
                "slices": len(analysis.hu),
                "plot": {"left": slice_plot.LEFT, "right": slice_plot.RIGHT},
            },
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
        )
    )


@cache
def environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("covid_monai.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["jpeg"] = lambda content: f"data:image/jpeg;base64,{_base64(content)}"
    return environment


@cache
def static(name: str) -> str:
    return (files("covid_monai.reports") / "templates" / name).read_text(encoding="utf-8")


def _band_style() -> str:
    """Colours of the body map for the table: rules, because the policy forbids style attributes."""
    return "".join(f".{each.key} .swatch {{ background: {each.colour}; }}\n" for each in (*BANDS, NOT_ASSESSABLE))


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, pictures from within the file, and nothing else."""
    style_hash, script_hash = (_base64(hashlib.sha256(text.encode()).digest()) for text in (style, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _frame(frame: Frame, analysis: Analysis) -> dict[str, object]:
    share = analysis.slice_shares[frame.z]
    return {
        "z": frame.z,
        "lesion": int(np.count_nonzero(analysis.lesions[frame.z])),
        "text": "no lung" if share is None else f"{percent(share)} of the lung in this slice is lesion",
        "width": frame.width,
        "height": frame.height,
        "lung": _base64(frame.lung),
        "soft": _base64(frame.soft),
        "overlay": _base64(frame.overlay),
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
