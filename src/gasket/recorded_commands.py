"""Commands for the schema leave entries in the audit: of who has called them, on which host, and how they ended.

The migrator knows nothing of the audit, so its commands are wrapped here. An entry is made before the command, since a
process can be killed, and one after it.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

import click

from gasket.migrator.config import MigratorConfig
from gasket.origin import origin_of_command, parameters_of
from gasket.postgres.connections import close_connection, open_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe, lacks_object
from gasket.postgres.quoting import quote_identifier

_RECORDED = {
    "accept",
    "adopt",
    "archive drop",
    "archive list",
    "archive restore",
    "archive show",
    "background cancel",
    "background pause",
    "background resume",
    "background run",
    "downgrade",
    "rollback",
    "stamp",
    "upgrade",
}
"""What writes, and what looks into archives, where rows of users are."""
_ADD = """
INSERT INTO {schema}.audit_log (actor, actor_kind, how, source, request_id, action, object_kind, object_id, after)
VALUES ($1, $2, $3, $4, $5, 'command', $6, $7, $8::jsonb)
"""
# Not for long: a session that migrates may hold the table.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
_LIMIT = 5.0
_OBJECTS = ("archive", "background")


def recorded(config: MigratorConfig, command: click.Command, path: str = "") -> click.Command:
    """The same command, which leaves entries if it is one of `_RECORDED`; of a group all that are in it."""
    path = f"{path} {command.name}".strip()
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            recorded(config, inner, path)
    elif path in _RECORDED and command.callback is not None:
        command.callback = _recording(config, path, command.callback)
    return command


def _recording(config: MigratorConfig, path: str, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def run_recorded(**parameters: Any) -> Any:
        if parameters.get("sql"):  # it prints, and changes nothing
            return run(**parameters)
        with config.start_database(), _entries_around(config, path, parameters):
            return run(**parameters)

    return run_recorded


@contextmanager
def _entries_around(config: MigratorConfig, path: str, parameters: Mapping[str, Any]) -> Iterator[None]:
    given = {name: value for name, value in parameters.items() if value not in (None, False)}
    details = {"command": click.get_current_context().command_path, "parameters": given}
    begun = _add_entry(config, path, details | {"outcome": "begun"})
    outcome = "completed"
    try:
        yield
    except BaseException as error:
        if not _is_regular_end(error):
            outcome = f"failed: {type(error).__name__}"  # its message may have values of rows
        raise
    finally:
        # What was told once need not be told again. A database that was away may have come up for the command.
        if begun is _Begun.POSSIBLE or (begun is _Begun.UNREACHABLE and outcome == "completed"):
            _add_entry(config, path, details | {"outcome": outcome})


def _is_regular_end(error: BaseException) -> bool:
    match error:
        case SystemExit(code=code) | click.exceptions.Exit(exit_code=code):
            return not code
    return False


class _Begun(Enum):
    POSSIBLE = auto()
    """It is made, or the schema has no audit yet."""
    UNREACHABLE = auto()
    REFUSED = auto()


def _add_entry(config: MigratorConfig, path: str, details: Mapping[str, Any]) -> _Begun:
    """Add an entry, where the schema has the audit already.

    Whatever goes wrong, the command goes on: it may be the one that mends the database.
    """
    try:
        asyncio.run(_insert(config, path, details))
    except _UnreachableError:  # the command says so itself
        return _Begun.UNREACHABLE
    except (*DRIVER_ERRORS, TimeoutError) as error:
        if not lacks_object(error):
            click.echo(f"The audit has no entry of this command: {describe(error)}", err=True)
            return _Begun.REFUSED
    return _Begun.POSSIBLE


class _UnreachableError(Exception):
    pass


async def _insert(config: MigratorConfig, path: str, details: Mapping[str, Any]) -> None:
    name = config.application_name("gasket-audit")
    try:
        async with asyncio.timeout(_LIMIT):
            connection = await open_connection(config.migration_url, application_name=name, answer_timeout=_LIMIT)
    except (*DRIVER_ERRORS, TimeoutError, ValueError):
        raise _UnreachableError from None
    number = details["parameters"].get("number")
    group = path.partition(" ")[0]
    try:
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(
                _ADD.format(schema=quote_identifier(config.schema)),
                *parameters_of(origin_of_command()).values(),
                group if group in _OBJECTS else "schema",
                None if number is None else str(number),
                json.dumps(details, default=str),
            )
    finally:
        await close_connection(connection)
