"""Running a command's coroutine from a command line: with the database up, until it ends or a signal does.

And the first line of every command that writes: which database it changes, and which replicas serve from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import click

from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import looking
from gasket.migrator.signals import until_signalled
from gasket.migrator.which_database import Target, find_target

T = TypeVar("T")

ROW_NUMBER = click.IntRange(1, 2**63 - 1)
"""What the number of an archive or of background work may be; PostgreSQL takes no larger one."""


def run(config: MigratorConfig, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with the database up, until it ends or SIGTERM or SIGINT ends it."""
    with config.start_database():
        return asyncio.run(until_signalled(work(), pass_on=False))


def look(config: MigratorConfig, read: Callable[..., Awaitable[T]], *, schema: str | None = None) -> T:
    """What `read` finds, given a connection and the configuration's schema.

    `schema` is the one that it reads, if not the configuration's: for the message about a missing privilege.
    """

    async def reading() -> T:
        async with looking(config, migrating=True, schema=schema) as connection:
            return await read(connection, config.schema)

    return run(config, reading)


def show_target(config: MigratorConfig) -> Target:
    """Look, over the connection that schema changes go through, and print it.

    Raises:
        MigratorError: the database cannot be reached, or the role may not read the migrator's tables.
    """
    target = look(config, lambda connection, _schema: find_target(connection, config))
    click.echo(str(target))
    return target
