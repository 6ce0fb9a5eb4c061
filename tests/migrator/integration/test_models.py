"""The models take longer to import than most commands to run: they are loaded when something needs them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Column, Integer, MetaData, Table

from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

COMMANDS_WITHOUT_MODELS: list[Callable[[Config], object]] = [
    lambda config: alembic.command.current(config),
    lambda config: alembic.command.upgrade(config, "head"),
    lambda config: alembic.command.stamp(config, "head"),
    lambda config: alembic.command.history(config),
    lambda config: alembic.command.ensure_version(config),
]
COLUMN = 'Column("id", Integer(), CheckConstraint("id > 0", name="over"))'
ENV_PY = Path(__file__).parents[3] / "migrations" / "env.py"
NOT_NEEDED = {"litestar", "advanced_alchemy", "uvicorn", "cryptography", "prometheus_client", "sqlalchemy.orm"}
RUN_COMMANDS = 'main(["current"]); main(["upgrade", "head"])'
NAMED_BY_CONVENTION = f'from sqlalchemy import CheckConstraint, Column, Integer; op.create_table("named", {COLUMN})'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def _refuse() -> MetaData:
    raise AssertionError("the models were loaded")


def _convention() -> MetaData:
    return MetaData(naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s"})


def _command(project: Project, url: str, load: Callable[[], MetaData]) -> Config:
    return Config(str(project.ini), attributes={"read_config": lambda: project.config(url, load_metadata=load)})


async def test_a_start_at_head_loads_no_models(project: Project, database_url: str) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    assert (await bring_to_head(project.config(database_url, load_metadata=_refuse))).serves


@pytest.mark.parametrize("command", COMMANDS_WITHOUT_MODELS, ids=["current", "upgrade", "stamp", "history", "version"])
async def test_commands_with_nothing_to_do_load_no_models(
    project: Project, database_url: str, command: Callable[[Config], object]
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await asyncio.to_thread(command, _command(project, database_url, _refuse))


async def test_check_compares_with_the_models(project: Project, database_url: str) -> None:
    def models() -> MetaData:
        metadata = MetaData()
        Table("missing", metadata, Column("id", Integer))
        return metadata

    project.add()
    await bring_to_head(project.config(database_url))
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        await asyncio.to_thread(alembic.command.check, _command(project, database_url, models))


@pytest.mark.parametrize("handle", ["start", "command"])
async def test_revisions_are_run_with_the_naming_convention_of_the_models(
    project: Project, database_url: str, observer: asyncpg.Connection, handle: str
) -> None:
    project.add(upgrade=NAMED_BY_CONVENTION, downgrade='op.drop_table("named")')
    if handle == "start":
        await bring_to_head(project.config(database_url, load_metadata=_convention))
    else:
        await asyncio.to_thread(alembic.command.upgrade, _command(project, database_url, _convention), "head")
    names = await observer.fetch("SELECT conname FROM pg_constraint WHERE conrelid = 'named'::regclass")
    assert [row["conname"] for row in names] == ["ck_named_over"]


async def test_a_command_with_nothing_to_do_imports_neither_the_application_nor_the_orm(
    project: Project, database_url: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    shutil.copy(ENV_PY, project.versions.parent)
    program = f"import sys; from alembic.config import main; {RUN_COMMANDS}; print(*sys.modules)"
    environment = {**os.environ, "DATABASE_URL": database_url, "ALEMBIC_CONFIG": str(project.ini)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    imported = output.decode().split()
    assert "gasket.migrator.runner" in imported
    assert not NOT_NEEDED & set(imported)
