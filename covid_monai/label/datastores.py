# SPDX-License-Identifier: Apache-2.0
"""The two datastores: a folder of NIfTI, and a DICOMweb archive; both keep labels whole, on their scan's grid."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from pydicom import Dataset

from covid_monai.ct import CTScan, read_ct, read_sources, write_mask
from covid_monai.ct.exchange import connect, fetch_series, send
from covid_monai.label.faults import LabelError
from covid_monai.label.labels import read_label
from covid_monai.label.names import FINAL, check_name, check_tag
from covid_monai.label.segmentation import write_label_seg
from covid_monai.whole_files import replacing, unfinished_folder, write_whole

__all__ = ["DicomwebDatastore", "FolderDatastore"]

SUFFIX = ".nii.gz"
EXTENSIONS = (f"*{SUFFIX}", "*.nii")


class _Careful(LocalDatastore):
    """What both have in common: names are checked, and a file is whole or not there.

    Args:
        classes: code of each class of lesion that a label may hold, by its name.
        settings: those of :class:`monailabel.datastore.local.LocalDatastore`.
    """

    classes: Mapping[str, int]
    _busy = threading.RLock()
    """Held while the index is changed, and while the watcher compares it with the files."""

    def _reconcile_datastore(self) -> None:
        with self._busy:  # else it could put back what it read before a label was saved
            super()._reconcile_datastore()

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is kept beside a label."""
        with self._busy:
            super().update_label_info(label_id, label_tag, info)

    def _watch_renames(self) -> None:
        """See what another process of the server renames into place."""
        if self._auto_reload:
            self._handler.on_moved = lambda event: self.refresh()

    def _update_datastore_file(self, lock: bool = True) -> None:
        content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        path = Path(self._datastore_config_path)
        if lock:
            with FileLock(self._lock_file):
                write_whole(path, content.encode())
        else:
            write_whole(path, content.encode())
        self._config_ts = path.stat().st_mtime

    def scan_path(self, image_id: str) -> Path:
        """What :func:`covid_monai.ct.read_ct` reads an image from; fetched first where it lies in an archive.

        Raises:
            LabelError: there is no such image.
        """
        if check_name(image_id) not in self.list_images():
            raise LabelError(
                "there is no such image in the datastore: give an id that GET /datastore/?output=all lists."
            )
        return Path(self.get_image_uri(image_id))

    def _drawn_on(self, image_id: str) -> Path:
        """What a label that comes back was drawn on."""
        return self.scan_path(image_id)

    def label_path(self, image_id: str, tag: str) -> Path | None:
        """The label of an image under a tag, None where there is none."""
        path = self.get_label_uri(check_name(image_id), check_tag(tag))
        return Path(path) if path else None

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: what a client sends would become a file under a name that it chooses."""
        raise LabelError("images are not taken over the network: put them into the folder or the archive.")

    def remove_image(self, image_id: str) -> None:
        """Refuse: a viewer is no place to delete scans from."""
        raise LabelError("images are not deleted over the network: take them out of the folder or the archive.")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete a label."""
        super().remove_label(check_name(label_id), check_tag(label_tag))

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image."""
        return super().get_image_uri(check_name(image_id))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label as NIfTI on the grid of its scan, replacing an earlier one only when the new one is whole.

        Args:
            image_id: whose label it is.
            label_filename: NIfTI, NRRD, or raw bytes of voxels (``.bin``) as OHIF sends them.
            label_tag: ``final`` for what a person corrected, ``original`` for what the model drew.
            label_info: kept beside it; segments listed under ``label_info`` tell which name its codes have.

        Returns:
            Id of the label, which is that of its image.

        Raises:
            LabelError: it is no label of that image.
            OSError: it cannot be written; an earlier label stays.
        """
        self._keep_label(image_id, label_filename, label_tag, label_info)
        return image_id

    def _keep_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> tuple[Path, CTScan, np.ndarray]:
        """What :meth:`save_label` does; what the label was drawn on, the scan in it, and the mask, upright."""
        path = self._drawn_on(image_id)
        scan = read_ct(path)
        mask = read_label(Path(label_filename), scan, self.classes, label_info.get("label_info"))
        self._keep(image_id, scan, mask, check_tag(label_tag), label_info)
        return path, scan, mask

    def _keep(self, image_id: str, scan: CTScan, mask: np.ndarray, tag: str, info: Mapping[str, Any]) -> None:
        folder = Path(self._datastore.label_path(tag))
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{image_id}{SUFFIX}"
        names = {code: name for name, code in self.classes.items()}
        with unfinished_folder(folder) as unfinished:
            new = unfinished / name
            write_mask(scan.from_upright(mask), scan, new, names)
            with self._busy:
                self._init_from_datastore_file()  # what other processes wrote meanwhile
                self._enter(image_id, tag, name, info, new)

    def _enter(self, image_id: str, tag: str, name: str, info: Mapping[str, Any], new: Path) -> None:
        """Enter a label that was written to ``new`` into the index, and put it into its place."""
        with FileLock(self._lock_file):
            entry = self._datastore.objects[image_id]
            before = entry.labels.get(tag)
            entry.labels[tag] = DataModel(ext=SUFFIX, info={**info, "ts": int(time.time()), "name": name})
            try:
                self._update_datastore_file(lock=False)
            except OSError:
                entry.labels.pop(tag)
                if before is not None:
                    entry.labels[tag] = before
                raise
            new.replace(Path(self._datastore.label_path(tag), name))


class FolderDatastore(_Careful):
    """NIfTI files in a folder; labels come into its ``labels/<tag>``.

    Args:
        folder: with the images.
        classes: code of each class of lesion that a label may hold, by its name.
        auto_reload: look for new files while the server runs.
    """

    def __init__(self, folder: str, classes: Mapping[str, int], auto_reload: bool) -> None:
        self.classes = classes
        super().__init__(folder, extensions=EXTENSIONS, auto_reload=auto_reload)
        self._watch_renames()


class DicomwebDatastore(_Careful, DICOMWebDatastore):
    """CT series of a DICOMweb archive; final labels go back to it as DICOM SEG.

    Series, their NIfTI copies for 3D Slicer, and labels are kept in a folder here. Labelled is what was saved through
    this server: segmentations of other origin in the archive, those of ``analyse`` among them, are not trained on.

    Args:
        url: root of the DICOMweb service.
        classes: code of each class of lesion that a label may hold, by its name.
        cache: folder for what is kept here.
    """

    def __init__(self, url: str, classes: Mapping[str, int], cache: Path) -> None:
        self.url = url
        self.classes = classes
        super().__init__(connect(url), {"Modality": "CT"}, str(cache))
        self._watch_renames()

    def list_images(self) -> list[str]:
        """SeriesInstanceUIDs of the CT series that the archive has now."""
        found = self._client.search_for_series(search_filters=self._search_filter)
        return sorted(str(Dataset.from_json(each).SeriesInstanceUID) for each in found)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series with a label that was saved here."""
        return LocalDatastore.get_labeled_images(self)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series of the archive without a label that was saved here."""
        labelled = self.get_labeled_images()
        return [image for image in self.list_images() if image not in labelled]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and their final labels."""
        return LocalDatastore.datalist(self, full_path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label that was saved here, empty where there is none."""
        return LocalDatastore.get_label_uri(self, label_id, label_tag)

    def scan_path(self, image_id: str) -> Path:
        """Folder of a series, with its NIfTI copy beside it."""
        return Path(super().scan_path(image_id).with_name(image_id))

    def json(self) -> dict[str, Any]:
        """The index, with the series of the archive that were not fetched yet, unless it is away."""
        content = super().json()
        try:
            images = self.list_images()
        except requests.RequestException:
            images = []
        for image in images:
            waiting = ImageLabelModel(image=DataModel(ext=SUFFIX, info={"SeriesInstanceUID": image}))
            content["objects"].setdefault(image, waiting.model_dump())
        return content

    def _drawn_on(self, image_id: str) -> Path:
        """The series as the archive has it, and while the archive is away as it is here."""
        try:
            return self.scan_path(image_id)
        except (requests.ConnectionError, requests.Timeout):
            folder, copy = self._places(image_id)
            if not (copy.exists() and image_id in self._datastore.objects):
                raise
            return folder

    def _places(self, image_id: str) -> tuple[Path, Path]:
        """Folder of a series that was fetched, and its NIfTI copy, which is there when the series could be read."""
        folder = Path(self._datastore.image_path(), check_name(image_id)).resolve()
        return folder, folder.with_name(f"{image_id}{SUFFIX}")

    def get_image_uri(self, image_id: str) -> str:
        """Path of the NIfTI copy of a series, which is fetched where it is not here as the archive has it now."""
        folder, copy = self._places(image_id)
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": image_id})
        meta = next((each for each in map(Dataset.from_json, found) if each.get("SeriesInstanceUID") == image_id), None)
        if meta is None:
            raise LabelError(f"the archive {self.url} has no such series: is it still there?")
        study, instances = str(meta.StudyInstanceUID), self._instances(meta)
        known = self._datastore.objects.get(image_id)
        if known is not None and copy.exists() and known.image.info.get("instances") == instances:
            return str(copy)
        self._fetch(study, image_id, folder)
        _write_copy(read_ct(folder), copy)
        info = {
            "SeriesInstanceUID": image_id,
            "StudyInstanceUID": study,
            "Modality": "CT",
            "name": copy.name,
            "instances": instances,
        }
        with self._busy:
            self._init_from_datastore_file()
            earlier = self._datastore.objects.get(image_id)
            entry = ImageLabelModel(
                image=DataModel(ext=SUFFIX, info={**info, "ts": int(time.time())}),
                labels=earlier.labels if earlier else {},
            )
            self._datastore.objects[image_id] = entry
            self._update_datastore_file()
        return str(copy)

    def _instances(self, series: Dataset) -> str:
        """Which images the archive has of a series now: how many, and the SHA-256 over their SOPInstanceUIDs.

        One answer is all that is asked for; an archive that gives its first thousand only gives the same ones again.
        """
        found = self._client.search_for_instances(
            series.StudyInstanceUID, series.SeriesInstanceUID, fields=["SOPInstanceUID"]
        )
        uids = sorted(str(Dataset.from_json(each).SOPInstanceUID) for each in found)
        digest = hashlib.sha256("\n".join(uids).encode()).hexdigest()
        return f"{series.get('NumberOfSeriesRelatedInstances')} {digest}"

    def _fetch(self, study: str, series: str, folder: Path) -> None:
        """Fetch a series, in place of what was fetched when the archive had other images of it.

        The copy of that stays until there is a new one: the watcher forgets images, and their labels, without a file.
        """
        with unfinished_folder(folder.parent) as unfinished:
            fetched = fetch_series(self.url, study, series, unfinished / series)
            if folder.is_dir():
                folder.rename(unfinished / "earlier")
            fetched.rename(folder)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label as :class:`FolderDatastore` does, and send a final one to the archive as DICOM SEG.

        Raises:
            LabelError: it is no label of that series, or it is kept here and the archive did not take it.
        """
        path, scan, mask = self._keep_label(image_id, label_filename, label_tag, label_info)
        if label_tag != FINAL:
            return image_id
        try:
            with tempfile.TemporaryDirectory(prefix="covid-monai-") as folder:
                file = write_label_seg(mask, scan, tuple(self.classes), read_sources(path), Path(folder))
                send([file], self.url)
        except ValueError as error:
            raise LabelError(f"the label is kept here, but not in the archive: {error} Then save it again.") from error
        return image_id


def _write_copy(scan: CTScan, path: Path) -> None:
    """Write a scan as NIfTI for viewers that do not read DICOM; whole or not at all."""
    values = scan.array
    with replacing(path) as unfinished:
        nib.save(nib.Nifti1Image(values, scan.affine, dtype=values.dtype), unfinished)
