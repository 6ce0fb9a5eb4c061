"""One migration session: a direct connection, the lock on it, and Alembic run over the very same connection."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import asyncpg
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.attempts import until_granted
from gasket.migrator.apply.events import Restoring
from gasket.migrator.apply.failures import lagging_sequence, not_our_books, refusal_of
from gasket.migrator.apply.grants import grant_to_application
from gasket.migrator.apply.lock import give_back
from gasket.migrator.apply.locked_connection import Application, connection_with_lock
from gasket.migrator.apply.printed import prints_logged
from gasket.migrator.apply.steps import StepRecorder
from gasket.migrator.archive.restore import RestoreReport, restore_archive
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connect
from gasket.migrator.errors import (
    LockLostError,
    LockTimeoutError,
    MigrationFailedError,
    MigratorError,
    NotRestoredError,
)
from gasket.migrator.gate.callers import Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.gate.situation import Situation
from gasket.migrator.ledger.tables import missing_tables
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.scripts import script_directory
from gasket.migrator.synchronous import run_sync
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe, is_lost
from gasket.postgres.quoting import quote_identifier

log = logging.getLogger("gasket.migrator")

T = TypeVar("T")

_RECORD_WAIT = 3.0
_ALEMBIC = threading.Lock()
_ALEMBIC_POLL = 0.05


class MigrationSession:
    """Holds the lock. Everything that changes the schema goes through `run`."""

    def __init__(
        self,
        config: MigratorConfig,
        connection: asyncpg.Connection,
        revisions: Revisions,
        application_role: str | None,
    ) -> None:
        self.config = config
        self._connection = connection
        self._revisions = revisions
        self._application_role = application_role
        self.steps = StepRecorder(config, revisions, connection, application_role=application_role)

    @cached_property
    def scripts(self) -> ScriptDirectory:
        """The files as Alembic sees them. It imports all of them once."""
        return script_directory(self.config.ini)

    async def pass_gate(self, request: Request) -> Situation:
        """Every check, and the situation that they passed: nobody changes it until this session ends.

        Raises:
            MigratorError: the first refusal.
        """
        try:
            return await self.on_own_tables(
                lambda connection: pass_gate(connection, self.config, self._revisions, request, migrating=True)
            )
        except asyncpg.InsufficientPrivilegeError as error:
            raise await not_our_books(self._connection, self.config.schema, error) from None

    async def restore_archive(self, number: int) -> RestoreReport:
        """Put back what is left in one archive: all that fits, or nothing.

        Raises:
            TargetError: there is none of that number.
            NotRestoredError: a passing fault, or rights that the role lacks.
            LocksNotGrantedError: the tables stayed locked.
        """

        def put_back(connection: Connection) -> RestoreReport:
            with connection.begin():
                return restore_archive(connection, self.config.schema, number)

        async def once() -> RestoreReport:
            try:
                return await run_sync(self._connection, put_back)
            except DBAPIError as error:
                cause = error.orig.__cause__ if error.orig else None
                raise cause or error from error

        try:
            return await until_granted(self.config, self._connection, once, step=Restoring(number))
        except asyncpg.PostgresError as error:
            if self._connection.is_closed():
                raise
            raise NotRestoredError(number=number, error=describe(error)) from error

    async def on_own_tables(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Work on the migrator's own tables, done again while another session has them locked."""
        return await until_granted(self.config, self._connection, lambda: work(self._connection))

    async def accept(self, script: Script) -> None:
        """Write down that the file of an applied revision, as it is now, was reviewed, and its way back with it.

        Raises:
            LedgerSequenceError: the id of the ledger's row is taken.
        """
        try:
            await self.on_own_tables(lambda _: self.steps.record(script.revision, "accept", script))
        except asyncpg.UniqueViolationError as error:
            raise lagging_sequence(error, self.config.schema, script.revision, self.steps) or error from None

    async def prepare(self) -> None:
        """Make the schema and the migrator's own tables, as far as they are not there, and look at the catalog.

        `run` records what it changes there, and so every run comes after this.

        Raises:
            MissingPrivilegeError: the tables are another role's.
        """
        config, connection = self.config, self._connection
        if await connection.fetchval("SELECT to_regnamespace(quote_ident($1)) IS NULL", config.schema):
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(config.schema)}")

        if self.steps.recording:  # before the tables are there: in an empty database there is nothing to read yet
            await self.steps.recording.begin()

        async def make_tables(connection: asyncpg.Connection) -> None:
            async with connection.transaction() if self._application_role else nullcontext():
                if script := await missing_tables(connection, config.schema):
                    asyncio.get_running_loop().call_soon(self._load_scripts)
                    await connection.execute(script)  # a transaction of its own, where none is open
                if self._application_role:
                    await grant_to_application(connection, config.schema, self._application_role)

        try:
            await self.on_own_tables(make_tables)
        except asyncpg.InsufficientPrivilegeError as error:
            raise await not_our_books(self._connection, self.config.schema, error) from None

    async def run(self, work: Callable[[Connection], None]) -> None:
        """Hand the connection to Alembic; `work` gets it as SQLAlchemy's synchronous facade.

        Raises:
            MigrationFailedError: a revision failed; it names the revision, the error and what stays applied.
            LedgerSequenceError: the id of a row of the migrator's own is taken.
            LockLostError: the connection ended under way.
            CommandError: refusals, Alembic's own and those of a step, as they are.
        """
        try:
            async with _alembic(self.config.lock_wait):
                await self.steps.start()
                with prints_logged(lambda: self.steps.current):
                    await run_sync(self._connection, work)
        except (Exception, SystemExit) as error:
            if _asked_to_stop():
                raise asyncio.CancelledError from error
            refusal = await refusal_of(error, self.steps, self._connection, self.config.schema)
            if self.steps.current is not None:
                await self._record_failure(refusal.error if isinstance(refusal, MigrationFailedError) else str(refusal))
            if not self._connection.is_closed():
                await self.steps.finish()
            if refusal is error:
                raise
            raise refusal from error
        await self.steps.finish()

    def _load_scripts(self) -> None:
        """While the server makes the tables: both take about as long."""
        with suppress(Exception, SystemExit), prints_logged(lambda: None):
            self.scripts.get_heads()  # Alembic comes to it once more, where an error is told

    async def _record_failure(self, error: str) -> None:
        """Write down that the step under way failed; where its connection went with it, over another."""
        with suppress(MigratorError, *DRIVER_ERRORS):
            if not self._connection.is_closed():
                await self.steps.record_failure(error)
                return
            wait = min(self.config.database_wait, _RECORD_WAIT)
            connection = await connect(replace(self.config, database_wait=wait), migrating=True)
            try:
                async with asyncio.timeout(_RECORD_WAIT):
                    await self.steps.record_failure(error, over=connection)
            finally:
                await close_connection(connection)


@asynccontextmanager
async def migration_session(
    config: MigratorConfig,
    revisions: Revisions,
    *,
    application: Application | None,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]] | None = None,
    opened: asyncpg.Connection | None = None,
) -> AsyncIterator[MigrationSession | None]:
    """Connect, refuse a pooler, wait for the lock; None once `not_needed` says that the work is done.

    `application` is what DATABASE_URL leads to, where that is another URL. `opened` is a connection of the migrating
    role's, as `open_connection` opens it: it is used while it is open.

    Raises:
        DatabaseUnavailableError, DatabaseRefusedError, TransactionPoolerError, LockTimeoutError: as they say.
        DatabasesDifferError: the application serves from another database.
        LockLostError: the connection ended; it may be tried afresh.
    """
    connection, role = await connection_with_lock(config, application, not_needed, opened)
    if role is None:
        await close_connection(connection)
        yield None
        return
    other_role = application.role if application and application.role != role else None
    session = MigrationSession(config, connection, revisions, other_role)
    try:
        yield session
    except DRIVER_ERRORS as error:
        if not (connection.is_closed() or is_lost(error)):
            raise
        raise LockLostError(reason=describe(error), applied=session.steps.applied) from error
    finally:
        if not connection.is_closed():
            await give_back(connection, config.schema)
        await close_connection(connection)


@asynccontextmanager
async def _alembic(wait: float) -> AsyncIterator[None]:
    """One run at a time in this process, whatever the loop or the thread.

    Alembic's `context` and `op` are the module's own: two runs at once would work on each other's database.
    """
    started = time.monotonic()
    while not _ALEMBIC.acquire(blocking=False):
        waited = time.monotonic() - started
        if waited >= wait:
            raise LockTimeoutError(waited=waited, holder="this process migrates another schema")
        await asyncio.sleep(_ALEMBIC_POLL)
    try:
        yield
    finally:
        _ALEMBIC.release()


def _asked_to_stop() -> bool:
    """Whether this task is cancelled: on its way out of an autocommit block another error may hide that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
