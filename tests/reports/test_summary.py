# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.analysis import Figures
from covid_monai.reports import summarise

TOLD_APART = Figures(536.4, 400.2, 136.2, 4421.6, 0.1213, 0.0906, 0.0308, 40, 48)
BINARY = replace(
    TOLD_APART, ground_glass_ml=None, consolidation_ml=None, ground_glass_share=None, consolidation_share=None
)


def without_lengths(figures: Figures) -> Figures:
    return replace(figures, lesion_ml=None, ground_glass_ml=None, consolidation_ml=None, lung_ml=None)


def without_lung(figures: Figures) -> Figures:
    return replace(figures, lung_ml=0.0, lesion_share=None, ground_glass_share=None, consolidation_share=None)


@pytest.mark.parametrize(
    ("figures", "share", "volumes"),
    [
        (
            TOLD_APART,
            "lesion share of the lungs 12.1 % (ground glass 9.1 %, consolidation 3.1 %)",
            "lesions 536 mL (ground glass 400 mL, consolidation 136 mL), lungs 4422 mL",
        ),
        (BINARY, "lesion share of the lungs 12.1 %", "lesions 536 mL, lungs 4422 mL"),
        (
            without_lengths(TOLD_APART),
            "lesion share of the lungs 12.1 % (ground glass 9.1 %, consolidation 3.1 %)",
            "volumes unknown (no voxel size)",
        ),
        (
            without_lung(TOLD_APART),
            "lesion share not available",
            "lesions 536 mL (ground glass 400 mL, consolidation 136 mL), lungs 0 mL",
        ),
        (without_lung(without_lengths(BINARY)), "lesion share not available", "volumes unknown (no voxel size)"),
    ],
)
def test_sentences_worked_out_by_hand(figures: Figures, share: str, volumes: str):
    assert summarise(figures) == (share, volumes)


volumes = st.floats(0, 9000)
shares = st.floats(0, 1)


@given(volumes, volumes, volumes, shares, shares, st.booleans(), st.booleans(), st.booleans())
def test_what_is_unknown_is_never_a_number(
    ground_glass: float, consolidation: float, lung: float, first: float, second: float, lengths: bool, lungs: bool,
    told_apart: bool,
):  # fmt: skip
    figures = Figures(
        ground_glass + consolidation, ground_glass, consolidation, lung, first + second, first, second, 1, 1
    )
    if not told_apart:
        figures = replace(
            figures, ground_glass_ml=None, consolidation_ml=None, ground_glass_share=None, consolidation_share=None
        )
    figures = figures if lengths else without_lengths(figures)
    figures = figures if lungs else without_lung(figures)
    share, volume = summarise(figures)
    assert "None" not in share + volume
    assert ("%" in share, "mL" in volume) == (lungs, lengths)
    assert ("ground glass" in share, "ground glass" in volume) == (lungs and told_apart, lengths and told_apart)
