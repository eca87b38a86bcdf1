# SPDX-License-Identifier: Apache-2.0
"""Which scan to correct next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from covid_monai.label.faults import LabelError
from covid_monai.label.models import ModelInUse

__all__ = ["UNCERTAINTY", "Uncertainty"]

UNCERTAINTY = "uncertainty"
"""Key, in what a datastore knows of an image, of the model's uncertainty and the SHA-256 of that model."""


class Uncertainty(Strategy):
    """The unlabelled scan whose lesion share moves most with the threshold and with mirrored slices.

    Of the scans that the model in use has analysed, in a viewer or by batch inference; the others do not count.

    Args:
        model: the model in use.
    """

    def __init__(self, model: ModelInUse) -> None:
        super().__init__("The scan on which the model is least certain, of those that it has analysed")
        self.model = model

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Id of the scan and the range of its lesion share (0..1); None when every scan has a label.

        Raises:
            LabelError: the model in use has analysed none of the scans without a label.
        """
        unlabelled = sorted(datastore.get_unlabeled_images())
        if not unlabelled:
            return None
        weights = self.model.segmenter.facts.weights_sha256
        known = {}
        for image in unlabelled:
            found = datastore.get_image_info(image).get(UNCERTAINTY, {})
            if found.get("weights_sha256") == weights:
                known[image] = float(found["value"])
        if not known:
            raise LabelError(
                "the model in use has analysed none of the scans without a label: run the batch inference of the model "
                "lesions first (POST /batch/infer/lesions?images=unlabeled)."
            )
        image = max(known, key=lambda name: known[name])
        return {"id": image, "lesion_share_range": known[image]}
