# SPDX-License-Identifier: Apache-2.0
"""An MLflow model of a bundle in two flavours: the exported network, and what takes scans and gives severity figures.

Nothing in it is pickled: the network is a ``torch.export`` archive, the other flavour is code ("models from code") that
names a class of this package and finds its bundle among the model's artifacts::

    MLmodel                      both flavours, the signature
    data/model.pt2               flavour pytorch: windowed slices (N, 1, H, W) to logits, H and W as in the bundle
    served_model.py              flavour python_function: scans to figures, see covid_monai.registry.served
    artifacts/bundle/            the whole bundle, by which the second flavour runs
"""

from __future__ import annotations

from pathlib import Path

import mlflow.pyfunc
import mlflow.pytorch
import torch
from mlflow.models import Model

from covid_monai import __version__
from covid_monai.inference import LesionSegmenter
from covid_monai.networks import weights_sha256
from covid_monai.registry.served import INPUT_EXAMPLE, SIGNATURE

__all__ = ["BUNDLE", "NETWORK", "write_model"]

BUNDLE = "artifacts/bundle"
NETWORK = "data/model.pt2"


def write_model(segmenter: LesionSegmenter, bundle: Path, folder: Path, model: Model | None = None) -> str:
    """Write the MLflow model of a bundle.

    Args:
        segmenter: the bundle's network, on the CPU.
        bundle: folder of the whole bundle; its name must be ``bundle``.
        folder: folder to make.
        model: what MLflow knows of the model already.

    Returns:
        SHA-256 of the exported network.
    """
    model = Model() if model is None else model
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"bundle": str(bundle)},
        mlflow_model=model,
        signature=SIGNATURE,
        input_example=INPUT_EXAMPLE,
        pip_requirements=[f"covid_monai=={__version__}"],
    )
    network = folder / NETWORK
    network.parent.mkdir()
    torch.export.save(exported(segmenter), network)
    model.add_flavor(mlflow.pytorch.FLAVOR_NAME, model_data="data", pytorch_version=str(torch.__version__), code=None)
    model.save(str(folder / "MLmodel"))
    return weights_sha256(network)


def exported(segmenter: LesionSegmenter) -> torch.export.ExportedProgram:
    """The network for any number of slices of the size at which the bundle runs it."""
    network = segmenter.network.to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 1, *segmenter.inferer.size)  # of one slice, the number would be taken for fixed
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
