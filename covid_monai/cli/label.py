# SPDX-License-Identifier: Apache-2.0
"""``covid-monai label``: the pipeline inside MONAI Label."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from covid_monai.cli.shell import EXIT_CODES, OK, add_command

__all__ = ["add_label"]

DESCRIPTION = """\
Serve the pipeline to viewers (OHIF, 3D Slicer) through MONAI Label: lesion and lung masks as `covid-monai analyse`
makes them, corrected labels, their scores, and training on them.

STUDIES is a folder of NIfTI files (.nii, .nii.gz), into which the labels are written, or the root of a DICOMweb service
(http://127.0.0.1:8042/dicom-web), to which final labels are sent as DICOM SEG.

MONAI Label 0.8.5 has a known path traversal and no login: the server listens at 127.0.0.1 only, and the routes that
take files are closed. It is installed by `make label-install`."""

EXAMPLES = """\
examples:
  covid-monai label scans/
  covid-monai label http://127.0.0.1:8042/dicom-web --work label
"""


def add_label(commands: Any) -> None:
    """Add ``label``."""
    command = add_command(commands, "label", "serve the pipeline to OHIF and 3D Slicer through MONAI Label", _label)
    command.description, command.epilog = DESCRIPTION, f"{EXAMPLES}\n{EXIT_CODES}"
    command.add_argument("studies", metavar="STUDIES", help="folder of NIfTI files, or DICOMweb address")
    command.add_argument("--work", type=Path, default=Path("label"), metavar="DIR", help="folder for trained weights, "
                         "MLflow's database and what is fetched from an archive (default label)")  # fmt: skip
    command.add_argument("--port", type=int, default=8000, help="port to listen at (default 8000)")
    command.add_argument("--bundle", type=Path, metavar="DIR", help="MONAI bundle with the model (default: the one "
                         "shipped, lung_ct_ggo_consolidation_segmentation)")  # fmt: skip
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    command.add_argument("--host", default="127.0.0.1", help="address of this machine alone to listen at (default "
                         "127.0.0.1); from others use an SSH tunnel")  # fmt: skip


def _label(options: argparse.Namespace) -> int:
    from covid_monai.label.server import ServerSettings, serve

    names = ("studies", "work", "host", "port", "bundle", "device")
    serve(ServerSettings(**{name: getattr(options, name) for name in names}))
    return OK
