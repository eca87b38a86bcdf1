# SPDX-License-Identifier: Apache-2.0
"""``python -m covid_monai.cli``."""

import sys

from covid_monai.cli import main

sys.exit(main())
