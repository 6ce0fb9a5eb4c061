"""How long a start waits for the migration lock: as long as the holder makes progress, and no longer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.errors import LockTimeoutError, NotMigratedError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project, is_true

LIMIT = 1.5
LONGER = 3.5
_STEPS = 14
Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
async def project(tmp_path: Path, database_url: str) -> Project:
    """Two revisions, of which the first is applied: the books are there."""
    project = Project(tmp_path)
    project.add()
    await bring_to_head(project.config(database_url))
    project.add()
    return project


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def another() -> asyncpg.Connection:
            connection: asyncpg.Connection = await asyncpg.connect(database_url, statement_cache_size=0)
            stack.callback(connection.terminate)
            return connection

        yield another


@pytest.fixture
async def holder(connect: Connect) -> asyncpg.Connection:
    """A session that holds the lock."""
    holder = await connect()
    await holder.execute(f"SELECT pg_advisory_lock({lock_arguments('public')})")
    return holder


async def works(holder: asyncpg.Connection, _connect: Connect) -> None:
    await holder.execute(f"SELECT pg_sleep({LONGER})")


async def writes_the_ledger(_holder: asyncpg.Connection, connect: Connect) -> None:
    """By way of another session: the holder itself is never seen at work."""
    books = await connect()
    for number in range(round(LONGER * 4)):
        await books.execute("INSERT INTO migration_ledger (revision, direction) VALUES ($1, 'stamp')", f"x{number}")
        await asyncio.sleep(0.25)


async def writes_the_progress_of_a_step(_holder: asyncpg.Connection, connect: Connect) -> None:
    books = await connect()
    for number in range(round(LONGER * 4)):
        await books.execute(
            "INSERT INTO migration_progress (revision, downgrade, statement, finished, row_count, command) "
            "VALUES ('r2', false, $1, true, 1, 'start')",
            f"SELECT {number}",
        )
        await asyncio.sleep(0.25)
    await books.execute("DELETE FROM migration_progress")


async def moves_from_lock_to_lock(holder: asyncpg.Connection, connect: Connect) -> None:
    """A CREATE INDEX CONCURRENTLY waits for one writer after the other, as its progress view shows."""
    look, writers = await connect(), {}
    for _ in range(_STEPS):
        writer = await connect()
        await writer.execute("BEGIN; INSERT INTO t1 SELECT count(*) + pg_backend_pid() FROM t1")
        writers[writer.get_server_pid()] = writer
    pid = holder.get_server_pid()
    building = asyncio.create_task(holder.execute("CREATE INDEX CONCURRENTLY ix ON t1 (id)"))
    for _ in range(_STEPS):
        await asyncio.sleep(LONGER / _STEPS)
        await is_true(look, f"SELECT cardinality(pg_blocking_pids({pid})) > 0")
        [awaited] = await look.fetchval("SELECT pg_blocking_pids($1)", pid)
        await writers[awaited].execute("COMMIT")
    await building


@pytest.mark.parametrize("progress", [works, writes_the_ledger, writes_the_progress_of_a_step, moves_from_lock_to_lock])
async def test_a_holder_that_makes_progress_is_waited_for_past_the_limit(
    project: Project,
    database_url: str,
    holder: asyncpg.Connection,
    connect: Connect,
    progress: Callable[[asyncpg.Connection, Connect], Awaitable[None]],
) -> None:
    waiting = asyncio.create_task(bring_to_head(project.config(database_url, lock_wait=LIMIT)))
    began = time.monotonic()
    await progress(holder, connect)
    assert time.monotonic() - began > 2 * LIMIT
    assert not waiting.done()
    await holder.execute("SELECT pg_advisory_unlock_all()")
    assert (await waiting).head == "r2"


async def rests(_holder: asyncpg.Connection, _connect: Connect) -> None:
    pass


async def rests_in_a_transaction(holder: asyncpg.Connection, _connect: Connect) -> None:
    await holder.execute("BEGIN; SELECT count(*) FROM t1")


async def is_blocked(holder: asyncpg.Connection, connect: Connect) -> None:
    blocker = await connect()
    await blocker.execute("BEGIN; LOCK TABLE t1")
    asyncio.create_task(holder.execute("SELECT * FROM t1")).add_done_callback(lambda done: done.exception())
    await is_true(blocker, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")


async def waits_for_its_client(holder: asyncpg.Connection, connect: Connect) -> None:
    """What a process that is stopped (SIGSTOP) leaves its session in, in the middle of a COPY."""

    async def nothing_comes() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    copying = holder.copy_to_table("t1", source=nothing_comes())
    asyncio.create_task(copying).add_done_callback(lambda done: done.cancelled() or done.exception())
    await is_true(
        await connect(),
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'ClientRead' AND state = 'active'",
    )


@pytest.mark.parametrize("hang", [rests, rests_in_a_transaction, is_blocked, waits_for_its_client])
@pytest.mark.parametrize("migrates", [True, False], ids=["migrates", "follows"])
async def test_a_holder_that_hangs_is_given_up_on(
    project: Project,
    database_url: str,
    holder: asyncpg.Connection,
    connect: Connect,
    hang: Callable[[asyncpg.Connection, Connect], Awaitable[None]],
    migrates: bool,
) -> None:
    await hang(holder, connect)
    config = project.config(database_url, lock_wait=LIMIT, migrate_on_startup=migrates)
    with pytest.raises(LockTimeoutError if migrates else NotMigratedError) as refusal:
        await asyncio.wait_for(bring_to_head(config), 30)
    assert f"held by pid {holder.get_server_pid()}" in str(refusal.value)
    if migrates:
        assert re.search(r"made no progress for [2-9]\d? s", str(refusal.value))


async def test_who_follows_waits_for_a_holder_at_work_too(
    project: Project, database_url: str, holder: asyncpg.Connection, connect: Connect
) -> None:
    config = project.config(database_url, lock_wait=LIMIT, migrate_on_startup=False)
    following = asyncio.create_task(bring_to_head(config))
    await works(holder, connect)
    assert not following.done()
    await holder.execute("SELECT pg_advisory_unlock_all()")
    await bring_to_head(project.config(database_url))
    assert (await following).head == "r2"
