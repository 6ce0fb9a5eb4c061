"""`gasket database background ...`: work that revisions leave for the time after the start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeVar

import asyncpg
import click

from gasket.migrator.apply.progress_display import progress_shown
from gasket.migrator.background import INDEX
from gasket.migrator.background.worker import prepare_worker
from gasket.migrator.background.worker_lock import interrupt_worker, taken_over
from gasket.migrator.background.working import work_on
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.running import ROW_NUMBER, look, run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connect
from gasket.migrator.errors import (
    BackgroundFailedError,
    MigratorError,
    MissingPrivilegeError,
    NotThereError,
    ReadOnlyServerError,
    TargetError,
    TransactionPoolerError,
)
from gasket.migrator.ledger.background import (
    OPEN,
    UNFINISHED,
    State,
    Work,
    change_state,
    format_work,
    is_taken_back,
    read_work,
    read_works,
)
from gasket.migrator.ledger.read import are_there
from gasket.migrator.ledger.tables import BACKGROUND, qualified
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe, is_lost
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.quoting import quote_identifier

_TOLD_EVERY = 0.5

_Change = Literal["pause", "resume", "cancel"]
_CHANGES: Mapping[_Change, tuple[State, frozenset[State]]] = {
    "pause": (State.PAUSED, OPEN),
    "resume": (State.PENDING, frozenset({State.PAUSED, State.FAILED, State.VOID})),
    "cancel": (State.VOID, UNFINISHED),
}
"""The state that each leads to, and from which ones."""

T = TypeVar("T")


def background_commands(config: MigratorConfig) -> click.Group:
    """The commands, for the database that `config` names."""

    @click.group("background", help="Show, run, pause, resume or cancel background work.")
    def background() -> None:
        pass

    @background.command("list", help="All background work: its state, and how far it is.")
    def list_works() -> None:
        works = look(config, read_works)
        click.echo("\n".join(map(format_work, works)) or "There is no background work.")

    @background.command(
        "run",
        help="Do background work NUMBER here and now, at full speed. Without a number: all that is not paused.",
    )
    @click.argument("number", type=ROW_NUMBER, required=False)
    def run_works(number: int | None) -> None:
        show_target(config)
        with progress_shown(config.log_format):
            done = run(config, lambda: finish(config, number))
        click.echo("\n".join(map(format_work, done)) or "There is no background work to do.")

    @background.command("pause", help="Pause background work NUMBER. It waits for the batch under way.")
    @click.argument("number", type=ROW_NUMBER)
    def pause(number: int) -> None:
        _change(config, number, "pause")

    @background.command("resume", help="Let a replica go on with background work NUMBER: paused, failed or cancelled.")
    @click.argument("number", type=ROW_NUMBER)
    def resume(number: int) -> None:
        _change(config, number, "resume")

    @background.command("cancel", help="Give background work NUMBER up. What it has done stays.")
    @click.argument("number", type=ROW_NUMBER)
    def cancel(number: int) -> None:
        _change(config, number, "cancel")

    return background


async def finish(config: MigratorConfig, number: int | None) -> list[Work]:
    """Do one piece of work, or all that is pending, running or failed; the replica that works leaves it.

    Raises:
        TargetError: there is none of this number, or it is complete or void.
        BackgroundFailedError: one has failed; the others are done.
        MissingPrivilegeError, TransactionPoolerError, ReadOnlyServerError: it cannot be done over this connection.
        MigratorError: the connection was lost.
    """
    before = UNFINISHED if number is not None else UNFINISHED - {State.PAUSED}

    async def work(connection: asyncpg.Connection) -> list[Work]:
        try:
            wanted = await _unfinished(connection, config.schema, number, before)
            await prepare_worker(connection, config.schema)
            async with taken_over(connection, config.schema):
                return [
                    await work_on(
                        connection,
                        config,
                        one,
                        share=1,
                        yields=False,
                        before=before,
                        tell_every=_TOLD_EVERY,
                    )
                    for one in wanted
                ]
        except DRIVER_ERRORS as error:
            if not is_lost(error) and not connection.is_closed():
                raise
            raise MigratorError(
                "The connection to the database was lost; what is done stays. Run it again to go on."
            ) from None

    done = await _connected(config, work)
    for one in done:
        if one.state is State.FAILED:
            raise BackgroundFailedError(work=str(one), number=one.id, error=one.error or "")
    return done


async def _unfinished(
    connection: asyncpg.Connection, schema: str, number: int | None, states: frozenset[State]
) -> list[Work]:
    if number is None:
        return await read_works(connection, schema, states=states)
    work = await _find(connection, schema, number)
    if work.state not in states:
        raise _in_wrong_state(work, "run")
    return [work]


async def change_work(config: MigratorConfig, number: int, change: _Change) -> Work:
    """Pause, resume or cancel one piece of work. It waits for the batch under way.

    Raises:
        NotThereError: there is none of this number.
        TargetError: its state does not allow it, or its revision was taken back.
        MissingPrivilegeError, TransactionPoolerError, ReadOnlyServerError: it cannot be done over this connection.
    """
    state, before = _CHANGES[change]

    async def apply(connection: asyncpg.Connection) -> Work:
        schema = config.schema
        work = await _find(connection, schema, number)
        if state is State.PENDING and await is_taken_back(connection, schema, work.revision):
            raise TargetError(
                problem=f"Revision {work.revision}, which has declared background work {number}, was taken back",
                mend="Apply it again: that declares the work anew",
            )
        changed = await change_state(connection, schema, number, state, before=before)
        if changed is None:
            raise _in_wrong_state(await _find(connection, schema, number), change)
        if work.kind == INDEX and work.state is State.RUNNING:
            await interrupt_worker(connection, schema)
        return changed

    return await _connected(config, apply)


def _change(config: MigratorConfig, number: int, change: _Change) -> None:
    show_target(config)
    click.echo(format_work(run(config, lambda: change_work(config, number, change))))


async def _connected(config: MigratorConfig, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Over a direct connection of the migrating role."""
    connection = await connect(config, migrating=True)
    try:
        if await leads_through_pooler(connection):
            raise TransactionPoolerError(setting=config.migration_setting)
        return await work(connection)
    except asyncpg.ReadOnlySQLTransactionError:
        in_recovery = await connection.fetchval("SELECT pg_is_in_recovery()")
        raise ReadOnlyServerError(
            setting=config.migration_setting, in_recovery=in_recovery, need="Background work has to be written down"
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        role = quote_identifier(await connection.fetchval("SELECT current_user::text"))
        table = qualified(config.schema, BACKGROUND)
        raise MissingPrivilegeError(
            role=role,
            need=f"do background work ({describe(error)})",
            statement=f"GRANT SELECT, UPDATE ON {table} TO {role}",
        ) from None
    finally:
        await close_connection(connection)


async def _find(connection: asyncpg.Connection, schema: str, number: int) -> Work:
    there = await are_there(connection, schema, BACKGROUND)
    work = await read_work(connection, schema, number) if all(there) else None
    if work is None:
        raise NotThereError(
            problem=f"There is no background work {number}", mend=f"Run: {database_command('background list')}"
        )
    return work


def _in_wrong_state(work: Work, command: str) -> TargetError:
    return TargetError(
        problem=f"Background work {work.id} is {work.state}, so there is nothing to {command}",
        mend=f"To see all of it run: {database_command('background list')}",
    )
