# SPDX-License-Identifier: Apache-2.0
"""The figures of an analysis in two lines for people."""

from __future__ import annotations

from covid_monai.analysis import Figures

__all__ = ["summarise"]


def summarise(figures: Figures) -> tuple[str, str]:
    """Lesion share of the lungs, then volumes, each with ground glass and consolidation where they are told apart.

    Args:
        figures: of a scan; those that are None are said to be unknown, or left out.

    Example:
        >>> summarise(Figures(536.0, 400.0, 136.0, 4422.0, 0.121, 0.090, 0.031, 40, 48))[0]
        'lesion share of the lungs 12.1 % (ground glass 9.0 %, consolidation 3.1 %)'
    """
    share, volumes = "lesion share not available", "volumes unknown (no voxel size)"
    if figures.lesion_share is not None:
        parts = _parts(_percent(figures.ground_glass_share), _percent(figures.consolidation_share))
        share = f"lesion share of the lungs {_percent(figures.lesion_share)}{parts}"
    if figures.lesion_ml is not None:
        parts = _parts(_ml(figures.ground_glass_ml), _ml(figures.consolidation_ml))
        volumes = f"lesions {_ml(figures.lesion_ml)}{parts}, lungs {_ml(figures.lung_ml)}"
    return share, volumes


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _ml(volume: float | None) -> str | None:
    return None if volume is None else f"{volume:.0f} mL"


def _parts(ground_glass: str | None, consolidation: str | None) -> str:
    return "" if ground_glass is None else f" (ground glass {ground_glass}, consolidation {consolidation})"
