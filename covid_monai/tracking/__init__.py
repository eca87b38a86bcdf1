# SPDX-License-Identifier: Apache-2.0
"""MLflow: runs that end as they should, and what trainers and evaluators record in them."""

from covid_monai.tracking.handlers import TrackEvaluation, TrackSamples, TrackTraining
from covid_monai.tracking.runs import TrackedRun, git_commit

__all__ = ["TrackEvaluation", "TrackSamples", "TrackTraining", "TrackedRun", "git_commit"]
