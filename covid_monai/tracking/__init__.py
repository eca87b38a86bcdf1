# SPDX-License-Identifier: Apache-2.0
"""MLflow: runs that end as they should, what they came from, and what trainers and evaluators record in them."""

from covid_monai.tracking.handlers import TrackCases, TrackEvaluation, TrackInpainting, TrackSamples, TrackTraining
from covid_monai.tracking.identifiers import hashed_id
from covid_monai.tracking.lineage import lineage
from covid_monai.tracking.runs import TrackedRun, git_commit

__all__ = [
    "TrackCases",
    "TrackEvaluation",
    "TrackInpainting",
    "TrackSamples",
    "TrackTraining",
    "TrackedRun",
    "git_commit",
    "hashed_id",
    "lineage",
]
