"""Several statements in one `op.execute`: applied, taken back by the file, and rolled back from what is stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

DOWN = [
    'op.execute("DROP TABLE t1; DROP TABLE IF EXISTS t9;")',
    "op.execute(\"DO $$ BEGIN PERFORM 1; END $$; -- ';'\\n DROP TABLE t1\")",
    "op.execute(\"COMMENT ON TABLE t1 IS 'a; b'; DROP TABLE t1; ; SELECT ';'\")",
    'op.get_bind().execute(__import__("sqlalchemy").text("SELECT 1; DROP TABLE t1"))',
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("downgrade", DOWN)
@pytest.mark.parametrize("without_file", [True, False])
async def test_they_are_taken_back(
    project: Project, database_url: str, observer: asyncpg.Connection, downgrade: str, without_file: bool
) -> None:
    config = project.config(database_url)
    project.add("pass", "pass")
    newer = project.add('op.execute("CREATE TABLE t1 (id int); INSERT INTO t1 VALUES (1)")', downgrade)
    await bring_to_head(config)
    assert await observer.fetchval("SELECT count(*) FROM t1") == 1
    if without_file:
        newer.unlink()
        await rollback(config, None, StepOptions())
    else:
        alembic = Config(str(project.ini), attributes={"read_config": lambda: config})
        await asyncio.to_thread(command.downgrade, alembic, "r1")
    assert await observer.fetchval("SELECT to_regclass('t1')") is None
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r1"


async def test_one_that_fails_takes_those_before_it_back(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('op.execute("CREATE TABLE t1 (id int); CREATE TABLE t2 (id int); SELECT 1/0; CREATE TABLE t3 ()")')
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT to_regclass('t1')") is None
