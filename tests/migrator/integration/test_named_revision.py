"""Revisions as they are typed: a mistyped one, a step from a merge, and one of a newer release."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TextIO

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.errors import MigratorError, SchemaAheadError, TargetError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def alembic_config(project: Project, database_url: str, stdout: TextIO = sys.stdout) -> Config:
    attributes = {"read_config": lambda: project.config(database_url)}
    return Config(str(project.ini), attributes=attributes, stdout=stdout)


def rename(path: Path, revision: str, description: str) -> None:
    old = path.read_text().split('"""')[1]
    text = path.read_text().replace(f'"""{old}"""', f'"""{description}"""').replace(f'"{old}"', f'"{revision}"')
    path.write_text(text)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("19e6a3d5f87O", r"Nearest: 19e6a3d5f870 \(api key last used\)\."),
        ("api_key_last_used", r"Nearest: 19e6a3d5f870 \(api key last used\)\."),
        ("zzzz", "Run: gasket database history"),
        ("19e6a3d5f87O-1", r"There is no revision 19e6a3d5f87O; nothing was changed\. Nearest: 19e6a3d5f870"),
    ],
)
@pytest.mark.parametrize("command", [alembic.command.upgrade, alembic.command.downgrade, alembic.command.stamp])
async def test_a_mistyped_revision_is_answered_with_the_nearest(
    project: Project, database_url: str, command: Callable[..., object], typed: str, said: str
) -> None:
    rename(project.add(), "19e6a3d5f870", "api key last used")
    await bring_to_head(project.config(database_url))
    with pytest.raises(TargetError, match=said):
        await asyncio.to_thread(command, alembic_config(project, database_url), typed)


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        (alembic.command.upgrade, "19e6a3d5f87O"),
        (alembic.command.upgrade, "19e6a3d5f87O:head"),
        (alembic.command.downgrade, "19e6a3d5f870:19e6a3d5f87O"),
        (alembic.command.stamp, "19e6a3d5f87O"),
    ],
)
def test_so_is_one_of_which_the_sql_is_to_be_printed(
    project: Project, command: Callable[..., object], typed: str
) -> None:
    rename(project.add(), "19e6a3d5f870", "api key last used")
    config = alembic_config(project, "postgresql://")
    with pytest.raises(TargetError, match=r"no revision 19e6a3d5f87O; nothing was changed\. Nearest: 19e6a3d5f870"):
        command(config, typed, sql=True)


@pytest.mark.parametrize(
    ("at", "command", "typed", "said"),
    [
        ("r1", alembic.command.upgrade, "+3", r"Only 2 revisions are pending, so \+3 .* run: gasket database upgrade$"),
        ("r3", alembic.command.upgrade, "+1", r"No revision is pending, so \+1 .* run: gasket database status$"),
        ("r1", alembic.command.downgrade, "-99", r"Only 1 revision is applied, so -99 .* downgrade base$"),
        ("base", alembic.command.downgrade, "-1", r"No revision is applied, so -1 .* database status$"),
        ("base", alembic.command.downgrade, "r2", r"r2 is not applied \(the schema is at base\), .* upgrade r2$"),
        ("r1", alembic.command.downgrade, "head", r"r3 is not applied \(the schema is at r1\), .* upgrade r3$"),
    ],
)
async def test_more_steps_than_there_are_lead_nowhere(
    project: Project,
    database_url: str,
    observer: asyncpg.Connection,
    at: str,
    command: Callable[..., object],
    typed: str,
    said: str,
) -> None:
    for _ in range(3):
        project.add()
    config = alembic_config(project, database_url)
    await asyncio.to_thread(alembic.command.upgrade, config, "r1" if at == "base" else at)
    if at == "base":
        await asyncio.to_thread(alembic.command.downgrade, config, "base")
    with pytest.raises(TargetError, match=said):
        await asyncio.to_thread(command, config, typed)
    assert await versions(observer) == ([] if at == "base" else [at])


@pytest.mark.parametrize(
    ("at", "command", "typed", "then"),
    [
        ("r1", alembic.command.upgrade, "+2", ["r3"]),
        ("r2", alembic.command.downgrade, "-2", []),
        ("r2", alembic.command.downgrade, "r2", ["r2"]),
    ],
)
async def test_as_many_steps_as_there_are_are_taken(
    project: Project,
    database_url: str,
    observer: asyncpg.Connection,
    at: str,
    command: Callable[..., object],
    typed: str,
    then: list[str],
) -> None:
    for _ in range(3):
        project.add()
    config = alembic_config(project, database_url)
    await asyncio.to_thread(alembic.command.upgrade, config, at)
    await asyncio.to_thread(command, config, typed)
    assert await versions(observer) == then


@pytest.mark.parametrize("typed", ["19e6", "19e6a3d5f870", "head", "heads", "base", "19e6@head"])
async def test_what_alembic_takes_is_taken(project: Project, database_url: str, typed: str) -> None:
    rename(project.add(), "19e6a3d5f870", "api key last used")
    await bring_to_head(project.config(database_url))
    await asyncio.to_thread(alembic.command.upgrade, alembic_config(project, database_url), typed)


async def test_the_beginning_of_two_revisions_names_none(project: Project, database_url: str) -> None:
    rename(project.add(), "19e6a", "one")
    path = project.add()
    rename(path, "19e6b", "two")
    path.write_text(path.read_text().replace("'r1'", "'19e6a'"))
    await bring_to_head(project.config(database_url))
    with pytest.raises(TargetError, match="19e6 begins 19e6a and 19e6b; nothing was changed"):
        await asyncio.to_thread(alembic.command.downgrade, alembic_config(project, database_url), "19e6")


async def test_a_step_from_a_merge_names_where_to_go(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    for _ in range(4):
        project.add()
    third, fourth = sorted(project.versions.iterdir())[2:]
    third.write_text(third.read_text().replace("= 'r2'", "= 'r1'"))
    fourth.write_text(fourth.read_text().replace("down_revision: str | None = 'r3'", "down_revision = ('r2', 'r3')"))
    await bring_to_head(project.config(database_url))
    config = alembic_config(project, database_url)
    with pytest.raises(TargetError, match=r"Revision r4 joins r2 and r3, .* downgrade r2$"):
        await asyncio.to_thread(alembic.command.downgrade, config, "-1")
    await asyncio.to_thread(alembic.command.downgrade, config, "r2")
    assert await versions(observer) == ["r2", "r3"]
    with pytest.raises(TargetError, match=r"r2 and r3 are both applied, .* Name one: r2@-1 or r3@-1$"):
        await asyncio.to_thread(alembic.command.downgrade, config, "-1")
    await asyncio.to_thread(alembic.command.downgrade, config, "r3@-1")
    assert await versions(observer) == ["r2"]


@pytest.mark.parametrize(
    ("compatible", "said"),
    [(True, "so this release can run on it"), (False, "not backward compatible, so this release cannot run on it")],
)
async def test_an_older_release_says_what_is_there(
    project: Project,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    compatible: bool,
    said: str,
) -> None:
    project.add()
    newer = project.add(compatible=compatible)
    await bring_to_head(project.config(database_url, release="2.0"))
    newer.unlink()
    printed = StringIO()
    with caplog.at_level(logging.WARNING):
        await asyncio.to_thread(alembic.command.current, alembic_config(project, database_url, printed))
    assert printed.getvalue() == "r2\n", "it is no head of this release"
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "The schema is at r2 (release 2.0 applied it at " in warning
    assert "newer than this release 1.0, whose head is r1" in warning
    assert said in warning
    with pytest.raises(SchemaAheadError, match="the models of this release are not those of its schema"):
        await asyncio.to_thread(alembic.command.check, alembic_config(project, database_url))
    if compatible:
        assert "The schema is at r2 (release 2.0" in format_plan(await forecast_pending(project.config(database_url)))
    else:
        with pytest.raises(SchemaAheadError, match="r2, applied by release 2.0"):
            await forecast_pending(project.config(database_url))


async def test_a_revision_that_nobody_knows_is_named_and_not_stamped_over(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute("UPDATE alembic_version SET version_num = 'mystery'")
    with pytest.raises(SchemaAheadError, match="mystery, which the ledger does not know"):
        await asyncio.to_thread(alembic.command.current, alembic_config(project, database_url))
    with pytest.raises(MigratorError, match="mystery, .* a stamp would record that it is not applied"):
        await asyncio.to_thread(alembic.command.stamp, alembic_config(project, database_url), "r1", purge=True)
    assert await versions(observer) == ["mystery"]


async def versions(observer: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await observer.fetch("SELECT version_num FROM alembic_version ORDER BY 1")]
