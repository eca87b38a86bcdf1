# SPDX-License-Identifier: Apache-2.0
"""Arrays and spacing in, numbers out: lungs and scores of masks."""

from covid_monai.severity.lungs import lung_mask, lung_sides, touching_lung
from covid_monai.severity.scores import dice

__all__ = ["dice", "lung_mask", "lung_sides", "touching_lung"]
