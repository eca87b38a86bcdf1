# SPDX-License-Identifier: Apache-2.0
"""Renderings of an analysis."""

from covid_monai.reports.cohort import CohortTable, figures_of, tells
from covid_monai.reports.html import save_html
from covid_monai.reports.overview import save_overview, slices_that_matter
from covid_monai.reports.pdf import save_pdf
from covid_monai.reports.results import FILES, ResultsError, write_results
from covid_monai.reports.summary import summarise

__all__ = [
    "FILES",
    "CohortTable",
    "ResultsError",
    "figures_of",
    "save_html",
    "save_overview",
    "save_pdf",
    "slices_that_matter",
    "summarise",
    "tells",
    "write_results",
]
