"""Background work on a real PostgreSQL: declared, recorded, done in batches, stopped, taken over."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import alembic.command
import asyncpg
import pytest

from gasket.migrator.background import IndexBuild
from gasket.migrator.background.worker import BackgroundWorker, prepare_worker
from gasket.migrator.background.worker_lock import (
    find_worker,
    is_wanted,
    taken_over,
    try_worker_lock,
)
from gasket.migrator.background.working import work_on
from gasket.migrator.commands.background import change_work, finish
from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.commands.status import read_report
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import (
    BackgroundFailedError,
    MigratorError,
    NotAppliedError,
    ReadOnlyServerError,
    RevisionFileError,
    ScratchDatabaseError,
)
from gasket.migrator.head import bring_to_head
from gasket.migrator.ledger.background import State, Work, change_state, format_work, read_works
from gasket.migrator.monitor import SchemaMonitor
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.scripts import alembic_config
from gasket.migrator.scratch.adopt import compare_with_revision
from tests.acceptance.processes import until
from tests.migrator.project import CONCURRENTLY, Project, is_true

ROWS = 5_000
TABLE = 'op.execute("CREATE TABLE items (id int PRIMARY KEY, tier text, changes int NOT NULL DEFAULT 0)")'
BACKFILL = "Backfill(table='items', set=\"tier = 'standard', changes = changes + 1\", where='tier IS NULL')"
INDEX = 'IndexBuild("CREATE INDEX CONCURRENTLY by_tier ON items (tier)")'
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('by_tier')"
SET_NOT_NULL = 'op.execute("ALTER TABLE items ALTER tier SET NOT NULL")'
LATE = (
    "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN IF NEW.id = 4000 THEN INSERT INTO items (id) VALUES (-1); END IF; RETURN NULL; END'; "
    "CREATE TRIGGER late AFTER UPDATE ON items FOR EACH ROW EXECUTE FUNCTION late()"
)
"""A row comes behind the cursor."""
WORKER = MigratorConfig(database_url="", release="1.0", ini=Path())
"""Of a replica's worker, that works over another connection."""
EACH_ONCE = "SELECT bool_and(tier = 'standard' AND changes = 1) FROM items"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def config(project: Project, database_url: str) -> MigratorConfig:
    return project.config(database_url, background_share=1.0)


def declare(project: Project, *works: str, upgrade: str = "pass") -> Path:
    """A revision that leaves this work; `works` are what stands in its list."""
    path = project.add(upgrade, 'op.execute("DROP INDEX IF EXISTS by_tier")')
    add_line(path, f"background = [{', '.join(works)}]")
    return path


def need(project: Project, revisions: str, upgrade: str = SET_NOT_NULL) -> Path:
    """A revision that needs the work of others; `revisions` is what is written there."""
    path = project.add(upgrade, "pass")
    add_line(path, f"needs_background = {revisions}")
    return path


def add_line(path: Path, declaration: str) -> None:
    text = path.read_text().replace("from alembic import op\n", f"{IMPORTS}\n")
    path.write_text(text.replace("\n\n\ndef upgrade", f"\n{declaration}\n\n\ndef upgrade", 1))


IMPORTS = "from alembic import op\nfrom gasket.migrator.background import Backfill, IndexBuild\n"


async def fill(observer: asyncpg.Connection, rows: int = ROWS) -> None:
    await observer.execute("INSERT INTO items (id) SELECT generate_series(1, $1::int)", rows)


@asynccontextmanager
async def session(config: MigratorConfig) -> AsyncIterator[asyncpg.Connection]:
    connection: asyncpg.Connection = await asyncpg.connect(config.migration_url, statement_cache_size=0)
    await prepare_worker(connection, config.schema)
    yield connection
    connection.terminate()


async def do(connection: asyncpg.Connection, work: Work, *, yields: bool = False, share: float = 1) -> Work:
    return await work_on(connection, WORKER, work, share=share, yields=yields)


@pytest.fixture
def work(project: Project, config: MigratorConfig, observer: asyncpg.Connection) -> Callable[..., Awaitable[Work]]:
    """Call it for the row of a backfill over `ROWS` rows of `items`."""

    async def declared(backfill: str = BACKFILL, rows: int = ROWS) -> Work:
        project.add(TABLE, 'op.execute("DROP TABLE items")')
        declare(project, backfill)
        await bring_to_head(config)
        await fill(observer, rows)
        [work] = await read_works(observer, "public")
        return work

    return declared


async def test_work_is_recorded_with_its_revision_and_done_once_for_each_row(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work()
    assert (recorded.revision, recorded.state, recorded.rows_done) == ("r2", State.PENDING, 0)
    [done] = await finish(config, None)
    assert (done.state, done.rows_done, done.rows_estimated) == (State.COMPLETE, ROWS, ROWS)
    assert await observer.fetchval(EACH_ONCE)


async def test_a_failed_revision_leaves_no_work(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    project.add(TABLE)
    declare(project, BACKFILL, upgrade='op.execute("SELECT 1/0")')
    with pytest.raises(Exception, match="division by zero"):
        await bring_to_head(config)
    assert await read_works(observer, "public") == []


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("id uuid PRIMARY KEY", "gen_random_uuid()"),
        ("id text PRIMARY KEY", "chr(65 + i % 50) || ' é\"{},' || i"),
        ("id timestamptz PRIMARY KEY", "'2026-01-01'::timestamptz + i * interval '1.5 days'"),
        ("id float8 PRIMARY KEY", "i / 7.0::float8"),
        ('"Odd Name" bytea, b bigint, PRIMARY KEY (b, "Odd Name")', "decode(md5(i::text), 'hex'), i % 7"),
    ],
)
async def test_the_key_may_be_of_any_type_and_any_number_of_columns(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection, columns: str, row: str
) -> None:
    escaped = columns.replace('"', '\\"')
    project.add(f'op.execute("CREATE TABLE items ({escaped}, tier text, changes int NOT NULL DEFAULT 0)")')
    declare(project, BACKFILL)
    await bring_to_head(config)
    await observer.execute("ALTER ROLE CURRENT_USER SET DateStyle = 'SQL, DMY'")
    try:
        await observer.execute(f"INSERT INTO items SELECT {row} FROM generate_series(1, 1000) AS i")
        [done] = await finish(config, None)
    finally:
        await observer.execute("ALTER ROLE CURRENT_USER RESET DateStyle")
    assert (done.state, done.rows_done, done.error) == (State.COMPLETE, 1000, None)
    assert await observer.fetchval(EACH_ONCE)


async def test_a_killed_worker_leaves_the_rest_to_the_next(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work()
    for _ in range(5):
        async with session(config) as connection:
            working = asyncio.create_task(do(connection, recorded))
            before = await observer.fetchval("SELECT rows_done FROM migration_background")
            await is_true(observer, f"SELECT rows_done > {before} OR state = 'complete' FROM migration_background")
            await observer.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await asyncio.wait({working})
            assert working.exception() or working.result().state is State.COMPLETE
    [done] = await finish(config, None) or await read_works(observer, "public")
    assert (done.state, done.rows_done) == (State.COMPLETE, ROWS)
    assert await observer.fetchval(EACH_ONCE)


async def test_rows_that_come_behind_the_cursor_are_found_by_another_walk(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work()
    await observer.execute(LATE)
    async with session(config) as connection:
        done = await do(connection, recorded)
    assert (done.state, done.rows_done, done.walk) == (State.COMPLETE, ROWS + 1, 3)
    assert await observer.fetchval(EACH_ONCE)


async def test_a_set_that_leaves_its_rows_matching_fails_and_changes_nothing(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work("Backfill(table='items', set='changes = changes + 1', where='tier IS NULL')")
    told: list[str] = []
    with pytest.raises(BackgroundFailedError, match="would never end"):
        await finish(replace(config, notify=lambda kind, *_: told.append(kind)), None)
    assert told == ["background.failed"]
    assert await observer.fetchval("SELECT max(changes) FROM items") == 0


@pytest.mark.parametrize(
    ("kind", "when", "instead"),
    [
        ("TRIGGER", "BEFORE", ""),
        ("TRIGGER", "AFTER", "UPDATE items SET tier = NULL WHERE id = NEW.id AND tier IS NOT NULL;"),
        ("CONSTRAINT TRIGGER", "AFTER", "UPDATE items SET tier = NULL WHERE id = NEW.id AND tier IS NOT NULL;"),
    ],
)
async def test_a_row_that_a_trigger_leaves_as_it_is_or_changes_back_is_named(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    kind: str,
    when: str,
    instead: str,
) -> None:
    await work()
    deferred = "DEFERRABLE INITIALLY DEFERRED" if kind == "CONSTRAINT TRIGGER" else ""
    await observer.execute(
        f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {instead} RETURN NULL; END';"
        f"CREATE {kind} keep {when} UPDATE ON items {deferred} FOR EACH ROW WHEN (NEW.id = 3210) "
        "EXECUTE FUNCTION keep()"
    )
    with pytest.raises(BackgroundFailedError, match=r"The row \(id\) = \(3210\) of items matches, also after"):
        await asyncio.wait_for(finish(config, None), 30)
    assert await observer.fetchval("SELECT max(changes) FROM items WHERE id <> 3210") == 1


async def test_rows_that_a_policy_hides_are_not_taken_for_done(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work()
    await observer.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    async with session(config) as connection:
        await connection.execute(f"SET ROLE {role}")
        done = await do(connection, recorded)
    await observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert done.state is State.FAILED
    assert "row-level security" in (done.error or "")


async def test_a_failing_batch_is_split_down_to_the_row_which_is_named(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work()
    await observer.execute("ALTER TABLE items ADD CHECK (id <> 3210 OR tier IS NULL)")
    with pytest.raises(BackgroundFailedError) as refusal:
        await finish(config, None)
    assert "The row (id) = (3210) of items cannot be changed" in str(refusal.value)
    assert "Failing row" not in str(refusal.value), "it shows the values"
    assert await observer.fetchval("SELECT count(*) FROM items WHERE tier IS NOT NULL") == 3209
    await observer.execute("DELETE FROM items WHERE id = 3210")
    told: list[tuple[object, ...]] = []
    [done] = await finish(replace(config, notify=lambda *message: told.append(message)), None)
    [(kind, sentence, data)] = told
    assert (kind, data) == (
        "background.completed",
        {"work": done.id, "revision": done.revision, "table": "items", "rows": ROWS - 1},
    )
    assert str(sentence).endswith(" is complete. `gasket database background list` shows it.")
    assert (done.state, done.rows_done, done.error) == (State.COMPLETE, ROWS - 1, None)


async def test_what_lasts_until_it_is_mended_is_not_tried_for_ever(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    """Its SQLSTATE is of the class of locks that are not granted: 55000."""
    await work()
    await observer.execute("ALTER TABLE items REPLICA IDENTITY NOTHING; CREATE PUBLICATION all_items FOR TABLE items")
    with pytest.raises(BackgroundFailedError, match="does not have a replica identity"):
        await asyncio.wait_for(finish(config, None), 30)
    await observer.execute("DROP PUBLICATION all_items")
    [done] = await finish(config, None)
    assert (done.state, done.rows_done) == (State.COMPLETE, ROWS)


async def test_the_row_on_which_where_fails_is_named(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work(BACKFILL.replace("'tier IS NULL'", "'tier IS NULL AND 1 / (id - 3210) < 5'"))
    with pytest.raises(BackgroundFailedError) as refusal:
        await finish(config, None)
    assert "`where` fails on the row (id) = (3210) of items: division by zero [SQLSTATE 22012]" in str(refusal.value)
    assert await observer.fetchval("SELECT count(*) FROM items WHERE tier IS NOT NULL") == 3209
    await observer.execute("DELETE FROM items WHERE id = 3210")
    [done] = await finish(config, None)
    assert (done.state, done.rows_done) == (State.COMPLETE, ROWS - 1)


async def test_a_row_that_comes_behind_the_cursor_and_on_which_where_fails_is_named(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work(BACKFILL.replace("'tier IS NULL'", "'tier IS NULL AND 1 / (id + 1) < 5'"))
    await observer.execute(LATE)
    with pytest.raises(BackgroundFailedError, match=r"`where` fails on the row \(id\) = \(-1\) of items"):
        await finish(config, None)
    assert await observer.fetchval("SELECT count(*) FROM items WHERE tier IS NOT NULL") == ROWS


async def test_a_standby_that_replays_nothing_is_waited_for(
    project: Project,
    pair: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gasket.migrator.background.backfills._LONGEST_LAG", 0.1)
    caplog.set_level(logging.INFO)
    primary_url, standby_url = pair
    config = project.config(primary_url)
    project.add(TABLE)
    declare(project, BACKFILL)
    await bring_to_head(config)
    primary: asyncpg.Connection = await asyncpg.connect(primary_url)
    standby: asyncpg.Connection = await asyncpg.connect(standby_url)
    rows_done = "SELECT rows_done FROM migration_background"
    waits = "waits: a standby has replayed nothing newer than"
    try:
        await is_true(primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
        await standby.execute("SELECT pg_wal_replay_pause()")
        await fill(primary)
        [recorded] = await read_works(primary, "public")
        async with session(config) as connection:
            working = asyncio.create_task(do(connection, recorded, yields=True, share=0.01))
            await until(lambda: waits in caplog.text, 30, "a worker that waits")
            before = await primary.fetchval(rows_done)
            await is_true(primary, "SELECT error LIKE 'waits for a standby%' FROM migration_background")
            shown = (await read_report(config)).background
            assert f"worker {WORKER.process}; waits for a standby" in "".join(map(format_work, shown))
            await asyncio.sleep(0.5)
            assert await primary.fetchval(rows_done) == before < ROWS

            # A start is not kept waiting behind the worker, and neither is a command that pauses the work.
            async with session(config) as other:
                assert await try_worker_lock(connection, "public")
                taking = asyncio.create_task(_take_over(other))
                assert (await working).state is State.RUNNING
                await connection.execute("SELECT pg_advisory_unlock_all()")
                await taking
            caplog.clear()
            working = asyncio.create_task(do(connection, recorded, share=0.01))
            await until(lambda: waits in caplog.text, 30, "a worker that waits")
            await change_state(primary, "public", recorded.id, State.PAUSED, before={State.RUNNING})
            assert (await working).state is State.PAUSED
            await change_state(primary, "public", recorded.id, State.PENDING, before={State.PAUSED})

            working = asyncio.create_task(do(connection, recorded))
            await standby.execute("SELECT pg_wal_replay_resume()")
            done = await working
            assert (done.state, done.error) == (State.COMPLETE, None)
        assert await primary.fetchval(EACH_ONCE)
        await is_true(standby, f"SELECT count(*) = {ROWS} FROM items WHERE changes = 1")
    finally:
        await primary.close()
        await standby.close()


async def _take_over(connection: asyncpg.Connection) -> None:
    async with taken_over(connection, "public"):
        pass


async def test_a_backfill_that_does_not_fit_the_tables_is_refused_with_its_revision(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is compiled counts as long as the file's second and size are the same.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    project.add('op.execute("CREATE TABLE items (id int PRIMARY KEY, n int); CREATE TABLE bare (n int)")')
    path = declare(project, "PLACE", upgrade='op.execute("ALTER TABLE items ADD COLUMN tier text")')
    declared = path.read_text()
    for table, assignment, condition, problem in (
        ("gone", "tier = 'x'", "tier IS NULL", "is not there, or has no primary key"),
        ("bare", "n = 1", "n IS NULL", "is not there, or has no primary key"),
        ("items i", "tier = 'x'", "tier IS NULL", "(invalid name syntax|is not there)"),  # since 16: null
        ("items", "tear = 'x'", "tier IS NULL", 'column "tear" of relation "items" does not exist'),
        ("items", "tier = 'x'", "tear IS NULL", 'column "tear" does not exist'),
        ("items", "tier = 'x'", "WHERE tier IS NULL", "syntax error"),
        ("items", "tier = 'x'", "tier IS NULL) OR (n IS NULL", "syntax error"),
        ("items", "tier = $1", "tier IS NULL", "the server expects 1 argument"),
    ):
        backfill = f"Backfill(table={table!r}, set={assignment!r}, where={condition!r})"
        path.write_text(declared.replace("PLACE", backfill))
        with pytest.raises(NotAppliedError, match=rf"r2 declares a backfill of {table} .*{problem}"):
            await bring_to_head(config)
        assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r1"
    planned = await forecast_pending(config)
    assert "r2 declares a backfill of items that cannot be done" in (planned.failure or ""), planned.estimated
    with pytest.raises(
        ScratchDatabaseError, match="r2 cannot be built on it .*a backfill of items that cannot be done"
    ):
        await compare_with_revision(config, configured_revisions(config.ini), "r2")
    path.write_text(declared.replace("PLACE", "Backfill(table='items', set=\"tier = '100%'\", where='tier IS NULL')"))
    assert (await bring_to_head(config)).head == "r2"


async def test_a_plan_tells_of_an_index_that_cannot_be_built(project: Project, config: MigratorConfig) -> None:
    project.add(TABLE)
    declare(project, INDEX.replace("(tier)", "(gone)"))
    planned = await forecast_pending(config)
    assert re.fullmatch("Revision r2 .* has failed: column .gone. does not exist.*", planned.failure or "")
    assert (planned.estimated, [one.estimated for one in planned.revisions]) == (None, [False, False])


async def test_a_table_that_has_lost_its_primary_key_is_named(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work()
    await observer.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
    with pytest.raises(BackgroundFailedError, match="has no primary key"):
        await finish(config, None)


async def test_a_locked_row_is_waited_for_and_told(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gasket.migrator.background.backfills._TOLD_FROM", 0.2)
    recorded = await work(rows=300)
    async with session(config) as connection:
        async with observer.transaction():
            await observer.execute("SELECT FROM items WHERE id = 150 FOR UPDATE")
            working = asyncio.create_task(do(connection, recorded))
            note = "SELECT error LIKE '%lock timeout%it is tried again' FROM migration_background"
            await asyncio.wait_for(is_true(observer, note), 30)
            assert not working.done()
            assert await observer.fetchval("SELECT count(*) FROM items WHERE tier IS NOT NULL") < 300
        done = await working
    assert (done.state, done.error) == (State.COMPLETE, None)
    assert await observer.fetchval(EACH_ONCE)
    assert f"{recorded}: canceling statement due to lock timeout" in caplog.text


async def test_paused_work_stops_after_its_batch_and_goes_on_from_there(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work(rows=50_000)
    async with session(config) as connection:
        working = asyncio.create_task(do(connection, recorded))
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
        assert await change_state(observer, "public", recorded.id, State.PAUSED, before={State.RUNNING})
        paused = await working
        assert paused.state is State.PAUSED
        assert await observer.fetchval("SELECT count(*) FROM items WHERE changes = 1") == paused.rows_done < 50_000
    await finish(config, recorded.id)
    assert await observer.fetchval(EACH_ONCE)


async def test_a_downgrade_voids_the_work_and_an_upgrade_declares_it_anew(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, project: Project
) -> None:
    recorded = await work(rows=50_000)
    async with session(config) as connection:
        working = asyncio.create_task(do(connection, recorded))
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
        arguments = alembic_config(config.ini, read_config=lambda: config)
        await asyncio.to_thread(alembic.command.downgrade, arguments, "r1")
        assert (await working).state is State.VOID
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r1"
    await asyncio.to_thread(alembic.command.upgrade, arguments, "head")
    assert [one.state for one in await read_works(observer, "public")] == [State.VOID, State.PENDING]


@pytest.mark.parametrize("also", ["", "ALTER TABLE items DROP COLUMN tier"])
async def test_a_release_that_knows_nothing_of_it_has_taken_the_revision_back(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, also: str
) -> None:
    recorded = await work()
    await observer.execute(f"INSERT INTO migration_ledger (revision, direction) VALUES ('r2', 'downgrade'); {also}")
    async with session(config) as connection:
        assert (await do(connection, recorded)).state is State.VOID
    assert await observer.fetchval("SELECT max(changes) FROM items") == 0


async def test_a_command_takes_the_work_over_from_a_replica(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work(rows=50_000)
    async with session(config) as connection, session(config) as other:
        assert await try_worker_lock(connection, "public")
        assert await find_worker(observer, "public") == connection.get_server_pid()
        working = asyncio.create_task(do(connection, recorded, yields=True))
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")

        async def take_over() -> None:
            async with taken_over(other, "public"):
                assert await find_worker(observer, "public") == other.get_server_pid()

        taking = asyncio.create_task(take_over())
        assert (await working).state is State.RUNNING
        assert await is_wanted(observer, "public")
        assert not await try_worker_lock(connection, "public")
        connection.terminate()
        await taking
    assert not await is_wanted(observer, "public")


async def test_a_worker_makes_way_in_the_middle_of_a_long_pause(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = await work()
    async with session(config) as connection, session(config) as other:
        assert await try_worker_lock(connection, "public")
        working = asyncio.create_task(do(connection, recorded, yields=True, share=0.00001))  # some minutes
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
        taking = asyncio.create_task(_take_over(other))
        assert (await asyncio.wait_for(working, 60)).state is State.RUNNING
        await connection.execute("SELECT pg_advisory_unlock_all()")
        await asyncio.wait_for(taking, 60)
    assert "has sent nothing" not in caplog.text


async def test_a_worker_that_is_stopped_keeps_nobody_waiting(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by SIGSTOP, or on a host that is cut off."""
    monkeypatch.setattr("gasket.migrator.background.worker_lock._STOPPED_AFTER", 0.2)
    await work()
    async with session(config) as connection:
        assert await try_worker_lock(connection, "public")
        await connection.execute("BEGIN; SELECT FROM migration_background FOR NO KEY UPDATE")
        [done] = await asyncio.wait_for(finish(config, None), 60)
        assert done.state is State.COMPLETE
        assert f"the worker with pid {connection.get_server_pid()} has sent nothing" in caplog.text


async def test_a_replica_does_what_is_open_and_leaves_at_once(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await work()
    monkeypatch.setattr("gasket.migrator.background.worker._FIRST_LOOK_AFTER", 0.0)
    monkeypatch.setattr("gasket.migrator.background.worker._LOOK_EVERY", 600.0)  # it leaves in this pause
    told: list[str] = []
    monitor = SchemaMonitor(config)
    worker = BackgroundWorker(replace(config, notify=lambda kind, *_: told.append(kind)), monitor.open_work)
    worker.start()
    await is_true(observer, "SELECT state = 'complete' FROM migration_background")
    await until(lambda: told == ["background.completed"], 30, "the message")
    await asyncio.wait_for(worker.stop(), timeout=60)
    await monitor.close()
    assert await observer.fetchval(EACH_ONCE)

    async def gone() -> bool:
        return await find_worker(observer, "public") is None

    await until(gone, 10, "the end of the worker's session")


async def test_an_error_that_nobody_expects_ends_no_worker(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = await work()
    monkeypatch.setattr("gasket.migrator.background.worker._FIRST_LOOK_AFTER", 0.0)
    monkeypatch.setattr("gasket.migrator.background.worker._PAUSE_AFTER_ERROR", 0.0)
    looks = 0

    async def look() -> list[Work]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("not today")
        return [recorded]

    worker = BackgroundWorker(config, look)
    worker.start()
    await is_true(observer, "SELECT state = 'complete' FROM migration_background")
    await worker.stop()
    assert "background work was ended by an unexpected error" in caplog.text


async def test_the_worker_of_a_replica_makes_way_for_a_command(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await work(rows=50_000)
    monkeypatch.setattr("gasket.migrator.background.worker._FIRST_LOOK_AFTER", 0.0)
    monitor = SchemaMonitor(config)
    worker = BackgroundWorker(replace(config, background_share=0.01), monitor.open_work)
    worker.start()
    await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
    [done] = await asyncio.wait_for(finish(config, None), 60)  # by itself the worker would need many minutes
    assert done.state is State.COMPLETE
    await worker.stop()
    await monitor.close()


async def test_what_keeps_a_worker_from_its_work_is_told_once(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = await work()
    for pause in ("_FIRST_LOOK_AFTER", "_LOOK_EVERY"):
        monkeypatch.setattr(f"gasket.migrator.background.worker.{pause}", 0.0)
    looks = 0

    async def look() -> list[Work]:
        nonlocal looks
        looks += 1
        return [recorded]

    nowhere = "postgresql://gasket@127.0.0.1:1/gasket"
    worker = BackgroundWorker(replace(config, migration_database_url=nowhere), look)
    worker.start()
    await until(lambda: looks > 3, 30, "several tries")
    await worker.stop()
    told = "there is background work, but the database of GASKET_MIGRATION_DATABASE_URL cannot be reached"
    assert caplog.text.count(told) == 1


async def test_a_server_that_takes_no_writes_is_said_in_one_sentence(
    work: Callable[..., Awaitable[Work]],
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = await work()
    for pause in ("_FIRST_LOOK_AFTER", "_LOOK_EVERY", "_TAKE_OVER_EVERY"):
        monkeypatch.setattr(f"gasket.migrator.background.worker.{pause}", 0.0)
    name = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        with pytest.raises(
            ReadOnlyServerError, match="has to be written down, but the server of DATABASE_URL takes no"
        ):
            await finish(config, None)
        with pytest.raises(ReadOnlyServerError, match="has to be written down"):
            await change_work(config, recorded.id, "pause")
        looks = 0

        async def look() -> list[Work]:
            nonlocal looks
            looks += 1
            return [recorded]

        worker = BackgroundWorker(config, look)
        worker.start()
        await until(lambda: looks > 3, 30, "several tries")
        await worker.stop()
        assert caplog.text.count("takes no writes") == 1
        assert "was cut short" not in caplog.text
    finally:
        await observer.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


async def test_a_connection_that_is_lost_under_a_command_is_said_in_one_sentence(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work()
    async with observer.transaction():
        await observer.execute("SELECT FROM items WHERE id = 4000 FOR UPDATE")  # so that it does not end before
        running = asyncio.create_task(finish(config, None))
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
        await observer.execute("SELECT pg_terminate_backend($1)", await find_worker(observer, "public"))
        with pytest.raises(MigratorError, match=r"was lost; what is done stays\. Run it again to go on"):
            await running


async def test_what_is_declared_has_to_be_work(project: Project, config: MigratorConfig) -> None:
    declare(project, "'UPDATE items'")
    with pytest.raises(RevisionFileError, match="is not a list of Backfill and IndexBuild"):
        await bring_to_head(config)


async def test_an_index_is_built_and_is_no_drift(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    recorded = await work(INDEX)
    await observer.execute("CREATE INDEX CONCURRENTLY by_tier ON items (tier)")
    await observer.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_tier'::regclass")
    async with session(config) as connection:  # of a build that was cut short
        done = await do(connection, recorded)
    assert (done.state, done.error) == (State.COMPLETE, None)
    assert await observer.fetchval(IS_VALID)
    report = await read_report(config)
    assert (report.state, report.drift, report.tuned) == ("at_head", [], [])


async def test_nothing_is_left_of_an_index_that_cannot_be_built(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work(INDEX.replace("CREATE INDEX", "CREATE UNIQUE INDEX"))
    await observer.execute("UPDATE items SET tier = 'x' WHERE id < 3")
    with pytest.raises(BackgroundFailedError, match='could not create unique index "by_tier".*23505'):
        await finish(config, None)
    assert await observer.fetchval(IS_VALID) is None
    await observer.execute("UPDATE items SET tier = 'y' WHERE id = 2")
    await finish(config, None)
    assert await observer.fetchval(IS_VALID)


async def test_another_index_of_the_name_is_left_alone(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work(INDEX)
    await observer.execute("CREATE INDEX by_tier ON items (changes)")
    with pytest.raises(BackgroundFailedError, match="it is another one"):
        await finish(config, None)


async def test_what_is_left_of_an_index_in_another_schema_is_dropped(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    """An INVALID unique index goes on to refuse rows."""
    project.add('op.execute("CREATE SCHEMA other; CREATE TABLE other.items (id int, tier text)")')
    declare(project, INDEX.replace("CREATE INDEX", "CREATE UNIQUE INDEX").replace("ON items", "ON other.items"))
    await bring_to_head(config)
    await observer.execute("INSERT INTO other.items VALUES (1, 'x'), (2, 'x')")
    with pytest.raises(BackgroundFailedError, match="23505"):
        await finish(config, None)
    assert await observer.fetchval("SELECT to_regclass('other.by_tier') IS NULL")
    await observer.execute("DELETE FROM other.items WHERE id = 2")
    await finish(config, None)
    assert await observer.fetchval(IS_VALID.replace("by_tier", "other.by_tier"))


async def test_an_index_is_not_complete_where_something_else_has_its_name(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await work(INDEX.replace("CONCURRENTLY", "CONCURRENTLY IF NOT EXISTS"))
    await observer.execute("CREATE SEQUENCE by_tier")
    with pytest.raises(BackgroundFailedError, match="No index is built"):
        await finish(config, None)


async def test_a_downgrade_stops_an_index_build(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, database_url: str
) -> None:
    """It waits for an old snapshot, and the work is void before that ends."""
    recorded = await work(INDEX)
    old: asyncpg.Connection = await asyncpg.connect(database_url)
    async with session(config) as connection, old.transaction(isolation="repeatable_read"):
        await old.execute("SELECT 1")
        assert await try_worker_lock(connection, "public")
        working = asyncio.create_task(do(connection, recorded))
        await is_true(observer, "SELECT count(*) > 0 FROM pg_stat_progress_create_index")
        arguments = alembic_config(config.ini, read_config=lambda: config)
        await asyncio.to_thread(alembic.command.downgrade, arguments, "r1")
        assert (await working).state is State.VOID
    await old.close()
    assert await observer.fetchval(IS_VALID) is None


def test_an_index_has_to_be_built_concurrently_and_to_have_a_name() -> None:
    for sql in ("CREATE INDEX i ON t (a)", "CREATE INDEX CONCURRENTLY ON t (a)", "DROP INDEX CONCURRENTLY i"):
        with pytest.raises(ValueError, match="one CREATE INDEX CONCURRENTLY"):
            IndexBuild(sql)


async def test_a_start_finishes_what_a_revision_needs_before_it_applies_it(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, project: Project
) -> None:
    recorded = await work(rows=200_000)
    need(project, "['r2']")
    async with session(config) as connection:  # of an old replica, which works while the new one starts
        assert await try_worker_lock(connection, "public")
        working = asyncio.create_task(do(connection, recorded, yields=True))
        await is_true(observer, "SELECT rows_done > 0 FROM migration_background")
        told: list[str] = []
        telling = replace(config, notify=lambda kind, *_: told.append(kind))
        starting = asyncio.create_task(bring_to_head(telling))
        assert (await working).state is State.RUNNING
        connection.terminate()
        assert (await starting).head == "r3"
    assert told == ["background.completed", "migration.completed"]
    assert await observer.fetchval("SELECT state FROM migration_background") == "complete"
    assert await observer.fetchval(EACH_ONCE)


async def test_declared_and_needed_in_one_start(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    """An index, too: the session that migrates builds it outside of a transaction, and records no drift."""
    project.add(TABLE)
    project.add("op.execute('INSERT INTO items (id) VALUES (1)')", "pass")
    declare(project, BACKFILL, INDEX)
    need(project, "('r3',)")
    await bring_to_head(config)
    assert await observer.fetchval(EACH_ONCE)
    assert await observer.fetchval(IS_VALID)
    report = await read_report(config)
    assert (report.drift, report.tuned) == ([], [])


async def test_a_start_refuses_while_needed_work_is_paused_cancelled_or_fails(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, project: Project
) -> None:
    recorded = await work()
    need(project, "['r2']")
    project.add()
    await change_state(observer, "public", recorded.id, State.PAUSED, before={State.PENDING})
    with pytest.raises(NotAppliedError, match="which is paused.*background resume 1"):
        await bring_to_head(config)
    report = await read_report(config)
    assert (report.state, report.refused) == ("refused", True)
    with pytest.raises(NotAppliedError, match="which is paused"):
        await forecast_pending(config)
    await change_state(observer, "public", recorded.id, State.VOID, before={State.PAUSED})
    with pytest.raises(NotAppliedError, match="which was cancelled.*background resume 1"):
        await bring_to_head(config)
    await change_state(observer, "public", recorded.id, State.FAILED, before={State.VOID})
    await observer.execute("ALTER TABLE items ADD CHECK (id <> 7 OR tier IS NULL)")
    with pytest.raises(NotAppliedError, match=r"has failed: The row \(id\) = \(7\)"):
        await bring_to_head(config)
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r2"
    await observer.execute("DELETE FROM items WHERE id = 7")
    assert (await bring_to_head(config)).head == "r4"


async def test_stopped_work_keeps_back_only_what_needs_it(
    work: Callable[..., Awaitable[Work]], config: MigratorConfig, observer: asyncpg.Connection, project: Project
) -> None:
    recorded = await work()
    project.add()
    need(project, "['r2']")
    await change_state(observer, "public", recorded.id, State.PAUSED, before={State.PENDING})
    with pytest.raises(NotAppliedError, match="Revision r4 needs"):
        await bring_to_head(config)
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r2", "nothing was begun"
    arguments = alembic_config(config.ini, read_config=lambda: config)
    await asyncio.to_thread(alembic.command.upgrade, arguments, "r3")
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r3"


@pytest.mark.parametrize(
    ("needs", "refusal"),
    [
        ("['r4']", "on which it does not stand"),
        ("['r1']", "of revision r1, which declares none"),
        ("[name for name in 'r']", "has to be written out"),
    ],
)
async def test_what_a_revision_needs_is_looked_at_before_anything_is_applied(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection, needs: str, refusal: str
) -> None:
    project.add()
    need(project, needs)
    with pytest.raises(RevisionFileError, match=refusal):
        await bring_to_head(config)
    assert not await observer.fetchval("SELECT to_regclass('t1') IS NOT NULL")


async def test_a_plan_does_not_fail_for_a_backfill_that_needs_what_is_not_tried_out(
    project: Project, config: MigratorConfig
) -> None:
    project.add(TABLE)
    backfill = "Backfill(table='items', set=\"tier = 'held_role'::regrole::text\", where='tier IS NULL')"
    declare(project, backfill, upgrade='op.execute("CREATE ROLE held_role")')
    planned = await forecast_pending(config)
    assert planned.failure is None
    assert [(held.statement, held.kind) for held in planned.revisions[1].not_tried] == [(1, "create role")]
    difference, _ = await compare_with_revision(config, configured_revisions(config.ini), "r2")
    assert "CREATE ROLE in revision r2 is not compared" in "".join(difference.notes)
    assert "EXPLAIN" not in "".join(difference.notes)


async def test_a_plan_shows_the_work_with_live_rows(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.migrator.commands.plan_forecast._LARGE", 5_000)
    project.add(TABLE)
    await bring_to_head(config)
    await fill(observer)
    await observer.execute("UPDATE items SET tier = 'x' WHERE id <= 1000")
    add = 'op.execute("ALTER TABLE items ADD COLUMN other text")'
    on_no_row = BACKFILL.replace("'tier IS NULL'", "'1 / (id - 7) < 0'")
    declare(project, BACKFILL, BACKFILL.replace("tier", "other"), INDEX, on_no_row, upgrade=add)
    need(project, "['r2']")
    project.add(CONCURRENTLY.format(unique="").replace("t1 (v)", "items (tier)"), "pass")
    first, second, third = (await forecast_pending(config)).revisions
    assert [(one.kind, one.rows) for one in first.background] == [
        ("backfill", 4_000),
        ("backfill", ROWS),  # of the whole table: the revision makes the column
        ("index", ROWS),
        ("backfill", ROWS),  # of the whole table: `where` fails on a row as it is now
    ]
    # Its backfills were tried with EXPLAIN: that is not what the revision does.
    assert [statement.sql for statement in first.statements] == ["ALTER TABLE items ADD COLUMN other text"]
    assert first.writes == ()
    await observer.execute("ANALYZE items")
    third = (await forecast_pending(config)).revisions[2]
    assert second.needs_background == ("r2",)
    assert [finding.rule for finding in third.findings] == ["large-index"]
    text = format_plan(await forecast_pending(config))
    assert "leaves for after the start: backfill of items, about 4,000 rows, about 0:00:00 (h:mm:ss)" in text
    assert "needs the background work of r2 to be complete" in text


async def test_a_plan_does_not_say_that_rows_are_in_the_way_which_a_needed_backfill_changes_first(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    project.add(TABLE)
    await bring_to_head(config)
    await fill(observer)
    declare(project, BACKFILL)
    need(project, "['r2']", upgrade='op.execute("ALTER TABLE items ALTER tier SET NOT NULL")')
    plan = await forecast_pending(config)
    [found] = plan.revisions[1].row_findings
    assert "statement 1 may fail on more than 1,000 rows of items: tier is NULL; what runs before it" in found.sentence
    assert not plan.fails
