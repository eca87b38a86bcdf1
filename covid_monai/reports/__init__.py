# SPDX-License-Identifier: Apache-2.0
"""Renderings of an analysis."""

from covid_monai.reports.overview import save_overview, slices_that_matter
from covid_monai.reports.results import FILES, ResultsError, write_results
from covid_monai.reports.summary import summarise

__all__ = ["FILES", "ResultsError", "save_overview", "slices_that_matter", "summarise", "write_results"]
