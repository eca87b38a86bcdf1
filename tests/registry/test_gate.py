# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import pytest

from covid_monai.registry import Figures, GateError, judge
from covid_monai.registry.gate import paired

LESION, GGO, CONSOLIDATION = "val_volume_dice", "val_volume_dice_ggo", "val_volume_dice_consolidation"
CHAMPION = (0.5, 0.6, 0.4, 0.7, 0.5, 0.6)


def by_id(values: Sequence[float]) -> dict[str, float]:
    return {f"patient {number}": value for number, value in enumerate(values)}


def figures(
    lesion: Sequence[float] = CHAMPION,
    ggo: Sequence[float] | None = CHAMPION,
    consolidation: Sequence[float] | None = CHAMPION,
    marked: Sequence[float] = (0.0, 0.3),
) -> Figures:
    known = {LESION: lesion, GGO: ggo, CONSOLIDATION: consolidation}
    cases = {metric: by_id(values) for metric, values in known.items() if values is not None}
    return Figures(cases, by_id(marked), "run")


def better(values: Sequence[float] = CHAMPION) -> list[float]:
    return [value + 0.01 * (number + 1) for number, value in enumerate(values)]


def worse(values: Sequence[float] = CHAMPION) -> list[float]:
    return [value - 0.01 * (number + 1) for number, value in enumerate(values)]


class TestPaired:
    def test_of_all_signs_only_one_gives_as_high_a_mean(self):
        row = paired(LESION, by_id(better()), by_id(CHAMPION))
        assert (row.cases, row.p_gain, row.p_loss) == (6, 1 / 2**6, 1.0)
        assert row.champion == pytest.approx(0.55)
        assert row.difference == pytest.approx(0.035)

    def test_signs_by_hand(self):
        """Of the 8 ways to sign 3, 2 and -1, whose sum is 4, two reach it (3+2+1, 3+2-1), seven do not exceed it."""
        row = paired(LESION, by_id([0.3, 0.2, 0.1]), by_id([0.0, 0.0, 0.2]))
        assert (row.p_gain, row.p_loss) == (2 / 8, 7 / 8)

    def test_equal_models_differ_in_nothing(self):
        row = paired(LESION, by_id(CHAMPION), by_id(CHAMPION))
        assert (row.difference, row.p_gain, row.p_loss) == (0, 1, 1)

    def test_cases_go_by_their_ids_not_by_their_order(self):
        turned = dict(reversed(by_id(better()).items()))
        assert paired(LESION, turned, by_id(CHAMPION)) == paired(LESION, by_id(better()), by_id(CHAMPION))

    @pytest.mark.parametrize(("challenger", "champion"), [({"a": 0.5}, {"b": 0.5}), ({}, {})])
    def test_other_cases_are_refused(self, challenger: dict[str, float], champion: dict[str, float]):
        with pytest.raises(GateError, match="not the same ones: measure both on one split"):
            paired(LESION, challenger, champion)


class TestJudge:
    def test_a_gain_without_a_loss_passes(self):
        verdict = judge(figures(better()), figures())
        assert verdict.faults == ()
        assert [row["metric"] for row in verdict.rows()] == [LESION, GGO, CONSOLIDATION, "false_positive_ml"]

    def test_an_equal_model_is_refused(self):
        (fault,) = judge(figures(), figures()).faults
        assert fault == "no gain beyond noise: Dice of the lesion 0.5500 to 0.5500, p 1.000 over 6 patients"

    def test_a_gain_within_noise_is_refused(self):
        """Of the signs of one large gain and five small losses, half give as high a mean: p is above 0.4."""
        noisy = [CHAMPION[0] + 0.1, *(value - 0.005 for value in CHAMPION[1:])]
        verdict = judge(figures(noisy), figures())
        assert verdict.gain.difference > 0
        assert "no gain beyond noise" in verdict.faults[0]

    def test_too_few_patients_are_named(self):
        four = CHAMPION[:4]
        _, few = judge(figures(better(four), better(four), better(four)), figures(four, four, four)).faults
        assert few == "4 patients can show no gain beyond noise: name a split with 5 or more"

    @pytest.mark.parametrize(
        ("loss", "name"), [({"ggo": worse()}, "ground glass"), ({"consolidation": worse()}, "consolidation")]
    )
    def test_a_loss_of_one_class_is_refused(self, loss: dict[str, list[float]], name: str):
        (fault,) = judge(figures(better(), **loss), figures()).faults
        assert fault == f"loss of a guard: Dice of {name} 0.5500 to 0.5150, p 0.016"

    def test_a_loss_within_noise_passes(self):
        noisy = [CHAMPION[0] - 0.1, *(value + 0.005 for value in CHAMPION[1:])]
        assert judge(figures(better(), ggo=noisy), figures()).faults == ()

    @pytest.mark.parametrize(("marked", "faults"), [((0.5, 0.8), 0), ((0.5, 0.81), 1)])
    def test_false_positives_may_grow_by_half_a_millilitre(self, marked: tuple[float, float], faults: int):
        """The champion marks 0.15 mL on average."""
        found = judge(figures(better(), marked=marked), figures()).faults
        assert len(found) == faults
        assert all(fault.startswith("loss of a guard: 0.15 to 0.66 mL are marked in a lesion-free") for fault in found)

    def test_a_model_of_one_class_has_no_class_to_lose(self):
        verdict = judge(figures(better(), None, None), figures(CHAMPION, None, None))
        assert [guard.metric for guard in verdict.guards] == ["false_positive_ml"]

    def test_a_class_that_one_does_not_tell_is_refused(self):
        with pytest.raises(GateError, match=f"{CONSOLIDATION} has 0 cases of the challenger and 6"):
            judge(figures(better(), consolidation=None), figures())


def test_one_patient_is_told_to_be_too_few():
    verdict = judge(figures([0.7], None, None), figures([0.6], None, None))
    assert (verdict.gain.p_gain, verdict.gain.p_loss) == (0.5, 1.0)
    assert verdict.faults[-1] == "1 patients can show no gain beyond noise: name a split with 5 or more"


@pytest.mark.parametrize(("dice", "faults"), [(0.0, 1), (0.56, 0)])
def test_a_guard_that_few_patients_have_may_not_fall_far(dice: float, faults: int):
    challenger = figures(better(), None, [dice] * 4)
    assert len(judge(challenger, figures(CHAMPION, None, [0.6] * 4)).faults) == faults
