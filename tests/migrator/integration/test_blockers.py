"""Who stands in a step's way: autovacuum, which yields to the patient, and readers who come while rows are copied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.errors import LocksNotGrantedError
from gasket.migrator.head import bring_to_head
from gasket.postgres.blockers import Blocker, BlockerWatch, find_blockers
from tests.migrator.project import BOOKS, GATE, Project, is_true, tables

# A vacuum that sleeps for 100 ms at every page of the table takes more than a minute.
SLOW = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def frequent_vacuum(server_url: str) -> AsyncIterator[None]:
    """Autovacuum looks at every database once a second, as it does once a minute elsewhere."""
    server: asyncpg.Connection = await asyncpg.connect(server_url)
    try:
        await server.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        await server.execute("SELECT pg_reload_conf()")
        yield
    finally:
        await server.execute("ALTER SYSTEM RESET autovacuum_naptime")
        await server.execute("SELECT pg_reload_conf()")
        await server.close()


async def vacuum_of_t1(observer: asyncpg.Connection) -> int:
    """Wait until autovacuum is at work on the table; returns the worker's pid."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' "
        "AND datname = current_database() AND query LIKE 'autovacuum: VACUUM% public.t1%'"
    )
    async with asyncio.timeout(90):
        while (pid := await observer.fetchval(query)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert isinstance(pid, int)
    return pid


def failed_tries(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "event", None) == "locks_taken" for record in caplog.records)


async def test_an_autovacuum_worker_yields_to_one_patient_try(
    project: Project,
    database_url: str,
    observer: asyncpg.Connection,
    frequent_vacuum: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PostgreSQL cancels it for who has waited `deadlock_timeout`, which no ordinary try does."""
    at_once = "autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0"
    project.add(f'op.execute("CREATE TABLE t1 (id int) WITH ({SLOW}, {at_once})")')
    await bring_to_head(project.config(database_url))
    await observer.execute("INSERT INTO t1 SELECT generate_series(1, 200000)")
    await observer.execute("DELETE FROM t1 WHERE id % 2 = 0")
    await vacuum_of_t1(observer)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN c int")', 'op.execute("ALTER TABLE t1 DROP COLUMN c")')
    await bring_to_head(project.config(database_url, ddl_wait=60))
    assert failed_tries(caplog) >= 2, "one to see that there is somebody, one to see who"
    assert await observer.fetchval("SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 't1'") == 0


async def test_a_vacuum_against_wraparound_is_named_and_no_reader_waits_for_it(
    project: Project, database_url: str, observer: asyncpg.Connection, frequent_vacuum: None
) -> None:
    project.add(f'op.execute("CREATE TABLE t1 (id int) WITH ({SLOW}, autovacuum_freeze_max_age = 100000)")')
    await bring_to_head(project.config(database_url))
    # For as long would a try be patient; on a busy machine a second is no time.
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"ALTER DATABASE {database} SET deadlock_timeout = '15s'")
    await observer.execute("ALTER TABLE t1 SET (autovacuum_enabled = false)")  # an ordinary one would come first
    await observer.execute("INSERT INTO t1 SELECT generate_series(1, 200000)")
    one_more = "PERFORM pg_current_xact_id(); COMMIT;"
    await observer.execute(f"DO $$ BEGIN FOR i IN 1..100100 LOOP {one_more} END LOOP; END $$")
    pid = await vacuum_of_t1(observer)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN c int")', 'op.execute("ALTER TABLE t1 DROP COLUMN c")')
    migrating = asyncio.create_task(bring_to_head(project.config(database_url, ddl_wait=2)))
    worst = 0.0
    while not migrating.done():
        started = time.monotonic()
        await observer.execute("SELECT FROM t1 LIMIT 1", timeout=60)
        worst = max(worst, time.monotonic() - started)
        await asyncio.sleep(0.01)
    with pytest.raises(LocksNotGrantedError) as refusal:
        await migrating
    for part in ("revision r2", f"pid {pid} (an autovacuum worker", "public.t1 (to prevent wraparound)"):
        assert part in str(refusal.value).replace("Revision", "revision"), part
    assert worst < 10.0, "a reader waited behind a try that was patient for nothing"
    assert await tables(observer) == [*BOOKS, "t1"]


async def test_rows_copied_in_vain_twice_are_copied_under_the_strong_lock_the_third_time(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers go on while a large table is copied, so there is one in the way of the DROP each time."""
    await observer.execute(GATE)
    project.add(downgrade='op.execute("DROP TABLE t1"); op.execute("SELECT gate.wait()")')
    config = project.config(database_url)
    await bring_to_head(config)
    await observer.execute("INSERT INTO t1 SELECT generate_series(1, 500000)")
    reader: asyncpg.Connection = await asyncpg.connect(database_url)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    migrating = asyncio.create_task(asyncio.to_thread(alembic.command.downgrade, command, "base"))
    try:
        async with asyncio.timeout(120):
            await _read_during_copies(observer, reader, caplog, count=2)
            await migrating
    finally:
        await observer.execute("DELETE FROM gate.closed")
        await reader.close()
        await asyncio.wait({migrating})
    assert failed_tries(caplog) >= 2
    assert "queries of these tables wait while the rows of revision r1 are archived" in caplog.text
    assert await tables(observer) == BOOKS
    [kept] = await observer.fetch("SELECT row_count FROM gasket_archive.manifest")
    assert kept["row_count"] == 500_000


async def _read_during_copies(
    observer: asyncpg.Connection, reader: asyncpg.Connection, caplog: pytest.LogCaptureFixture, *, count: int
) -> None:
    """Begin to read just before each of the first copies, which lets readers in, and go on until the try has failed.

    A try first sees what it would take away, and gives it back; there it is held up until the reader is next.
    """
    locks = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = to_regclass('t1') AND "
    for number in range(1, count + 1):
        await is_true(observer, f"{locks} granted AND mode = 'AccessExclusiveLock')")
        reading = asyncio.create_task(reader.execute("BEGIN; SELECT FROM t1 LIMIT 1"))
        await is_true(observer, f"{locks} NOT granted AND mode = 'AccessShareLock')")
        failed = failed_tries(caplog)
        await observer.execute("DELETE FROM gate.closed")
        await reading
        while failed_tries(caplog) == failed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if number < count:
            await observer.execute("INSERT INTO gate.closed VALUES (true)")
        await reader.execute("ROLLBACK")


COUNTED = """
CREATE SCHEMA counting;
CREATE TABLE counting.calls ();
CREATE FUNCTION counting.pg_blocking_pids(int) RETURNS int[] LANGUAGE sql AS
    $$ INSERT INTO counting.calls DEFAULT VALUES; SELECT pg_catalog.pg_blocking_pids($1) $$;
SET search_path = counting, pg_catalog
"""


@pytest.fixture
async def holder(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    connection.terminate()


@pytest.fixture
async def waiter(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    connection.terminate()


async def test_a_look_asks_once_who_blocks(
    observer: asyncpg.Connection, holder: asyncpg.Connection, waiter: asyncpg.Connection
) -> None:
    """However many sessions there are: pg_blocking_pids() stops all who take a lock for a moment."""
    await observer.execute(COUNTED)
    pid = waiter.get_server_pid()
    assert await find_blockers(observer, pid) == []
    assert await observer.fetchval("SELECT count(*) FROM counting.calls") == 1
    await holder.execute("SELECT pg_advisory_lock(1)")
    waiting = asyncio.create_task(waiter.execute("SELECT pg_advisory_lock(1)"))
    async with asyncio.timeout(60):
        await is_true(observer, f"SELECT cardinality(pg_catalog.pg_blocking_pids({pid})) > 0")
    [blocker] = await find_blockers(observer, pid)
    assert blocker.pid == holder.get_server_pid()
    assert await observer.fetchval("SELECT count(*) FROM counting.calls") == 2
    await holder.execute("SELECT pg_advisory_unlock_all()")
    await waiting


class Looks:
    """What a watch does: its connection, how often it has looked, and whom it has told of."""

    def __init__(self, url: str) -> None:
        self.told: list[list[Blocker]] = []
        self.connection: asyncpg.Connection
        self._url = url
        self._count = 0

    async def connect(self) -> asyncpg.Connection:
        self.connection = await asyncpg.connect(self._url)
        self.connection.add_query_logger(self._log)
        return self.connection

    def _log(self, query: asyncpg.connection.LoggedQuery) -> None:
        self._count += "pg_blocking_pids" in query.query

    async def two_more(self) -> None:
        """Wait for two looks, of which the second has begun after this was called."""
        count = self._count
        while self._count < count + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def have_told(self, times: int) -> None:
        while len(self.told) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_session_that_blocks_again_is_told_again(
    database_url: str, observer: asyncpg.Connection, holder: asyncpg.Connection, waiter: asyncpg.Connection
) -> None:
    """Also after the watch has lost its connection."""
    looks = Looks(database_url)
    watch = BlockerWatch(looks.connect, waiter.get_server_pid(), on_others=looks.told.append)
    # All in one transaction: a session is told again also where its `since` stays.
    await holder.execute("BEGIN; SELECT pg_advisory_lock(key) FROM generate_series(1, 3) AS key")
    async with asyncio.timeout(90):
        with closing(watch), watch.watching():
            for key in (1, 2, 3):
                waiting = asyncio.create_task(waiter.execute(f"SELECT pg_advisory_lock({key})"))
                await looks.have_told(key)
                await looks.two_more()
                assert [one.pid for [one] in looks.told] == [holder.get_server_pid()] * key
                await holder.execute(f"SELECT pg_advisory_unlock({key})")
                await waiting
                if key == 2:
                    await observer.execute(f"SELECT pg_terminate_backend({looks.connection.get_server_pid()}, 30000)")
                await looks.two_more()


async def test_a_second_prepared_transaction_is_told(
    database_url: str, observer: asyncpg.Connection, waiter: asyncpg.Connection
) -> None:
    """Neither has a pid."""
    looks = Looks(database_url)
    watch = BlockerWatch(looks.connect, waiter.get_server_pid(), on_others=looks.told.append)
    for name in ("t1", "t2"):
        await observer.execute(f"CREATE TABLE {name} (v int)")
        await observer.execute(f"BEGIN; LOCK TABLE {name}; PREPARE TRANSACTION 'on {name}'")
    async with asyncio.timeout(90):
        with closing(watch), watch.watching():
            waiting = asyncio.create_task(waiter.execute("BEGIN; LOCK TABLE t1, t2"))
            for number, name in enumerate(("t1", "t2"), start=1):
                await looks.have_told(number)
                await observer.execute(f"ROLLBACK PREPARED 'on {name}'")
            await waiting
    assert [one.gid for [one] in looks.told] == ["on t1", "on t2"]
