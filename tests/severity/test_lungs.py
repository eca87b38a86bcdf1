# SPDX-License-Identifier: Apache-2.0
import csv
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from covid_monai.datasets.phantom import Lesions, Phantom, make_phantom, upright
from covid_monai.severity import GivenLungs, Lungs, ThresholdLungs, dice
from covid_monai.severity.filling import REACH_ALONG_MM
from covid_monai.severity.lung_checks import NO_LUNG, SHIFTED_UP, TOO_DARK
from covid_monai.severity.lungs import check_sides, sides_of_lobes, unite_lesions
from tests.severity.chest import AIR, GAS, LUNG, TISSUE, Spacing, chest, ellipsoid, none

COARSE = (6.0, 3.0, 3.0)
find = ThresholdLungs()


def volumes_ml(mask: np.ndarray, spacing: Spacing) -> list[float]:
    """Of the right and the left lung."""
    return [float(np.count_nonzero(mask == code) * np.prod(spacing) / 1000) for code in (1, 2)]


# ellipsoids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [COARSE, (10.0, 0.75, 0.75), (4.0, 4.0, 2.0), (1.0, 4.0, 4.0), (5.0, 1.7, 1.6)])
def test_the_volumes_of_ellipsoids_are_found(spacing: Spacing):
    hu, lungs, _ = chest(spacing)
    found = find(hu, spacing, none(hu))
    assert (found.mask.shape, found.mask.dtype) == (hu.shape, np.uint8)
    # 4/3 pi a b c
    assert volumes_ml(found.mask, spacing) == pytest.approx(
        [4 / 3 * np.pi * 100 * 80 * 55 / 1000, 4 / 3 * np.pi * 90 * 75 * 50 / 1000], rel=0.03
    )
    for code in (1, 2):
        assert dice(found.mask == code, lungs == code) > 0.975
    assert (found.method, found.lobes, found.warnings, found.cut) == ("threshold", None, (), ())


@pytest.mark.parametrize("spacing", [COARSE, (1.0, 4.0, 4.0)])
def test_only_slices_near_the_lungs_need_a_look(spacing: Spacing):
    hu, lungs, _ = chest(spacing)
    abdomen = np.where(hu == LUNG, np.float32(TISSUE), hu)
    long = np.concatenate([abdomen, hu, abdomen])
    with_lung = np.flatnonzero(lungs.any(axis=(1, 2))) + len(hu)
    slices = find.begin(long, spacing).slices
    reach = int(np.ceil(2 * REACH_ALONG_MM / spacing[0]))
    assert slices.start == pytest.approx(with_lung[0] - reach, abs=1)
    assert slices.stop == pytest.approx(with_lung[-1] + 1 + reach, abs=1)
    assert slices.start > 0
    assert slices.stop < len(long)
    given = np.concatenate([np.zeros_like(lungs), lungs, np.zeros_like(lungs)])
    there = with_lung[0] - reach, with_lung[-1] + 1 + reach
    assert GivenLungs(lungs=given).begin(long, spacing).slices == slice(*there)
    assert find.begin(abdomen, spacing).slices == slice(0, len(abdomen))  # no lung: look everywhere


@pytest.mark.parametrize("spacing", [COARSE, (0.6, 6.0, 6.0)])
def test_lesions_in_other_slices_would_not_change_the_lungs(spacing: Spacing):
    hu, _, mm = chest(spacing)
    abdomen = np.where(hu == LUNG, np.float32(TISSUE), hu)
    long = np.concatenate([abdomen, hu, abdomen])
    everywhere = np.concatenate([np.ones(hu.shape, np.uint8)] * 3) * (np.abs(np.tile(mm[2], (3, 1, 1)) - 70) < 20)
    slices = find.begin(long, spacing).slices
    seen = np.zeros_like(everywhere)
    seen[slices] = everywhere[slices]
    assert everywhere.sum() > seen.sum()
    assert np.array_equal(find(long, spacing, everywhere).mask, find(long, spacing, seen).mask)


@pytest.mark.parametrize("dz", [0.6, 1.0, 1.68, 2.5, 2.51, 2.55, 4.9, 5.1, 6.0])
def test_lesions_may_belong_to_the_lungs_where_a_first_look_looks(dz: float):
    spacing = (dz, 4.0, 4.0)
    hu, lungs, _ = chest(spacing)
    abdomen = np.where(hu == LUNG, np.float32(TISSUE), hu)
    search = find.begin(np.concatenate([abdomen, hu, abdomen]), spacing)
    looked, wanted = search.slices, search.search()
    with_lung = np.flatnonzero(lungs.any(axis=(1, 2))) + len(hu)
    reach = int(np.ceil(REACH_ALONG_MM / spacing[0]))
    assert wanted.start == pytest.approx(with_lung[0] - reach, abs=1)
    assert wanted.stop == pytest.approx(with_lung[-1] + 1 + reach, abs=1)
    assert looked.start < wanted.start
    assert looked.stop > wanted.stop


def test_a_search_that_is_over_holds_no_scan():
    hu = chest()[0]
    alive = weakref.ref(hu)
    gc.disable()
    try:
        search = find.begin(hu, COARSE)
        search.search()
        search.finish(none(hu))
        del search, hu
        assert alive() is None
    finally:
        gc.enable()


def test_what_a_first_look_misses_is_found_by_the_search():
    spacing = (1.0, 4.0, 4.0)
    hu, lungs, _ = chest(spacing)
    inside = np.flatnonzero(lungs.any(axis=(1, 2)))
    middle = hu[inside[len(inside) // 2]]
    tissue = np.where(middle == LUNG, np.float32(TISSUE), middle)
    long = np.stack([middle] * 50 + [tissue] * 101 + [middle] * 4 + [tissue] * 45)  # 151 to 154, between two fives
    search = find.begin(long, spacing)
    assert search.slices.stop < 151
    assert search.search().stop > 154


def test_lesions_of_another_shape_are_refused():
    hu, lungs, _ = chest()
    for finder in (find, GivenLungs(lungs=lungs)):
        with pytest.raises(ValueError, match="they must lie on one grid"):
            finder(hu, COARSE, none(hu)[1:])


def test_vessels_and_dense_parts_within_the_lung_are_lung():
    hu, lungs, mm = chest()
    within = ellipsoid(mm, (0, 0, -70), (60, 30, 20)) | ellipsoid(mm, (20, 10, 70), (12, 12, 12))
    hu[within] = TISSUE
    found = find(hu, COARSE, none(hu)).mask
    assert np.array_equal(found[within], lungs[within])


def test_a_shallow_dense_part_at_the_pleura_is_lung():
    hu, lungs, mm = chest()
    shallow = (lungs > 0) & (np.abs(mm[1]) < 5) & (mm[2] < -112) & (np.abs(mm[0]) < 30)  # 9 mm wide, 13 mm deep
    assert shallow.sum() > 50
    hu[shallow] = TISSUE
    assert (find(hu, COARSE, none(hu)).mask[shallow] == 1).mean() > 0.7


def test_a_wide_dense_part_at_the_pleura_is_lung_where_it_is_lesion():
    hu, lungs, mm = chest()
    wide = (lungs > 0) & (np.abs(mm[1]) < 30) & (mm[2] < -105) & (np.abs(mm[0]) < 30)  # 60 mm wide, up to 20 mm deep
    hu[wide] = TISSUE
    assert find(hu, COARSE, none(hu)).mask[wide].mean() < 0.2
    assert (find(hu, COARSE, wide.astype(np.uint8)).mask[wide] == 1).all()


def test_consolidated_bases_are_lung_with_the_air_that_is_left_in_them():
    hu, lungs, mm = chest()
    base = (lungs > 0) & (mm[0] < -20) & (mm[1] > 0)
    island = ellipsoid(mm, (-50, 30, 70), (14, 12, 12)) & (lungs > 0)
    hu[base & ~island] = TISSUE
    found = find(hu, COARSE, (2 * (base & ~island)).astype(np.uint8)).mask
    assert (found[island] == 2).all()
    assert dice(found, lungs) > 0.96
    assert np.count_nonzero(found[lungs > 0] != lungs[lungs > 0]) < 0.08 * np.count_nonzero(lungs)


def test_a_false_lesion_does_not_pull_the_liver_in():
    hu, lungs, mm = chest()
    liver = (
        (mm[0] < 0) & (np.hypot(mm[1], mm[2] + 60) < 65) & (lungs != 1)
    )  # runs on below the lung, to the lowest slice
    found = find(hu, COARSE, liver.astype(np.uint8))
    lowest = mm[0][lungs == 1].min()
    taken = liver & (found.mask > 0)
    assert taken[(mm[0] < lowest) & (mm[0] > lowest - 13)].any()
    assert not taken[mm[0] < lowest - REACH_ALONG_MM].any()
    assert "lesion drawn into liver or chest wall; look at the picture" in found.warnings[0]


def test_a_false_lesion_in_the_chest_wall_stays_out():
    hu, lungs, mm = chest()
    body = hu > -500
    wall = body & (np.abs(mm[0]) < 60) & (mm[2] < -130) & (lungs == 0)
    apart = wall & (mm[2] < -142)
    found = find(hu, COARSE, apart.astype(np.uint8))
    assert not found.mask[apart].any()
    assert found.warnings[0].startswith("100 % of the lesion volume lies outside the lungs and is left out")


def test_gas_with_a_wall_around_it_is_out():
    hu, lungs, mm = chest((5.0, 1.5, 1.5))
    trachea = (np.hypot(mm[1] + 10, mm[2]) < 9) & (mm[0] > 20)
    stomach = ellipsoid(mm, (-70, -40, 20), (30, 30, 28)) & (lungs == 0)
    bronchus = (np.hypot(mm[1] + 10, mm[0] - 20) < 6) & (np.abs(mm[2]) < 25)  # reaches both lungs
    hu[trachea | stomach | bronchus] = GAS
    found = find(hu, (5.0, 1.5, 1.5), none(hu)).mask
    assert found[trachea | stomach].mean() < 0.001
    assert not found[bronchus & (np.abs(mm[2]) < 14)].any()
    assert dice(found, lungs) > 0.98


@pytest.mark.parametrize("padding", [-1024.0, -2000.0, -3024.0])
def test_padding_outside_a_round_field_of_view_is_out(padding: float):
    hu, lungs, mm = chest()
    hu[np.hypot(mm[1], mm[2]) > 148] = padding
    assert np.array_equal(find(hu, COARSE, none(hu)).mask, find(chest()[0], COARSE, none(hu)).mask)
    hu[outside := np.hypot(mm[1], mm[2]) > 100] = padding  # cuts both lungs
    lungs[outside] = 0
    found = find(hu, COARSE, none(hu)).mask
    assert dice(found, lungs) > 0.92  # less a rim along the edge
    assert not found[outside].any()


def test_a_couch_with_foam_in_it_is_out():
    hu, lungs, mm = chest()
    couch = (mm[1] > 112) & (mm[1] < 140)
    hu[couch] = -880
    hu[couch & ((mm[1] < 116) | (mm[1] > 136))] = TISSUE
    assert np.array_equal(find(hu, COARSE, none(hu)).mask > 0, find(chest()[0], COARSE, none(hu)).mask > 0)
    hu[couch] = -880
    assert not find(hu[:, :-8], COARSE, none(hu[:, :-8])).mask[:, 137:].any()  # the frame cuts the foam, and no shell
    assert lungs.any()


def test_a_body_that_reaches_the_frame():
    hu, lungs, _ = chest()
    cut = (slice(None), slice(15, 85), slice(20, 113))  # all skin is out of view
    found = find(np.ascontiguousarray(hu[cut]), COARSE, none(hu[cut])).mask
    assert dice(found, lungs[cut]) > 0.975


def test_lungs_that_reach_the_frame():
    hu, lungs, mm = chest()
    cut = (slice(None), slice(15, 85), slice(40, 95))
    assert (lungs[cut][:, :, 0] == 1).any()
    assert (lungs[cut][:, :, -1] == 2).any()
    found = find(np.ascontiguousarray(hu[cut]), COARSE, none(hu[cut]))
    assert dice(found.mask, lungs[cut]) > 0.97
    assert mm.size


@pytest.mark.parametrize(("code", "name"), [(1, "right"), (2, "left")])
def test_one_lung_keeps_its_side(code: int, name: str):
    hu, lungs, _ = chest()
    hu[lungs == 3 - code] = TISSUE
    found = find(hu, COARSE, none(hu)).mask
    assert set(np.unique(found)) == {0, code}, name


@pytest.mark.parametrize("slices", [1, 3])
def test_few_slices(slices: int):
    hu, lungs, _ = chest()
    part = slice(18, 18 + slices)
    found = find(hu[part], COARSE, none(hu[part]))
    assert dice(found.mask == 1, lungs[part] == 1) > 0.975
    assert dice(found.mask == 2, lungs[part] == 2) > 0.975
    assert found.cut == tuple((side, end) for side in ("right_lung", "left_lung") for end in ("lower", "upper"))


@pytest.mark.parametrize("size", [(96, 96), (97, 101)])
def test_sides_that_the_blocks_do_not_divide_are_covered(size: tuple[int, int]):
    hu = np.full((3, *size), TISSUE, dtype=np.float32)
    lungs = np.zeros(hu.shape, dtype=bool)
    lungs[:, 20:-20, 10:40] = lungs[:, 20:-20, -40:-10] = True
    hu[lungs] = LUNG
    found = find(hu, (5.0, 0.7, 0.7), none(hu)).mask
    assert dice(found, lungs) > 0.97


# without lungs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "more"), [(TISSUE, ()), (AIR, (TOO_DARK,)), (-3024.0, (TOO_DARK,))])
def test_without_a_body_or_air_in_it_there_is_no_lung(value: float, more: tuple[str, ...]):
    hu = np.full((4, 20, 30), value, dtype=np.float32)
    found = find(hu, (5.0, 3.0, 3.0), none(hu))
    assert found.mask.shape == (4, 20, 30)
    assert not found.mask.any()
    assert found.warnings == (NO_LUNG, *more)
    assert found.cut == ()


def test_a_phantom_of_air_has_no_lung():
    hu, lungs, _ = chest()
    hu[lungs > 0] = AIR
    found = find(hu, COARSE, none(hu))
    assert not found.mask.any()
    assert found.warnings == (NO_LUNG,)


def test_a_head_has_no_lung():
    hu, _, mm = chest((4.0, 1.5, 1.5))
    hu[:] = AIR
    rng = np.random.default_rng(0)
    hu[ellipsoid(mm, (0, 0, 0), (110, 95, 75))] = 900
    hu[ellipsoid(mm, (0, 0, 0), (102, 88, 68))] = 35
    for side in (-1, 1):
        hu[ellipsoid(mm, (-60, -60, side * 30), (18, 15, 14))] = GAS  # maxillary sinuses
        cells = ellipsoid(mm, (-50, 10, side * 60), (14, 12, 8))  # mastoids
        hu[cells] = rng.choice([-900, -500, 100, 400], int(cells.sum()))
    nose = ellipsoid(mm, (-60, -70, 0), (25, 25, 9))
    hu[nose] = rng.choice([-1000, -700, 0], int(nose.sum()))
    hu[ellipsoid(mm, (-95, -20, 0), (20, 9, 12))] = GAS  # pharynx
    found = find(hu, (4.0, 1.5, 1.5), none(hu))
    assert found.warnings == (NO_LUNG,)


@pytest.mark.parametrize(("shift", "why"), [(1024, SHIFTED_UP), (-1024, TOO_DARK)])
def test_shifted_hu_are_named(shift: float, why: str, phantom: Phantom):
    hu = np.maximum(upright(phantom.hu).astype(np.float32) + shift, -1024)
    found = find(hu, spacing_of(phantom), none(hu))
    assert not found.mask.any()
    assert found.warnings == (NO_LUNG, why)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((4, 5), (1.0, 1.0, 1.0)), ((4, 5, 6), (1.0, 0.0, 1.0)), ((1, 4, 5, 6), (1.0, 1.0, 1.0))]
)
def test_other_arrays_and_spacings_are_refused(shape: tuple[int, ...], spacing: Spacing):
    with pytest.raises(ValueError, match=r"expected \(Z, H, W\) and positive spacing in mm"):
        find(np.zeros(shape, dtype=np.float32), spacing, np.zeros(shape, dtype=np.uint8))


def test_lesions_on_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"the lesions have shape \(4, 5, 7\), the scan \(4, 5, 6\)"):
        find(np.zeros((4, 5, 6), dtype=np.float32), COARSE, np.zeros((4, 5, 7), dtype=np.uint8))


# phantoms ------------------------------------------------------------------------------------------------------------


def spacing_of(phantom: Phantom) -> Spacing:
    x, y, z = np.diag(phantom.affine)[:3].tolist()
    return z, y, x


def check_phantom(phantom: Phantom, least: float, points: float) -> Lungs:
    """Lung Dice at least ``least`` and involved share within ``points`` of the phantom's; nothing is changed."""
    hu, lesions, truth = upright(phantom.hu).astype(np.float32), upright(phantom.lesions), upright(phantom.lungs)
    before = hu.copy(), lesions.copy()
    found = find(hu, spacing_of(phantom), lesions)
    assert np.array_equal(hu, before[0])
    assert np.array_equal(lesions, before[1])
    assert dice(found.mask, truth) >= least
    exchanged = (found.mask > 0) & (truth > 0) & (found.mask != truth)
    assert np.count_nonzero(exchanged) < 0.001 * np.count_nonzero(truth)
    share = np.count_nonzero(lesions[found.mask > 0]) / np.count_nonzero(found.mask)
    assert share == pytest.approx(phantom.truth["lesion_share"], abs=points)
    return found


def test_lungs_of_the_phantom_are_found(phantom: Phantom):
    assert check_phantom(phantom, 0.97, 0.01).warnings == ()


@pytest.mark.parametrize("lesions", [Lesions(0.0), Lesions(0.6, 0.8)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_lungs_of_phantoms_are_found_whatever_their_lesions(seed: int, lesions: Lesions):
    check_phantom(make_phantom(seed, (128, 128, 48), lesions=lesions), 0.97, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.6])
@pytest.mark.parametrize("consolidation", [0.2, 0.8])
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_lungs_of_fine_phantoms_are_found(seed: int, share: float, consolidation: float):
    check_phantom(make_phantom(seed, (256, 256, 48), lesions=Lesions(share, consolidation)), 0.97, 0.01)


def test_metal_in_the_chest_wall(phantom: Phantom):
    hu = upright(phantom.hu).astype(np.float32)
    rows, columns = np.ogrid[: hu.shape[1], : hu.shape[2]]
    away = np.hypot(rows - 30, columns - 30)
    hu[8] = np.clip(hu[8] + 500 * np.cos(6 * np.arctan2(rows - 30, columns - 30)) / (1 + away / 4), -1024, 3071)
    hu[8, away < 2] = 3071
    lesions = upright(phantom.lesions)
    plain = find(upright(phantom.hu).astype(np.float32), spacing_of(phantom), lesions).mask
    assert dice(find(hu, spacing_of(phantom), lesions).mask, plain) > 0.98


def test_a_mirrored_scan_has_mirrored_lungs(phantom: Phantom):
    hu, lesions = upright(phantom.hu).astype(np.float32), upright(phantom.lesions)
    plain = find(hu, spacing_of(phantom), lesions).mask
    mirrored = find(np.ascontiguousarray(hu[..., ::-1]), spacing_of(phantom), lesions[..., ::-1]).mask[..., ::-1]
    assert dice(plain == 1, mirrored == 2) > 0.99
    assert dice(plain == 2, mirrored == 1) > 0.99


@settings(max_examples=5, deadline=None)
@given(down=st.integers(-8, 7), right=st.integers(-6, 6))
def test_the_lungs_go_where_the_body_goes(phantom: Phantom, down: int, right: int):
    hu, lesions = upright(phantom.hu).astype(np.float32), upright(phantom.lesions)
    plain = find(hu, spacing_of(phantom), lesions).mask
    moved = find(np.roll(hu, (down, right), (1, 2)), spacing_of(phantom), np.roll(lesions, (down, right), (1, 2))).mask
    assert dice(np.roll(plain, (down, right), (1, 2)), moved) > 0.99


# real scans ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def radiopaedia(shared_data: Callable[[str], Path]) -> Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """HU, lesions and lungs (Z, H, W) of a volume."""
    folder = shared_data("medseg_radiopaedia9")
    lines = {row["volume"]: row for row in csv.DictReader((folder / "volumes.csv").open())}

    def read(volume: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        line = lines[str(volume)]
        grey, codes, lungs = (
            np.stack([np.asarray(Image.open(file)) for file in sorted((folder / name).glob(f"v{volume}_z*.png"))])
            for name in ("images", "masks", "lung_masks")
        )
        hu = grey * np.float32(line["hu_slope"]) + np.float32(line["hu_intercept"])
        return hu, np.isin(codes, (1, 2)).astype(np.uint8), lungs != 0

    return read


@pytest.mark.slow
def test_lungs_of_covid_19_scans_are_those_of_the_reference(radiopaedia: Callable):
    scores = []
    for volume in range(1, 10):
        hu, lesions, reference = radiopaedia(volume)
        spacing = (3.0 if volume == 3 else 6.0, 0.68, 0.68)
        for known in (lesions, none(lesions)):
            mask = find(hu, spacing, known).mask
            scores.append(dice(mask, reference))
            share, expected = (
                np.count_nonzero(lesions[lungs != 0]) / np.count_nonzero(lungs) for lungs in (mask, reference)
            )
            assert share == pytest.approx(expected, abs=0.02 if known.any() else 0.03), volume
    assert min(scores) >= 0.95
    assert np.median(scores) >= 0.97


# lungs that the user gives -------------------------------------------------------------------------------------------


def test_given_lungs_are_taken_as_they_are():
    hu, lungs, _ = chest()
    found = GivenLungs(lungs=lungs)(hu, COARSE, none(hu))
    assert np.array_equal(found.mask, lungs)
    assert (found.method, found.lobes, found.warnings, found.cut) == ("given lungs", None, (), ())


@pytest.mark.parametrize(("code", "kind"), [(1, np.uint8), (2, np.uint8), (255, np.uint8), (1, bool), (7, np.int64)])
def test_one_code_is_told_apart_by_the_scan(code: int, kind: type):
    hu, lungs, _ = chest((6.0, 1.5, 1.5))
    found = GivenLungs(lungs=(code * (lungs > 0)).astype(kind))(hu, (6.0, 1.5, 1.5), none(hu)).mask
    assert found.dtype == np.uint8
    assert np.array_equal(found, lungs)


def test_given_lobes_make_the_lungs():
    hu, lungs, mm = chest()
    upper = mm[0] > 0
    given = np.select([lungs == 2, lungs == 1], [np.where(upper, 1, 2), np.where(upper, 3, 5)], 0)  # as lungmask
    found = GivenLungs(lobes=given)(hu, COARSE, none(hu))
    assert np.array_equal(found.mask, lungs)
    ours = np.select([lungs == 2, lungs == 1], [np.where(upper, 4, 5), np.where(upper, 1, 3)])
    assert found.lobes is not None
    assert np.array_equal(found.lobes, ours)
    assert found.method == "given lobes"


def test_lesions_outside_given_lungs_are_not_theirs():
    hu, lungs, mm = chest()
    lesions = ellipsoid(mm, (0, 0, 0), (12, 12, 12)).astype(np.uint8)
    found = GivenLungs(lungs=lungs)(hu, COARSE, lesions)
    assert np.array_equal(found.mask, lungs)
    assert found.warnings[0].startswith("100 % of the lesion volume lies outside the lungs")


def test_a_lung_mask_or_a_lobe_mask():
    mask = np.ones((2, 3, 4), dtype=np.uint8)
    for masks in ({}, {"lungs": mask, "lobes": mask}):
        with pytest.raises(ValueError, match="either as a lung mask or as a lobe mask, one of the two"):
            GivenLungs(**masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 3, 4), dtype=np.uint8), "the lung mask is empty"),
        (
            np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4,
            r"holds the codes 1, 2, 3: expected 1 \(right\) and 2 \(left\)",
        ),
        (np.zeros((2, 3, 4)), "holds float64 values: give integers"),
    ],
)
def test_masks_that_are_no_lungs_are_refused(mask: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        GivenLungs(lungs=mask)


def test_codes_that_are_no_lobes_are_refused():
    with pytest.raises(ValueError, match="the lobe mask holds"):
        GivenLungs(lobes=np.full((2, 3, 4), 9, dtype=np.uint8))


def test_a_mask_of_another_shape_is_refused():
    hu, _, _ = chest()
    with pytest.raises(ValueError, match=r"the lung mask has shape \(2, 3, 4\), the scan \(40, 100, 133\)"):
        GivenLungs(lungs=np.ones((2, 3, 4), dtype=np.uint8))(hu, COARSE, none(hu))


def test_exchanged_sides_are_refused():
    hu, lungs, _ = chest()
    exchanged = np.array([0, 2, 1], dtype=np.uint8)[lungs]
    with pytest.raises(ValueError, match="the lung mask has the right lung on the patient's left"):
        GivenLungs(lungs=exchanged)(hu, COARSE, none(hu))
    check_sides(np.where(lungs == 1, 0, lungs), "the mask")  # one lung alone says nothing


@pytest.mark.parametrize("right", [1, 2])
def test_a_mask_of_both_lungs_is_not_taken_for_lobes(right: int):
    lungs = np.zeros((3, 4, 20), dtype=np.uint8)
    lungs[:, :, 2:11], lungs[:, :, 9:18] = right, 3 - right  # they overlap a little in front of the heart
    with pytest.raises(ValueError, match="as a mask of the two lungs does: give it as a lung mask"):
        GivenLungs(lobes=lungs)


def test_both_lobes_of_the_left_lung_are_lobes():
    lobes = np.zeros((3, 20, 20), dtype=np.uint8)
    lobes[:, :10, 11:17], lobes[:, 10:, 11:19] = 1, 2  # upper lobe before the lower one
    assert set(np.unique(GivenLungs(lobes=lobes).mask)) == {0, 2}


def test_sides_of_lobes():
    assert sides_of_lobes(np.arange(6, dtype=np.uint8)).tolist() == [0, 1, 1, 1, 2, 2]


def test_lesions_are_united_with_codes_of_any_kind():
    hu, lungs, mm = chest()
    dense = (lungs == 1) & (mm[2] < -105)
    lobes = np.where(dense, 0, lungs * 2).astype(np.uint8)
    united = unite_lesions(lobes, dense.astype(np.uint8), hu, COARSE)
    assert np.array_equal(united, lungs * 2)
    assert not lobes[dense].any()
