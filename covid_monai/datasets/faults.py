# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a data set or a datalist; every message is one line: what, where, what to do."""


class DatasetError(ValueError):
    """The files of a data set, or what was asked of it, are not as they must be."""


class LayoutError(DatasetError):
    """The source folder is not laid out as the authors of the data set publish it."""


class SplitError(DatasetError):
    """A patient or a file stands on two sides of a split."""
