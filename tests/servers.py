"""Databases on the tests' server, and servers of a test's own: one that it restarts, and one that follows another.

Those servers are the embedded PostgreSQL, whatever server the other tests use.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import asyncpg

from gasket.embedded import EmbeddedDatabase
from gasket.postgres.programs import run, server_account, server_log

# No test takes the machine's power away. What is committed has to outlive a crash of the server, so
# synchronous_commit stays on.
_FAST = {"fsync": "off", "full_page_writes": "off"}
_LIMIT = 60.0


async def create_database(server: asyncpg.Connection, name: str, template: str = "template0") -> None:
    """A copy of a database that nobody is connected to; names are SQL."""
    # By its files, which PostgreSQL 15 has to be asked for: through the log it takes twice the time, and without fsync
    # the checkpoints of this way cost nothing.
    strategy = "STRATEGY file_copy" if server.get_server_version().major >= 15 else ""
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}", timeout=60)


class OwnServer:
    """`url` is that of its empty database, as a superuser."""

    def __init__(self, url: str, cluster: Path) -> None:
        self.url = url
        self._cluster = cluster

    def errors(self) -> list[str]:
        """What it has logged as an error."""
        log = server_log(self._cluster.parent).read_text()
        return [line.partition("ERROR:")[2].strip() for line in log.splitlines() if "ERROR:" in line]

    def restart(self, mode: str) -> None:
        """Blocks until it answers again. `fast` ends all sessions in order, `immediate` is a crash."""
        _control(self._cluster, "restart", "--wait", f"--mode={mode}")


@contextmanager
def own_server(folder: Path) -> Iterator[OwnServer]:
    """A server with an empty database; `folder` is one that another account can pass through."""
    place = _new_folder(folder)
    with EmbeddedDatabase(place, settings=_FAST) as url:
        yield OwnServer(url, place / "postgresql")


@contextmanager
def primary_and_standby(folder: Path) -> Iterator[tuple[str, str]]:
    """The URLs of an empty database on a primary, and on the standby that follows it."""
    place = _new_folder(folder)
    primary = EmbeddedDatabase(place / "p", settings=_FAST)
    with primary:
        pass  # made, and stopped cleanly: a copy of its files is a standby's beginning
    cluster = place / "s" / "postgresql"
    cluster.parent.mkdir(mode=0o711)
    subprocess.run(["cp", "--archive", place / "p" / "postgresql", cluster], check=True)
    (cluster / "standby.signal").touch()
    options = (
        f"-c listen_addresses= -c unix_socket_directories={cluster} -c fsync=off "
        f"-c primary_conninfo='host={place}/p/postgresql user=gasket'"
    )
    with primary as primary_url:
        _control(cluster, "start", "--wait", f"--options={options}")
        try:
            yield primary_url, f"postgresql://gasket@/gasket?host={cluster}&port=5432"
        finally:
            _control(cluster, "stop", "--wait", "--mode=immediate")


def _new_folder(folder: Path) -> Path:
    place = Path(mkdtemp(dir=folder))
    place.chmod(0o711)
    return place


def _control(cluster: Path, *arguments: str) -> None:
    account = server_account(cluster)
    run("pg_ctl", *arguments, cluster=cluster, account=account, deadline=time.monotonic() + _LIMIT)
