# SPDX-License-Identifier: Apache-2.0
"""Transforms in MONAI's manner: an array transform and its dictionary twin ``…d``.

Channel-first torch tensors, MetaTensors and numpy arrays are accepted and their type is kept; float32 comes out and
the input is never changed. Only the crop gives what MONAI's crops give: a (Meta)Tensor of the input's number type.
"""

from .cell_mask import RandCellMask, RandCellMaskD, RandCellMaskd, RandCellMaskDict
from .cutout import RandCutout, RandCutoutD, RandCutoutd, RandCutoutDict
from .edges import EdgeMap, EdgeMapD, EdgeMapd, EdgeMapDict
from .harmonisation import estimate_hu_line
from .intensity import (
    GreyToHU,
    GreyToHUD,
    GreyToHUd,
    GreyToHUDict,
    LungWindow,
    LungWindowD,
    LungWindowd,
    LungWindowDict,
)
from .lesion_codes import LesionCodes, LesionCodesD, LesionCodesd, LesionCodesDict, lesion_odds
from .lung_cells import Within, cells_within
from .masking import (
    BOX_SLICES,
    CropBody,
    CropBodyD,
    CropBodyd,
    CropBodyDict,
    MaskLung,
    MaskLungD,
    MaskLungd,
    MaskLungDict,
    body_box,
)

__all__ = [
    "BOX_SLICES",
    "CropBody",
    "CropBodyD",
    "CropBodyDict",
    "CropBodyd",
    "EdgeMap",
    "EdgeMapD",
    "EdgeMapDict",
    "EdgeMapd",
    "GreyToHU",
    "GreyToHUD",
    "GreyToHUDict",
    "GreyToHUd",
    "LesionCodes",
    "LesionCodesD",
    "LesionCodesDict",
    "LesionCodesd",
    "LungWindow",
    "LungWindowD",
    "LungWindowDict",
    "LungWindowd",
    "MaskLung",
    "MaskLungD",
    "MaskLungDict",
    "MaskLungd",
    "RandCellMask",
    "RandCellMaskD",
    "RandCellMaskDict",
    "RandCellMaskd",
    "RandCutout",
    "RandCutoutD",
    "RandCutoutDict",
    "RandCutoutd",
    "Within",
    "body_box",
    "cells_within",
    "estimate_hu_line",
    "lesion_odds",
]
