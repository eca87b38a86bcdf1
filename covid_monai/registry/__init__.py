# SPDX-License-Identifier: Apache-2.0
"""The models that are run: versions in MLflow's registry, and the gate in front of the champion."""

from covid_monai.registry.evaluation import Figures, Split, evaluate
from covid_monai.registry.export import export
from covid_monai.registry.faults import GateError, RegistryError
from covid_monai.registry.gate import Paired, Verdict, judge
from covid_monai.registry.promotion import Comparison, compare, promote, rollback
from covid_monai.registry.served import SeverityModel, scan_row
from covid_monai.registry.versions import Registry, Version, default_tracking_uri, pulled

__all__ = [
    "Comparison",
    "Figures",
    "GateError",
    "Paired",
    "Registry",
    "RegistryError",
    "SeverityModel",
    "Split",
    "Verdict",
    "Version",
    "compare",
    "default_tracking_uri",
    "evaluate",
    "export",
    "judge",
    "promote",
    "pulled",
    "rollback",
    "scan_row",
]
