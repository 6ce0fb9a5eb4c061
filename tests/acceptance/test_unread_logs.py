"""Nobody reads what a process says on standard error: it migrates, serves and ends all the same."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.acceptance.installation import Installation
from tests.acceptance.processes import Replica, environment, free_port, until

SMALLEST_PIPE = 4096
MANY = 40
"""Revisions whose log lines fill such a pipe several times over."""
TALKS = """import sys, warnings
for number in range(100):
    warnings.warn(f"{number} " + 100 * "x")
    print(100 * "x")
    print(100 * "x", file=sys.stderr)"""
"""A revision that prints while it holds the lock, and gives rise to warnings of Python's, as SQLAlchemy does."""


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """A pipe, first the end to read from."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    yield read, write
    for end in (read, write):
        os.close(end)


def start(installation: Installation, command: list[str], folder: Path, unread: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        stdout=unread,
        stderr=unread,
        env={**environment(folder), **installation.settings},
        cwd=folder,
    )


@asynccontextmanager
async def serving(installation: Installation, folder: Path, errors: int) -> AsyncIterator[Replica]:
    """A replica that is ready. At the end it is told to stop, and does."""
    port = free_port()
    command = ["gasket", "run", "--port", str(port)]
    process = start(installation, command, folder, errors)
    replica = Replica(command, process, folder / "output", port)
    try:
        await replica.ready()
        yield replica
        replica.signal(signal.SIGTERM)
        assert await replica.exited(10) == -signal.SIGTERM
    finally:
        await replica.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe's size is not to be set")
async def test_a_replica_starts_though_the_pipe_is_full_before_its_first_line(
    installation: Installation, unread: tuple[int, int], tmp_path: Path
) -> None:
    assert os.write(unread[1], b"x" * SMALLEST_PIPE) == SMALLEST_PIPE
    async with serving(installation, tmp_path, unread[1]):
        assert waiting_in(unread[0]) == SMALLEST_PIPE


def waiting_in(read: int) -> int:
    """How many bytes are in the pipe."""
    return int.from_bytes(fcntl.ioctl(read, 0x541B, bytes(4)), sys.byteorder)  # FIONREAD


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe's size is not to be set")
async def test_a_replica_migrates_serves_and_ends(
    installation: Installation, unread: tuple[int, int], tmp_path: Path
) -> None:
    for number in range(MANY):
        installation.project.add_table(f"step_{number}")
    installation.project.add_revision("talks", TALKS)
    async with serving(installation, tmp_path, unread[1]) as replica:
        await until(lambda: waiting_in(unread[0]) > SMALLEST_PIPE - 400, 30, "a full pipe")
        await installation.assert_migrated_once()
        async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False, verify=False) as client:
            for _ in range(50):
                response = await client.get("/v1/models", timeout=30)
                assert response.status_code == 401


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe's size is not to be set")
@pytest.mark.parametrize("command", [["alembic.config", "upgrade", "head"], ["gasket", "database", "upgrade"]])
async def test_a_command_migrates_and_ends(
    installation: Installation, unread: tuple[int, int], tmp_path: Path, command: list[str]
) -> None:
    for number in range(MANY):
        installation.project.add_table(f"step_{number}")
    installation.project.add_revision("talks", TALKS)
    if command[0] == "alembic.config":
        command = [command[0], "-c", str(installation.project.ini), *command[1:]]
    process = start(installation, command, tmp_path, unread[1])
    try:
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
    assert waiting_in(unread[0]) > SMALLEST_PIPE - 400, "it has said less than the pipe holds"
    await installation.assert_migrated_once()
