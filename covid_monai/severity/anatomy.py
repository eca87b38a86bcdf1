# SPDX-License-Identifier: Apache-2.0
"""Names and codes of lungs, lobes and the twenty regions of the CT severity score."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEFT_LUNG", "LOBES", "REGIONS", "RIGHT_LUNG", "SIDES", "Lobe", "Region", "Side"]


@dataclass(frozen=True)
class Side:
    """One lung: its code in a lung mask, its key in records and its name."""

    code: int
    key: str
    name: str


@dataclass(frozen=True)
class Lobe:
    """A lobe: its code in a lobe mask, its key in records, its name, and the key of its lung."""

    code: int
    key: str
    name: str
    side: str


@dataclass(frozen=True)
class Region:
    """A region: its code in a region mask, its key in records, its name, and the keys of its lobe and lung."""

    code: int
    key: str
    name: str
    lobe: str
    side: str


RIGHT_LUNG = Side(1, "right_lung", "right lung")
LEFT_LUNG = Side(2, "left_lung", "left lung")
SIDES = (RIGHT_LUNG, LEFT_LUNG)

LOBES = (
    Lobe(1, "right_upper_lobe", "right upper lobe", "right_lung"),
    Lobe(2, "right_middle_lobe", "right middle lobe", "right_lung"),
    Lobe(3, "right_lower_lobe", "right lower lobe", "right_lung"),
    Lobe(4, "left_upper_lobe", "left upper lobe", "left_lung"),
    Lobe(5, "left_lower_lobe", "left lower lobe", "left_lung"),
)

_BASAL = ("superior", "medial basal", "anterior basal", "lateral basal", "posterior basal")
_PARTS = {
    "right_upper_lobe": ("apical", "posterior", "anterior"),
    "right_middle_lobe": ("lateral", "medial"),
    "right_lower_lobe": _BASAL,
    "left_upper_lobe": ("apical", "posterior", "anterior", "superior lingular", "inferior lingular"),
    "left_lower_lobe": _BASAL,
}


def _regions() -> tuple[Region, ...]:
    named = [(lobe, part) for lobe in LOBES for part in _PARTS[lobe.key]]
    return tuple(
        Region(
            code=code,
            key=f"{lobe.key.removesuffix('_lobe')}_{part.replace(' ', '_')}",
            name=f"{lobe.name}, {part}",
            lobe=lobe.key,
            side=lobe.side,
        )
        for code, (lobe, part) in enumerate(named, start=1)
    )


REGIONS = _regions()
"""The 20 regions of Yang et al. 2020 (Radiol Cardiothorac Imaging 2(2):e200047): the 18 segments of both lungs, with
the left apicoposterior and anteromedial basal ones cut in two. Codes 1..20 in this order; keys such as
``right_lower_medial_basal``."""
