# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from covid_monai.training import choose


def test_a_setting_chooses():
    assert choose("masks", "random", {"coach": 1, "random": None}) is None
    assert choose("augmentation", True, {True: [1], False: []}) == [1]


@pytest.mark.parametrize("value", ["coahc", None, 1, ["coach"]])
def test_another_value_is_told_with_the_choices(value: Any):
    with pytest.raises(ValueError, match=r"^masks is .*: choose coach or random\.$"):
        choose("masks", value, {"coach": 1, "random": None})


@pytest.mark.parametrize("value", ["false", "True", 1, 0])
def test_a_word_is_no_boolean(value: Any):
    with pytest.raises(ValueError, match="choose True or False"):
        choose("augmentation", value, {True: [1], False: []})
