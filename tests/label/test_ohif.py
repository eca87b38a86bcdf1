# SPDX-License-Identifier: Apache-2.0
"""OHIF in a real browser: the study opens from the archive, the model runs from its panel, the mask appears."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from covid_monai.ct.exchange import send
from tests.label.conftest import voxels
from tests.label.server import array_of, running_server
from tests.orthanc import running_orthanc
from tests.reports.browser import ARGUMENTS

pytestmark = pytest.mark.slow

SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
PATIENCE = 300_000  # ms


def coloured(picture: bytes) -> int:
    """Pixels of the axial picture that are no shade of grey."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)[345:595, 300:545]
    return int((np.ptp(pixels, axis=2) > 12).sum())


def test_ohif_runs_the_model_and_shows_its_mask(
    patients: list[Path], analysed: Callable[[Path], Path], tmp_path: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium (of Debian) is not installed")
    files = sorted((patients[0] / "dicom").iterdir())
    study = dcmread(files[0], stop_before_pixels=True).StudyInstanceUID
    with running_orthanc() as orthanc:
        send(files, orthanc.dicomweb)
        with running_server(orthanc.dicomweb, tmp_path / "work") as server, sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, *SOFTWARE_GL])
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            context.set_default_timeout(PATIENCE)
            address = {"name": "MONAILABEL_SERVER_URL", "value": f"{server.url}/", "url": server.url}
            context.add_cookies([address])  # the panel looks at port 8000 unless it is told otherwise
            page = context.new_page()
            page.goto(f"{server.url}/ohif/monai-label?StudyInstanceUIDs={study}")
            page.get_by_text("Confirm and Hide").click()
            page.get_by_text("W:").first.wait_for()  # the pictures are there
            page.locator("button.actionButton").first.click()
            run = page.get_by_role("button", name="Run").first
            run.wait_for()
            before = coloured(page.screenshot())
            with page.expect_response(lambda response: "/infer/lesions" in response.url) as response:
                run.click()
            mask = array_of(response.value.body(), ".nrrd")
            page.wait_for_timeout(10_000)
            after = coloured(page.screenshot(path=tmp_path / "ohif.png"))
            browser.close()
    np.testing.assert_array_equal(mask, voxels(analysed(patients[0] / "dicom") / "lesions.nii.gz"))
    assert after > before + 500
