# SPDX-License-Identifier: Apache-2.0
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_monai.tracking import hashed_id, identifiers


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's key will be: no variable gives one, and the file is not there yet."""
    monkeypatch.delenv("COVID_MONAI_ID_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "covid_monai" / "id_key"


def test_it_is_the_published_hmac(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COVID_MONAI_ID_KEY", "Jefe")  # RFC 4231, test case 2
    assert hashed_id("what do ya want for nothing?") == "5bdcc146bf60754e"


@given(st.text(), st.text())
def test_hashes_tell_ids_apart_and_show_nothing_of_them(one: str, other: str):
    assert re.fullmatch("[0-9a-f]{16}", hashed_id(one))
    assert (hashed_id(one) == hashed_id(other)) == (one == other)


def test_another_key_gives_other_hashes(monkeypatch: pytest.MonkeyPatch):
    before = hashed_id("PID4711")
    monkeypatch.setenv("COVID_MONAI_ID_KEY", "another")
    assert hashed_id("PID4711") != before


def test_first_use_makes_a_key_that_the_user_alone_can_read(key_file: Path):
    first = hashed_id("PID4711")
    key = key_file.read_text()
    assert re.fullmatch("[0-9a-f]{64}", key)
    if os.name == "posix":
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert [path.name for path in key_file.parent.iterdir()] == ["id_key"]
    assert hashed_id("PID4711") == first
    assert key_file.read_text() == key


def test_the_key_lies_in_the_home_where_no_other_folder_is_named(
    key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    hashed_id("PID4711")
    assert (tmp_path / "home" / ".config" / "covid_monai" / "id_key").is_file()


@pytest.mark.parametrize("value", ["given", ""])
def test_the_variable_goes_before_the_file_unless_it_is_empty(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, value: str
):
    of_file = hashed_id("PID4711")
    monkeypatch.setenv("COVID_MONAI_ID_KEY", value)
    assert (hashed_id("PID4711") == of_file) == (value == "")


def test_users_who_begin_at_once_get_one_key(key_file: Path):
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(hashed_id, ["PID4711"] * 32))) == 1


def test_who_comes_second_keeps_the_key_of_the_first(key_file: Path):
    key_file.parent.mkdir(parents=True)
    key_file.write_text("first")
    identifiers._make_key(key_file)
    assert key_file.read_text() == "first"
    assert [path.name for path in key_file.parent.iterdir()] == ["id_key"]


def test_an_empty_key_file_is_refused(key_file: Path):
    key_file.parent.mkdir(parents=True)
    key_file.touch()
    with pytest.raises(ValueError, match=r"id_key is empty: restore it"):
        hashed_id("PID4711")


def test_where_no_key_can_be_kept_the_variable_is_asked_for(key_file: Path, tmp_path: Path):
    (tmp_path / "config").write_text("a file, not a folder")
    with pytest.raises(ValueError, match=r"^no key to hash ids with: .*; set COVID_MONAI_ID_KEY to a secret$"):
        hashed_id("PID4711")


def test_without_a_home_the_variable_is_asked_for(key_file: Path, monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match="set COVID_MONAI_ID_KEY"):
        hashed_id("PID4711")
