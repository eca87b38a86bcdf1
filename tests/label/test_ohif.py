# SPDX-License-Identifier: Apache-2.0
"""OHIF in a real browser: the study opens from the archive, the model's mask is corrected, and trained on."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from covid_monai.ct.exchange import send
from covid_monai.networks import weights_sha256
from tests.label.conftest import voxels
from tests.label.server import LabelServer, array_of, running_server
from tests.orthanc import running_orthanc
from tests.reports.browser import ARGUMENTS

pytestmark = pytest.mark.slow

SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
PATIENCE = 300_000  # ms
STROKE = ((0, 0), (20, 10))  # of the brush, in pixels from the middle of the axial picture
GROUND_GLASS = 1


@contextmanager
def ohif(server: LabelServer, study: str) -> Iterator[Any]:
    """A study in OHIF, and MONAI Label's panel connected; skips the test where there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium (of Debian) is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, *SOFTWARE_GL])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        page.get_by_text("Confirm and Hide").click()
        page.get_by_text("W:").first.wait_for()  # the pictures are there
        page.locator("button.actionButton").first.click()
        page.get_by_role("button", name="Run").first.wait_for()
        yield page
        assert not errors
        browser.close()


def asked(page: Any, path: str, click: Callable[[], None]) -> Any:
    """The server's answer to what a click makes the browser ask."""
    with page.expect_response(lambda response: path in response.url) as response:
        click()
    return response.value


def press(page: Any, button: str) -> None:
    """Press a button of the toolbar or of the list of segments."""
    page.locator(f"[data-cy={button}]").click()


def told(page: Any, button: str, text: str) -> None:
    """Press a button of the toolbar, and wait for what it tells."""
    press(page, button)
    page.get_by_text(text).first.wait_for()


def run(page: Any, model: str) -> np.ndarray:
    """The mask (X, Y, Z) that the panel gets."""
    page.locator("select", has_text=model).first.select_option(model)
    answer = asked(page, f"/infer/{model}?", page.get_by_role("button", name="Run").first.click)
    page.wait_for_timeout(10_000)  # until it is drawn
    return array_of(answer.body(), ".nrrd")


def paint(page: Any) -> None:
    """Draw ground glass into the axial picture."""
    press(page, "panelSegmentationWithTools-btn")
    page.locator("[data-cy=data-row]", has_text="ground glass").click()
    press(page, "Brush")
    box = page.locator("[data-cy=viewport-pane]").first.bounding_box()
    start, end = ((box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y) for x, y in STROKE)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1000)


def coloured(picture: bytes) -> int:
    """Pixels of the axial picture that are no shade of grey."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)[345:595, 300:545]
    return int((np.ptp(pixels, axis=2) > 12).sum())


def weights_used(server: LabelServer, series: str) -> str:
    """SHA-256 of the weights that drew the last mask of a series."""
    info = server.ask("GET", "/datastore/label/info", params={"label": series, "tag": "original"}).json()
    return info["model"]["weights_sha256"]


def test_ohif_shows_the_models_mask_takes_a_correction_and_trains_on_it(
    patients: list[Path], analysed: Callable[[Path], Path], tmp_path: Path
) -> None:
    with running_orthanc() as orthanc:
        headers: list[Dataset] = []
        for patient in patients:
            files = sorted((patient / "dicom").iterdir())
            send(files, orthanc.dicomweb)
            headers.append(dcmread(files[0], stop_before_pixels=True))
        series, other = (header.SeriesInstanceUID for header in headers)
        with (
            running_server(orthanc.dicomweb, tmp_path / "work") as server,
            ohif(server, headers[0].StudyInstanceUID) as page,
        ):
            before = coloured(page.screenshot())
            mask = run(page, "lesions")
            np.testing.assert_array_equal(mask, voxels(analysed(patients[0] / "dicom") / "lesions.nii.gz"))
            assert coloured(page.screenshot()) > before + 500
            old = weights_used(server, series)

            # the correction, which lies where the brush was
            paint(page)
            saved = asked(page, "/datastore/label", lambda: told(page, "SubmitLabel", "The label is saved. Dice"))
            assert saved.status == 200
            assert 0.9 < saved.json()["dice"]["ground glass"] < 1
            assert saved.json()["dice"]["consolidation"] == 1
            assert "(9/16)" in page.locator("[data-cy=viewport-overlay-bottom-right]").first.inner_text()
            (kept,) = (tmp_path / "work").rglob(f"labels/final/{series}.nii.gz")
            label = voxels(kept)
            x, y, z = np.nonzero(label != mask)
            assert set(label[x, y, z]) == {GROUND_GLASS}
            assert set(z) == {7}  # the ninth of 16 from the head, which is shown
            assert 40 <= x.min() < x.max() <= 64  # the middle is 48
            assert 40 <= y.min() < y.max() <= 60
            (segmentation,) = [found for found in orthanc.instances() if found.Modality == "SEG"]
            assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == series

            # a training of one label, which the panel calls started
            page.get_by_text("Active Learning").click()
            page.get_by_text("Options / Configurations").first.click()
            page.locator("#trainlesionsmax_epochs").fill("2")
            page.locator("#trainlesionssamples_per_epoch").fill("8")
            page.get_by_text("Confirm", exact=True).click()
            asked(page, "/train/", page.get_by_role("button", name="Update Model").click)
            assert server.wait("train")["status"] == "ERROR"
            told(page, "Training", "labels of two scans at the least")
            asked(page, "/train/", page.get_by_role("button", name="Stop Training").click)

            # a training of two
            assert server.save(other, patients[1] / "lesions.nii.gz").ok
            begun = asked(page, "/train/", page.get_by_role("button", name="Update Model").click)
            assert begun.request.post_data_json == {"lesions": {"max_epochs": 2, "samples_per_epoch": 8}}
            told(page, "Training", "The training runs.")
            task = server.wait("train")
            assert task["status"] == "DONE", "\n".join(task["details"])
            told(page, "Training", "The training is done: the next run uses the new model.")
            page.screenshot(path=tmp_path / "ohif.png")
            run(page, "lesions")
            assert weights_used(server, series) == weights_sha256(tmp_path / "work" / "model.pt") != old

            # what is no label of lesions does not replace one
            run(page, "lungs")
            told(page, "SubmitLabel", "The label is not saved: the segment 'left lung' is none of ground glass")
            np.testing.assert_array_equal(voxels(kept), label)
