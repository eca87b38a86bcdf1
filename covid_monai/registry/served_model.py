# SPDX-License-Identifier: Apache-2.0
"""The code that MLflow keeps with a registered model, and runs to load it."""

from mlflow.models import set_model

from covid_monai.registry.served import SeverityModel

set_model(SeverityModel())
