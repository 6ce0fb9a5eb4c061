"""Takes the migration lock for whatever writes: a start, `alembic ...` and `gasket database ...`.

Every handle ends in `migrations/env.py`, which calls `run_environment`. A start comes through `head`, and only where
something is pending.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text

from gasket.migrator.alembic_command import RunningCommand, counts_from_here, rest_of, running_command
from gasket.migrator.apply.events import RevisionsPending
from gasket.migrator.apply.graft import graft, never_seen
from gasket.migrator.apply.locked_connection import Application
from gasket.migrator.apply.progress_display import log_plainly, progress_shown
from gasket.migrator.apply.session import MigrationSession, migration_session
from gasket.migrator.apply.steps import StepOptions, StepRecorder, upgrade_steps
from gasket.migrator.catalog.models import compared_with_models
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connected, looking
from gasket.migrator.errors import LockLostError, MigratorError
from gasket.migrator.facts import tell
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.gate.named_revision import require_target
from gasket.migrator.gate.schema_state import Plan, SchemaState
from gasket.migrator.gate.situation import Situation
from gasket.migrator.ledger.read import StoredRevision, is_whole_at, read_stored
from gasket.migrator.ledger.step_progress import forget_all_progress
from gasket.migrator.ledger.tables import VERSION_TABLE
from gasket.migrator.revisions.configuration import PYPROJECT, configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.loading import naming_the_file
from gasket.migrator.revisions.rules.check import verdict_on
from gasket.migrator.revisions.scripts import alembic_config, require_same_files
from gasket.migrator.signals import exiting_on_signals, until_signalled
from gasket.migrator.sql.script import print_rendered
from gasket.migrator.synchronous import run_sync
from gasket.migrator.webhook_messages import Outcome, outcome_told
from gasket.migrator.which_database import find_target
from gasket.postgres.connections import close_connection
from gasket.postgres.identity import database_identity
from gasket.postgres.quoting import quote_identifier
from gasket.postgres.tracebacks import print_tracebacks_without_values

log = logging.getLogger("gasket.migrator")

T = TypeVar("T")

_FRESH_TRIES = 3
_POLL = 0.5
_IN_PROCESS = "gasket_migration"
_OPTIONS = "gasket_options"
"""The attribute of Alembic's configuration that holds the StepOptions of a command."""


def run_environment(context: Any, read_config: Callable[[], MigratorConfig]) -> None:
    """What env.py does, whichever command it runs for. `context` is the module `alembic.context`.

    `read_config` is asked by a command line only: an application that starts has brought its own.

    Raises:
        MigratorError: any of its kinds. Alembic's command line gets a CommandError of it, which it prints as one line.
    """
    in_process: tuple[MigrationSession, Connection] | None = context.config.attributes.get(_IN_PROCESS)
    if in_process is not None:
        session, connection = in_process
        _run_migrations(context, session.config, connection, session.steps)
        return
    print_tracebacks_without_values()
    try:
        with exiting_on_signals():
            _run_command(context, read_config())
    except MigratorError as refusal:
        if context.config.cmd_opts is None:  # not of Alembic's command line
            raise
        raise CommandError(str(refusal)) from refusal


def _run_command(context: Any, config: MigratorConfig) -> None:
    require_same_files(config.ini, context.script, context.config.config_file_name or PYPROJECT)
    command = running_command(context)
    if context.is_offline_mode():
        log_plainly(config.log_format)
        _print_sql(context, config, command)
    elif command.writes:
        with progress_shown(config.log_format), config.start_database():
            work = _write(context, config, command.writes, command.destinations)
            asyncio.run(until_signalled(work, pass_on=False))
    else:
        log_plainly(config.log_format)
        with config.start_database():
            asyncio.run(until_signalled(_look(context, config, compares=command.compares), pass_on=False))


async def migrate(
    config: MigratorConfig, revisions: Revisions, outcome: Outcome, opened: asyncpg.Connection | None = None
) -> Situation | None:
    """What a start does where something is pending: take the lock, look again, and bring the schema to head.

    `opened` is a connection to DATABASE_URL; it migrates unless GASKET_MIGRATION_DATABASE_URL is set. Returns the
    situation afterwards as DATABASE_URL shows it; None where that is still to be looked at: another session has done
    the work, or the other URL was used.
    """
    if opened and config.migration_database_url:
        await close_connection(opened)
        opened = None
    application = await _application(config)
    situation: Situation | None = None

    async def at_head(connection: asyncpg.Connection) -> bool:
        try:
            return await is_whole_at(connection, config.schema, revisions.heads)
        except asyncpg.LockNotAvailableError:  # another session holds it locked: not known yet
            return False

    async def once() -> None:
        nonlocal situation
        async with migration_session(
            config, revisions, application=application, not_needed=at_head, opened=opened
        ) as session:
            if session is None:
                return
            plan = (await session.pass_gate(Request(Caller.WAITER))).plan
            if plan.serves:
                return
            _warn_of(plan)
            pending = len(plan.pending)
            tell(RevisionsPending(pending))
            log.info("%d revision%s to apply, up to %s", pending, "s" if pending > 1 else "", plan.head)
            await session.prepare()
            with outcome.following(session.steps):
                await session.run(lambda connection: upgrade_in_process(session, connection, "head"))
            if application is None:
                situation = await session.pass_gate(Request(Caller.START))

    await _with_fresh_tries(once)
    return situation


def _warn_of(plan: Plan) -> None:
    for file in plan.pending:
        if advice := verdict_on(file).advice:
            log.warning("revision %s (%s): %s", file.revision, file.path.name, advice)


async def _application(config: MigratorConfig) -> Application | None:
    """What DATABASE_URL leads to, where it is not what migrates."""
    if not config.migration_database_url:
        return None
    async with looking(config) as connection:
        return Application(await connection.fetchval("SELECT current_user::text"), await database_identity(connection))


async def under_lock(
    config: MigratorConfig,
    revisions: Revisions,
    work: Callable[[MigrationSession], Awaitable[T]],
    *,
    fresh_tries: bool = True,
) -> T:
    """What `work` returns, given a session for a command: it needs the lock, whatever others have done meanwhile.

    With `fresh_tries` it is done again where the connection was lost.
    """

    async def once() -> T:
        application = await _application(config)
        async with migration_session(config, revisions, application=application) as session:
            assert session is not None
            return await work(session)

    return await (_with_fresh_tries(once) if fresh_tries else once())


async def _with_fresh_tries(work: Callable[[], Awaitable[T]]) -> T:
    """A lost connection is followed by fresh tries from the lock on, never by going on without the lock."""
    for tries_left in range(_FRESH_TRIES - 1, 0, -1):
        try:
            return await work()
        except LockLostError as error:
            log.warning("%s Trying again now; %d more tries are left.", error, tries_left)
            await asyncio.sleep(_POLL)
    return await work()


def upgrade_in_process(session: MigrationSession, connection: Connection, revision: str) -> None:
    """Alembic's upgrade to `revision`, inside of `session.run`, over the connection that holds the lock.

    `alembic.command.upgrade` does the same, and imports all files once more.
    """

    def upgrade(heads: tuple[str, ...], _context: MigrationContext) -> list[RevisionStep]:
        return upgrade_steps(session.scripts, revision, heads)

    with EnvironmentContext(
        in_process_config(session, connection), session.scripts, fn=upgrade, destination_rev=revision
    ):
        session.scripts.run_env()


def command_config(config: MigratorConfig, options: StepOptions) -> Config:
    """Alembic's configuration for a command of `gasket database`, which has shown already what it changes."""
    return alembic_config(config.ini, **{_OPTIONS: options})


def in_process_config(session: MigrationSession, connection: Connection) -> Config:
    """Alembic's configuration, with which env.py runs on the session's connection instead of one of its own."""
    return alembic_config(session.config.ini, **{_IN_PROCESS: (session, connection)})


async def _write(context: Any, config: MigratorConfig, caller: Caller, targets: tuple[str, ...]) -> None:
    """upgrade, downgrade, stamp and ensure-version from a command line: under the lock, each step on the ledger."""
    revisions = configured_revisions(config.ini)
    options = _options_of(context, caller, targets)
    request = Request(caller, targets, discard_data=options.discard_data)

    async def work(session: MigrationSession) -> None:
        situation = await session.pass_gate(request)
        if _OPTIONS not in context.config.attributes:  # else a command of ours has said it
            log.info("%s", await session.on_own_tables(lambda connection: find_target(connection, config)))
        if caller is Caller.UPGRADE:
            _warn_of(situation.plan)
            if _nothing_to_do(situation.plan):
                return
        session.steps.options = options
        session.scripts = context.script  # what runs: other ones would be imported in vain
        await session.prepare()
        with outcome.following(session.steps):
            await session.run(lambda connection: _run_migrations(context, config, connection, session.steps))
        if caller is Caller.STAMP:
            await session.on_own_tables(lambda connection: forget_all_progress(connection, config.schema))

    # The first try of a number of steps may have come further than anybody knows.
    fresh_tries = not any(map(counts_from_here, targets))
    with outcome_told(config, options.command) as outcome:
        await under_lock(config, revisions, work, fresh_tries=fresh_tries)


def _options_of(context: Any, caller: Caller, targets: Sequence[str]) -> StepOptions:
    """Of `gasket database ...`, or of plain Alembic's `-x discard_data=yes` and `-x restore=no`."""
    given: StepOptions | None = context.config.attributes.get(_OPTIONS)
    if given is not None:
        return given
    named: dict[str, str] = context.get_x_argument(as_dictionary=True)
    return StepOptions(
        discard_data=named.get("discard_data", "no") == "yes",
        restore=named.get("restore", "yes") != "no",
        command=" ".join(["alembic", caller, *targets]),
        without_archive=f"alembic -x discard_data=yes downgrade {rest_of(' '.join(targets))}",
    )


def _nothing_to_do(plan: Plan) -> bool:
    """Whether Alembic would find nothing, and could not even look: it lacks files of what is applied."""
    if plan.state is SchemaState.AHEAD:
        log.info("nothing to do: the schema is ahead of this release and compatible with it")
    elif plan.missing:  # and nothing pending, or that would have been refused
        log.warning("nothing to do: the schema is at head, but files of applied revisions are gone")
    return plan.state is SchemaState.AHEAD or bool(plan.missing)


async def _look(context: Any, config: MigratorConfig, *, compares: bool) -> None:
    """current, check, revision: one transaction, no lock, nothing set that a pooler could hand to others."""
    revisions = configured_revisions(config.ini)
    request = Request(Caller.COMPARE if compares else Caller.CURRENT)
    grafts: dict[str, StoredRevision] = {}

    def look(sqlalchemy_connection: Connection) -> None:
        with sqlalchemy_connection.begin(), naming_the_file():
            sqlalchemy_connection.execute(
                text("SELECT set_config('search_path', :path, true), set_config('lock_timeout', :limit, true)"),
                {"path": quote_identifier(config.schema), "limit": f"{max(1.0, config.database_wait)}s"},
            )
            graft(context.script, grafts)
            _run_migrations(context, config, sqlalchemy_connection, metadata=config.metadata if compares else None)

    async with looking(config, migrating=True) as connection:  # Alembic would wait for ever, and refuse with a trace
        situation = await pass_gate(connection, config, revisions, request, migrating=True)
        if ahead := situation.ahead(config.release):
            log.warning("%s", ahead)
            stored = await read_stored(connection, config.schema) if situation.database.has_ledger else {}
            grafts = {
                one.revision: stored.get(one.revision) or never_seen(one.revision) for one in situation.plan.unknown
            }
    async with connected(config, migrating=True) as connection:
        await run_sync(connection, look)


def _run_migrations(
    context: Any,
    config: MigratorConfig,
    connection: Connection,
    steps: StepRecorder | None = None,
    metadata: MetaData | None = None,
) -> None:
    """With `steps`, which load the models when they need them; or only to look, with the models to compare with."""
    # Alembic takes a transaction that is open already for the caller's own, and then commits nothing.
    assert steps is None or not connection.in_transaction()
    context.configure(
        connection=connection,
        on_version_apply=steps.on_version_apply if steps else None,
        target_metadata=metadata,
        include_name=compared_with_models(connection, metadata, config.schema) if metadata is not None else None,
        **_options(config),
    )
    if steps:
        graft(context.script, steps.grafts)
        steps.attach(context.get_context())
    with context.begin_transaction():
        context.run_migrations()


def _print_sql(context: Any, config: MigratorConfig, command: RunningCommand) -> None:
    revisions = configured_revisions(config.ini)
    for target in filter(None, (command.start, *command.destinations)):
        require_target(target, revisions, revisions, config.ini)
    # The dialect of psycopg, which is Alembic's for PostgreSQL, writes %% for %.
    dialect = "postgresql+asyncpg"
    context.configure(dialect_name=dialect, literal_binds=True, target_metadata=config.metadata, **_options(config))
    print_rendered(context.get_context(), config.metadata)
    context.execute(f"SET search_path TO {quote_identifier(config.schema)}")
    with context.begin_transaction():
        context.run_migrations()


def _options(config: MigratorConfig) -> dict[str, Any]:
    return {
        "version_table": VERSION_TABLE,
        "version_table_schema": config.schema,
        "transaction_per_migration": True,
        "compare_type": True,
        "compare_server_default": True,
    }
