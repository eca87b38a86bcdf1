# SPDX-License-Identifier: Apache-2.0
"""How far the model's masks are from what radiologists made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from covid_monai.ct import read_mask_pair
from covid_monai.label.names import FINAL, ORIGINAL
from covid_monai.severity.compare import dice

__all__ = ["DICE", "DiceScores", "score_label"]

DICE = "dice"


def score_label(image_id: str, datastore: Datastore, classes: Mapping[str, int]) -> dict[str, float] | None:
    """Dice between a model's mask and the label that a person made of it, stored with that label.

    Args:
        image_id: the image.
        datastore: has its labels ``original`` and ``final``.
        classes: code of each class of lesion by its name.

    Returns:
        0..1 by name: ``any lesion`` and each class; None when one of the labels is missing.
    """
    paths = [datastore.get_label_uri(image_id, tag) for tag in (ORIGINAL, FINAL)]
    if not all(paths):
        return None
    mask, reference, _ = read_mask_pair(*paths)
    scores = {"any lesion": round(dice(mask, reference), 4)}
    if len(classes) > 1:
        scores |= {name: round(dice(mask == code, reference == code), 4) for name, code in classes.items()}
    datastore.update_label_info(image_id, FINAL, {DICE: scores})
    return scores


class DiceScores(ScoringMethod):
    """Score all labels that have both sides.

    Args:
        classes: code of each class of lesion by its name.
    """

    def __init__(self, classes: Mapping[str, int]) -> None:
        super().__init__("Dice between the model's mask and the corrected label")
        self.classes = classes

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Scores by image."""
        scores = {image: score_label(image, datastore, self.classes) for image in datastore.get_labeled_images()}
        return {image: found for image, found in scores.items() if found is not None}
