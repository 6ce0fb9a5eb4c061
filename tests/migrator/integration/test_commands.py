"""What the commands that write say first: which database, and which replicas serve from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import alembic.command
import asyncpg
import click
import pytest
from alembic.config import Config
from click.testing import CliRunner

from gasket.migrator.commands.accept import accept_command
from gasket.migrator.commands.adopt import adopt_command
from gasket.migrator.commands.downgrade import downgrade_command
from gasket.migrator.commands.running import show_target
from gasket.migrator.commands.stamp import stamp_command
from gasket.migrator.commands.upgrade import upgrade_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.head import bring_to_head
from gasket.postgres.connections import connected_address, open_connection
from gasket.postgres.sessions import application_name
from gasket.postgres.urls import address_of, hosts_of
from tests.migrator.project import Project


@pytest.fixture
async def config(tmp_path: Path, database_url: str) -> MigratorConfig:
    project = Project(tmp_path)
    for _ in range(3):
        project.add()
    made = project.config(database_url)
    await bring_to_head(made)
    return made


async def run(command: click.Command, *arguments: str) -> str:
    done = await asyncio.to_thread(CliRunner().invoke, command, list(arguments))
    return done.output


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (upgrade_command, ()),
        (downgrade_command, ("-1", "--no-prompt")),
        (stamp_command, ("head", "--no-prompt")),
        (accept_command, ("r3",)),
        (adopt_command, ("r3",)),
    ],
)
async def test_a_command_that_writes_begins_with_the_database(
    config: MigratorConfig, make: object, arguments: tuple[str, ...]
) -> None:
    assert callable(make)
    first = (await run(make(config), *arguments)).splitlines()[0]
    assert first == f"Database {address_of(config.database_url)}, schema public. No replica is serving."


async def test_a_stamp_downwards_says_which_revision_it_records(
    config: MigratorConfig, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    alembic_config = Config(str(config.ini), attributes={"read_config": lambda: config})
    await asyncio.to_thread(alembic.command.stamp, alembic_config, "r2")
    assert "recorded revision r2 (1 of 1)" in caplog.text
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r2"


async def test_a_stamp_that_is_refused_does_not_say_what_it_would_do(
    config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    said = await run(stamp_command(config), "--purge", "r2", "--no-prompt")
    assert "recorded at r3, and would be at r2" in said
    assert await run(stamp_command(config), "--purge", "head") == "", "there is nobody to ask"
    await observer.execute("UPDATE alembic_version SET version_num = 'mystery'")
    assert "would be" not in await run(stamp_command(config), "--purge", "head", "--no-prompt")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (alembic.command.upgrade, ["head"]),
        (alembic.command.downgrade, ["-1"]),
        (alembic.command.stamp, ["r2"]),
        (alembic.command.ensure_version, []),
    ],
)
async def test_plain_alembic_says_so_too(
    config: MigratorConfig,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    command: Callable[..., None],
    arguments: list[str],
) -> None:
    name = application_name("gasket-ready", "1.0")
    replica = await asyncpg.connect(database_url, server_settings={"application_name": name})
    caplog.set_level(logging.INFO)
    alembic_config = Config(str(config.ini), attributes={"read_config": lambda: config})
    await asyncio.to_thread(command, alembic_config, *arguments)
    await replica.close()
    said = [record.getMessage() for record in caplog.records if record.name == "gasket.migrator"]
    address = address_of(database_url)
    assert said[0] == f"Database {address}, schema public. 1 replica is serving: 1 of release 1.0."


async def test_of_several_hosts_the_one_is_named_that_the_connection_leads_to(
    database_url: str,
) -> None:
    [(host, port)] = hosts_of(database_url)
    if host.startswith("/"):
        several = database_url.replace(f"host={host}", f"host=/nowhere,{host}").replace(
            f"port={port}", f"port=1,{port}"
        )
    else:
        several = database_url.replace(f"{host}:{port}", f"127.0.0.1:1,{host}:{port}")
    connection = await open_connection(several, application_name="a test")
    assert connected_address(connection, several) == address_of(database_url)
    await connection.close()
    assert address_of(several) != address_of(database_url)


async def test_a_downgrade_names_the_live_replicas(config: MigratorConfig, database_url: str) -> None:
    names = [application_name(activity, "1.0") for activity in ("gasket-ready", "gasket-keys")]
    replica = [
        await asyncpg.connect(database_url, server_settings={"application_name": name})
        for name in [*names, application_name("gasket-ready", "1.0", "another")]
    ]
    try:
        said = await run(downgrade_command(config), "-1", "--no-prompt")
        target = await asyncio.to_thread(show_target, config)
    finally:
        for connection in replica:
            await connection.close()
    assert "1 replica is serving: 1 of release 1.0." in said.splitlines()[0]
    assert "1 replica is serving and will stop being ready." in said
    assert len(target.replicas) == 1, "one process, whatever the number of its sessions"
