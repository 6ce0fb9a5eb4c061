"""Tables of the migrator's own that came back without their sequences: what is said, and that it mends them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic import command

from gasket.migrator.commands.accept import accept
from gasket.migrator.errors import LedgerSequenceError, MigrationFailedError
from gasket.migrator.head import bring_to_head
from tests.migrator.integration.test_archive_chains import alembic
from tests.migrator.project import Project, ledger

BLOCK = "with op.get_context().autocommit_block():\n        op.execute('CREATE TABLE kept (id int)')"


async def mend(observer: asyncpg.Connection, error: LedgerSequenceError) -> None:
    await observer.execute(str(error).partition("start again: ")[2])


async def test_of_what_a_step_has_committed(tmp_path: Path, database_url: str, observer: asyncpg.Connection) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    await bring_to_head(config)
    await observer.execute(
        "INSERT INTO migration_progress (id, revision, downgrade, statement, finished) OVERRIDING SYSTEM VALUE "
        "VALUES (1, 'another', false, '', true)"
    )
    project.add(BLOCK, 'op.execute("DROP TABLE kept")')
    with pytest.raises(
        LedgerSequenceError, match="r2 could not be recorded.* sequence of .*migration_progress.id"
    ) as told:
        await bring_to_head(config)
    assert await observer.fetchval("SELECT to_regclass('kept') IS NULL")
    await mend(observer, told.value)
    await bring_to_head(config)
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_of_the_archive(tmp_path: Path, database_url: str, observer: asyncpg.Connection) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    project.add('op.execute("CREATE TABLE t (id int)")', 'op.execute("DROP TABLE t")')
    await bring_to_head(config)
    await observer.execute("INSERT INTO t VALUES (1)")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("ALTER TABLE gasket_archive.manifest ALTER COLUMN id RESTART WITH 1")
    await observer.execute("UPDATE gasket_archive.manifest SET restored_at = now()")
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    await observer.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(LedgerSequenceError, match="gasket_archive.*manifest.id lies behind.*rolled back") as told:
        await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await mend(observer, told.value)
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")


async def test_of_the_failures(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The revision's own error is what is raised; the log says that it is not on record, and why."""
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    await bring_to_head(config)
    await observer.execute("INSERT INTO migration_failures (id, error) OVERRIDING SYSTEM VALUE VALUES (1, '')")
    project.add('op.execute("SELECT 1 / 0")')
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(config)
    [said] = [record.getMessage() for record in caplog.records if "migration_failures" in record.getMessage()]
    assert "r2 could not be recorded" in said
    await observer.execute(said.partition("run: ")[2])
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)
    assert await observer.fetchval("SELECT count(*) FROM migration_failures") == 2


async def test_of_the_ledger_in_a_command(tmp_path: Path, database_url: str, observer: asyncpg.Connection) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    edited = project.add()
    await bring_to_head(config)
    edited.write_text(edited.read_text().replace("id int", "id bigint"))
    await observer.execute("ALTER TABLE migration_ledger ALTER COLUMN id RESTART WITH 1")
    with pytest.raises(LedgerSequenceError, match="r1 could not be recorded") as told:
        await accept(config, "r1")
    await mend(observer, told.value)
    await accept(config, "r1")
    assert await ledger(observer) == [("r1", "upgrade"), ("r1", "accept")]
