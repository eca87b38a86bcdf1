# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app: the lesion pipeline behind its interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from covid_monai import __version__
from covid_monai.analysis import NOTICE
from covid_monai.label.batch import BatchInference
from covid_monai.label.datastores import DicomwebDatastore, FolderDatastore
from covid_monai.label.faults import LabelError
from covid_monai.label.inference import LESIONS, MaskTask, mask_tasks
from covid_monai.label.models import ModelInUse
from covid_monai.label.names import ORIGINAL
from covid_monai.label.scoring import DICE, DiceScores, score_label
from covid_monai.label.strategies import UNCERTAINTY, Uncertainty
from covid_monai.label.training import FineTuning

__all__ = ["LesionApp"]


class LesionApp(MONAILabelApp):
    """Lesions and lungs of chest CT, corrected labels, and training on them.

    Args:
        app_dir: folder that MONAI Label loaded this app from.
        studies: folder of NIfTI files, or root of a DICOMweb service.
        conf: ``work``, ``bundle`` and ``device``, see :meth:`covid_monai.label.models.ModelInUse.from_settings`.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.model = ModelInUse.from_settings(conf)
        super().__init__(
            app_dir, studies, dict(conf), "covid_monai", f"Lesions of COVID-19 in chest CT. {NOTICE}", __version__
        )

    def init_datastore(self) -> Datastore:
        """The folder or the archive that the server was started on."""
        if self.studies.startswith(("http://", "https://")):
            return DicomwebDatastore(self.studies.rstrip("/"), self.model.classes, self.model.work / "archive")
        return FolderDatastore(self.studies, self.model.classes, settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD)

    def init_infers(self) -> dict[str, MaskTask]:
        """Lesions by class, lesions as one, lungs."""
        return mask_tasks(self.model)

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning on the corrected labels."""
        return {LESIONS: FineTuning(self.model)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Which scan is next."""
        return {UNCERTAINTY: Uncertainty(self.model), "first": First(), "random": Random()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Agreement of model and corrected label."""
        return {DICE: DiceScores(self.model.classes)}

    def init_batch_infer(self) -> BatchInference:
        """One task over many scans."""
        return BatchInference()

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a task on an image of the datastore; never on a path that a client names.

        Masks of the task :data:`~covid_monai.label.inference.LESIONS` are kept as the label ``original``, which a
        corrected label is scored against.

        Args:
            request: with ``model`` and ``image``.
            datastore: has the image; the app's own when None.

        Returns:
            Paths and figures as MONAI Label's server expects them.

        Raises:
            LabelError: there is no such task or image.
            ValueError, OSError: the scan cannot be read, or the mask not written.
        """
        datastore = datastore or self.datastore()
        model, image = str(request.get("model")), str(request.get("image", ""))
        if model not in self._infers:
            raise LabelError(f"there is no model {model[:40]!r}: give one of {', '.join(self._infers)}.")
        path = datastore.scan_path(image)
        file, params = self._infers[model]({**request, "image": str(path)})
        if model == LESIONS:
            try:
                datastore.save_label(image, file, ORIGINAL, {"model": params["method"]["model"]})
                known = {
                    "value": params[UNCERTAINTY],
                    "weights_sha256": params["method"]["model"]["weights_sha256"],
                }
                datastore.update_image_info(image, {UNCERTAINTY: known})
            except BaseException:
                Path(file).unlink(missing_ok=True)
                raise
        return {"label": file, "tag": ORIGINAL, "file": file, "params": params}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Score a label that was saved.

        Returns:
            Its scores, which the server hands to the viewer.
        """
        scores = score_label(image_id, self.datastore(), self.model.classes)
        return {} if scores is None else {DICE: scores}

    def model_info(self, model: str) -> dict[str, Any] | None:
        """SHA-256 of the weights in use."""
        task = self._infers.get(model)
        return None if task is None else {"checksum": f"SHA256:{task.model.segmenter.facts.weights_sha256}"}
