# SPDX-License-Identifier: Apache-2.0
import argparse
import csv
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from covid_monai import __version__, cli, inference
from covid_monai.cli.lean import import_monai_to_predict
from covid_monai.ct import CTScan, SourceFacts, write_mask
from covid_monai.datasets import load_datalist
from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom
from covid_monai.inference import default_bundle
from covid_monai.networks import load_weights, save_weights, weights_sha256
from covid_monai.reports import FILES

COMMANDS = (
    [],
    ["analyse"],
    ["compare-masks"],
    ["evaluate-scores"],
    ["follow-up"],
    ["demo"],
    ["data"],
    ["data", "list"],
    ["data", "prepare"],
    ["data", "phantom"],
    ["study"],
    ["model"],
    *(["model", name] for name in ("register", "list", "compare", "promote", "rollback", "pull", "export")),
    ["label"],
)
SMALL_PHANTOMS = ["--option", "patients=3", "--option", "slices=2", "--option", "size=48", "--option", "healthy=0"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def faults(self) -> list[str]:
        """Lines of the standard error."""
        return self.err.splitlines()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Run a command line in this process."""
    level = logging.getLogger("monai").level

    def call(*words: object) -> Result:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    with warnings.catch_warnings():
        yield call
    logging.getLogger("monai").setLevel(level)


@pytest.fixture
def analyse(run: Callable[..., Result], tiny_bundle: Path, tmp_path: Path) -> Callable[..., Result]:
    """``covid-monai analyse`` with the tiny bundle into ``results``, unless the words that follow say otherwise."""

    def call(*words: object) -> Result:
        return run("analyse", "--output", tmp_path / "results", "--bundle", tiny_bundle, "--device", "cpu", *words)

    return call


@pytest.fixture(scope="module")
def other_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second scan, three slices of a thorax."""
    return make_phantom(5, (64, 64, 3)).write_nifti(tmp_path_factory.mktemp("other"))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# the program ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "covid-monai")
def test_every_command_has_help(run: Callable[..., Result], command: list[str]):
    result = run(*command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("usage: covid-monai")
    assert len(result.out.splitlines()) > 5


@pytest.mark.parametrize("command", [[], ["analyse"]], ids=["covid-monai", "analyse"])
def test_exit_codes_and_the_notice_are_told_by_help(run: Callable[..., Result], command: list[str]):
    text = run(*command, "--help").out
    for code in ("0  ", "1  ", "2  ", "130  "):
        assert f"\n  {code}" in text
    assert "Research use only" in run("--help").out


def test_the_version_is_that_of_the_package(run: Callable[..., Result]):
    assert run("--version") == (0, f"covid-monai {__version__}\n", "")


def test_the_program_is_installed_under_its_name():
    (program,) = entry_points(group="console_scripts", name="covid-monai")
    assert program.load() is cli.main


def test_help_does_not_wait_for_torch():
    script = (
        "import sys, covid_monai.cli as cli\n"
        "try: cli.main(['analyse', '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', [name for name in ('torch', 'monai', 'mlflow', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_predicting_does_not_wait_for_what_only_training_needs():
    script = (
        "import sys\n"
        "from covid_monai.cli.lean import HIDDEN, import_lean_monai\n"
        "import_lean_monai()\n"
        "import gc\n"
        "print(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))\n"  # what stays is no garbage
        "import covid_monai.analysis\n"
        "print([name for name in ('ignite', 'mlflow', 'matplotlib', 'pandas') if name in sys.modules])\n"
        "import ignite, matplotlib.pyplot, scipy.signal, skimage\n"
        "import monai.bundle, monai.engines, monai.handlers\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-2:] == ["True True", "[]"]


@pytest.mark.parametrize(("given", "policy"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_leave_their_cores_unless_told_otherwise(
    given: str | None, policy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    found: list[str] = []
    monkeypatch.setattr(
        "covid_monai.cli.lean.import_lean_monai", lambda: found.append(os.environ["OMP_WAIT_POLICY"])
    )  # which imports torch, that reads it
    import_monai_to_predict(argparse.Namespace(alone=True))
    assert found == [policy]


@pytest.mark.parametrize("alone", [True, False])
def test_a_process_that_ends_does_not_look_for_garbage(alone: bool):
    script = (
        "import gc, sys, covid_monai.cli as cli\n"
        "words = ['data', 'list']\n"
        "sys.argv[1:] = words\n"
        f"code = cli.main({'' if alone else 'words'})\n"
        "print(code, gc.get_freeze_count() > 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"0 {alone}"


def test_reading_a_scan_imports_nothing_that_is_hidden_meanwhile(phantom_folder: Path):
    script = (
        "import sys\n"
        "from covid_monai.cli.lean import HIDDEN\n"
        "from covid_monai.ct import read_ct\n"
        f"for name in ('dicom', 'image.nii.gz'): read_ct({str(phantom_folder)!r} + '/' + name)\n"
        "print(sorted({'torch', 'monai', *HIDDEN} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [[], ["analyze"], ["data"], ["analyse", "scan.nii.gz"], ["data", "prepare", "x"], ["compare-masks", "x"]],
)
def test_an_incomplete_command_line_is_2(run: Callable[..., Result], words: list[str]):
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert "error: " in result.faults[-1]


# analyse -------------------------------------------------------------------------------------------------------------


def test_one_input_goes_into_the_folder_itself(
    analyse: Callable[..., Result], phantom_folder: Path, tiny_bundle: Path, tmp_path: Path
):
    result = analyse(phantom_folder / "dicom")
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path / "results") == set(FILES)
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    figures = record["severity"]["whole"]
    assert record["scan"]["format"] == "DICOM"
    assert record["method"]["model"]["weights_sha256"] == weights_sha256(tiny_bundle / "models" / "model.pt")
    assert f"{100 * figures['lesion_share']:.1f} %" in result.out
    assert f"lesions {figures['lesion_ml']:.0f} mL, lungs {figures['lung_ml']:.0f} mL" in result.out
    assert all(f"warning: {warning}" in result.out for warning in record["warnings"])
    assert all(str(tmp_path / "results" / name) in result.out for name in FILES)


def test_a_cascade_tells_ground_glass_from_consolidation(
    analyse: Callable[..., Result], phantom_folder: Path, tiny_cascade_bundle: Path, tmp_path: Path
):
    result = analyse(phantom_folder / "image.nii.gz", "--bundle", tiny_cascade_bundle)
    assert (result.code, result.err) == (0, "")
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    figures = record["severity"]["whole"]
    assert record["method"]["model"]["name"] == "lung_ct_ggo_consolidation_segmentation"
    assert record["method"]["classes"] == {"1": "ground glass", "2": "consolidation"}
    ground_glass, consolidation = (f"{figures[f'{part}_ml']:.0f} mL" for part in ("ground_glass", "consolidation"))
    assert f"(ground glass {ground_glass}, consolidation {consolidation})" in result.out
    assert f"consolidation {100 * figures['consolidation_share']:.1f} %)" in result.out
    mask = nib.load(tmp_path / "results" / "lesions.nii.gz")
    voxel_ml = abs(np.linalg.det(mask.affine)) / 1000
    for code, part in ((1, "ground_glass_ml"), (2, "consolidation_ml")):
        assert np.count_nonzero(np.asarray(mask.dataobj) == code) * voxel_ml == pytest.approx(figures[part])


def test_the_written_mask_lies_on_the_scan(analyse: Callable[..., Result], phantom_folder: Path, tmp_path: Path):
    assert analyse(phantom_folder / "image.nii.gz").code == 0
    mask, scan = nib.load(tmp_path / "results" / "lesions.nii.gz"), nib.load(phantom_folder / "image.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    figures = json.loads((tmp_path / "results" / "analysis.json").read_text())["severity"]["whole"]
    voxel_ml = abs(np.linalg.det(scan.affine)) / 1000
    assert np.count_nonzero(mask.dataobj) * voxel_ml == pytest.approx(figures["lesion_ml"])


def test_several_inputs_go_into_folders_named_by_content(
    analyse: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    result = analyse(phantom_folder / "image.nii.gz", other_scan)
    assert (result.code, result.err) == (0, "")
    folders = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    assert len(folders) == 2
    with (tmp_path / "results" / "cohort.csv").open() as file:
        assert [row["scan_id"] for row in csv.DictReader(file)] == [
            json.loads((tmp_path / "results" / row_of / "analysis.json").read_text())["scan_id"]
            for row_of in sorted((folder.name for folder in folders), key=result.out.index)
        ]
    for folder in folders:
        assert names(folder) == set(FILES)
        assert json.loads((folder / "analysis.json").read_text())["scan_id"] == folder.name
    assert "[1/2]" in result.out
    assert "[2/2]" in result.out


def test_names_are_kept_when_asked_for(
    analyse: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    inputs = [tmp_path / "in" / name for name in ("1.2.840.1", "1.2.840.2", "case.a.nii.gz", "case.b.nii")]
    inputs[0].mkdir(parents=True)
    for k in range(2):  # a slice image is the smallest scan; two that differ
        inputs[k].mkdir(exist_ok=True)
        write_slice(inputs[k] / "slice.png", k)
    shutil.copy(other_scan, inputs[2])
    nib.save(nib.load(phantom_folder / "image.nii.gz"), inputs[3])
    assert analyse(*inputs, "--keep-names").code == 0
    assert names(tmp_path / "results") == {"1.2.840.1", "1.2.840.2", "case.a", "case.b", "cohort.csv"}


def write_slice(path: Path, seed: int) -> None:
    from PIL import Image

    image = np.full((64, 64), 20 + seed, dtype=np.uint8)
    image[6:58, 6:58] = 235
    image[14:50, 10:28] = image[14:50, 36:54] = 80
    Image.fromarray(image).save(path)


def test_a_slice_image_is_analysed_without_volumes(analyse: Callable[..., Result], tmp_path: Path):
    write_slice(tmp_path / "slice.png", 0)
    result = analyse(tmp_path / "slice.png")
    assert result.code == 0
    assert "mL, lungs" not in result.out
    assert "volumes unknown" in result.out
    assert json.loads((tmp_path / "results" / "analysis.json").read_text())["severity"]["whole"]["lesion_ml"] is None


def test_a_bad_input_does_not_stop_the_rest_and_is_listed(
    analyse: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    missing, damaged = tmp_path / "missing.nii.gz", tmp_path / "damaged.nii.gz"
    damaged.write_bytes(other_scan.read_bytes()[:-200])
    result = analyse(phantom_folder / "image.nii.gz", missing, damaged, other_scan)
    assert result.code == 1
    folders = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert all(names(folder) == set(FILES) for folder in folders)
    with (tmp_path / "results" / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert [row["name"] for row in rows][1:3] == ["input 2", "input 3"]
    assert not any(str(tmp_path) in value for row in rows for value in row.values())
    assert len(result.faults) == 5  # one line each, then the list
    for line, path in zip(result.faults[:2], (missing, damaged), strict=True):
        assert line.startswith(f"covid-monai: {path}")
        assert line.count(str(path)) == 1
    assert result.faults[2] == "covid-monai: 2 of 4 inputs could not be analysed:"
    assert result.faults[3:] == [line.replace("covid-monai:", " ", 1) for line in result.faults[:2]]


def test_a_single_bad_input_is_one_line(analyse: Callable[..., Result], tmp_path: Path):
    result = analyse(tmp_path / "missing")
    assert result.code == 1
    assert result.faults == [
        f"covid-monai: {tmp_path}/missing does not exist: give a DICOM folder, a NIfTI file "
        "(.nii, .nii.gz), or slice images (PNG, JPEG, TIFF, BMP)."
    ]
    assert not (tmp_path / "results").exists()


def test_results_of_another_scan_are_replaced_only_when_asked_for(
    analyse: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    def scan() -> str:
        return json.loads((tmp_path / "results" / "analysis.json").read_text())["scan_id"]

    assert analyse(other_scan).code == 0
    first = scan()
    assert analyse(other_scan).code == 0
    refused = analyse(phantom_folder / "image.nii.gz")
    assert refused.code == 1
    assert f"holds results of another scan ({first})" in refused.err
    assert len(refused.faults) == 1
    assert scan() == first
    assert analyse(phantom_folder / "image.nii.gz", "--overwrite").code == 0
    assert scan() != first


def test_of_several_series_one_must_be_chosen(analyse: Callable[..., Result], tmp_path: Path):
    for seed in (0, 1):
        make_phantom(seed, (64, 64, 4)).write_dicom(tmp_path / "study" / str(seed))
    refused = analyse(tmp_path / "study")
    assert refused.code == 1
    assert len(refused.faults) == 1
    assert "holds 2 series: [1] " in refused.err
    assert "; [2] " in refused.err
    assert not (tmp_path / "results").exists()
    ids = set()
    for number in (1, 2):
        assert analyse(tmp_path / "study", "--series", number, "--overwrite").code == 0
        ids.add(json.loads((tmp_path / "results" / "analysis.json").read_text())["scan_id"])
    assert len(ids) == 2
    assert analyse(tmp_path / "study", "--series", 3).code == 1


def test_an_unforeseen_fault_is_named_and_stops_nothing_else(
    analyse: Callable[..., Result], other_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from covid_monai import ct

    read = ct.read_ct

    def broken(path: Path, series: str | None) -> ct.CTScan:
        if path.name == "odd":
            raise ZeroDivisionError("division by zero")
        return read(path, series)

    monkeypatch.setattr(ct, "read_ct", broken)
    result = analyse(tmp_path / "odd", other_scan)
    assert result.code == 1
    assert result.faults[0] == f"covid-monai: {tmp_path}/odd: ZeroDivisionError: division by zero (see --traceback)"
    assert "Traceback" not in result.err
    assert len(names(tmp_path / "results") - {"cohort.csv"}) == 1
    assert 'raise ZeroDivisionError("division by zero")' in analyse(tmp_path / "odd", "--traceback").err


def test_an_interruption_is_130_and_leaves_nothing_of_the_scan(
    analyse: Callable[..., Result], other_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from covid_monai.reports import results

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "save_html", interrupt)
    result = analyse(other_scan)
    assert (result.code, result.faults) == (130, ["covid-monai: interrupted"])
    assert not names(tmp_path / "results")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["--bundle", "nowhere"],
            "nowhere/configs/inference.yaml cannot be read: give a bundle's folder with --bundle.",
        ),
        (["--device", "gpu"], "unknown device 'gpu': give cpu, cuda or cuda:N."),
        (["--device", "cuda:99"], "there is no device cuda:99 here"),
    ],
    ids=["bundle", "device", "cuda"],
)
def test_what_no_input_can_be_analysed_with_is_2(
    analyse: Callable[..., Result], other_scan: Path, tmp_path: Path, words: list[str], fault: str
):
    result = analyse(other_scan, *words)
    assert result.code == 2
    assert len(result.faults) == 1
    assert result.err.startswith(f"covid-monai: {fault}")
    assert not (tmp_path / "results").exists()


def test_changed_weights_are_2(run: Callable[..., Result], other_scan: Path, tiny_bundle: Path, tmp_path: Path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / "models" / "model.pt").open("ab") as file:
        file.write(b"!")
    result = run("analyse", other_scan, "--output", tmp_path / "results", "--bundle", tmp_path / "bundle")
    assert result.code == 2
    assert len(result.faults) == 1
    assert "was changed" in result.err
    assert not (tmp_path / "results").exists()


def test_weights_that_are_not_there_are_2_and_it_is_said_what_to_do(
    run: Callable[..., Result], other_scan: Path, tiny_cascade_bundle: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    shutil.copytree(tiny_cascade_bundle / "configs", tmp_path / "untrained" / "configs")
    monkeypatch.setattr(inference, "default_bundle", lambda: tmp_path / "untrained")
    result = run("analyse", other_scan, "--output", tmp_path / "results")
    assert result.code == 2
    (line,) = result.faults
    assert line == (
        f"covid-monai: no weights at {tmp_path}/untrained/models/model.pt: install the package again for those it "
        "comes with, or name those of a training with --weights FILE."
    )
    assert not (tmp_path / "results").exists()


def test_the_default_bundle_is_used_when_none_is_named_and_the_model_is_told(
    run: Callable[..., Result], other_scan: Path, tiny_cascade_bundle: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(inference, "default_bundle", lambda: tiny_cascade_bundle)
    result = run("analyse", other_scan, "--output", tmp_path / "results")
    assert (result.code, result.err) == (0, "")
    digest = weights_sha256(tiny_cascade_bundle / "models" / "model.pt")
    version = json.loads((tiny_cascade_bundle / "configs" / "metadata.json").read_text())["version"]
    told = f"model: lung_ct_ggo_consolidation_segmentation {version}, weights {digest[:12]}"
    assert result.out.splitlines()[0] == told
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    assert record["method"]["model"]["weights_sha256"] == digest


def test_weights_of_a_training_are_taken_when_they_are_named(
    analyse: Callable[..., Result], other_scan: Path, tiny_bundle: Path, tmp_path: Path
):
    state = {name: tensor + 1 for name, tensor in load_weights(tiny_bundle / "models" / "model.pt").items()}
    digest = save_weights(state, tmp_path / "training" / "model.pt")
    assert analyse(other_scan, "--weights", tmp_path / "training" / "model.pt").code == 0
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    assert record["method"]["model"]["weights_sha256"] == digest


def test_named_weights_that_are_not_there_are_2(analyse: Callable[..., Result], other_scan: Path, tmp_path: Path):
    result = analyse(other_scan, "--weights", "nowhere.pt")
    assert result.code == 2
    (line,) = result.faults
    assert line.startswith("covid-monai: no weights at nowhere.pt: ")
    assert not (tmp_path / "results").exists()


def test_named_weights_of_another_network_are_2(
    analyse: Callable[..., Result], other_scan: Path, tiny_cascade_bundle: Path, tmp_path: Path
):
    result = analyse(other_scan, "--weights", tiny_cascade_bundle / "models" / "model.pt")
    assert result.code == 2
    (line,) = result.faults
    assert "does not fit the network of" in line
    assert not (tmp_path / "results").exists()


def test_the_cascade_is_the_default_bundle():
    assert default_bundle().name == "lung_ct_ggo_consolidation_segmentation"
    metadata = json.loads((default_bundle() / "configs" / "metadata.json").read_text())
    assert metadata["name"] == default_bundle().name


def test_the_installed_bundle_is_the_default():
    for name in ("configs/inference.yaml", "configs/train.yaml", "configs/metadata.json", "LICENSE"):
        assert (default_bundle() / name).is_file()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "nothing to analyse: give an INPUT, or --dicomweb URL --study UID --series UID."),
        (["--dicomweb", "http://127.0.0.1:1/dicom-web"], "--dicomweb fetches one series: give --study UID and"),
        (["scan", "--study", "1.2"], "--study is of a DICOMweb server: give its address with --dicomweb URL."),
        (["a", "b", "--lung-mask", "m.nii.gz"], "--lung-mask and --lobe-mask are of one scan: give one INPUT."),
        (["scan", "--send", "ftp://here"], "'ftp://here'"),
        (["scan", "--floor-ml", "-1"], "the noise floor's ml is -1.0: give a number, 0 or more."),
        (["scan", "--floor-percent", "60"], "--floor-percent is 60: give a percentage from 0 to under 50."),
    ],
)
def test_options_that_cannot_be_used_are_2(
    analyse: Callable[..., Result], tmp_path: Path, words: list[str], fault: str
):
    result = analyse(*words)
    assert result.code == 2
    (line,) = result.faults
    assert fault in line
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_made_is_2_before_anything_is_read(run: Callable[..., Result], tmp_path: Path):
    (tmp_path / "file").touch()
    result = run("analyse", tmp_path / "missing", "--output", tmp_path / "file" / "results")
    assert (result.code, len(result.faults)) == (2, 1)
    assert f"{tmp_path / 'file'} is no folder: give --output a new folder" in result.err
    result = run("analyse", tmp_path / "missing", "--output", tmp_path / ("long" * 80))
    assert (result.code, len(result.faults)) == (2, 1)
    assert "File name too long" in result.err


def test_a_folder_that_is_closed_is_2(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    result = run("analyse", tmp_path / "missing", "--output", tmp_path / "results")
    assert (result.code, len(result.faults)) == (2, 1)
    assert f"{tmp_path} cannot be written to: give --output another folder." in result.err


def test_an_input_that_is_not_there_is_named_once(analyse: Callable[..., Result], tmp_path: Path):
    result = analyse(tmp_path / "missing.nii.gz")
    assert result.code == 1
    assert result.err.count("missing.nii.gz") == 1


def test_the_noise_floor_is_an_option_and_reported(
    analyse: Callable[..., Result], phantom_folder: Path, tmp_path: Path
):
    words = ["--floor-ml", "3", "--floor-percent", "2", "--no-ranges"]
    assert analyse(phantom_folder / "image.nii.gz", *words).code == 0
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    assert record["severity"]["floor"] == {"ml": 3.0, "share": 0.02}
    assert record["spread"] is None


@pytest.mark.parametrize("lobes", [False, True])
def test_lungs_that_are_given_are_taken(
    analyse: Callable[..., Result], phantom: Phantom, phantom_folder: Path, tmp_path: Path, lobes: bool
):
    codes = phantom.lungs.copy()
    if lobes:  # the numbering of TotalSegmentator: right upper 12, middle 13, lower 14; left upper 10, lower 11
        codes = np.where(phantom.lungs == 1, 14, np.where(phantom.lungs == 2, 11, 0)).astype(np.uint8)
        for axis_half, (right, left) in ((slice(8, None), (12, 10)), (slice(6, 8), (13, 11))):
            part = codes[:, :, axis_half]
            part[part == 14] = right
            part[part == 11] = left
    nib.save(nib.Nifti1Image(codes, phantom.affine), tmp_path / "mask.nii.gz")
    option = "--lobe-mask" if lobes else "--lung-mask"
    result = analyse(phantom_folder / "image.nii.gz", option, tmp_path / "mask.nii.gz")
    assert (result.code, result.err) == (0, "")
    record = json.loads((tmp_path / "results" / "analysis.json").read_text())
    assert record["method"]["lungs"] == ("given lobes" if lobes else "given lungs")
    assert record["method"]["regions_from"] == ("lobes" if lobes else "lungs")
    assert record["severity"]["whole"]["lung_ml"] == pytest.approx(phantom.truth["lung_ml"])
    if lobes:
        voxel_ml = abs(np.linalg.det(phantom.affine)) / 1000
        found = [lobe["lung_ml"] for lobe in record["severity"]["lobes"]]
        assert found == pytest.approx([np.count_nonzero(codes == code) * voxel_ml for code in (12, 13, 14, 10, 11)])


def test_dicom_comes_from_dicom_when_asked_for(analyse: Callable[..., Result], phantom_folder: Path, tmp_path: Path):
    result = analyse(phantom_folder / "dicom", "--dicom")
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path / "results" / "dicom_results") >= {"lungs.seg.dcm", "regions.seg.dcm", "report.sr.dcm"}
    assert analyse(phantom_folder / "dicom").code == 0
    assert not (
        tmp_path / "results" / "dicom_results"
    ).exists()  # it carried the patient's name, and was not asked for again


def test_the_series_beside_which_results_are_written_stays(
    run: Callable[..., Result], tiny_bundle: Path, phantom_folder: Path, tmp_path: Path
):
    """A series in a folder ``dicom`` of the output folder, as `data phantom` lays it down."""
    shutil.copytree(phantom_folder / "dicom", tmp_path / "dicom")
    before = names(tmp_path / "dicom")
    for more in (["--dicom"], []):
        words = ["--output", tmp_path, "--bundle", tiny_bundle, "--overwrite", *more]
        assert run("analyse", tmp_path / "dicom", *words).code == 0
        assert names(tmp_path / "dicom") == before


def test_a_failure_does_not_take_the_row_of_a_scan(analyse: Callable[..., Result], other_scan: Path, tmp_path: Path):
    """A row of a scan, and one of a damaged input; both stay when they come again."""
    inputs = [tmp_path / "case.nii.gz", tmp_path / "case2.nii.gz"]
    shutil.copy(other_scan, inputs[0])
    inputs[1].write_bytes(b"damaged")
    for _ in range(2):
        assert analyse(*inputs, "--keep-names").code == 1
        with (tmp_path / "results" / "cohort.csv").open() as file:
            good, bad = csv.DictReader(file)
        assert (good["name"], bool(good["scan_id"]), good["error"]) == ("case", True, "")
        assert (bad["name"], bad["scan_id"], bool(bad["error"])) == ("case2 (input 2)", "", True)
        assert str(tmp_path) not in bad["error"]


def test_results_that_could_not_be_sent_are_kept(analyse: Callable[..., Result], phantom_folder: Path, tmp_path: Path):
    result = analyse(phantom_folder / "dicom", "--send", "http://127.0.0.1:9/dicom-web")
    assert result.code == 1
    (line,) = result.faults
    assert "127.0.0.1:9" in line
    assert names(tmp_path / "results") == {*FILES, "dicom_results"}


def test_dicom_cannot_come_from_nifti(analyse: Callable[..., Result], other_scan: Path, tmp_path: Path):
    result = analyse(other_scan, "--dicom")
    assert result.code == 1
    assert len(result.faults) == 1
    assert "DICOM" in result.err
    assert not (tmp_path / "results").exists()


# follow-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_follow_up_is_written_beside_the_results_of_each_scan(
    run: Callable[..., Result], tiny_cascade_bundle: Path, tmp_path: Path
):
    scans = [
        make_phantom(4, (96, 96, 40), lesions=Lesions(share, 0.3)).write_nifti(tmp_path / str(share))
        for share in (0.05, 0.3)
    ]
    words = [*scans, "--output", tmp_path / "out", "--bundle", tiny_cascade_bundle, "--days", 0, 14, "--no-ranges"]
    result = run("follow-up", *words)
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path / "out") == {"1", "2", "change_1_2.nii.gz", "follow_up.html", "follow_up.json", "trend.csv"}
    record = json.loads((tmp_path / "out" / "follow_up.json").read_text())
    for scan in record["scans"]:
        own = json.loads((tmp_path / "out" / str(scan["number"]) / "analysis.json").read_text())
        assert own["scan_id"] == scan["scan_id"]
        assert own["severity"]["whole"]["lesion_ml"] == scan["figures"]["lesion_ml"]
    change = np.asarray(nib.load(tmp_path / "out" / "change_1_2.nii.gz").dataobj)
    later = np.asarray(nib.load(tmp_path / "out" / "2" / "lesions.nii.gz").dataobj)
    assert np.array_equal(np.isin(change, (1, 2, 4)), later != 0)


@pytest.mark.parametrize("days", [[0], [14, 0], [0, 0]])
def test_days_that_do_not_fit_are_refused_before_anything_is_read(
    run: Callable[..., Result], tiny_bundle: Path, tmp_path: Path, days: list[int]
):
    words = ["a", "b", "--output", tmp_path / "out", "--bundle", tiny_bundle, "--days", *days]
    result = run("follow-up", *words)
    assert (result.code, len(result.faults)) == (2, 1)
    assert "days" in result.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def follow(run: Callable[..., Result], tiny_bundle: Path, tmp_path: Path) -> Callable[..., Result]:
    """Follow scans with a model that must not be reached: its weights are not there."""
    words = ["--output", tmp_path / "out", "--bundle", tiny_bundle, "--weights", tmp_path / "none.pt"]
    return lambda *more: run("follow-up", *more, *words)


def test_scans_that_cannot_be_followed_are_refused_before_the_model_is_loaded(
    follow: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    scan = phantom_folder / "image.nii.gz"
    for words, message in (
        ((scan, tmp_path / "missing.nii.gz"), "missing.nii.gz"),
        ((scan, scan), "scans 1 and 2 are the same"),
        ((scan, other_scan, "--series", "1"), "1 series were given for 2 scans: give one for each scan."),
        ((scan, scan, "--series", "-", "-"), "scans 1 and 2 are the same"),
        ((scan, phantom_folder / "dicom", "--series", "-", "7"), "none of them is 7"),
    ):
        result = follow(*words)
        assert (result.code, len(result.faults)) == (2, 1)
        assert message in result.err
        assert not (tmp_path / "out").exists()


def test_results_of_other_scans_are_seen_before_the_model_is_loaded(
    follow: Callable[..., Result], phantom_folder: Path, other_scan: Path, tmp_path: Path
):
    scan = phantom_folder / "image.nii.gz"
    kept = tmp_path / "out" / "2" / "analysis.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"scan_id": "0123"}')
    result = follow(scan, other_scan)
    assert (result.code, len(result.faults)) == (2, 1)
    assert "results of another scan (0123)" in result.err
    assert kept.read_text() == '{"scan_id": "0123"}'
    result = follow(scan, other_scan, "--overwrite")
    assert "none.pt" in result.err


# masks and scores ----------------------------------------------------------------------------------------------------


def test_two_masks_are_compared(run: Callable[..., Result], tmp_path: Path):
    """Cubes of 4 voxels, shifted by one: 48 of 64 voxels in common."""
    for name, start in (("mask", 2), ("reference", 3)):
        mask = np.zeros((12, 12, 12), np.uint8)
        mask[start : start + 4, 4:8, 4:8] = 1
        nib.save(nib.Nifti1Image(mask, np.diag([2, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    result = run(
        "compare-masks", tmp_path / "mask.nii.gz", tmp_path / "reference.nii.gz", "--json", tmp_path / "c.json"
    )
    assert (result.code, result.err) == (0, "")
    assert "0.750" in result.out
    whole = json.loads((tmp_path / "c.json").read_text())["whole"]
    assert (whole["dice"], whole["hausdorff_mm"], whole["difference_ml"]) == (0.75, 2.0, 0.0)


def test_codes_of_masks_are_called_as_their_header_says(run: Callable[..., Result], tmp_path: Path):
    scan = CTScan(np.zeros((4, 4, 4), np.float32), np.eye(4), SourceFacts("NIfTI", 1))
    for name in ("mask", "reference"):
        sides = np.repeat([[[1]], [[2]]], 2, axis=0) * np.ones(scan.shape, int)
        write_mask(sides, scan, tmp_path / f"{name}.nii.gz", {1: "right lung", 2: "left lung"})
    words = ["compare-masks", tmp_path / "mask.nii.gz", tmp_path / "reference.nii.gz"]
    assert "\nleft lung " in run(*words).out
    assert "\nsinistra " in run(*words, "--codes", "1=dextra", "2=sinistra").out


def test_names_that_do_not_cover_both_masks_are_not_used(run: Callable[..., Result], tmp_path: Path):
    scan = CTScan(np.zeros((4, 4, 4), np.float32), np.eye(4), SourceFacts("NIfTI", 1))
    lesion = np.ones(scan.shape, np.uint8)
    write_mask(lesion, scan, tmp_path / "mask.nii.gz", {1: "lesion"})
    lesion[2:] = 2
    nib.save(nib.Nifti1Image(lesion, np.eye(4)), tmp_path / "reference.nii.gz")
    result = run("compare-masks", tmp_path / "mask.nii.gz", tmp_path / "reference.nii.gz")
    assert (result.code, result.err) == (0, "")
    assert "ground glass" in result.out


def test_masks_on_two_grids_are_refused(run: Callable[..., Result], tmp_path: Path):
    for name, size in (("mask", 8), ("reference", 9)):
        nib.save(nib.Nifti1Image(np.ones((size, 8, 8), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    result = run("compare-masks", tmp_path / "mask.nii.gz", tmp_path / "reference.nii.gz")
    assert result.code == 2
    (line,) = result.faults
    assert "lies on another grid" in line


def test_scores_are_evaluated(run: Callable[..., Result], tmp_path: Path):
    rows = ["score,outcome", *(f"{score},{name}" for score, name in ((5, "mild"), (22, "severe"), (30, "severe")))]
    (tmp_path / "table.csv").write_text("\n".join([*rows, "25,regular"]) + "\n")
    words = ["--score", "score", "--outcome", "outcome", "--positive", "severe", "--cut-off", 19.5]
    result = run("evaluate-scores", tmp_path / "table.csv", *words, "--output", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert "AUC 0.750" in result.out  # of four pairs one is wrong
    assert names(tmp_path / "out") == {"evaluation.json", "roc.png"}


# demo ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tiny_cascade_bundle: Path) -> list[list[str]]:
    """The commands of the demo, which are not run: only what its last step reads is made."""
    from covid_monai import demo

    commands: list[list[str]] = []

    def step(title: str, *words: object) -> None:
        commands.append([str(word) for word in words])
        if "analyse" in words:
            results, patient = Path(str(words[words.index("--output") + 1])), Path(str(words[1])).parent
            write_truth_and_finding(patient, results)

    monkeypatch.setattr(demo, "_step", step)
    monkeypatch.setattr(demo, "default_bundle", lambda: tiny_cascade_bundle)
    return commands


def write_truth_and_finding(patient: Path, results: Path) -> None:
    """Ten voxels of ground glass and ten of consolidation; of the former eight are found, of the latter five."""
    truth, found = np.zeros((4, 10, 1), np.uint8), np.zeros((4, 10, 1), np.uint8)
    truth[0], truth[1] = 1, 2
    found[0, :8], found[1, :5], found[1, 5:] = 1, 2, 1
    for folder, mask in ((patient, truth), (results, found)):
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "lesions.nii.gz")
    known = {"lesion_ml": 20, "ground_glass_ml": 10, "consolidation_ml": 10, "lung_ml": 100, "lesion_share": 0.2}
    (patient / "truth.json").write_text(json.dumps(known))
    figures = {"lesion_ml": 18, "ground_glass_ml": 13, "consolidation_ml": 5, "lung_ml": 98, "lesion_share": 0.1837}
    (results / "analysis.json").write_text(
        json.dumps({"severity": {"whole": figures, "ct_ss": {"score": 7, "maximum": 40}}})
    )


def test_the_demo_analyses_with_the_shipped_model_and_compares_each_class(
    run: Callable[..., Result], steps: list[list[str]], tmp_path: Path
):
    folder = tmp_path / "demo"
    result = run("demo", "--output", folder)
    assert (result.code, result.err) == (0, "")
    phantom, analyse = steps
    assert phantom[:4] == ["data", "phantom", "--output", str(folder / "patient")]
    assert analyse == ["analyse", str(folder / "patient" / "dicom"), "--output", str(folder / "results")]
    assert str(folder / "results" / "report.html") in result.out
    table = {line[:28].strip(): line[28:].split() for line in result.out.splitlines()}
    assert table["lesions (mL)"] == ["18", "20", "0.947"]  # 2 * 18 / (18 + 20)
    assert table["ground glass (mL)"] == ["13", "10", "0.696"]  # 2 * 8 / (13 + 10)
    assert table["consolidation (mL)"] == ["5", "10", "0.667"]  # 2 * 5 / (5 + 10)
    assert table["lungs (mL)"] == ["98", "100"]
    assert table["lesion share of the lungs"] == ["18.4%", "20.0%"]


def test_the_demo_wants_a_folder_of_its_own(run: Callable[..., Result], steps: list[list[str]], tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    result = run("demo", "--output", tmp_path)
    assert (result.code, steps) == (2, [])
    assert result.faults == [f"covid-monai: {tmp_path} is not empty: remove it, or choose another folder."]
    assert names(tmp_path) == {"mine.txt"}


def test_the_demo_begins_nothing_without_the_shipped_weights(
    run: Callable[..., Result], steps: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tiny_cascade_bundle: Path,
):  # fmt: skip
    from covid_monai import demo

    shutil.copytree(tiny_cascade_bundle / "configs", tmp_path / "bare" / "configs")
    monkeypatch.setattr(demo, "default_bundle", lambda: tmp_path / "bare")
    result = run("demo", "--output", tmp_path / "demo")
    assert (result.code, steps) == (2, [])
    (line,) = result.faults
    assert line.startswith(f"covid-monai: no weights at {tmp_path}/bare/models/model.pt: install the package again")
    assert not (tmp_path / "demo").exists()


def test_a_step_of_the_demo_is_shown_and_a_failing_one_ends_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from covid_monai import demo

    with pytest.raises(ValueError, match="the step 'a scan that is not there' failed: its message stands above"):
        demo._step("a scan that is not there", "compare-masks", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    shown = capsys.readouterr()
    assert f"$ covid-monai compare-masks {tmp_path}/a.nii.gz {tmp_path}/b.nii.gz" in shown.out
    assert len(shown.err.splitlines()) == 1


# data ----------------------------------------------------------------------------------------------------------------


def test_known_data_sets_are_listed_with_licence_and_layout(run: Callable[..., Result]):
    from covid_monai.datasets import DATASETS

    result = run("data", "list")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for name, known in DATASETS.items():
        assert name in lines
        assert f"  {known.title}" in lines
        assert f"  licence: {known.licence}" in lines
        assert f"  source:  {known.layout or 'none needed'}" in lines


def test_a_data_set_is_prepared_and_added_to(run: Callable[..., Result], tmp_path: Path):
    out = tmp_path / "data" / "datalist.json"
    result = run("data", "prepare", "phantom", "--out", out, *SMALL_PHANTOMS)
    assert (result.code, result.err) == (0, "")
    counts = {side: len(load_datalist(out)[side]) for side in ("training", "validation", "testing")}
    assert counts == {"training": 2, "validation": 2, "testing": 2}
    table = [line.split() for line in result.out.splitlines()]
    assert [row[:2] for row in table[1:4]] == [["training", "2"], ["validation", "2"], ["testing", "2"]]
    assert table[4] == ["unlabelled", "0", "-", "0"]
    assert f"written: {out}" in result.out
    assert run("data", "prepare", "phantom", "--out", out, "--append", "--seed", 1, *SMALL_PHANTOMS).code == 0
    assert len(load_datalist(out)["training"]) == 4


def test_data_goes_to_the_unlabelled_side_when_asked_for(run: Callable[..., Result], tmp_path: Path):
    out = tmp_path / "datalist.json"
    result = run("data", "prepare", "phantom", "--out", out, "--unlabelled", *SMALL_PHANTOMS)
    assert (result.code, result.err) == (0, "")
    table = [line.split() for line in result.out.splitlines()]
    assert table[1] == ["training", "0", "0", "0"]
    assert table[4] == ["unlabelled", "2", "-", "1"]
    assert all("label" not in item for item in load_datalist(out)["unlabelled"])


def test_the_seed_decides_the_data(run: Callable[..., Result], tmp_path: Path):
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.json"
        assert run("data", "prepare", "phantom", "--out", out, "--seed", seed, *SMALL_PHANTOMS).code == 0
        hashes.append(load_datalist(out)["data_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["nothing"], "unknown data set 'nothing': known are "),
        (["medseg_sirm100"], "medseg_sirm100 needs a source folder"),
        (["medseg_sirm100", "--source", "nowhere"], "is not a folder"),
        (["phantom", "--source", "."], "takes no source"),
        (["phantom", "--option", "people=3"], "phantom has no option people"),
        (["phantom", "--option", "patients=0"], "0 patients"),
    ],
)
def test_data_that_cannot_be_prepared_is_2_and_leaves_nothing(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], fault: str
):
    monkeypatch.chdir(tmp_path)
    result = run("data", "prepare", *words, "--out", tmp_path / "datalist.json")
    assert (result.code, result.out) == (2, "")
    assert len(result.faults) == 1
    assert result.err.startswith("covid-monai: ")
    assert fault in result.err
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("patients", "'patients' is not KEY=VALUE"),
        ("patients=[", "is not YAML"),
        ("seed=3", "seed is no option of a data set, see --help"),
        ("unlabelled=true", "unlabelled is no option of a data set, see --help"),
        ("name=folder", "name is no option of a data set, see --help"),
    ],
)
def test_options_that_are_none_are_2(run: Callable[..., Result], tmp_path: Path, option: str, fault: str):
    result = run("data", "prepare", "phantom", "--out", tmp_path / "datalist.json", "--option", option)
    assert result.code == 2
    assert fault in result.faults[-1]
    assert not names(tmp_path)


@pytest.mark.parametrize(("kind", "scan"), [("dicom", "dicom"), ("nifti", "image.nii.gz")])
def test_a_phantom_is_written_with_its_truth(run: Callable[..., Result], tmp_path: Path, kind: str, scan: str):
    from covid_monai.ct import read_ct

    result = run("data", "phantom", "--output", tmp_path, "--format", kind, "--shape", 48, 40, 6, "--seed", 3,
                 "--lesion-share", 0.2, "--consolidation", 0.5)  # fmt: skip
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path) == {scan, "lesions.nii.gz", "lungs.nii.gz", "truth.json"}
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert json.loads(result.out[result.out.index("{") :]) == truth
    assert truth["lesion_share"] == pytest.approx(0.2, abs=0.05)
    assert truth["consolidation_ml"] / truth["lesion_ml"] == pytest.approx(0.5, abs=0.15)
    lesions = nib.load(tmp_path / "lesions.nii.gz")
    voxel_ml = abs(np.linalg.det(lesions.affine)) / 1000
    assert np.count_nonzero(lesions.dataobj) * voxel_ml == pytest.approx(truth["lesion_ml"])
    assert sorted(read_ct(tmp_path / scan).shape) == [6, 40, 48]


@pytest.mark.parametrize(
    "words", [["--shape", "1", "40", "6"], ["--lesion-share", "0.9"], ["--consolidation", "-0.1"], ["--seed", "-1"]]
)
def test_a_phantom_that_cannot_be_is_2(run: Callable[..., Result], tmp_path: Path, words: list[str]):
    result = run("data", "phantom", "--output", tmp_path / "phantom", *words)
    assert (result.code, result.out) == (2, "")
    assert len(result.faults) == 1
    assert not (tmp_path / "phantom").exists()


def test_a_phantom_is_not_mixed_into_another_series(run: Callable[..., Result], tmp_path: Path):
    words = ("data", "phantom", "--output", tmp_path, "--shape", 48, 40, 4)
    assert run(*words).code == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    result = run(*words, "--seed", 1)
    assert result.code == 2
    assert len(result.faults) == 1
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
