# SPDX-License-Identifier: Apache-2.0
"""The pipeline inside MONAI Label, which only the modules of this folder import: see ``covid-monai label``."""
