# SPDX-License-Identifier: Apache-2.0
"""An analysis with known masks on a given DICOM series, for the tests of what is written in DICOM."""

import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from covid_monai.severity.anatomy import LOBES, REGIONS
from covid_monai.severity.scores import NoiseFloor, count, severity

TWO_CLASSES = ("ground glass", "consolidation")


@dataclass
class Case:
    """What the writers read of an analysis."""

    lesions: np.ndarray
    lungs: np.ndarray
    regions: np.ndarray
    spacing: tuple[float, float, float]
    classes: tuple[str, ...] = TWO_CLASSES
    assessable: tuple[int, ...] = tuple(range(1, 21))
    warnings: tuple[str, ...] = ("The scan is short.",)
    result: str | None = "found"
    made_by: str = "threshold"
    regions_from: str = "lungs"

    @property
    def severity(self):
        counts = count(self.lesions, self.regions)
        floor = NoiseFloor(0.0, 0.0)
        return severity(counts, float(np.prod(self.spacing)) / 1000, len(self.classes) > 1, floor, self.assessable)

    @property
    def finding(self):
        return SimpleNamespace(result=self.result, rule="lesion above 1 %")

    @property
    def record(self):
        model = {"name": "test bundle", "version": "1.2.3"}
        return {"method": {"model": model, "lungs": self.made_by, "regions_from": self.regions_from}}

    def to_dict(self):
        return {"severity": asdict(self.severity)}


def case_on(scan, **changes) -> Case:
    """Boxes on a scan's upright grid: lungs right and left, in each the regions one above the other, lesions within."""
    depth, height, width = scan.upright().shape
    regions = np.zeros((depth, height, width), dtype=np.uint8)
    for side, columns in (("right_lung", slice(1, width // 2)), ("left_lung", slice(width // 2, width - 1))):
        codes = [region.code for region in REGIONS if region.side == side]
        line = np.linspace(0, len(codes), depth * (height - 2), endpoint=False).astype(int)
        regions[:, 1:-1, columns] = np.asarray(codes, dtype=np.uint8)[line].reshape(depth, height - 2, 1)
    sides = {lobe.key: 1 if lobe.side == "right_lung" else 2 for lobe in LOBES}
    lungs = np.array([0, *(sides[region.lobe] for region in REGIONS)], dtype=np.uint8)[regions]
    lesions = np.zeros_like(lungs)
    lesions[1:-1, 2 : height // 2, 2 : width // 2 + 2] = 1
    lesions[1, 2:5, 3:5] = 2
    lesions[lungs == 0] = 0
    return Case(lesions, lungs, regions, scan.upright_spacing, **changes)


def faults(file: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings of dciodvfy about a file; skips the test where dciodvfy is not installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    answer = subprocess.run([program, "-new", str(file)], capture_output=True, text=True, check=False)
    lines = (answer.stderr + answer.stdout).splitlines()
    return [line for line in lines if "Error" in line], [line for line in lines if line.startswith("Warning")]
