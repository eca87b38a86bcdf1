# SPDX-License-Identifier: Apache-2.0
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from covid_monai.inference.lungmask import MODELS, LungmaskLungs
from covid_monai.networks import WeightsError, save_weights
from covid_monai.severity.lung_checks import NO_LUNG
from tests.severity.chest import TISSUE, chest, none

pytest.importorskip("lungmask")

COARSE = (6.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of lungmask's own network for each model: random, with a bias to the last class."""
    from lungmask.resunet import UNet

    folder = tmp_path_factory.mktemp("lungmask")
    for name, classes in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet(
                n_classes=classes, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
            )
        network.last.bias.data[-1] = 1000
        save_weights(network.state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in MODELS}


@pytest.fixture(scope="module")
def finders(weights: dict[str, Path]) -> dict[str, LungmaskLungs]:
    return {name: LungmaskLungs(name, weights[name], "cpu") for name in MODELS}


@pytest.mark.parametrize(("name", "code", "lobe"), [("R231", 2, None), ("LTRCLobes", 1, 3)])
def test_the_network_runs_on_upright_slices(finders: dict, name: str, code: int, lobe: int | None):
    """Its last class: R231's left lung, LTRCLobes' right lower lobe."""
    hu = chest()[0][18:20]
    found = finders[name](hu, COARSE, none(hu))
    assert found.method == f"lungmask {name}"
    assert (found.mask.shape, found.mask.dtype) == (hu.shape, np.uint8)
    assert set(np.unique(found.mask)) == {0, code}
    assert (found.mask[hu > -900] == code).mean() > 0.95  # it crops to the body
    if lobe is None:
        assert found.lobes is None
    else:
        assert np.array_equal(found.lobes, lobe * (found.mask > 0))


class Answer:
    """An inferer that knows the answer."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes.astype(np.uint8)

    def apply(self, image: np.ndarray) -> np.ndarray:
        assert image.flags.c_contiguous
        assert image.dtype == np.float32
        return self.codes


def answering(finder: LungmaskLungs, codes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> LungmaskLungs:
    monkeypatch.setattr(finder, "inferer", Answer(codes))
    return finder


def test_right_and_left_are_those_of_r231(finders: dict, monkeypatch: pytest.MonkeyPatch):
    hu, lungs, _ = chest()
    found = answering(finders["R231"], lungs, monkeypatch)(hu[:, ::-1].astype(np.float64)[:, ::-1], COARSE, none(hu))
    assert np.array_equal(found.mask, lungs)
    assert (found.warnings, found.cut) == ((), ())


def test_lobes_make_the_lungs_and_take_their_lesions(finders: dict, monkeypatch: pytest.MonkeyPatch):
    hu, lungs, mm = chest()
    lesions = (lungs == 2) & (mm[2] > 100)
    hu[lesions] = TISSUE
    codes = np.select([lungs == 2, lungs == 1], [np.where(mm[0] > 0, 1, 2), np.where(mm[0] > 0, 3, 5)], 0)
    found = answering(finders["LTRCLobes"], np.where(lesions, 0, codes), monkeypatch)(hu, COARSE, lesions)
    assert np.array_equal(found.mask, lungs)
    ours = np.array([0, 4, 5, 1, 2, 3])[codes]
    assert found.lobes is not None
    assert np.array_equal(found.lobes > 0, lungs > 0)
    assert np.mean(found.lobes[lesions] == ours[lesions]) > 0.95
    assert np.array_equal(found.lobes[~lesions], ours[~lesions])


def test_no_lung(finders: dict, monkeypatch: pytest.MonkeyPatch):
    hu, lungs, _ = chest()
    for finder in finders.values():
        found = answering(finder, np.zeros_like(lungs), monkeypatch)(hu, COARSE, none(hu))
        assert found.warnings == (NO_LUNG,)
        assert found.lobes is None


def test_exchanged_sides_are_refused(finders: dict, monkeypatch: pytest.MonkeyPatch):
    hu, lungs, _ = chest()
    finder = answering(finders["R231"], np.array([0, 2, 1])[lungs], monkeypatch)
    with pytest.raises(ValueError, match="the mask of lungmask R231 has the right lung on the patient's left"):
        finder(hu, COARSE, none(hu))


def test_unknown_models_are_refused(weights: dict[str, Path]):
    with pytest.raises(ValueError, match="no lungmask model 'R232' here: give one of R231, LTRCLobes"):
        LungmaskLungs("R232", weights["R231"])


def test_weights_of_another_model_are_refused(weights: dict[str, Path]):
    with pytest.raises(WeightsError, match=r"R231\.pth holds weights for 3 classes, LTRCLobes has 6"):
        LungmaskLungs("LTRCLobes", weights["R231"])


def test_weights_are_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    with pytest.raises(WeightsError, match="no weights at"):
        LungmaskLungs("R231", tmp_path / "unet_r231.pth")
    (tmp_path / "unet_r231.pth").write_bytes(b"weights")
    with pytest.raises(WeightsError, match="has no record"):
        LungmaskLungs("R231", tmp_path / "unet_r231.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path):
    save_weights({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"other\.pth cannot be used as R231 on cpu: Error.* in loading state_dict for UNet"
    ):
        LungmaskLungs("R231", tmp_path / "other.pth", "cpu")
    save_weights({}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match=r"empty\.pth holds weights for 0 classes"):
        LungmaskLungs("R231", tmp_path / "empty.pth", "cpu")


def test_without_the_package_a_line_says_what_to_do(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lungmask.mask", None)
    with pytest.raises(ValueError, match="lungmask is not installed: install it with pip install 'covid_monai"):
        LungmaskLungs("R231", weights["R231"])


def test_warnings_of_others_are_not_silenced(finders: dict):
    assert finders
    assert not [
        entry for entry in warnings.filters if entry[0] == "ignore" and entry[2] is UserWarning and not entry[1]
    ]
