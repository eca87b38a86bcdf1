# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from covid_monai.tracking import handlers
from covid_monai.training.experiments import Study, pictures, write_table
from tests.training.experiments.studies import finish, finish_cell

SHAPE = (32, 48)


def record(uri: str, tags: dict[str, str], epochs: list[int], count: int = 5, coach: bool = True) -> Run:
    """A pre-training as ``TrackInpainting`` records it: slice k is of grey k / 10, and its cell k is erased."""
    client = MlflowClient(uri)
    run_id = finish(uri, "tiny", "pretraining", tags)
    masks = [torch.ones(1, *SHAPE) for _ in range(count)]
    for number, mask in enumerate(masks):
        mask[:, :16, 8 * number : 8 * number + 8] = 0
    for epoch in epochs:
        for number, mask in enumerate(masks[:4]):
            image = torch.full((1, *SHAPE), number / 10)
            rebuilt = [handlers._rebuilding(image, mask, image)] * (2 if coach else 1)
            panel = handlers._uint8(torch.cat(rebuilt))
            client.log_image(run_id, panel, f"inpainting/epoch_{epoch:04d}_{number}.png")
        if coach:
            client.log_image(run_id, handlers._uint8(handlers._grid(masks)), f"coach_masks/epoch_{epoch:04d}.png")
    return client.get_run(run_id)


def test_masks_are_found_in_their_grid():
    masks = [torch.zeros(1, *SHAPE) for _ in range(5)]
    for number, mask in enumerate(masks):
        mask[:, number] = 1
    grid = handlers._uint8(handlers._grid(masks))  # three a row
    for number, mask in enumerate(masks):
        assert np.array_equal(pictures._cell(grid, SHAPE, number), 255 * mask[0].numpy())


def test_what_is_erased_is_tinted():
    image = np.array([[100, 200]], dtype=np.uint8)
    tinted = pictures._tinted(image, np.array([[False, True]]))
    assert tinted.tolist() == [[[100, 100, 100], [225, 173, 110]]]  # 0.55 x 200 + 0.45 x (255, 140, 0)


@pytest.mark.parametrize(
    ("values", "kept"),
    [([], []), ([4], [4]), ([1, 2, 3], [1, 2, 3]), ([*range(1, 12)], [1, 3, 5, 7, 9, 11])],
)
def test_few_of_many_epochs_are_shown(values: list[int], kept: list[int]):
    assert pictures._spread(values, 6) == kept


def test_a_row_a_slice_and_a_column_an_epoch(tracking_uri: str, monkeypatch: pytest.MonkeyPatch):
    shown: list[tuple[int, int]] = []
    tinted = pictures._tinted

    def tint(image: np.ndarray, erased: np.ndarray) -> np.ndarray:
        shown.append((int(image[0, 0]), int(erased.nonzero()[1].min())))
        assert erased.sum() == 16 * 8
        return tinted(image, erased)

    monkeypatch.setattr(pictures, "_tinted", tint)
    content = pictures.coach_masks(MlflowClient(tracking_uri), record(tracking_uri, {}, [2, 4]))
    assert content is not None
    assert Image.open(io.BytesIO(content)).format == "PNG"
    assert shown == [(0, 0), (0, 0), (25, 8), (25, 8), (51, 16), (51, 16), (76, 24), (76, 24)]


@pytest.mark.parametrize("epochs", [[], [2]])
def test_a_run_without_masks_of_a_coach_has_no_picture(tracking_uri: str, epochs: list[int]):
    assert pictures.coach_masks(MlflowClient(tracking_uri), record(tracking_uri, {}, epochs, coach=False)) is None


def test_the_report_shows_what_coaches_erased_once_a_pretraining(both: Study, tmp_path: Path, tracking_uri: str):
    cells = both.cells("first")
    for cell in cells:
        finish_cell(tracking_uri, cell)
    record(tracking_uri, cells[1].stages[0].tags, [2])
    record(tracking_uri, cells[-1].own_stages[0].tags, [2])
    paths = write_table(both, tmp_path, tracking_uri)
    names = ["coach_masks_cascade_coach.png", "coach_masks_coach.png"]
    assert sorted(path.name for path in paths if path.name.startswith("coach")) == names
    text = (tmp_path / "table.md").read_text()
    assert [text.count(f"]({name})") for name in names] == [1, 1]


def test_panels_take_missing_values_and_single_seeds():
    lines = [("a", [(0.5, [0.1, 0.3]), (1.0, [0.4])]), ("b", [(0.5, []), (1.0, [])])]
    for count in (1, 2, 3):
        content = pictures.metric_panels([(f"metric {k}", lines) for k in range(count)], [0.5, 1.0])
        assert Image.open(io.BytesIO(content)).format == "PNG"
