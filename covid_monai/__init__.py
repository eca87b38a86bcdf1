# SPDX-License-Identifier: Apache-2.0
"""From a chest CT to a lesion map, a severity score and a report. Research use only, not a medical device."""

from importlib.metadata import version

__version__ = version("covid_monai")
