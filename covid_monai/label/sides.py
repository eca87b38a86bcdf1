# SPDX-License-Identifier: Apache-2.0
"""Which labelled scans are learnt from and which are validated on, from one training to the next."""

from collections.abc import Iterable, Mapping

__all__ = ["HELD_OUT", "deal_sides"]

HELD_OUT = 0.2
"""Share of the labelled scans, one at the least, that trainings are validated on."""


def deal_sides(patients: Iterable[str], before: Mapping[str, str]) -> dict[str, str]:
    """Give each patient a side, "training" or "validation".

    Nobody changes sides: a training goes on from weights that have seen the training side of those before it. A new
    patient is validated on while fewer than :data:`HELD_OUT` of all are.

    Args:
        patients: those with labels now.
        before: sides of the trainings before.

    Returns:
        Side of each patient, those of ``before`` that have no label any more left out.
    """
    wanted = sorted(set(patients))
    sides = {patient: before[patient] for patient in wanted if patient in before}
    for patient in wanted:
        if patient not in sides:
            held_out = list(sides.values()).count("validation")
            sides[patient] = "validation" if held_out < HELD_OUT * (len(sides) + 1) else "training"
    return sides
