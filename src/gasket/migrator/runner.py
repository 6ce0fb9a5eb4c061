"""The one door through which the schema changes: at start, by `alembic ...` and by `litestar database ...`.

Every handle ends in `migrations/env.py`, which calls `run_environment`. At start the lock is taken before
Alembic is loaded; a command takes it here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from gasket.migrator.alembic_command import command_that_writes, counts_from_here, destination, rest_of
from gasket.migrator.connection import MigratorConfig, connect, database_identity, looking, quote_identifier
from gasket.migrator.edits import check_edits
from gasket.migrator.errors import DatabasesDifferError, LockLostError, NotMigratedError
from gasket.migrator.graft import graft
from gasket.migrator.ledger import (
    VERSION_TABLE,
    DatabaseState,
    read_state,
    read_versions,
)
from gasket.migrator.loading import naming_the_file
from gasket.migrator.plan import Plan, SchemaState, check_hold, check_upgrade, make_plan
from gasket.migrator.progress import log_plainly, progress_shown
from gasket.migrator.revisions import Revisions, migrations_directory, read_revisions
from gasket.migrator.rules.check import refuse_broken
from gasket.migrator.session import Application, MigrationSession, engine_over, migration_session
from gasket.migrator.signals import until_signalled
from gasket.migrator.steps import StepOptions, StepRecorder, is_ours_to_compare
from gasket.migrator.verdict import check_downgrade, read_situation, refuse_held

log = logging.getLogger("gasket.migrator")

_FRESH_TRIES = 3
_POLL = 0.5
_CLOSE_TIMEOUT = 2.0
_IN_PROCESS = "gasket_migration"
OPTIONS = "gasket_options"
"""The attribute of Alembic's configuration that holds the StepOptions of a command."""


async def bring_to_head(config: MigratorConfig) -> Plan:
    """What a start does: nothing at head, else bring the schema there, or refuse.

    At head this is one connection and one SELECT: no lock, no write, no Alembic.

    Raises:
        MigratorError: any of its kinds; the message is for the person who has to act.
    """
    started = time.monotonic()
    revisions = read_revisions(migrations_directory(config.ini))
    async with looking(config) as connection:
        situation = await read_situation(connection, config, revisions)
        plan = situation.plan
        check_upgrade(plan, config.release)
        check_edits(plan, situation.edits)
        if config.migrate_on_startup:
            await refuse_held(connection, config, plan)
        behind = plan.state is SchemaState.BEHIND
        application = None
        if behind and config.migration_database_url:
            application = Application(situation.database.role, await database_identity(connection))
    for edit in situation.edits:
        log.warning("%s; nothing is pending, so this release serves", edit)
    if behind and config.migrate_on_startup:
        await with_fresh_tries(lambda: _upgrade(config, revisions, application))
        plan = await _until_it_shows(config, revisions)
    elif behind:
        plan = await _wait_for_head(config, revisions)
    if plan.state is SchemaState.AHEAD:
        log.warning(
            "the schema is ahead of this release %s (%s) and recorded as compatible with it: serving",
            config.release,
            ", ".join(f"{r.revision} by release {r.release}" for r in plan.unknown),
        )
    else:
        log.info("schema at head %s after %.2f s", plan.head, time.monotonic() - started)
    return plan


def run_environment(context: Any, read_config: Callable[[], MigratorConfig]) -> None:
    """What env.py does, whichever command it runs for. `context` is the module `alembic.context`.

    `read_config` is asked by a command line only: an application that starts has brought its own.

    Raises:
        MigratorError: any of its kinds; Alembic's command line prints it as one line.
    """
    in_process: tuple[MigrationSession, Connection] | None = context.config.attributes.get(_IN_PROCESS)
    if in_process is not None:
        session, connection = in_process
        _run_migrations(context, session.config, connection, session.steps)
        return
    config = read_config()
    writes = None if context.is_offline_mode() else command_that_writes(context)
    if not writes:
        log_plainly()
    if context.is_offline_mode():
        _print_sql(context, config)
        return
    with progress_shown() if writes else nullcontext(), config.start_database():
        work = _write(context, config, writes) if writes else _look(context, config)
        asyncio.run(until_signalled(work, pass_on=False))


async def _upgrade(config: MigratorConfig, revisions: Revisions, application: Application | None) -> None:
    """Take the lock, look again, and bring the schema to head."""

    async def at_head(connection: asyncpg.Connection) -> bool:
        try:
            return await read_versions(connection, config.schema) == set(revisions.heads)
        except asyncpg.LockNotAvailableError:  # somebody holds it locked: not known yet
            return False

    async with migration_session(config, revisions, application=application, not_needed=at_head) as session:
        if session is None:
            return
        database = await session.read_state()
        plan = make_plan(revisions, database)
        check_upgrade(plan, config.release)
        check_hold(plan, release=config.release, applied_by=None)  # taken back while this one waited
        if plan.serves:
            return
        session.steps.digests = refuse_broken(plan.pending)
        await session.refuse_to_guess(revisions, database)
        log.info("applying %d revisions up to %s", len(plan.pending), plan.head)
        await session.prepare()
        await session.run(lambda connection: upgrade_in_process(session, connection, "head"))


async def _until_it_shows(config: MigratorConfig, revisions: Revisions) -> Plan:
    """What DATABASE_URL shows once the schema was migrated. A standby may take a moment, another database for ever.

    A newer release may have gone further meanwhile, or somebody may have taken a revision back.
    """
    started = time.monotonic()
    announced = False
    while True:
        async with looking(config) as connection:
            database = await read_state(connection, config.schema)
            plan = make_plan(revisions, database)
            check_upgrade(plan, config.release)
            await refuse_held(connection, config, plan)
        if plan.serves:
            return plan
        waited, head = time.monotonic() - started, plan.head or "base"
        if waited >= config.database_wait:
            shown = sorted(database.versions)
            raise DatabasesDifferError(setting=config.migration_setting, head=head, shown=shown, waited=waited)
        if not announced:
            announced = True
            log.warning("waiting up to %.0f s until DATABASE_URL shows revision %s, too", config.database_wait, head)
        await asyncio.sleep(_POLL)


async def _wait_for_head(config: MigratorConfig, revisions: Revisions) -> Plan:
    """Somebody else migrates: look until the schema is one that this release serves on."""
    started = time.monotonic()
    log.info("GASKET_MIGRATE_ON_STARTUP is false: waiting up to %.0f s for the schema", config.lock_wait)
    while True:
        async with looking(config) as connection:
            database = await read_state(connection, config.schema)
        plan = make_plan(revisions, database)
        check_upgrade(plan, config.release)
        if plan.serves:
            return plan
        waited = time.monotonic() - started
        if waited >= config.lock_wait:
            raise NotMigratedError(waited=waited, current=sorted(database.versions), head=plan.head or "base")
        await asyncio.sleep(min(_POLL, max(0.05, config.lock_wait - waited)))


async def with_fresh_tries(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A lost connection is followed by fresh tries from the lock on, never by going on without the lock."""
    for tries_left in reversed(range(_FRESH_TRIES)):
        try:
            await work()
            return
        except LockLostError as error:
            if not tries_left:
                raise
            log.warning("%s Trying afresh, %d tries left.", error, tries_left)
            await asyncio.sleep(_POLL)


def upgrade_in_process(session: MigrationSession, connection: Connection, revision: str) -> None:
    """Alembic's upgrade to `revision`, inside of `session.run`, over the connection that holds the lock."""
    command.upgrade(alembic_config(session, connection), revision)


def alembic_config(session: MigrationSession, connection: Connection) -> Config:
    """Alembic's configuration, with which env.py runs on the session's connection instead of one of its own."""
    return Config(str(session.config.ini), attributes={_IN_PROCESS: (session, connection)})


@asynccontextmanager
async def locked(config: MigratorConfig, revisions: Revisions) -> AsyncIterator[MigrationSession]:
    """A session for a command: it needs the lock, whatever others have done meanwhile."""
    application: Application | None = None
    if config.migration_database_url:
        async with looking(config) as connection:
            role = await connection.fetchval("SELECT current_user::text")
            application = Application(role, await database_identity(connection))
    async with migration_session(config, revisions, application=application, not_needed=_never) as session:
        assert session is not None
        yield session


async def _write(context: Any, config: MigratorConfig, writes: str) -> None:
    """upgrade, downgrade, stamp and ensure-version from a command line: under the lock, each step on the ledger."""
    revisions = read_revisions(migrations_directory(config.ini))
    options = _options_of(context)
    if writes != "upgrade":
        revisions.check_chain()

    async def once() -> None:
        async with locked(config, revisions) as session:
            database = await session.read_state()
            if not await _runs_here(writes, session, revisions, database):
                return
            session.steps.options = options
            if writes == "downgrade" and not options.discard_data:
                await session.check_archive_rights()
            await session.prepare()
            await session.run(lambda connection: _run_migrations(context, config, connection, session.steps))

    if counts_from_here(destination(context)):
        await once()  # its first try may have come further than anybody knows
    else:
        await with_fresh_tries(once)


def _options_of(context: Any) -> StepOptions:
    """Of `litestar database ...`, or of plain Alembic's `-x discard_data=yes` and `-x restore=no`."""
    given: StepOptions | None = context.config.attributes.get(OPTIONS)
    if given is not None:
        return given
    named: dict[str, str] = context.get_x_argument(as_dictionary=True)
    return StepOptions(
        discard_data=named.get("discard_data", "no") == "yes",
        restore=named.get("restore", "yes") != "no",
        without_archive=f"alembic -x discard_data=yes downgrade {rest_of(destination(context))}",
    )


async def _runs_here(writes: str, session: MigrationSession, revisions: Revisions, database: DatabaseState) -> bool:
    """Refuse what would do harm; False where there is nothing that this release could do."""
    if writes == "upgrade":
        plan = make_plan(revisions, database)
        check_upgrade(plan, session.config.release)
        check_edits(plan, await session.find_edits(plan, database))
        session.steps.digests = refuse_broken(plan.pending)
        await session.refuse_to_guess(revisions, database)
        if plan.state is SchemaState.AHEAD:
            log.info("nothing to do: the schema is ahead of this release and compatible with it")
            return False
        if plan.missing:  # and nothing pending, or that would have been refused
            log.warning("nothing to do: the schema is at head, but files of applied revisions are gone")
            return False
    elif writes == "ensure-version":
        await session.refuse_to_guess(revisions, database)  # an empty version table would say: nothing is applied
    elif writes == "downgrade":
        check_downgrade(revisions, database, session.config.release)
    return True


async def _look(context: Any, config: MigratorConfig) -> None:
    """current, check, revision: one transaction, no lock, nothing set that a pooler could hand to others."""
    read_revisions(migrations_directory(config.ini)).check_chain()
    async with looking(config, migrating=True) as connection:  # Alembic would wait for ever, and refuse with a trace
        await read_versions(connection, config.schema)
    connection = await connect(config, migrating=True)
    try:
        async with engine_over(connection).begin() as sqlalchemy_connection:
            await sqlalchemy_connection.execute(
                text("SELECT set_config('search_path', :path, true), set_config('lock_timeout', :limit, true)"),
                {"path": quote_identifier(config.schema), "limit": f"{max(1.0, config.database_wait)}s"},
            )
            with naming_the_file():
                await sqlalchemy_connection.run_sync(lambda c: _run_migrations(context, config, c, None))
    finally:
        await connection.close(timeout=_CLOSE_TIMEOUT)


def _run_migrations(context: Any, config: MigratorConfig, connection: Connection, steps: StepRecorder | None) -> None:
    # Alembic takes a transaction that is open already for the caller's own, and then commits nothing.
    assert steps is None or not connection.in_transaction()
    context.configure(
        connection=connection,
        on_version_apply=steps.on_version_apply if steps else None,
        **_options(config),
    )
    if steps:
        graft(context.script, steps.grafts)
        steps.attach(context.get_context())
    with context.begin_transaction():
        context.run_migrations()


def _print_sql(context: Any, config: MigratorConfig) -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, **_options(config))
    context.execute(f"SET search_path TO {quote_identifier(config.schema)}")
    with context.begin_transaction():
        context.run_migrations()


def _options(config: MigratorConfig) -> dict[str, Any]:
    return {
        "target_metadata": config.metadata,
        "version_table": VERSION_TABLE,
        "version_table_schema": config.schema,
        "transaction_per_migration": True,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": is_ours_to_compare,
    }


async def _never(_connection: asyncpg.Connection) -> bool:
    return False
