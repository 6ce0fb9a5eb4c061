"""INVALID indexes under the name of one that is to be built: which are a leftover, and which may be somebody's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from gasket.migrator.errors import InvalidIndexError, MigrationFailedError
from gasket.migrator.runner import bring_to_head
from gasket.migrator.steps import StepOptions
from gasket.migrator.upkeep import rollback
from tests.integration.test_runner import CONCURRENTLY, Project


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
        with pytest.raises(MigrationFailedError, match=r"r2 failed: could not create unique .*Key \(v\)=\(7\) is dupl"):
            await take_back()
        assert await observer.fetchval(valid) is False
    await observer.execute("DELETE FROM t1; ALTER TABLE t1 RENAME TO mine")
    await observer.execute("CREATE TABLE t1 (v int)")
    with pytest.raises(InvalidIndexError, match="on table mine, not on t1"):
        await take_back()
    await observer.execute("DROP TABLE t1; ALTER TABLE mine RENAME TO t1")
    await take_back()
    assert await observer.fetchval(valid) is True


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
