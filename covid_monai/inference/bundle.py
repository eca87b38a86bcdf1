# SPDX-License-Identifier: Apache-2.0
"""What inference reads from a MONAI bundle: plain values, and a network of this package that they describe."""

from __future__ import annotations

import importlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

__all__ = ["BundleError", "default_bundle", "network_from", "read_plain"]

NETWORKS = "covid_monai.networks"


class BundleError(ValueError):
    """A bundle lacks what inference needs."""


def default_bundle() -> Path:
    """Folder of the bundle that is used when none is given: the cascade, which is shipped with its weights."""
    return Path(str(files("covid_monai.bundles") / "lung_ct_ggo_consolidation_segmentation"))


def read_plain(path: Path) -> dict[str, Any]:
    """Content of a YAML or JSON file of a bundle; no expression in it is run.

    Raises:
        BundleError: when it cannot be read, or is no configuration.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path} cannot be read: give a bundle's folder with --bundle.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is not a configuration: give a bundle's folder with --bundle.")
    return content


def network_from(definition: Any) -> torch.nn.Module:
    """The network that plain values describe: its class under ``_target_``, and its arguments, networks or not.

    Raises:
        ValueError: for what is no network of :mod:`covid_monai.networks`, and for an expression among its arguments.
        KeyError: where ``_target_`` is missing.
    """
    if not isinstance(definition, dict):
        raise ValueError(f"network_def holds {definition!r} where a network with its _target_ is expected.")
    network = _network_class(str(definition["_target_"]))
    return network(**{name: _argument(value) for name, value in definition.items() if name != "_target_"})


def _argument(value: Any) -> Any:
    if isinstance(value, dict):
        return network_from(value)
    if isinstance(value, list):
        return [_argument(each) for each in value]
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise ValueError(f"network_def holds the expression {value!r}: it is not run, write the value.")
    return value


def _network_class(target: str) -> type[torch.nn.Module]:
    """The network that a configuration names; nothing else of this package, and nothing of another."""
    module, _, name = target.rpartition(".")
    networks = importlib.import_module(NETWORKS)
    found = getattr(networks, name, None) if module == NETWORKS and name in networks.__all__ else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ValueError(f"{target} is no network of {NETWORKS}.")
    return found
