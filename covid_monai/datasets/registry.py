# SPDX-License-Identifier: Apache-2.0
"""The data sets that are known here, and how any of them becomes a MONAI datalist."""

import contextlib
import inspect
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covid_monai.datasets import (
    covid_semiseg,
    folder,
    luna16_3pat_lungwin,
    medseg,
    phantoms,
    radiopaedia,
    sarscov2_ct_soares,
    tcga_lung62_hu,
)
from covid_monai.datasets.datalist import (
    FILE_KEYS,
    LABELLED_SIDES,
    LABELS,
    SIDES,
    UNLABELLED,
    Item,
    Sides,
    absolute_sides,
    check_split,
    drop_duplicates,
    fingerprints,
    hash_of,
    load_datalist,
    portable_item,
    without_label,
    write_json,
)
from covid_monai.datasets.faults import DatasetError


@dataclass(frozen=True)
class Dataset:
    """One known data set.

    Attributes:
        title: what it is, in one line.
        licence: of its pictures and masks; weights trained on it carry its restrictions.
        layout: what ``--source`` must hold, in one line; empty when it needs no source.
        read: ``read(source, unpack, seed, **options)`` -> sides whose items have absolute paths, empty sides may
            be left out; slices that it makes go below the folder ``unpack``.
    """

    title: str
    licence: str
    layout: str
    read: Callable[..., Sides]

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``read`` and their defaults."""
        parameters = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


DATASETS: dict[str, Dataset] = {
    name: Dataset(module.TITLE, module.LICENCE, getattr(module, "LAYOUT", ""), module.read)
    for name, module in {
        "covid_semiseg": covid_semiseg,
        "medseg_sirm100": medseg,
        "medseg_radiopaedia9": radiopaedia,
        "sarscov2_ct_soares": sarscov2_ct_soares,
        "tcga_lung62_hu": tcga_lung62_hu,
        "luna16_3pat_lungwin": luna16_3pat_lungwin,
        "folder": folder,
        "phantom": phantoms,
    }.items()
}


@dataclass(frozen=True)
class Summary:
    """What `prepare` wrote.

    Attributes:
        path: the datalist.
        slices: slices on each side.
        lesion_slices: those with a lesion, on each side that is labelled.
        patients: known patients on each side; slices of unknown patients are not counted.
        dropped: exact duplicates left out.
        data_hash: hash of the split, see `covid_monai.datasets.datalist.data_hash`.
    """

    path: Path
    slices: dict[str, int]
    lesion_slices: dict[str, int]
    patients: dict[str, int]
    dropped: int
    data_hash: str


def describe() -> list[dict[str, str]]:
    """Rows for a table of the known data sets: name, title, licence, source layout, options."""
    return [
        {
            "name": name,
            "title": known.title,
            "licence": known.licence,
            "source": known.layout or "none needed",
            "options": ", ".join(f"{key}={value!r}" for key, value in known.options.items()),
        }
        for name, known in DATASETS.items()
    ]


def _dataset(name: str, source: Path | None, options: dict[str, Any]) -> Dataset:
    """Look up a data set and refuse what does not fit it."""
    if name not in DATASETS:
        raise DatasetError(f"unknown data set {name!r}: known are {', '.join(DATASETS)}")
    known = DATASETS[name]
    unknown = sorted(set(options) - set(known.options))
    if unknown:
        raise DatasetError(f"{name} has no option {', '.join(unknown)}: it has {', '.join(known.options) or 'none'}")
    for key, value in options.items():
        if not _fits(value, known.options[key]):
            raise DatasetError(f"{name}: {key} is {value!r}, give something like {known.options[key]!r}")
    if known.layout and source is None:
        raise DatasetError(f"{name} needs a source folder: {known.layout}")
    if not known.layout and source is not None:
        raise DatasetError(f"{name} is made here and takes no source: leave {source} out")
    if source is not None and not source.is_dir():
        raise DatasetError(f"source {source} is not a folder: {name} needs {known.layout}")
    return known


def _fits(value: Any, default: Any) -> bool:
    """Whether an option is of the kind of its default; one whose default is None may be anything."""
    if default is None:
        return True
    if isinstance(default, tuple):
        return isinstance(value, list | tuple)
    kinds = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, kinds) and not isinstance(value, bool)


def prepare(
    name: str,
    source: Path | None,
    out: Path,
    *,
    append: bool = False,
    seed: int = 0,
    unlabelled: bool = False,
    **options: Any,
) -> Summary:
    """Turn a data set as its authors publish it into a checked MONAI datalist.

    Files that are upright slices already are used in place; what must be turned, converted or cut from volumes is
    written to ``<out stem>_slices/<name>-<hash>/`` beside the datalist; those of a replaced datalist are
    removed. Nothing is left behind when something is refused, folders made for it neither.

    Args:
        name: a key of `DATASETS`.
        source: folder of the data set; None for those made here.
        out: the JSON to write; an earlier datalist there is replaced, any other file refused.
        append: add to the datalist at ``out``; the whole is checked again.
        seed: of the split, where it is drawn, and of data made here.
        unlabelled: put the training side on the unlabelled one and drop its labels; lung masks stay, and so do
            validation and testing. A set without labels is there in any case.
        options: of the data set, see ``DATASETS[name].options``.

    Raises:
        DatasetError: in one line, when the name, an option, the source, a file or the split is not as it must be.
    """
    source = Path(source).resolve() if source is not None else None
    out = Path(out).resolve()
    known = _dataset(name, source, options)
    earlier = load_datalist(out) if append or out.exists() else None
    slices_folder = out.parent / f"{out.stem}_slices"
    missing: list[Path] = []
    try:
        missing = [folder for folder in (slices_folder, *slices_folder.parents) if not folder.exists()]
        slices_folder.mkdir(parents=True, exist_ok=True)
        unpack = Path(tempfile.mkdtemp(dir=slices_folder, prefix=f".{name}."))
        try:
            sides = known.read(source, unpack, seed, **options)
            if not any(sides.values()):
                raise DatasetError(f"{name} at {source} gave no slice: expected {known.layout}")
            record = {"name": name, "licence": known.licence, "seed": seed, "options": options}
            if unlabelled:
                sides = {**sides, "training": [], UNLABELLED: sides.get(UNLABELLED, []) + sides.get("training", [])}
                record["unlabelled"] = True
            summary = _join_and_write(out, earlier if append else None, sides, record, unpack)
            if earlier is not None:
                for unused in _unpacked_folders(earlier, out) - _unpacked_folders(load_datalist(out), out):
                    shutil.rmtree(slices_folder / unused, ignore_errors=True)
            return summary
        finally:
            shutil.rmtree(unpack, ignore_errors=True)
    except OSError as error:
        raise DatasetError(
            f"cannot prepare {out} ({error.strerror}: {error.filename}): make that readable or choose another place"
        ) from error
    finally:
        for folder in missing:  # made here, innermost first; one that holds something cannot be removed
            with contextlib.suppress(OSError):
                folder.rmdir()


def _unpacked_folders(datalist: dict[str, Any], out: Path) -> set[str]:
    """Names of the folders of unpacked slices beside ``out`` that a datalist uses."""
    ours = re.compile(rf"{re.escape(out.stem)}_slices/((?:{'|'.join(DATASETS)})-[0-9a-f]{{8}})/")
    files = (item[key] for side in SIDES for item in datalist[side] for key in FILE_KEYS if key in item)
    return {match.group(1) for match in map(ours.match, files) if match}


def _drop_label(item: Item, unpack: Path) -> Item:
    """Item without its label, whose file goes too where it was made here."""
    if "label" in item and Path(item["label"]).is_relative_to(unpack):
        Path(item["label"]).unlink()
    return without_label(item)


def _join_and_write(
    out: Path, before: dict[str, Any] | None, sides: Sides, record: dict[str, Any], unpack: Path
) -> Summary:
    """Check new sides together with an earlier datalist, move unpacked slices to their place, and write."""
    sides = {side: sides.get(side, []) for side in SIDES}
    sides[UNLABELLED] = [_drop_label(item, unpack) for item in sides[UNLABELLED]]
    prints = fingerprints(sides)
    final = unpack.parent / f"{record['name']}-{hash_of(prints)[:8]}"
    for side in SIDES:
        for item, print_ in zip(sides[side], prints[side], strict=True):
            item["dataset"] = record["name"]
            if side != UNLABELLED:
                item["lesion"] = print_.lesion
    if before is not None:
        old = absolute_sides(before, out)
        old_prints = fingerprints(old)
        prints = {side: old_prints[side] + prints[side] for side in SIDES}
        sides = {side: old[side] + sides[side] for side in SIDES}
    check_split(sides, prints)
    found = sum(map(len, sides.values()))
    for side in SIDES:
        sides[side], prints[side] = drop_duplicates(sides[side], prints[side])
    unpacked = False
    for item in (item for side in SIDES for item in sides[side]):
        for key in FILE_KEYS:
            if key in item and Path(item[key]).is_relative_to(unpack):
                item[key] = str(final / Path(item[key]).relative_to(unpack))
                unpacked = True
    sources = [*(before["sources"] if before is not None else []), record]
    datalist: dict[str, Any] = {
        "name": " + ".join(dict.fromkeys(s["name"] for s in sources)),
        "description": "; ".join(dict.fromkeys(DATASETS[s["name"]].title for s in sources)) + ". Research use only.",
        "licence": " + ".join(dict.fromkeys(s["licence"] for s in sources)),
        "labels": {str(code): meaning for code, meaning in LABELS.items()},
        "sources": sources,
        "slices": {side: len(sides[side]) for side in SIDES},
        "data_hash": hash_of(prints),
        **{side: [portable_item(item, out.parent) for item in sides[side]] for side in SIDES},
    }
    if unpacked:
        unpack.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)  # the same slices, from an earlier run
        unpack.rename(final)
    write_json(datalist, out)
    return Summary(
        path=out,
        slices=datalist["slices"],
        lesion_slices={side: sum(item["lesion"] for item in sides[side]) for side in LABELLED_SIDES},
        patients={side: len({item["patient"] for item in sides[side]} - {None}) for side in SIDES},
        dropped=found - sum(map(len, sides.values())),
        data_hash=datalist["data_hash"],
    )
