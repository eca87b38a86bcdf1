# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.reports.contents import APPROXIMATE, FROM_LOBES, Figure, contents
from covid_monai.severity.anatomy import REGIONS
from tests.reports.analyses import FINDING, SPREAD, make_analysis

KEYS = tuple(region.key for region in REGIONS)
LEFT = tuple(region.key for region in REGIONS if region.side == "left_lung")


def figures(analysis) -> dict[str, Figure]:
    """Key figures by name, with plain spaces."""
    plain = str.maketrans("\u00a0", " ")
    return {
        figure.name: replace(figure, details=tuple(each.translate(plain) for each in figure.details))
        for figure in contents(analysis).figures
    }


def test_figures_worked_out_by_hand():
    found = figures(make_analysis())
    assert found["Lung involved"] == Figure(
        "Lung involved",
        "5.0 %",
        ("ground glass 4.5 %", "consolidation 0.5 %", "right 9.0 %, left 1.0 %", "range 15.0 to 25.0 %"),
    )
    assert found["CT severity score"] == Figure(
        "CT severity score", "4 / 40", ("all 20 regions assessable", "range 3 to 9")
    )
    assert found["Grade"] == Figure("Grade", "mild", ("cut-off: CT severity score 19.5",))
    assert found["Lobar score"] == Figure("Lobar score", "5 / 25", ("all 5 lobes assessable", "range 2 to 6"))
    assert found["Lesion volume"] == Figure(
        "Lesion volume",
        "10 mL",
        ("of 200 mL lung", "ground glass 9.0 mL", "consolidation 1.0 mL", "range 30 to 50 mL"),
    )
    assert found["Slices with lesion"].value == "10 of 50"


def test_a_score_that_is_not_certain_is_given_as_a_range_with_how_much_was_seen():
    found = figures(make_analysis(not_assessable=LEFT))
    assert found["CT severity score"].value == "3-23 / 40"
    assert found["CT severity score"].details[0] == "lowest to highest possible; only 10 of 20 regions assessable"
    assert found["Lobar score"].value == "4-14 / 25"
    assert found["Grade"].value == "cannot be told"
    assert "the possible scores 3 to 23 lie on both sides" in found["Grade"].details


def test_without_anything_assessable_no_score_is_shown():
    found = figures(make_analysis(known=False))
    for name in ("CT severity score", "Lobar score"):
        assert found[name].value == "not assessable"
    assert found["CT severity score"].details[0] == "none of the 20 regions is assessable; possible: 0 to 40"
    assert found["Lesion volume"].value == "not known"


def test_a_range_over_the_cut_off_is_said():
    analysis = make_analysis(spread=replace(SPREAD, ct_ss=(4, 20)))
    assert "the range of the score lies on both sides" in figures(analysis)["Grade"].details


def test_rows_are_grouped_by_lung_and_lobe():
    rows = contents(make_analysis()).rows
    assert [row.level for row in rows].count("region") == 20
    names = [(row.level, row.name) for row in rows]
    assert names[:4] == [
        ("whole", "Both lungs"),
        ("lung", "Right lung"),
        ("lobe", "Right upper lobe"),
        ("region", "Apical"),
    ]
    assert rows[3].cells == ("10", "6.0", "60.0", "60.0", "0.0", "2 / 2")
    assert names.index(("lung", "Left lung")) > names.index(("lobe", "Right lower lobe"))


def test_a_region_without_voxels_is_not_assessable_and_has_no_share():
    rows = contents(make_analysis(missing=("right_upper_apical",))).rows
    assert rows[3].cells == ("0", "n/a", "n/a", "n/a", "n/a", "n/a")
    assert rows[3].band.key == "na"


@given(st.booleans(), st.booleans(), st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(KEYS)), st.booleans())
def test_nothing_unknown_is_written_as_none(
    known: bool, told_apart: bool, missing: set[str], not_assessable: set[str], ranges: bool
):
    analysis = make_analysis(
        known=known, told_apart=told_apart, missing=tuple(missing), not_assessable=tuple(not_assessable)
    )
    if not ranges:
        analysis = replace(analysis, spread=None)
    report = contents(replace(analysis, finding=replace(FINDING, result=None, bilateral=None, lower_lobe_share=None)))
    assert "None" not in repr((report.finding, report.figures, report.notes, report.record, report.title))
    assert all("None" not in cell for row in report.rows for cell in row.cells)


def test_the_record_is_told_whole():
    record = dict(contents(make_analysis()).record)
    assert ("model, weights sha256", "ab" * 32) in record["Method"]
    assert ("shape", "52 x 18 x 54") in record["Scan"]
    assert "kernel" not in dict(record["Scan"])  # not known
    assert dict(record["Software"]) == {"covid monai": "0.1.0", "python": "3.11"}


def test_the_cut_off_and_its_source_are_quoted_and_the_noise_floor_stated():
    notes = " ".join(contents(make_analysis()).notes)
    assert "19.5" in notes
    assert "Yang et al. 2020" in notes
    assert "below 0.5 mL or below 0.5 % of its lung" in notes


@pytest.mark.parametrize(("source", "expected"), [("lungs", APPROXIMATE), ("lobes", FROM_LOBES)])
def test_regions_are_always_called_approximate(source: str, expected: str):
    analysis = make_analysis()
    analysis.record["method"]["regions_from"] = source
    assert contents(analysis).approximate == expected
    assert "geometric approximation" in expected
