"""A network that passes nothing on, and connections that end while a process waits for the lock."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from gasket.migrator.apply import locked_connection
from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.apply.session import migration_session
from gasket.migrator.errors import (
    DatabaseUnavailableError,
    LockLostError,
    LockTimeoutError,
    MigrationInterruptedError,
    MigratorError,
)
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.signals import until_signalled
from tests.acceptance.wire import Tap, tapped
from tests.migrator.project import GATE, Project, is_true, ledger

LIMIT = 1.0
A_LITTLE = 20.0
"""One try to connect, one answer that does not come, and a busy machine."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.add()
    return project


@pytest.fixture
async def tap(database_url: str) -> AsyncIterator[Tap]:
    async with tapped(database_url) as tap:
        yield tap


@pytest.fixture
async def lock_held(observer: asyncpg.Connection) -> None:
    await observer.execute(f"SELECT pg_advisory_lock({lock_arguments('public')})")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("lock_held")
@pytest.mark.parametrize("silence", [Tap.stall, Tap.hold], ids=["nothing arrives", "no answer arrives"])
async def test_a_waiter_behind_a_silent_proxy_is_decided_in_time(
    project: Project, tap: Tap, caplog: pytest.LogCaptureFixture, silence: Callable[[Tap], None]
) -> None:
    began = time.monotonic()
    caplog.set_level("INFO", "gasket.migrator")
    waiting = asyncio.create_task(bring_to_head(project.config(tap.url, lock_wait=LIMIT)))
    await until(lambda: "waiting for the migration lock" in caplog.text)
    silence(tap)
    with pytest.raises((LockTimeoutError, DatabaseUnavailableError)) as refusal:
        await waiting
    assert time.monotonic() - began < LIMIT + A_LITTLE
    assert "has just left" not in str(refusal.value)


async def test_a_start_behind_a_silent_proxy_is_decided_in_time(project: Project, tap: Tap) -> None:
    began = time.monotonic()
    tap.stall()
    with pytest.raises(DatabaseUnavailableError):
        await bring_to_head(project.config(tap.url, database_wait=1))
    assert time.monotonic() - began < 1 + A_LITTLE


@pytest.mark.parametrize("begins", ["", "with op.get_context().autocommit_block():\n        "], ids=["step", "block"])
async def test_a_holder_behind_a_silent_proxy_loses_the_lock(
    project: Project,
    tap: Tap,
    database_url: str,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    begins: str,
) -> None:
    assert locked_connection._SILENCE_LIMIT == "300s"
    monkeypatch.setattr(locked_connection, "_SILENCE_LIMIT", "3s")
    await bring_to_head(project.config(database_url))
    await observer.execute(GATE)
    project.add(f'{begins}op.execute("SELECT gate.wait()")', "pass")
    migrating = asyncio.create_task(bring_to_head(project.config(tap.url)))
    # The statement has arrived whole: pg_stat_activity has its text from the moment in which it was parsed.
    await is_true(observer, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    tap.stall()
    await observer.execute("DELETE FROM gate.closed")
    began = time.monotonic()
    await is_true(observer, "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2")
    assert time.monotonic() - began < 3 + A_LITTLE
    assert await ledger(observer) == [("r1", "upgrade")]
    migrating.cancel()
    with suppress(asyncio.CancelledError, MigratorError):
        await migrating


@pytest.mark.usefixtures("lock_held")
async def test_a_waiter_that_loses_its_connection_goes_on_waiting(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gasket.migrator")
    waiting = asyncio.create_task(bring_to_head(project.config(database_url, lock_wait=30)))
    await until(lambda: "waiting for the migration lock" in caplog.text)
    others = "datname = current_database() AND application_name LIKE 'gasket-migrate%'"
    for times in (1, 2):
        ended = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}"
        while not await observer.fetchval(ended):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await until(lambda times=times: caplog.text.count("lost before it had the lock") == times)  # type: ignore[misc]
    await observer.execute("SELECT pg_advisory_unlock_all()")
    await waiting
    assert await ledger(observer) == [("r1", "upgrade")]


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        ConnectionResetError("by peer"),
    ],
)
async def test_a_holder_whose_driver_is_upset_has_lost_the_lock(
    project: Project, database_url: str, error: Exception
) -> None:
    config = project.config(database_url)
    revisions = configured_revisions(config.ini)
    with pytest.raises(LockLostError):
        async with migration_session(config, revisions, application=None):
            raise error


async def test_that_the_lock_is_free_is_said_only_when_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gasket.migrator.signals._CLEANUP_LIMIT", 0.1)

    async def work(*, ends: bool) -> None:
        asyncio.get_running_loop().call_later(0.05, signal_itself)
        try:
            await asyncio.sleep(30)
        finally:
            if not ends:
                await asyncio.sleep(30)

    def signal_itself() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for ends, said in ((True, "lock any more. Run it again"), (False, "lock any more once the server has noticed")):
        with pytest.raises(MigrationInterruptedError, match=said):
            await until_signalled(work(ends=ends), pass_on=False)
