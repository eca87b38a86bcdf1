# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a scan. Every message is one line: what was found, where, what to do."""


class CTReadError(ValueError):
    """Base of all faults for which :py:func:`covid_monai.ct.read_ct` refuses a scan."""


class NoScanFound(CTReadError):
    """The path does not exist, is empty or holds nothing that is read here."""


class UnreadableFile(CTReadError):
    """A file is truncated, encrypted, damaged or coded in a way that cannot be decoded."""


class SeriesChoiceError(CTReadError):
    """Several series where one is wanted, or a chosen series that is not there."""


class NotCT(CTReadError):
    """Not CT slices: another modality, a localiser, a colour image or a map of something else than HU."""


class MissingRescale(CTReadError):
    """Stored values without rescale slope and intercept, hence no HU."""


class MissingGeometry(CTReadError):
    """Position, orientation or spacing is not given or not usable."""


class MissingSlices(CTReadError):
    """A gap of one or more whole slices."""


class DuplicateSlices(CTReadError):
    """Two or more slices at one position."""


class IrregularSpacing(CTReadError):
    """Distances between neighbouring slices that differ."""


class TiltedGantry(CTReadError):
    """Slices stacked along another direction than their normal: a sheared grid."""


class InconsistentSlices(CTReadError):
    """Slices of one scan that differ in size, pixel spacing or orientation."""


class TooFewSlices(CTReadError):
    """Fewer slices than make a volume."""


class ImplausibleValues(CTReadError):
    """NaN, infinity, or values that are neither HU nor grey levels."""


class UnsupportedImage(CTReadError):
    """A file of another kind or with other dimensions than a scan: 4-D, colour, unknown format."""
