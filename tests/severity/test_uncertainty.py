# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covid_monai.severity.scores import count, severity
from covid_monai.severity.uncertainty import THRESHOLDS, Spread, at_thresholds, spread

SHAPE = (3, 4, 5)


def joint_of(probability: np.ndarray, dense: np.ndarray, regions: np.ndarray, thresholds=THRESHOLDS) -> np.ndarray:
    """The one count per run, of voxels by region and by 2 * thresholds reached + dense."""
    reached = sum((probability >= threshold).astype(np.uint8) for threshold in thresholds)
    return count(2 * reached + dense.astype(np.uint8), regions, 2 * (len(thresholds) + 1))


def codes_of(probability: np.ndarray, dense: np.ndarray, threshold: float) -> np.ndarray:
    """Lesion codes at one threshold."""
    return np.where(probability >= threshold, 1 + dense.astype(np.uint8), 0).astype(np.uint8)


def test_counts_worked_out_by_hand():
    joint = np.zeros((21, 6), dtype=np.int64)
    joint[0] = (9, 9, 9, 9, 9, 9)
    joint[7] = (100, 3, 20, 5, 4, 2)  # columns: none, none dense, one, one dense, two, two dense
    low, high = at_thresholds(joint, 2)
    assert low[7].tolist() == [103, 24, 7]
    assert high[7].tolist() == [128, 4, 2]
    assert low[0].tolist() == [18, 18, 18]
    assert low.shape == (21, 3)


probabilities = hnp.arrays(
    np.float32, SHAPE, elements=st.sampled_from([0.0, 0.25, 0.35, 0.45, 0.5, 0.55, 0.65, 0.75, 1.0])
)
bools = hnp.arrays(bool, SHAPE)
region_codes = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 20))


@given(probabilities, bools, region_codes)
def test_one_joint_count_gives_what_counting_at_each_threshold_gives(
    probability: np.ndarray, dense: np.ndarray, regions: np.ndarray
):
    found = at_thresholds(joint_of(probability, dense, regions), len(THRESHOLDS))
    assert len(found) == len(THRESHOLDS)
    for counts, threshold in zip(found, THRESHOLDS, strict=True):
        assert np.array_equal(counts, count(codes_of(probability, dense, threshold), regions))


@given(probabilities, bools, region_codes)
def test_a_higher_threshold_never_raises_a_figure(probability: np.ndarray, dense: np.ndarray, regions: np.ndarray):
    regions[0, 0, 0] = 1
    variants = [severity(c, 0.1, True) for c in at_thresholds(joint_of(probability, dense, regions), len(THRESHOLDS))]
    for low, high in pairwise(variants):
        assert low.whole.lesion_share >= high.whole.lesion_share
        assert low.ct_ss.lowest >= high.ct_ss.lowest
        assert low.ct_ss.highest >= high.ct_ss.highest
        assert low.lobar.lowest >= high.lobar.lowest


@given(probabilities, probabilities, bools, region_codes, st.floats(0.01, 5) | st.none())
def test_the_range_holds_the_reported_result(
    probability: np.ndarray, mirrored: np.ndarray, dense: np.ndarray, regions: np.ndarray, voxel_ml: float | None
):
    main = severity(count(codes_of(probability, dense, 0.5), regions), voxel_ml, True)
    variants = [
        severity(counts, voxel_ml, True)
        for run in (probability, mirrored)
        for counts in at_thresholds(joint_of(run, dense, regions), len(THRESHOLDS))
    ]
    assert main in variants
    found = spread(variants, THRESHOLDS, mirrored=True)
    assert (found.runs, found.mirrored, found.thresholds) == (10, True, THRESHOLDS)
    for name in ("lesion_ml", "lesion_share", "consolidation_share"):
        value, range_ = getattr(main.whole, name), getattr(found, name)
        assert range_ is None if value is None else range_[0] <= value <= range_[1]
    for name in ("ct_ss", "lobar"):
        score, range_ = getattr(main, name), getattr(found, name)
        assert range_[0] <= score.lowest <= score.highest <= range_[1]


def severities(
    *lesions: int, voxel_ml: float | None = 0.1, told_apart: bool = True, lung: int = 1000, known=range(1, 21)
):
    """One result for each number of lesion voxels, all in region 1 of ``lung`` voxels."""
    found = []
    for lesion in lesions:
        counts = np.zeros((21, 3), dtype=np.int64)
        counts[1:, 0] = lung
        counts[1] = (lung - lesion, lesion, 0)
        found.append(severity(counts, voxel_ml, told_apart, assessable=known))
    return found


def test_a_range_worked_out_by_hand():
    assert spread(severities(100, 40, 600), (0.3, 0.5, 0.7), False) == Spread(
        thresholds=(0.3, 0.5, 0.7),
        mirrored=False,
        runs=3,
        lesion_ml=(4.0, 60.0),
        lesion_share=(0.002, 0.03),
        consolidation_share=(0.0, 0.0),
        ct_ss=(1, 2),
        lobar=(1, 2),  # 40 and 600 of the lobe's 3000
    )


def test_the_range_of_scores_holds_what_was_not_assessable():
    found = spread(severities(100, 600, known=range(1, 18)), THRESHOLDS, False)
    assert found.ct_ss == (1, 2 + 6)
    assert found.lobar == (1, 2 + 5)


def test_what_is_not_known_has_no_range():
    found = spread(severities(100, 40, voxel_ml=None, told_apart=False), THRESHOLDS, False)
    assert (found.lesion_ml, found.consolidation_share) == (None, None)
    assert found.lesion_share == (0.002, 0.005)


def test_without_lung_there_is_no_share_and_every_score_is_possible():
    found = spread([severity(np.zeros((21, 3), dtype=int), 0.1, True)] * 2, THRESHOLDS, False)
    assert (found.lesion_share, found.lesion_ml) == (None, None)
    assert (found.ct_ss, found.lobar) == ((0, 40), (0, 25))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "no variant to take a range over"),
        ([*severities(10), *severities(10, lung=1001)], "the variants are of different lungs"),
        ([*severities(10), *severities(10, known=[1])], "the variants are of different lungs"),
    ],
)
def test_variants_must_be_of_one_scan(variants: list, message: str):
    with pytest.raises(ValueError, match=message):
        spread(variants, THRESHOLDS, False)


@pytest.mark.parametrize(("shape", "thresholds"), [((21, 10), 5), ((21, 12), 4), ((12,), 5), ((21, 2), 0)])
def test_counts_of_another_number_of_thresholds_are_refused(shape: tuple[int, ...], thresholds: int):
    with pytest.raises(ValueError, match=rf"give \(regions, {2 * (thresholds + 1)}\) for {thresholds} thresholds"):
        at_thresholds(np.zeros(shape, dtype=int), thresholds)
