# SPDX-License-Identifier: Apache-2.0
"""The command ``covid-monai``: a thin face; each command imports what it needs when it runs."""

from covid_monai.cli.main import main
from covid_monai.cli.shell import INTERRUPTED, OK, SOME_FAILED, UNUSABLE

__all__ = ["INTERRUPTED", "OK", "SOME_FAILED", "UNUSABLE", "main"]
