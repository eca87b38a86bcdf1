# SPDX-License-Identifier: Apache-2.0
"""Time, memory and size of the reports of a scan as a scanner makes it."""

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from covid_monai.analysis import Analysis
from covid_monai.reports import save_overview
from covid_monai.reports.html import save_html
from covid_monai.reports.pdf import save_pdf
from tests.reports.analyses import make_analysis

pytestmark = pytest.mark.slow

SHAPE = (300, 512, 512)


@pytest.fixture(scope="module")
def large() -> Analysis:
    """The lungs of twenty boxes at ten times their size, in noise."""
    small = make_analysis()
    rows, columns = (np.arange(512) * size // 512 for size in small.hu.shape[1:])
    slices = np.arange(SHAPE[0]) * len(small.hu) // SHAPE[0]

    def enlarged(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[slices][:, rows][:, :, columns])

    hu = enlarged(small.hu)
    random = np.random.default_rng(0)
    for z in range(len(hu)):
        hu[z] += random.normal(0, 30, hu[z].shape)
    arrays = {name: enlarged(getattr(small, name)) for name in ("lesions", "regions")}
    shares = tuple(small.slice_shares[z] for z in slices)
    return replace(small, hu=hu, spacing=(1.0, 0.7, 0.7), slice_shares=shares, **arrays)


def test_reports_take_seconds_and_a_few_megabytes(large: Analysis, tmp_path: Path):
    start = time.perf_counter()
    save_html(large, tmp_path / "report.html")
    save_pdf(large, tmp_path / "report.pdf")
    assert time.perf_counter() - start < 8
    assert (tmp_path / "report.html").stat().st_size < 8e6
    assert (tmp_path / "report.pdf").stat().st_size < 2e6


@pytest.mark.parametrize("save", [save_html, save_pdf, save_overview])
def test_no_copy_of_the_scan_is_made(save, large: Analysis, tmp_path: Path):
    """A copy of the HU would take 315 MB, one of a mask 79 MB."""
    tracemalloc.start()
    save(large, tmp_path / "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
