# SPDX-License-Identifier: Apache-2.0
"""One task over many scans, none of which keeps the others from their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

__all__ = ["BatchInference"]


class BatchInference(BatchInferTask):
    """Run a task on all, labelled or unlabelled scans, one after the other; the app keeps masks of lesions."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """For each image the figures of its inference, or the ``error`` that it ended with.

        Args:
            request: with the ``model``, which ``images``, and the most of them as ``max_batch_size``.
            datastore: has the images and takes the masks.
            infer: the app's inference.
        """
        images = sorted(self.get_images(request, datastore))
        most = int(request.get("max_batch_size") or 0) or len(images)
        results: dict[str, Any] = {}
        for image in images[:most]:
            try:
                found = infer({"model": request.get("model"), "image": image}, datastore)
                Path(found["file"]).unlink(missing_ok=True)
                results[image] = {"params": found["params"]}
            except (ValueError, OSError) as error:
                results[image] = {"error": str(error)}
        return results
