# SPDX-License-Identifier: Apache-2.0
"""The MONAI bundles, one folder each, without Python of their own."""
