# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from covid_monai.transforms import LesionCodes, LesionCodesd

logit = st.floats(-8, 8, width=32)


def column(*logits: float) -> torch.Tensor:
    return torch.tensor(logits).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("probabilities", "threshold", "code"),
    [
        ((0.6, 0.3, 0.1), 0.5, 0),
        ((0.4, 0.35, 0.25), 0.5, 1),  # background is the most probable of the three, lesion more so than background
        ((0.4, 0.25, 0.35), 0.5, 2),
        ((0.6, 0.15, 0.25), 0.35, 2),
        ((0.2, 0.4, 0.4), 0.5, 1),  # of equals the first
    ],
)
def test_lesion_by_threshold_and_class_by_the_larger(probabilities, threshold, code):
    assert LesionCodes(threshold)(column(*map(math.log, probabilities))).item() == code


@given(st.tuples(logit, logit, logit), st.floats(0.1, 0.9))
def test_agrees_with_the_softmax(logits, threshold):
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
    if abs(1 - p[0] - threshold) < 1e-4 or abs(logits[1] - logits[2]) < 1e-4:
        return
    expected = 0 if 1 - p[0] < threshold else 1 + int(p[2] > p[1])
    assert LesionCodes(threshold)(column(*logits)).item() == expected


@pytest.mark.parametrize(("threshold", "codes"), [(0.5, [0, 1, 1]), (0.8, [0, 0, 1])])
def test_one_logit_is_thresholded(threshold, codes):
    logits = torch.tensor([[-0.1, 0.1, 1.5]])[None]
    assert LesionCodes(threshold)(logits).flatten().tolist() == codes


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, MetaTensor])
def test_keeps_the_type_and_the_input(kind):
    logits = kind(torch.randn(3, 4, 5))
    before = np.array(logits)
    codes = LesionCodes()(logits)
    assert type(codes) is type(logits)
    assert codes.dtype in (torch.uint8, np.uint8)
    assert codes.shape == (1, 4, 5)
    assert np.array_equal(before, np.array(logits))


def test_dictionary_twin_changes_its_keys_only():
    data = {"pred": torch.randn(3, 4, 4), "image": torch.rand(1, 4, 4)}
    out = LesionCodesd("pred", 0.4)(data)
    assert torch.equal(out["pred"], LesionCodes(0.4)(data["pred"]))
    assert out["image"] is data["image"]
    with pytest.raises(KeyError):
        LesionCodesd("prediction")(data)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 2])
def test_other_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match="give a probability between 0 and 1"):
        LesionCodes(threshold)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match="give 1 or 3"):
        LesionCodes()(torch.zeros(channels, 2, 2))
