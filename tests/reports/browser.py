# SPDX-License-Identifier: Apache-2.0
"""A real browser for the tests of what it must show: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@dataclass
class Visit:
    """A page that is open, and what the browser had to say about it.

    Attributes:
        page: Playwright's.
        complaints: errors and warnings of the console and of scripts.
        requests: addresses asked for, data within the file left out.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(file: Path, width: int = 1400, height: int = 900) -> Iterator[Visit]:
    """The file in a window of this size; skips the test, with that reason, where there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium (of Debian) is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": width, "height": height})
        visit = Visit(page)
        page.on("console", lambda message: visit.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("request", lambda request: _note(visit, request.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.getElementById('position').textContent !== ''")
        yield visit
        browser.close()


def _note(visit: Visit, address: str) -> None:
    if not address.startswith("data:"):
        visit.requests.append(address)
