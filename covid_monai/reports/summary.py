# SPDX-License-Identifier: Apache-2.0
"""The figures of an analysis in a few lines for people."""

from __future__ import annotations

from collections.abc import Callable

from covid_monai.analysis import Analysis
from covid_monai.reports.wording import ml, percent, total

__all__ = ["summarise"]


def summarise(analysis: Analysis) -> tuple[str, str, str, str]:
    """Scores; lesion share of the lungs and slices; volumes; finding.

    Ground glass and consolidation are given where they are told apart. Figures that are None are said to be unknown, or
    left out.
    """
    severity, whole = analysis.severity, analysis.severity.whole
    grade = severity.grade or "severe or mild cannot be told"
    share, volumes = "lesion share not available", "volumes unknown (no voxel size)"
    if whole.lesion_share is not None:
        parts = _parts(whole.ground_glass_share, whole.consolidation_share, percent)
        share = f"lesion share of the lungs {percent(whole.lesion_share)}{parts}"
    if whole.lung_ml == 0:
        volumes = "no lung was found"
    elif whole.lesion_ml is not None:
        volumes = f"lesions {ml(whole.lesion_ml)}{_parts(whole.ground_glass_ml, whole.consolidation_ml, ml)}"
        volumes += f", lungs {ml(whole.lung_ml)}"
    return (
        f"CT severity score {total(severity.ct_ss)} ({grade}), lobar score {total(severity.lobar)}",
        f"{share}, on {analysis.lesion_slices} of {analysis.lung_slices} slices with lung",
        volumes,
        f"opacities consistent with viral pneumonia: {analysis.finding.result or 'not assessable'}",
    )


def _parts(ground_glass: float | None, consolidation: float | None, write: Callable[[float | None], str]) -> str:
    if ground_glass is None:
        return ""
    return f" (ground glass {write(ground_glass)}, consolidation {write(consolidation)})"
