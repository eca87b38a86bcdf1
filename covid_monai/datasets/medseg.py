# SPDX-License-Identifier: Apache-2.0
"""MedSeg/SIRM: 100 axial slices of more than 40 COVID-19 patients (Figshare, doi 10.6084/m9.figshare.13521488.v2).

Nobody published patient numbers, so every item has ``patient: None``; the split is that of Inf-Net (Fan et al., IEEE
TMI 2020), by slice: a patient may stand on both of its sides, and that cannot be checked here. Slices 022 and 048 are
not in Inf-Net and are left out. Items are known by Inf-Net's number, so that this set, in either form, and Inf-Net's
own layout (`covid_monai.datasets.covid_semiseg`) never stand against each other in a split.
"""

from pathlib import Path

from nibabel import aff2axcodes

from covid_monai.datasets.datalist import Item, Sides, split_by_patient
from covid_monai.datasets.faults import DatasetError, LayoutError
from covid_monai.datasets.slices import pictures_by_stem
from covid_monai.datasets.volumes import check_axes, find_nifti, load_nifti, read_upright, read_upright_mask, save_item

TITLE = "MedSeg/SIRM: 100 axial COVID-19 CT slices, split of Inf-Net (50 training, 48 testing)"
LICENCE = "CC0 1.0 (MedSeg's masks; the slices are SIRM's)"
LAYOUT = (
    "tr_im.nii.gz and tr_mask.nii.gz as MedSeg publishes them, or images/NNN.png, masks/NNN.png and "
    "splits/infnet_train.txt, splits/infnet_test.txt"
)
SLICES = 100
NOT_IN_INFNET = (22, 48)
INFNET_TEST = (6, 7, 8, 9, 18, 21, 36, 38, *range(59, 67), 68, 69, *range(70, 100))


def slice_id(number: int) -> str:
    """Name of a slice by Inf-Net's number (0-based slice of MedSeg's NIfTI)."""
    return f"medseg_sirm100/{number:03d}"


def read(source: Path, unpack: Path, seed: int, *, validation: float = 0.0, axes: str | None = None) -> Sides:
    """Read MedSeg's NIfTI pair, or the slice-image form.

    The pair holds approximate HU. Its 100 slices are unrelated, so of the stored orientation only the two in-plane axes
    count; a file without one is taken as LPS, which is how its arrays turn out upright.

    Args:
        source: see `LAYOUT`.
        unpack: where slices of the NIfTI pair go; the slice images are upright already and used in place.
        seed: of the validation draw.
        validation: share (0..1) of the 50 training slices to validate on; slices of one patient may then part.
        axes: of the NIfTI pair, instead of its stored orientation, such as "LPS".

    Raises:
        DatasetError: if an option, a file or the split is not as it must be.
    """
    check_axes(axes)
    if axes is not None and axes[2] not in "SI":
        raise DatasetError(f"axes is {axes!r}: the third is that of the slices, S or I, such as LPS")
    if (source / "images").is_dir():
        training, testing = (_slice_form(source, split) for split in ("infnet_train.txt", "infnet_test.txt"))
    else:
        items = _nifti_form(source, unpack, axes)
        testing = [items[number] for number in INFNET_TEST]
        training = [items[n] for n in range(SLICES) if n not in INFNET_TEST and n not in NOT_IN_INFNET]
    return {**split_by_patient(training, {"validation": validation}, seed), "testing": testing}


def _slice_form(source: Path, split: str) -> list[Item]:
    """Items of one split file of the slice-image form: upright 8-bit slices of unknown window."""
    images, masks = pictures_by_stem(source / "images"), pictures_by_stem(source / "masks")
    path = source / "splits" / split
    if not path.is_file():
        raise LayoutError(f"{path} is missing: expected {LAYOUT}")
    stems = path.read_text(encoding="utf-8").split()
    for stem in stems:
        if stem not in images or stem not in masks:
            raise LayoutError(f"{source} lacks the image or the mask of slice {stem}, which splits/{split} names")
    return [
        {"image": str(images[stem]), "label": str(masks[stem]), "patient": None, "id": slice_id(int(stem))}
        for stem in stems
    ]


def _nifti_form(source: Path, unpack: Path, axes: str | None) -> list[Item]:
    """Items of all slices of the NIfTI pair, in stored order."""
    path = find_nifti(source, "tr_im", LAYOUT)
    mask_path = find_nifti(source, "tr_mask", LAYOUT)
    image = load_nifti(path)
    if image.shape[2] != SLICES:
        raise DatasetError(f"{path} holds {image.shape[2]} slices: MedSeg's set has {SLICES}")
    if axes is None:
        stated = image.header["sform_code"] or image.header["qform_code"]
        axes = "".join(aff2axcodes(image.affine)) if stated else "LPS"
    axes = f"{axes[:2]}S"
    slices, units = read_upright(path, axes)
    masks = read_upright_mask(mask_path, path, axes)
    return [
        {
            **save_item(unpack / f"{number:03d}", slices[number], masks[number], units),
            "patient": None,
            "id": slice_id(number),
        }
        for number in range(SLICES)
    ]
