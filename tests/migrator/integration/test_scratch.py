"""Scratch databases on a real server: made, marked, dropped in every case, and nobody else's ever touched."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import LockTimeoutError, ScratchDatabaseError
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.scripts import script_directory
from gasket.migrator.scratch.database import Scratch, scratch_database
from gasket.migrator.scratch.given_database import MARK
from gasket.migrator.scratch.rehearsal import build
from tests.migrator.project import Project

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from sqlalchemy import MetaData
from gasket.migrator.config import MigratorConfig
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.scratch.database import scratch_database

async def main():
    config = MigratorConfig(
        database_url=sys.argv[1], scratch_url=sys.argv[2] or None, release="1", ini=Path("none")
    )
    async with scratch_database(config, Revisions([])) as scratch:
        import asyncpg
        connection = await asyncpg.connect(
            scratch.config.database_url, server_settings={"application_name": f":{os.getpid()}"}
        )
        await connection.execute("CREATE SCHEMA half; CREATE TABLE half.done (); CREATE TABLE done ()")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
NONE = Revisions([])


def config(database_url: str, scratch_url: str | None = None, **changes: object) -> MigratorConfig:
    values: dict[str, Any] = {
        "release": "1",
        "ini": Path("none"),
        "database_wait": 10,
        "lock_wait": 0.5,
    }
    return MigratorConfig(database_url=database_url, scratch_url=scratch_url, **(values | changes))


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection: asyncpg.Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def role_url(
    observer: asyncpg.Connection, database_url: str, url_with: Callable[..., str]
) -> AsyncIterator[tuple[str, str]]:
    """A role without any right of its own, and the URL by which it logs in."""
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    yield role, url_with(database_url, user=role, password="secret-word")
    await observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
async def leftover(observer: asyncpg.Connection) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Call it for a database with a scratch database's name, as something else may have left it."""
    names: list[str] = []

    async def make(*, marked: bool) -> str:
        name = f"gasket_scratch_{uuid4().hex[:16]}"
        await observer.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        names.append(name)
        if marked:
            await observer.execute(f"COMMENT ON DATABASE {name} IS '{MARK}'")
        return name

    yield make
    for name in names:
        await observer.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def exists(observer: asyncpg.Connection, name: str) -> bool:
    return bool(await observer.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name))


async def run_in(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def name_of(scratch: Scratch) -> str:
    connection = await asyncpg.connect(scratch.config.migration_url)
    try:
        name: str = await connection.fetchval("SELECT current_database()")
        return name
    finally:
        await connection.close()


async def tables(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT schemaname || '.' || tablename FROM pg_tables ORDER BY 1")
        return [row[0] for row in rows if not row[0].startswith(("pg_catalog.", "information_schema."))]
    finally:
        await connection.close()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.001)


async def kill_a_plan(database_url: str, scratch_url: str = "") -> None:
    """A process that is killed while it works on its scratch database; the server has noticed when this returns."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, database_url, scratch_url)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    connection = await asyncpg.connect(database_url)
    try:
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE $1)"
        await until(lambda: connection.fetchval(gone, f"%:{process.pid}"))
    finally:
        await connection.close()


async def test_it_is_there_in_the_middle_and_gone_afterwards(
    database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    async with scratch_database(config(database_url), NONE) as scratch:
        name = await name_of(scratch)
        assert re.fullmatch("gasket_scratch_[0-9a-f]{16}", name)
        assert scratch.config.database_url == scratch.config.migration_url == url_with(database_url, database=name)
        assert scratch.notes == ()
        assert await tables(scratch.config.migration_url) == []
        [row] = await observer.fetch(
            "SELECT shobj_description(s.oid, 'pg_database') AS comment, (s.encoding, s.datcollate, s.datctype) "
            "= (l.encoding, l.datcollate, l.datctype) AS same FROM pg_database AS s, pg_database AS l "
            "WHERE s.datname = $1 AND l.datname = current_database()",
            name,
        )
        assert (row["comment"], row["same"]) == (MARK, True)
    assert not await exists(observer, name)


async def test_another_encoding_than_the_servers_is_taken_over(
    database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    name = f"gasket_test_{uuid4().hex[:16]}"
    await observer.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        async with scratch_database(config(url_with(database_url, database=name)), NONE) as scratch:
            connection = await asyncpg.connect(scratch.config.migration_url)
            assert await connection.fetchval("SHOW server_encoding") == "LATIN1"
            await connection.close()
    finally:
        await observer.execute(f"DROP DATABASE {name}")


@pytest.mark.parametrize("cancels", [0, 1, 2])
async def test_it_is_dropped_after_an_error_and_after_cancellations(
    cancels: int, database_url: str, observer: asyncpg.Connection
) -> None:
    names: list[str] = []
    working = asyncio.Event()

    async def plan() -> None:
        async with scratch_database(config(database_url), NONE) as scratch:
            names.append(await name_of(scratch))
            # Somebody, a monitoring program for example, has it open.
            stranger = await asyncpg.connect(scratch.config.migration_url)
            working.set()
            if not cancels:
                raise KeyError
            try:
                await stranger.execute("SELECT pg_sleep(30)")
            finally:
                stranger.terminate()

    task = asyncio.create_task(plan())
    await asyncio.wait_for(working.wait(), 20)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError if cancels else KeyError):
        await asyncio.wait_for(task, 20)
    assert not await exists(observer, names[0])


async def test_cancelled_while_it_is_being_made(database_url: str, observer: asyncpg.Connection) -> None:
    before = set(await observer.fetch("SELECT datname FROM pg_database"))
    # A comment locks a database, and so nobody copies the template until it is committed or taken back.
    await observer.execute("BEGIN; COMMENT ON DATABASE template0 IS 'held up'")

    async def plan() -> None:
        async with scratch_database(config(database_url), NONE):
            pytest.fail("it was to be cancelled")

    task = asyncio.create_task(plan())
    making = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE gasket_scratch%' "
        "AND wait_event_type = 'Lock'"
    )

    async def is_making() -> bool:
        await observer.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await observer.fetchval(making))

    await until(is_making)
    task.cancel()
    await observer.execute("ROLLBACK")
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert set(await observer.fetch("SELECT datname FROM pg_database")) == before


async def test_what_a_killed_plan_left_is_dropped_by_the_next(database_url: str, observer: asyncpg.Connection) -> None:
    before = set(await observer.fetch("SELECT datname FROM pg_database"))
    await kill_a_plan(database_url)
    [left] = set(await observer.fetch("SELECT datname FROM pg_database")) - before
    async with scratch_database(config(database_url), NONE):
        assert not await exists(observer, left["datname"])


async def test_killed_before_it_was_marked(
    database_url: str, observer: asyncpg.Connection, leftover: Callable[..., Awaitable[str]]
) -> None:
    empty = await leftover(marked=False)
    async with scratch_database(config(database_url), NONE):
        assert not await exists(observer, empty)


async def test_what_may_be_somebody_elses_stays(
    database_url: str,
    observer: asyncpg.Connection,
    leftover: Callable[..., Awaitable[str]],
    url_with: Callable[..., str],
) -> None:
    filled = await leftover(marked=False)
    await run_in(url_with(database_url, database=filled), "CREATE TABLE precious ()")
    locked, connected, idle = [await leftover(marked=True) for _ in range(3)]
    await observer.execute(f"SELECT pg_advisory_lock({lock_arguments(locked)})")
    user = await asyncpg.connect(url_with(database_url, database=connected))
    started = time.monotonic()
    try:
        async with scratch_database(config(database_url), NONE):
            stay = [await exists(observer, name) for name in (filled, locked, connected, idle)]
    finally:
        await user.close()
    assert stay == [True, True, True, False]
    assert time.monotonic() - started < 5  # for so long DROP DATABASE waits for others to leave


async def test_two_plans_at_once_leave_each_other_alone(database_url: str, observer: asyncpg.Connection) -> None:
    async with scratch_database(config(database_url), NONE) as first:
        name = await name_of(first)  # nobody is connected to it from here on
        async with scratch_database(config(database_url), NONE) as second:
            assert await exists(observer, name)
            assert await name_of(second) != name
        assert await exists(observer, name)


async def test_without_createdb_the_two_ways_out_are_named(role_url: tuple[str, str]) -> None:
    role, url = role_url
    with pytest.raises(ScratchDatabaseError) as refusal:
        async with scratch_database(config(url), NONE):
            pytest.fail("it has no right to one")
    assert f'ALTER ROLE "{role}" CREATEDB' in str(refusal.value)
    assert "GASKET_SCRATCH_DATABASE_URL" in str(refusal.value)


async def test_createdb_is_all_that_a_role_needs(
    observer: asyncpg.Connection, role_url: tuple[str, str], tmp_path: Path
) -> None:
    role, url = role_url
    project = Project(tmp_path)
    project.add()
    await observer.execute(f"ALTER ROLE {role} CREATEDB")
    async with scratch_database(config(url, ini=project.ini), configured_revisions(project.ini)) as scratch:
        name = await name_of(scratch)
        await build(scratch, script_directory(project.ini), ["r1"])
        assert "public.t1" in await tables(scratch.config.migration_url)
    assert not await exists(observer, name)


async def test_revisions_are_built_in_lives_schema_and_nothing_is_logged_as_if_it_were_live(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path)
    project.add()
    project.add()
    revisions = configured_revisions(project.ini)
    caplog.set_level("INFO")
    async with scratch_database(config(database_url, ini=project.ini, schema="second"), revisions) as scratch:
        await build(scratch, script_directory(project.ini), ["r1"])
        built = await tables(scratch.config.migration_url)
    assert "second.t1" in built
    assert "second.t2" not in built
    assert await tables(database_url) == []
    assert [record.message for record in caplog.records if "r1" in record.message] == []


async def test_a_revision_that_does_not_end_ends_the_trying_out(
    database_url: str, observer: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.add('op.execute("SELECT pg_sleep(60)")')
    revisions = configured_revisions(project.ini)
    monkeypatch.setattr("gasket.migrator.scratch.rehearsal._LIMIT", 1.0)
    started = time.monotonic()
    async with scratch_database(config(database_url, ini=project.ini), revisions) as scratch:
        name = await name_of(scratch)
        with pytest.raises(ScratchDatabaseError, match="took longer on it than 1 s"):
            await build(scratch, script_directory(project.ini), ["r1"])
    assert not await exists(observer, name)
    assert time.monotonic() - started < 30


async def test_several_hosts(database_url: str, observer: asyncpg.Connection) -> None:
    scheme, _, rest = database_url.partition("://")
    who, _, place = rest.partition("@")
    if place.startswith("/"):
        pytest.skip("this server has no TCP")
    several = f"{scheme}://{who}@127.0.0.1:1,{place}"
    async with scratch_database(config(several), NONE) as scratch:
        name = await name_of(scratch)
        assert scratch.config.migration_url.startswith(f"{scheme}://{who}@127.0.0.1:1,")
    assert not await exists(observer, name)


async def test_the_given_database_is_used_and_empty_afterwards(
    database_url: str, make_database: Callable[[], Awaitable[str]], observer: asyncpg.Connection
) -> None:
    given = await make_database()
    connection = await asyncpg.connect(given)
    name = await connection.fetchval("SELECT current_database()")
    await connection.close()
    await observer.execute(f"COMMENT ON DATABASE {name} IS 'for plans'")
    async with scratch_database(config(database_url, given), NONE) as scratch:
        assert scratch.config.migration_url == given
        await run_in(
            given,
            "CREATE SCHEMA s; CREATE TABLE s.t (id serial);"
            "CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY, n int);"
            "CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN d AS int; CREATE TYPE c AS (a int);"
            "CREATE TYPE r AS RANGE (subtype = int); CREATE VIEW v AS SELECT * FROM u;"
            "CREATE MATERIALIZED VIEW m AS SELECT * FROM u; CREATE STATISTICS st ON id, n FROM u;"
            "CREATE FUNCTION f(mood) RETURNS int LANGUAGE sql AS 'SELECT 1';"
            "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'; CREATE AGGREGATE a (int) (sfunc = int4pl, stype = int)",
        )
    async with scratch_database(config(database_url, given), NONE):
        pass  # it is accepted again, so it was empty
    comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1"
    assert await observer.fetchval(comment, name) == "for plans"
    assert await tables(given) == []


async def test_what_a_killed_plan_left_in_the_given_database_is_cleared_away(
    database_url: str, make_database: Callable[[], Awaitable[str]]
) -> None:
    given = await make_database()
    await kill_a_plan(database_url, given)
    assert await tables(given) == ["half.done", "public.done"]
    async with scratch_database(config(database_url, given), NONE):
        assert await tables(given) == []


async def test_a_given_database_that_will_not_do_is_refused_and_left_as_it_is(
    database_url: str,
    make_database: Callable[[], Awaitable[str]],
    observer: asyncpg.Connection,
    role_url: tuple[str, str],
    url_with: Callable[..., str],
) -> None:
    filled, foreign = await make_database(), await make_database()
    await run_in(filled, "CREATE SCHEMA other; CREATE TABLE other.precious ()")
    role, _ = role_url
    cases = {
        database_url: "names the live database itself",
        filled: "which is not empty",
        url_with(foreign, user=role, password="secret-word"): f"does not belong to role {role}",
        url_with(foreign, database="nowhere"): "cannot be reached: .*nowhere",
    }
    for url, reason in cases.items():
        with pytest.raises(ScratchDatabaseError, match=f"GASKET_SCRATCH_DATABASE_URL .*{reason}"):
            async with scratch_database(config(database_url, url, database_wait=0.5), NONE):
                pytest.fail("it was to be refused")
    assert await tables(filled) == ["other.precious"]


async def test_one_plan_at_a_time_in_the_given_database(
    database_url: str, make_database: Callable[[], Awaitable[str]]
) -> None:
    given = await make_database()
    async with scratch_database(config(database_url, given), NONE):
        await run_in(given, "CREATE TABLE in_use ()")
        with pytest.raises(LockTimeoutError, match="held by pid"):
            async with scratch_database(config(database_url, given, lock_wait=0.2), NONE):
                pytest.fail("it is in use")
        assert await tables(given) == ["public.in_use"]


async def test_extensions_of_live_are_made_or_said_to_be_lacking(
    database_url: str,
    observer: asyncpg.Connection,
    role_url: tuple[str, str],
    make_database: Callable[[], Awaitable[str]],
    tmp_path: Path,
) -> None:
    extension: str = await observer.fetchval(
        "SELECT name FROM pg_available_extensions WHERE name IN ('vector', 'pageinspect') LIMIT 1"
    )
    await observer.execute(f"CREATE SCHEMA tools; CREATE EXTENSION {extension} SCHEMA tools")
    here = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = $1"

    async def where(url: str) -> str | None:
        connection = await asyncpg.connect(url)
        try:
            schema: str | None = await connection.fetchval(here, extension)
            return schema
        finally:
            await connection.close()

    async with scratch_database(config(database_url), NONE) as scratch:
        assert (scratch.notes, await where(scratch.config.migration_url)) == ((), "tools")

    role, url = role_url
    await observer.execute(f"ALTER ROLE {role} CREATEDB")
    async with scratch_database(config(url), NONE) as scratch:
        [note] = scratch.notes
    assert f"has extension {extension}, the scratch database has not (permission denied" in note

    project = Project(tmp_path)
    project.add(f'op.execute("CREATE EXTENSION {extension}")')
    revisions = configured_revisions(project.ini)
    async with scratch_database(config(database_url, ini=project.ini), revisions) as scratch:
        await build(scratch, script_directory(project.ini), ["r1"])
        assert await where(scratch.config.migration_url) == "public"

    given = await make_database()
    await run_in(given, f"CREATE SCHEMA kept; CREATE EXTENSION {extension} SCHEMA kept")
    async with scratch_database(config(database_url, given), NONE) as scratch:
        assert scratch.notes == ()
    assert await where(given) == "kept"
