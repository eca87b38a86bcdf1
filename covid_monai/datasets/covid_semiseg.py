# SPDX-License-Identifier: Apache-2.0
"""COVID-SemiSeg, the labelled part, in the layout of Inf-Net's authors (Fan et al., IEEE TMI 2020).

The slices of MedSeg/SIRM once more, as JPEG, cropped to the lungs and lying on their side. Only the multi-class
folders are
read: their masks above 0 are the binary ones. The authors' ``Prior`` (the ground truth itself) and ``Edge`` (to be
    taken
from the augmented mask instead) are not used.
"""

from pathlib import Path

from covid_monai.datasets.datalist import Item, Sides, split_by_patient
from covid_monai.datasets.faults import LayoutError
from covid_monai.datasets.medseg import slice_id
from covid_monai.datasets.slices import pictures_by_stem, read_slice, save_slice

TITLE = "COVID-SemiSeg, labelled part: the 98 MedSeg/SIRM slices as cropped and split by Inf-Net's authors"
LICENCE = "MIT (repository of Inf-Net); CC0 1.0 (MedSeg's masks; the slices are SIRM's)"
LAYOUT = (
    "TrainingSet/MultiClassInfection-Train and TestingSet/MultiClassInfection-Test, each with Imgs/N.jpg and GT/N.png "
    "as Inf-Net's authors lay them out"
)


def read(source: Path, unpack: Path, seed: int, *, validation: float = 0.0) -> Sides:
    """Read the authors' layout; upright copies are written as PNG.

    Args:
        source: see `LAYOUT`.
        unpack: where the upright copies go.
        seed: of the validation draw.
        validation: share (0..1) of the 50 training slices to validate on; slices of one patient may then part.
    """
    training, testing = (
        _items(source / f"{part}ingSet" / f"MultiClassInfection-{part}", unpack / part.lower())
        for part in ("Train", "Test")
    )
    return {**split_by_patient(training, {"validation": validation}, seed), "testing": testing}


def _items(folder: Path, unpack: Path) -> list[Item]:
    """Items of one part; transposing brings its slices upright."""
    if not folder.is_dir():
        raise LayoutError(f"{folder} is missing: expected {LAYOUT}")
    images, masks = pictures_by_stem(folder / "Imgs"), pictures_by_stem(folder / "GT")
    items: list[Item] = []
    for stem, image in images.items():
        if stem not in masks:
            raise LayoutError(f"{folder / 'GT'} lacks the mask of slice {stem}, which Imgs holds")
        if not stem.isdigit():
            raise LayoutError(f"{image} is not named by its slice number: expected {LAYOUT}")
        copies = {
            role: str(save_slice(read_slice(file).T, unpack / role / f"{int(stem):03d}.png"))
            for role, file in (("image", image), ("label", masks[stem]))
        }
        items.append({**copies, "patient": None, "id": slice_id(int(stem))})
    return items
