# SPDX-License-Identifier: Apache-2.0
"""Codes by which segmentations and reports in DICOM name what they hold; ``docs/guide/dicom.md`` lists their origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept, FindingSite
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from covid_monai import __version__
from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES

__all__ = ["CONSOLIDATION", "FINDINGS", "GROUND_GLASS", "LESION", "LUNG", "SCHEME", "Place"]

SCHEME = "99COVIDMONAI"
"""Designator of the private coding scheme: what DICOM, SNOMED CT and LOINC have no code for."""
UTF_8 = "ISO_IR 192"
"""Character set of what is written; highdicom states none, which would lose names in other alphabets."""
EQUIPMENT: Mapping[str, Any] = {
    "manufacturer": "covid_monai",
    "manufacturer_model_name": "covid_monai",
    "software_versions": __version__,
    "device_serial_number": "none",
}


def scheme_identification() -> CodingSchemeIdentificationItem:
    """What the private scheme is, for the objects that use it."""
    return CodingSchemeIdentificationItem(
        SCHEME, name="covid_monai codes", version=__version__, responsible_organization="covid_monai contributors"
    )


def _private(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


LUNG = codes.SCT.Lung
LESION = codes.SCT.Lesion
GROUND_GLASS = codes.DCM.GroundGlassOpacity
CONSOLIDATION = Code("9656002", "SCT", "Consolidation")  # a morphologic abnormality; in none of DICOM's context groups
FINDINGS: Mapping[str, Code] = {"lesion": LESION, "ground glass": GROUND_GLASS, "consolidation": CONSOLIDATION}
"""Code of each class of lesion, by its name."""
_LATERALITY = {"whole": codes.SCT.Bilateral, SIDES[0].key: codes.SCT.Right, SIDES[1].key: codes.SCT.Left}
_LOBES = {
    "right_upper_lobe": codes.SCT.UpperLobeOfLung,
    "right_middle_lobe": codes.SCT.MiddleLobeOfRightLung,
    "right_lower_lobe": codes.SCT.LowerLobeOfLung,
    "left_upper_lobe": codes.SCT.UpperLobeOfLung,
    "left_lower_lobe": codes.SCT.LowerLobeOfLung,
}

MILLILITRE = CodedConcept("ml", "UCUM", "milliliter")
PERCENT = codes.UCUM.Percent
NO_UNITS = codes.UCUM.NoUnits
VOLUME = codes.SCT.Volume
CT_OF_CHEST = Code("24627-2", "LN", "CT Chest")
SEVERITY = Code("246112005", "SCT", "Severity")
GRADES: Mapping[str | None, Code] = {
    "severe": codes.SCT.Severe,
    "mild": codes.SCT.Mild,
    None: codes.SCT.Undetermined,
}
RESULTS: Mapping[str, Code] = {
    "found": codes.SCT.Present,
    "not found": codes.SCT.Absent,
    "indeterminate": codes.SCT.Undetermined,
}
NOT_ASSESSABLE = codes.DCM.ValueIndeterminate
SHARE = _private("share", "Percentage of the lung volume of this place that is involved")
REGION_SCORE = _private("ct-ss-region", "CT severity score of a region (Yang 2020, 0-2)")
LOBE_SCORE = _private("lobar-lobe", "Score of a lobe (Pan 2020, 0-5)")
CT_SS = _private("ct-ss", "CT severity score (Yang 2020, 0-40)")
CT_SS_RANGE = (
    _private("ct-ss-lowest", "Lowest possible CT severity score"),
    _private("ct-ss-highest", "Highest possible CT severity score"),
)
LOBAR = _private("lobar", "Lobar score (Pan 2020, 0-25)")
LOBAR_RANGE = (
    _private("lobar-lowest", "Lowest possible lobar score"),
    _private("lobar-highest", "Highest possible lobar score"),
)
VIRAL_PNEUMONIA = _private("viral-pneumonia", "Opacities consistent with viral pneumonia")


class Place:
    """Where something lies: both lungs, a lung, a lobe or a region, in codes.

    Args:
        key: ``"whole"``, or a key of :mod:`covid_monai.severity.anatomy`.

    Attributes:
        kind: code of what the place is: lung, a lobe, or one of the 20 regions (private: they are no segments).
        anatomy: code of the anatomic structure that it is or lies in: lung or a lobe.
        laterality: right, left or bilateral; None where ``anatomy`` says it.
    """

    def __init__(self, key: str) -> None:
        region = next((region for region in REGIONS if region.key == key), None)
        lobe = next((lobe for lobe in LOBES if lobe.key == (region.lobe if region else key)), None)
        self.anatomy: Code = _LOBES[lobe.key] if lobe else LUNG
        self.laterality: Code | None = (
            codes.SCT.Bilateral if key == "whole" else _LATERALITY[lobe.side if lobe else key]
        )
        if self.anatomy == codes.SCT.MiddleLobeOfRightLung:
            self.laterality = None
        self.kind = self.anatomy
        if region:
            self.kind = _private(f"region-{region.code:02}", f"{region.name} (approximate)")

    @property
    def site(self) -> FindingSite:
        """Finding site of a report."""
        return FindingSite(self.anatomy, laterality=self.laterality)

    def modify(self, code: Dataset, sequence: str) -> None:
        """Put the laterality into a coded item of a segmentation, as the named modifier sequence."""
        if self.laterality is not None:
            setattr(code, sequence, [CodedConcept.from_code(self.laterality)])


def algorithm_of_lesions(method: Mapping[str, Any]) -> tuple[str, str]:
    """Name and version of what made the lesion mask, from the record's ``method``."""
    model = method["model"]
    return f"covid_monai {model['name']}", str(model["version"])
