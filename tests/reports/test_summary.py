# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.reports import summarise
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import FINDING, make_analysis

KEYS = tuple(region.key for region in REGIONS)


def test_sentences_worked_out_by_hand():
    assert summarise(make_analysis()) == (
        "CT severity score 4 / 40 (mild), lobar score 5 / 25",
        "lesion share of the lungs 5.0 % (ground glass 4.5 %, consolidation 0.5 %), on 10 of 50 slices with lung",
        "lesions 10 mL (ground glass 9.0 mL, consolidation 1.0 mL), lungs 200 mL",
        "opacities consistent with viral pneumonia: found",
    )


def test_one_class_has_no_parts():
    _, share, volumes, _ = summarise(make_analysis(told_apart=False))
    assert share == "lesion share of the lungs 5.0 %, on 10 of 50 slices with lung"
    assert volumes == "lesions 10 mL, lungs 200 mL"


def test_scores_that_are_not_certain_are_ranges():
    scores, *_ = summarise(make_analysis(not_assessable=KEYS[:10]))
    assert scores == "CT severity score 1-21 / 40 (severe or mild cannot be told), lobar score 1-16 / 25"


def test_without_lengths_volumes_are_unknown():
    scores, _, volumes, _ = summarise(make_analysis(known=False))
    assert scores.startswith("CT severity score 0-40 / 40 (severe or mild cannot be told)")
    assert volumes == "volumes unknown (no voxel size)"


def test_without_lung_no_share_is_given():
    nothing = make_analysis({}, missing=KEYS, finding=replace(FINDING, result=None))
    _, share, _, finding = summarise(nothing)
    assert share == "lesion share not available, on 0 of 0 slices with lung"
    assert finding == "opacities consistent with viral pneumonia: not assessable"


@given(st.booleans(), st.booleans(), st.sets(st.sampled_from(KEYS)))
def test_what_is_unknown_is_never_a_number(known: bool, told_apart: bool, missing: set[str]):
    analysis = make_analysis(known=known, told_apart=told_apart, missing=tuple(missing))
    _, share, volumes, _ = lines = summarise(analysis)
    assert "None" not in "".join(lines)
    lungs = len(missing) < len(KEYS)
    assert ("%" in share, "mL" in volumes) == (lungs, known and lungs)
    assert ("ground glass" in share, "ground glass" in volumes) == (
        lungs and told_apart,
        known and lungs and told_apart,
    )


@pytest.mark.parametrize("ranges", [True, False])
def test_ranges_are_not_needed(ranges: bool):
    analysis = make_analysis()
    assert summarise(analysis if ranges else replace(analysis, spread=None)) == summarise(analysis)
