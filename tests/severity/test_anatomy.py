# SPDX-License-Identifier: Apache-2.0
from collections import Counter

from covid_monai.severity.anatomy import LEFT_LUNG, LOBES, REGIONS, RIGHT_LUNG, SIDES

# Yang et al. 2020 by name and side, as the reference lists them
NAMES = [
    "right upper lobe, apical",
    "right upper lobe, posterior",
    "right upper lobe, anterior",
    "right middle lobe, lateral",
    "right middle lobe, medial",
    "right lower lobe, superior",
    "right lower lobe, medial basal",
    "right lower lobe, anterior basal",
    "right lower lobe, lateral basal",
    "right lower lobe, posterior basal",
    "left upper lobe, apical",
    "left upper lobe, posterior",
    "left upper lobe, anterior",
    "left upper lobe, superior lingular",
    "left upper lobe, inferior lingular",
    "left lower lobe, superior",
    "left lower lobe, medial basal",
    "left lower lobe, anterior basal",
    "left lower lobe, lateral basal",
    "left lower lobe, posterior basal",
]


def test_the_twenty_regions_have_the_codes_1_to_20_in_the_order_of_the_reference():
    assert [(region.code, region.name) for region in REGIONS] == list(enumerate(NAMES, start=1))


def test_each_lobe_has_its_number_of_regions():
    assert Counter(region.lobe for region in REGIONS) == {
        "right_upper_lobe": 3,
        "right_middle_lobe": 2,
        "right_lower_lobe": 5,
        "left_upper_lobe": 5,
        "left_lower_lobe": 5,
    }


def test_a_region_lies_in_the_lung_of_its_lobe():
    sides = {lobe.key: lobe.side for lobe in LOBES}
    assert all(region.side == sides[region.lobe] and region.key.startswith(region.side[:4]) for region in REGIONS)
    assert set(sides.values()) == {side.key for side in SIDES}


def test_codes_and_keys_are_unique():
    keys = [x.key for x in SIDES] + [x.key for x in LOBES] + [x.key for x in REGIONS]
    names = [x.name for x in SIDES] + [x.name for x in LOBES] + [x.name for x in REGIONS]
    assert len(set(keys)) == len(set(names)) == 2 + 5 + 20
    assert [lobe.code for lobe in LOBES] == [1, 2, 3, 4, 5]
    assert (RIGHT_LUNG.code, LEFT_LUNG.code) == (1, 2)


def test_keys_are_built_from_side_lobe_and_part():
    assert REGIONS[6].key == "right_lower_medial_basal"
    assert REGIONS[13].key == "left_upper_superior_lingular"
