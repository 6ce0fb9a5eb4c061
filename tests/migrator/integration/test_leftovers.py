"""INVALID indexes under the name of one that is to be built: which are a leftover, and which may be somebody's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from gasket.migrator.apply.leftovers import drop_invalid_indexes
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import InvalidIndexError, MigrationFailedError
from gasket.migrator.head import bring_to_head
from gasket.migrator.sql.render import Statement
from tests.migrator.project import CONCURRENTLY, Project, is_true


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def is_refused(project: Project, database_url: str, doubt: str) -> None:
    """The revision that builds `by_v` on `t1` comes next, and is not begun."""
    project.add(CONCURRENTLY.format(unique=""), 'op.execute("DROP INDEX by_v")')
    with pytest.raises(InvalidIndexError) as refusal:
        await bring_to_head(project.config(database_url))
    for part in ("Revision r2 is to build index by_v", f"({doubt})", "nothing of the revision was changed"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("without_file", [False, True])
async def test_a_way_down_that_was_cut_short_is_cleared_too(
    project: Project, database_url: str, observer: asyncpg.Connection, without_file: bool
) -> None:
    config = project.config(database_url)
    project.add('op.execute("CREATE TABLE t1 (v int)"); op.execute("CREATE UNIQUE INDEX by_v ON t1 (v)")')
    newer = project.add('op.execute("DROP INDEX by_v")', CONCURRENTLY.format(unique="UNIQUE"))
    await bring_to_head(config)
    if without_file:
        newer.unlink()

    async def take_back() -> None:
        if without_file:
            await rollback(config, None, StepOptions())
        else:
            alembic = Config(str(project.ini), attributes={"read_config": lambda: config})
            await asyncio.to_thread(command.downgrade, alembic, "r1")

    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('by_v')"
    await observer.execute("INSERT INTO t1 VALUES (7), (7)")
    for _ in range(2):
        with pytest.raises(MigrationFailedError, match='r2 failed: could not create unique index "by_v"'):
            await take_back()
        assert await observer.fetchval(valid) is False
    await observer.execute("DELETE FROM t1; ALTER TABLE t1 RENAME TO mine")
    await observer.execute("CREATE TABLE t1 (v int)")
    with pytest.raises(InvalidIndexError, match="on table mine, not on t1"):
        await take_back()
    await observer.execute("DROP TABLE t1; ALTER TABLE mine RENAME TO t1")
    await take_back()
    assert await observer.fetchval(valid) is True


@pytest.mark.parametrize("what", ["INDEX CONCURRENTLY t1_pkey", "TABLE CONCURRENTLY public.t1"])
async def test_those_of_a_reindex_are_dropped(
    project: Project, database_url: str, observer: asyncpg.Connection, what: str
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int PRIMARY KEY)")')
    await bring_to_head(project.config(database_url))
    left = ["t1_pkey_ccnew", "t1_pkey_ccold1", "other_ccnew"]
    await observer.execute("CREATE TABLE t2 (v int); CREATE INDEX other_ccnew ON t2 (v)")
    await observer.execute("CREATE UNIQUE INDEX t1_pkey_ccnew ON t1 (v); CREATE UNIQUE INDEX t1_pkey_ccold1 ON t1 (v)")
    await observer.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = ANY (ARRAY{left}::regclass[])")
    project.add(f'with op.get_context().autocommit_block():\n        op.execute("REINDEX {what}")', "pass")
    await bring_to_head(project.config(database_url))
    there = (
        "SELECT array_agg(indexrelid::regclass::text ORDER BY 1) FROM pg_index WHERE indexrelid::regclass::text ~ '_cc'"
    )
    assert await observer.fetchval(there) == ["other_ccnew"], "an index of another table is not ours"


async def test_one_of_a_reindex_that_still_runs_is_left_to_it(database_url: str, observer: asyncpg.Connection) -> None:
    await observer.execute("CREATE TABLE t1 (v int PRIMARY KEY); SET lock_timeout = '2s'")
    writer, colleague = [await asyncpg.connect(database_url) for _ in range(2)]
    await writer.execute("BEGIN; INSERT INTO t1 VALUES (1)")
    reindex = "REINDEX INDEX CONCURRENTLY t1_pkey"
    reindexing = asyncio.create_task(colleague.execute(reindex))
    await is_true(observer, "SELECT to_regclass('t1_pkey_ccnew') IS NOT NULL")
    await drop_invalid_indexes(observer, "public", "r1", [Statement(reindex, autocommit=True)])
    assert await observer.fetchval("SELECT to_regclass('t1_pkey_ccnew') IS NOT NULL")
    await writer.close()
    await reindexing
    await colleague.close()


async def test_one_of_a_partitioned_table(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int) PARTITION BY LIST (v)")')
    await bring_to_head(project.config(database_url))
    await observer.execute("CREATE TABLE p1 PARTITION OF t1 DEFAULT; CREATE INDEX by_v ON ONLY t1 (v)")
    await is_refused(project, database_url, "it belongs to a partitioned table")
    assert await observer.fetchval("SELECT to_regclass('by_v') IS NOT NULL")


async def test_one_that_backs_a_constraint(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    """REINDEX CONCURRENTLY never leaves such a one; a damaged one may be marked by hand."""
    project.add('op.execute("CREATE TABLE t1 (v int, CONSTRAINT by_v UNIQUE (v))")')
    await bring_to_head(project.config(database_url))
    await observer.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_v'::regclass")
    await is_refused(project, database_url, "it backs a constraint")
    assert await observer.fetchval("SELECT count(*) FROM pg_constraint WHERE conname = 'by_v'") == 1


async def test_one_that_somebody_is_building(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    writer: asyncpg.Connection = await asyncpg.connect(database_url)
    builder: asyncpg.Connection = await asyncpg.connect(database_url)
    await writer.execute("BEGIN; INSERT INTO t1 VALUES (1)")
    building = asyncio.create_task(builder.execute("CREATE INDEX CONCURRENTLY by_v ON t1 (v)"))
    async with asyncio.timeout(10):
        while not await observer.fetchval("SELECT count(*) FROM pg_stat_progress_create_index WHERE index_relid <> 0"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await is_refused(project, database_url, f"pid {builder.get_server_pid()} is building it")
    await writer.execute("COMMIT")
    await building
    await writer.close()
    await builder.close()
    assert await observer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_v'::regclass")
