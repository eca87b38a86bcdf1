# SPDX-License-Identifier: Apache-2.0
"""MedSeg/Radiopaedia: 9 COVID-19 CT volumes with lesion and lung masks (Figshare, doi 10.6084/m9.figshare.13521509.v2).

Volumes 2 and 3 are one scan in thick and thin slices, 6 and 7 one patient at two times: 7 patients. Slices without
lung are left out. Items carry ``class_source``: "stated" where both classes are sure, "inferred" where the class of
the lesion was guessed from its HU (the lesion itself is sure; slice-image form only), "none" without lesion.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from covid_monai.datasets.datalist import Item, Sides
from covid_monai.datasets.faults import DatasetError, LayoutError
from covid_monai.datasets.slices import pictures_by_stem, read_index
from covid_monai.datasets.volumes import check_axes, find_nifti, read_upright, read_upright_mask, save_item

TITLE = "MedSeg/Radiopaedia: 9 COVID-19 CT volumes of 7 patients, lesion classes and lung masks"
LICENCE = "CC BY-NC-SA 3.0 (Radiopaedia; non-commercial)"
LAYOUT = (
    "rp_im/, rp_msk/ and rp_lung_msk/ with 1.nii.gz to 9.nii.gz as MedSeg publishes them, or images/, masks/ and "
    "lung_masks/ (vD_zZZZ.png) with index.csv and volumes.csv"
)
DOUBTFUL_LINES = ("1", "6", "7")
"""Volumes whose soft-tissue anchor in volumes.csv sits on the peak of fat, so muscle comes out near +200 HU: no line is
kept for them, and grey levels are harmonised instead."""
PATIENTS = {1: "1", 2: "2+3", 3: "2+3", 4: "4", 5: "5", 6: "6+7", 7: "6+7", 8: "8", 9: "9"}


def read(
    source: Path,
    unpack: Path,
    seed: int,
    *,
    validation: Sequence[int] = (5, 8),
    axes: str | None = None,
    every: int = 1,
) -> Sides:
    """Read MedSeg's NIfTI folders, or the slice-image form.

    The NIfTI volumes are brought upright by their affine. The 8-bit slices of the other form come with a line from
    grey to approximate HU for each volume.

    Args:
        source: see `LAYOUT`.
        unpack: where slices of the NIfTI volumes go; the slice images are upright already and used in place.
        seed: not needed: the split is by volume.
        validation: volumes (1..9) to validate on, with all volumes of the same patients; training takes the rest.
        axes: of all NIfTI volumes, instead of their stored orientation, such as "LPS".
        every: of each volume's slices take every n-th, from the first on; 1 is all.

    Raises:
        DatasetError: if an option or a file is not as it must be.
    """
    check_axes(axes)
    unknown = [volume for volume in validation if isinstance(volume, bool) or volume not in list(PATIENTS)]
    if unknown:
        raise DatasetError(f"no volume {unknown} to validate on: there are 1..{len(PATIENTS)}")
    if every < 1:
        raise DatasetError(f"every is {every}: give 1 for all slices, 3 for each third")
    held_out = {PATIENTS[volume] for volume in validation}
    items = _slice_form(source) if (source / "images").is_dir() else _nifti_form(source, unpack, axes)
    sides: Sides = {"training": [], "validation": [], "testing": []}
    seen: Counter[int] = Counter()
    for volume, z, item in items:
        seen[volume] += 1
        if (seen[volume] - 1) % every:
            continue
        item["patient"] = f"medseg_radiopaedia9/{PATIENTS[volume]}"
        item["id"] = f"medseg_radiopaedia9/{volume}/{z:03d}"
        sides["validation" if PATIENTS[volume] in held_out else "training"].append(item)
    return sides


def _slice_form(source: Path) -> Iterator[tuple[int, int, Item]]:
    """(volume, slice from 1, item) of every slice that index.csv names."""
    images, masks, lungs = (pictures_by_stem(source / name) for name in ("images", "masks", "lung_masks"))
    lines = read_index(source / "volumes.csv", ("volume", "hu_slope", "hu_intercept"), LAYOUT)
    volumes = {row["volume"]: row for row in lines}
    for row in read_index(source / "index.csv", ("id", "volume", "z_1based", "class_source"), LAYOUT):
        stem, volume = row["id"], row["volume"]
        if not (stem in images and stem in masks and stem in lungs and volume in volumes):
            raise LayoutError(f"{source} lacks image, mask, lung mask or volume of slice {stem}, which index.csv names")
        line = volumes[volume]
        item: Item = {
            "image": str(images[stem]),
            "label": str(masks[stem]),
            "lung": str(lungs[stem]),
            "class_source": row["class_source"],
        }
        if volume not in DOUBTFUL_LINES:
            item["hu_line"] = [float(line["hu_slope"]), float(line["hu_intercept"])]
        yield int(volume), int(row["z_1based"]), item


def _nifti_form(source: Path, unpack: Path, axes: str | None) -> Iterator[tuple[int, int, Item]]:
    """(volume, slice from 1, caudal to cranial, item) of every slice with lung, one volume in memory at a time."""
    for volume in PATIENTS:
        path = find_nifti(source / "rp_im", str(volume), LAYOUT)
        mask_paths = [find_nifti(source / folder, str(volume), LAYOUT) for folder in ("rp_msk", "rp_lung_msk")]
        slices, units = read_upright(path, axes)
        masks, lungs = (read_upright_mask(mask_path, path, axes) for mask_path in mask_paths)
        for k in range(len(slices)):
            if lungs[k].any():
                item = save_item(unpack / f"v{volume}_z{k + 1:03d}", slices[k], masks[k], units, lungs[k])
                item["class_source"] = "stated" if masks[k].any() else "none"
                yield volume, k + 1, item
