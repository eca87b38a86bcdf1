# SPDX-License-Identifier: Apache-2.0
"""Where MONAI Label looks for the app, in its server and in each of its child processes."""

from covid_monai.label.compatibility import prepare_monailabel

prepare_monailabel()

from covid_monai.label.app import LesionApp  # noqa: E402 - MONAI Label must be prepared first

__all__ = ["LesionApp"]
