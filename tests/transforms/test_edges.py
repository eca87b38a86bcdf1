# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from covid_monai.transforms import EdgeMap, EdgeMapd

MASKS = arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))
SQUARE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    "width, expected",
    [
        (1, [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]),
        (2, [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]),
        (3, [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]),
        (4, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
    ],
)
def test_square(width: int, expected: list[list[int]]) -> None:
    assert EdgeMap(width)(SQUARE[None])[0].tolist() == expected


def test_labels_that_touch_have_a_contour_between_them() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 1, 2, 2, 2]]])
    assert EdgeMap()(labels).tolist() == [[[0, 1, 1, 0, 1, 1, 0, 0]]]
    assert EdgeMap(1)(labels).tolist() == [[[0, 0, 1, 0, 1, 1, 0, 0]]]


def test_voxel_in_a_volume() -> None:
    volume = torch.zeros(1, 5, 5, 5)
    volume[0, 2, 2, 2] = 1
    edge = EdgeMap()(volume)
    assert edge.sum() == 7
    assert edge[0, 2, 2].tolist() == [0, 1, 1, 1, 0]


def test_channels_are_apart() -> None:
    edge = EdgeMap()(np.stack([SQUARE, np.zeros_like(SQUARE)]))
    assert edge[0].sum() == 20
    assert edge[1].sum() == 0


@pytest.mark.parametrize("value", [0, 1, 2])
def test_one_label_everywhere_has_no_contour(value: int) -> None:
    assert EdgeMap(3)(np.full((1, 6, 7), value)).sum() == 0


@given(MASKS, st.integers(1, 5))
def test_against_the_definition(mask: np.ndarray, width: int) -> None:
    labels = mask[0].astype(int)
    points = np.argwhere(np.ones_like(labels))
    expected = np.zeros_like(labels)
    for point in points:
        label = labels[tuple(point)]
        near = np.abs(points - point).sum(1) <= ((width + 1) // 2 if label else width // 2)
        expected[tuple(point)] = (labels[tuple(points[near].T)] != label).any()
    np.testing.assert_array_equal(EdgeMap(width)(mask)[0], expected)


@given(MASKS)
def test_edge_of_the_turned_mask_is_the_turned_edge(mask: np.ndarray) -> None:
    edge = EdgeMap()
    np.testing.assert_array_equal(edge(mask[:, ::-1].copy()), edge(mask)[:, ::-1])
    np.testing.assert_array_equal(edge(np.rot90(mask, axes=(1, 2)).copy()), np.rot90(edge(mask), axes=(1, 2)))


def test_dictionary_writes_a_new_key() -> None:
    data = {"image": 1, "label": torch.as_tensor(SQUARE[None])}
    out = EdgeMapd("label")(data)
    assert out["label"] is data["label"]
    assert out["edge"].sum() == 20
    assert "edge" not in data
    assert EdgeMapd("label", edge_key="rim", width=1)(data)["rim"].sum() == 8


@pytest.mark.parametrize("width", [0, -1, 1.5])
def test_no_width(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        EdgeMap(width)


def test_interpolated_mask() -> None:
    with pytest.raises(ValueError, match="nearest"):
        EdgeMap()(np.array([[[0, 0.5, 1]]]))


def test_mask_without_channel() -> None:
    with pytest.raises(ValueError, match=r"has shape \(5, 5\)"):
        EdgeMap()(SQUARE)


@pytest.mark.parametrize("keys", ["edge", ["label", "other"]])
def test_keys_that_cannot_share_one_edge(keys: str | list[str]) -> None:
    with pytest.raises(ValueError, match="give one mask"):
        EdgeMapd(keys)


def test_it_is_the_edge_of_covid_semiseg(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("infnet_covid_semiseg") / "TrainingSet/LungInfection-Train/Doctor-label"
    dices = []
    for path in sorted((folder / "GT").glob("*.png"))[::5]:
        mask, theirs = (np.asarray(Image.open(folder / d / path.name).convert("L")) > 127 for d in ("GT", "Edge"))
        ours = EdgeMap()(mask[None].astype(np.uint8))[0] > 0
        dices.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    assert len(dices) == 10
    assert min(dices) > 0.99
