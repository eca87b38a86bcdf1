# SPDX-License-Identifier: Apache-2.0
"""A registration of scans that lie alike, which needs no elastix."""

import numpy as np

from covid_monai.severity.registration import Registration
from covid_monai.severity.registration_grid import Fit, LungScan

WARNING = "A warning of the registration."


def in_place(earlier: LungScan, later: LungScan) -> Registration:
    """A registration of scans that lie alike."""
    nodes = tuple(np.arange(0, size * step + 3, 3.0) for size, step in zip(later.hu.shape, later.spacing, strict=True))
    still = np.zeros((3, *(len(points) for points in nodes)), dtype=np.float32)
    shapes = {"shape": later.hu.shape, "earlier_shape": earlier.hu.shape}
    return Registration(
        still, nodes, later.spacing, earlier_spacing=earlier.spacing, **shapes, dice_before=0.9,
        fit=Fit(1.0, 1.0, 0.9), folded=0.0, warnings=(WARNING,),
    )  # fmt: skip
