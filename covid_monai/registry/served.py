# SPDX-License-Identifier: Apache-2.0
"""The model as MLflow serves it: a table of scans in, a table of severity figures out.

A row is a scan, given by one of two columns. Both are typed, and both pass through HTTP:

- ``path``, a text: what :func:`covid_monai.ct.read_ct` reads, on the machine where the model runs.
- ``array``, binary: a NumPy file (``.npy``) of upright slices (Z, H, W) in HU, with its spacing in mm in the columns
  ``dz``, ``dy`` and ``dx``. A tensor signature could hold no path and no spacing; as nested numbers in JSON a scan is
  several times as large, and MLflow would check each voxel in Python.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from covid_monai.analysis import NOTICE, Analysis, analyse
from covid_monai.ct import CTScan, SourceFacts, read_ct
from covid_monai.inference import LesionSegmenter

__all__ = ["COLUMNS", "INPUT_EXAMPLE", "SIGNATURE", "SeverityModel", "scan_of_array", "scan_row"]

TEXT, NUMBER, WHOLE = DataType.string, DataType.double, DataType.long
SPACING = ("dz", "dy", "dx")

COLUMNS: Mapping[str, tuple[Any, str]] = {
    "scan_id": (TEXT, "id of the scan by its content; none for a scan that failed"),
    "error": (TEXT, "fault of a scan that could not be analysed, which has no figures; else none"),
    "finding": (TEXT, "opacities consistent with viral pneumonia: found, not found or indeterminate"),
    "ct_ss": (WHOLE, "CT severity score, 0 to 40; none when a region is not assessable"),
    "ct_ss_lowest": (WHOLE, "lowest possible, regions that are not assessable counted as 0"),
    "ct_ss_highest": (WHOLE, "highest possible"),
    "lung_ml": (NUMBER, "volume of the lungs in mL; none where lengths are unknown"),
    "lesion_ml": (NUMBER, "volume of the lesions in mL"),
    "lesion_percent": (NUMBER, "share of the lungs that is lesion, in percent; none without lung"),
    "ground_glass_ml": (NUMBER, "volume of ground glass in mL; none where the model does not tell it apart"),
    "consolidation_ml": (NUMBER, "volume of consolidation in mL"),
    "warnings": (Array(TEXT), "what a reader of the figures must know"),
    "model": (TEXT, "name and version of the bundle"),
    "weights_sha256": (TEXT, "SHA-256 of its weights"),
    "notice": (TEXT, "research use only"),
}
"""Type and meaning of every column of the answer."""

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(TEXT, "path", required=False),
            ColSpec(DataType.binary, "array", required=False),
            *(ColSpec(NUMBER, name, required=False) for name in SPACING),
        ]
    ),
    outputs=Schema([ColSpec(kind, name, required=False) for name, (kind, _) in COLUMNS.items()]),
)
INPUT_EXAMPLE = pd.DataFrame({"path": ["scans/scan.nii.gz"]})


class SeverityModel(PythonModel):
    """The flavour ``python_function`` of a registered model."""

    segmenter: LesionSegmenter

    def load_context(self, context: Any) -> None:
        """Load the bundle among the model's artifacts; its weights are checked against their record."""
        self.segmenter = LesionSegmenter.from_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Analyse each row, see the head of this module; a scan that fails has its fault in ``error``."""
        if not len(model_input.columns):  # MLflow drops those that it does not know
            raise ValueError("the table has no column that is known: give path, or array with dz, dy and dx.")
        rows = [self._row(row) for row in model_input.to_dict("records")]
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        facts = self.segmenter.facts
        model = {"model": f"{facts.name} {facts.version}", "weights_sha256": facts.weights_sha256, "notice": NOTICE}
        try:
            return {**_figures(analyse(_scan(row), self.segmenter)), **model}
        except (ValueError, OSError) as error:
            fault = str(error)
        except Exception as error:  # the other scans must not suffer
            fault = f"{type(error).__name__}: {error}"
        return {**dict.fromkeys(COLUMNS), "error": fault, "warnings": [], **model}


def scan_row(hu: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """A row of the model's input with a scan in memory.

    Args:
        hu: (Z, H, W) in HU, slices from inferior to superior, anterior up, the patient's right on the left.
        spacing: (dz, dy, dx) in mm.

    Example::

        model = mlflow.pyfunc.load_model("models:/lung_ct_ggo_consolidation_segmentation@champion")
        figures = model.predict(pd.DataFrame([scan_row(hu, (5.0, 0.7, 0.7))]))
    """
    file = io.BytesIO()
    np.save(file, hu, allow_pickle=False)
    return {"array": file.getvalue(), **dict(zip(SPACING, map(float, spacing), strict=True))}


def scan_of_array(content: bytes, spacing: Sequence[float]) -> CTScan:
    """The scan of a row that :func:`scan_row` made.

    Raises:
        ValueError: when the content is no NumPy file of numbers (Z, H, W), or the spacing is not three lengths.
    """
    try:
        hu = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError("array is no NumPy file (.npy): write the slices with numpy.save.") from error
    if hu.ndim != 3 or hu.dtype.kind not in "iuf" or not hu.size or not np.isfinite(hu).all():
        raise ValueError(f"array is {hu.dtype} of shape {hu.shape}: give finite HU (Z, H, W).")
    lengths = np.asarray(spacing, dtype=float)
    if lengths.shape != (3,) or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"the spacing is {list(spacing)}: give dz, dy and dx in mm, each above 0.")
    dz, dy, dx = lengths
    affine = np.diag([-dx, -dy, dz, 1.0])  # columns to the patient's left, rows to posterior, slices to superior
    return CTScan(hu.transpose(2, 1, 0), affine, SourceFacts("array", 1))


def _scan(row: Mapping[str, Any]) -> CTScan:
    path, content = (_given(row.get(name)) for name in ("path", "array"))
    if (path is None) == (content is None):
        raise ValueError("a row is one scan: give either path, or array with dz, dy and dx.")
    if content is None:
        return read_ct(path)
    return scan_of_array(content, [row.get(name) or 0.0 for name in SPACING])


def _given(value: Any) -> Any:
    """None for what a table holds where nothing was given."""
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else value


def _figures(analysis: Analysis) -> dict[str, Any]:
    score, whole = analysis.severity.ct_ss, analysis.severity.whole
    return {
        "scan_id": analysis.scan_id,
        "error": None,
        "finding": analysis.finding.result,
        "ct_ss": score.score,
        "ct_ss_lowest": score.lowest,
        "ct_ss_highest": score.highest,
        "lung_ml": whole.lung_ml,
        "lesion_ml": whole.lesion_ml,
        "lesion_percent": None if whole.lesion_share is None else 100 * whole.lesion_share,
        "ground_glass_ml": whole.ground_glass_ml,
        "consolidation_ml": whole.consolidation_ml,
        "warnings": list(analysis.warnings),
    }
