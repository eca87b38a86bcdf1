# SPDX-License-Identifier: Apache-2.0
"""Masks for the viewers: those that ``covid-monai analyse`` writes, and its figures beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import write_itk

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.ct import read_ct
from covid_monai.label.faults import LabelError
from covid_monai.label.models import ModelInUse
from covid_monai.severity import SIDES

__all__ = ["LESIONS", "MaskTask", "mask_tasks", "uncertainty"]

LESIONS = "lesions"
"""The task whose mask is corrected, trained on and scored."""
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


class MaskTask(InferTask):
    """One of the masks of an analysis.

    Args:
        model: analyses the scan.
        labels: code of each label by its name.
        mask: takes the mask (Z, H, W) out of an analysis.
        description: shown in the viewers.
    """

    def __init__(
        self, model: ModelInUse, labels: Mapping[str, int], mask: Callable[[Analysis], np.ndarray], description: str
    ) -> None:
        super().__init__(InferType.SEGMENTATION, dict(labels), dimension=3, description=f"{description}. {NOTICE}")
        self.model = model
        self.mask = mask

    def is_valid(self) -> bool:
        """Whether the task can be offered; its model was loaded when it was made."""
        return True

    def get_path(self, validate: bool = True) -> str:
        """Weights in use, which viewers may ask the checksum of."""
        return str(self.model.weights)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Analyse a scan.

        Args:
            request: with the path of the scan under ``image`` and, if wanted, a ``result_extension``.

        Returns:
            Path of a temporary file with the mask on the scan's own grid, and what is known of it.

        Raises:
            LabelError: an extension that is not written.
            CTReadError: the scan cannot be read.
        """
        extension = request.get("result_extension") or ".nii.gz"
        if extension not in EXTENSIONS:
            raise LabelError(f"a mask is not written as {extension!r}: give one of {', '.join(EXTENSIONS)}.")
        scan = read_ct(request["image"])
        analysis = self.model.analyse(scan)
        codes = np.ascontiguousarray(scan.from_upright(self.mask(analysis)))
        with tempfile.NamedTemporaryFile(prefix="covid-monai-", suffix=extension, delete=False) as file:
            path = file.name
        try:
            write_itk(codes, path, scan.affine, np.uint8, bool(request.get("result_compress", True)))
        except RuntimeError as error:  # ITK's word for a full disk
            Path(path).unlink(missing_ok=True)
            raise OSError(f"the mask cannot be written to {Path(path).parent}: is the disk full?") from error
        return path, self._params(analysis)

    def _params(self, analysis: Analysis) -> dict[str, Any]:
        """The figures of an analysis, as ``analysis.json`` has them, without those of single slices."""
        content = analysis.to_dict()
        kept = ("schema", "notice", "scan_id", "severity", "spread", "finding", "warnings", "method", "seconds")
        return {"label_names": self.labels, **{key: content[key] for key in kept}, "uncertainty": uncertainty(analysis)}


def mask_tasks(model: ModelInUse) -> dict[str, MaskTask]:
    """The tasks by the names under which viewers show them; the first one's codes are those of saved labels."""
    return {
        LESIONS: MaskTask(model, model.classes, lambda found: found.lesions, "Lesions by their class"),
        "lesion": MaskTask(
            model, {"lesion": 1}, lambda found: (found.lesions > 0).astype(np.uint8), "Lesions as one label"
        ),
        "lungs": MaskTask(
            model, {side.name: side.code for side in SIDES}, lambda found: found.lungs, "Right and left lung"
        ),
    }


def uncertainty(analysis: Analysis) -> float:
    """How far threshold and mirrored slices move the lesion share of the lungs, 0..1; 1 where no lung is found."""
    share = None if analysis.spread is None else analysis.spread.lesion_share
    return 1.0 if share is None else share[1] - share[0]
