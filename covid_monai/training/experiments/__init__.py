# SPDX-License-Identifier: Apache-2.0
"""Studies: the same budget for every arm, label fraction and seed, run as bundle stages and tabulated from MLflow."""

from covid_monai.training.experiments.runner import Runner, default_tracking_uri
from covid_monai.training.experiments.study import Arm, Cell, Network, Stage, Study, StudyError
from covid_monai.training.experiments.study_file import load_study
from covid_monai.training.experiments.table import write_table

__all__ = [
    "Arm",
    "Cell",
    "Network",
    "Runner",
    "Stage",
    "Study",
    "StudyError",
    "default_tracking_uri",
    "load_study",
    "write_table",
]
