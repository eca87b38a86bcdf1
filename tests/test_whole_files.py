# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

from pathlib import Path

import pytest

from covid_monai.whole_files import replacing, unfinished_folder, write_whole


def test_a_file_takes_the_place_of_another_under_its_own_name(tmp_path: Path):
    path = tmp_path / "mask.nii.gz"
    path.write_text("old")
    with replacing(path) as unfinished:
        assert unfinished.name == "mask.nii.gz"  # some writers go by the suffix
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "figures.json"
    assert write_whole(path, b"old") == path
    with pytest.raises(RuntimeError), replacing(path) as unfinished:
        unfinished.write_text("hal")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "never"):
        pass
    assert not any(tmp_path.iterdir())


def test_what_is_not_moved_out_of_an_unfinished_folder_goes_with_it(tmp_path: Path):
    with unfinished_folder(tmp_path) as folder:
        (folder / "whole").write_text("whole")
        (folder / "half").write_text("ha")
        (folder / "whole").rename(tmp_path / "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "whole"]


def test_files_have_the_usual_permissions(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.touch()
    assert write_whole(tmp_path / "whole", b"").stat().st_mode == plain.stat().st_mode
