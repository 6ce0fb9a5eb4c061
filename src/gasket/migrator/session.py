"""One migration session: a direct connection, the lock on it, and Alembic run over the very same connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import asyncpg
from sqlalchemy import Connection, StaticPool
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gasket.migrator.archive.schema import check_archive_rights
from gasket.migrator.attempts import TRY_LOCK_TIMEOUT_MS, until_granted
from gasket.migrator.collisions import collisions_with_revisions
from gasket.migrator.connection import (
    MigratorConfig,
    connect,
    database_identity,
    describe,
    leads_through_pooler,
    prepare_session,
    quote_identifier,
)
from gasket.migrator.edits import Edit, find_edits
from gasket.migrator.errors import (
    AdoptionError,
    DatabasesDifferError,
    LockLostError,
    LocksNotGrantedError,
    LockTimeoutError,
    MigrationFailedError,
    MigratorError,
    MissingPrivilegeError,
    NotArchivedError,
    ReadOnlyServerError,
    TransactionPoolerError,
)
from gasket.migrator.grants import grant_to_application
from gasket.migrator.ledger import (
    FAILURES,
    LEDGER,
    VERSION_TABLE,
    DatabaseState,
    StoredRevision,
    ensure_tables,
    read_state,
    read_stored,
)
from gasket.migrator.loading import not_loaded, where
from gasket.migrator.lock import migration_lock
from gasket.migrator.plan import Plan
from gasket.migrator.revisions import Revisions
from gasket.migrator.steps import StepRecorder

T = TypeVar("T")

_CLOSE_TIMEOUT = 2.0
_RECORD_WAIT = 3.0
_RECOVERY_POLL = 0.5
_ALEMBIC = threading.Lock()
_ALEMBIC_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Application:
    """What DATABASE_URL leads to: as which role, and to which database, as `database_identity` has it."""

    role: str
    database: str | None


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
        self._application_role = application_role
        self.steps = StepRecorder(config, revisions, connection, application_role=application_role)

    async def read_state(self) -> DatabaseState:
        """The state under the lock: nobody changes it until this session ends.

        Raises:
            MissingPrivilegeError: the role may not read the books.
        """
        try:
            return await self._until_granted(lambda: read_state(self._connection, self.config.schema))
        except asyncpg.InsufficientPrivilegeError as error:
            raise await self._not_our_books(error) from None

    async def find_edits(self, plan: Plan, database: DatabaseState) -> tuple[Edit, ...]:
        """Applied files that are no longer what was applied."""
        return await self._until_granted(lambda: find_edits(self._connection, self.config.schema, plan, database))

    async def refuse_to_guess(self, revisions: Revisions, database: DatabaseState) -> None:
        """Refuse to build beside tables that the revisions would make, where nothing says at which revision they are.

        Raises:
            AdoptionError: there are such tables, and no version table.
        """
        if not database.has_version_table:
            found = await collisions_with_revisions(self._connection, self.config, revisions)
            if found:
                raise AdoptionError(found=found)

    async def read_stored(self) -> dict[str, StoredRevision]:
        """What the ledger keeps of every revision."""
        return await self._until_granted(lambda: read_stored(self._connection, self.config.schema))

    async def check_archive_rights(self) -> None:
        """Refuse a downgrade whose rows could not be kept, before any of it starts.

        Raises:
            MissingPrivilegeError: the role may not make the archive.
        """
        await check_archive_rights(self._connection, self.config.schema)

    async def on_own_tables(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Work on the migrator's own tables, done again while somebody else holds them."""
        return await self._until_granted(lambda: work(self._connection))

    async def accept(self, revision: str) -> None:
        """Write down that the file of an applied revision, as it is now, was reviewed."""
        await self._until_granted(lambda: self.steps.record(revision, "accept"))

    async def prepare(self) -> None:
        """Make sure of the rights, the schema and the migrator's own tables, before anything is applied.

        Raises:
            ReadOnlyServerError, MissingPrivilegeError: what the session may not do.
        """
        config, connection = self.config, self._connection
        if await connection.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
            raise ReadOnlyServerError(setting=config.migration_setting, in_recovery=False, waited=0)
        await self._prepare_schema()

        async def make_tables() -> None:
            async with connection.transaction():
                await ensure_tables(connection, config.schema)
                if self._application_role:
                    await grant_to_application(connection, config.schema, self._application_role)

        try:
            await self._until_granted(make_tables)
        except asyncpg.InsufficientPrivilegeError as error:
            raise await self._not_our_books(error) from None

    async def run(self, work: Callable[[Connection], None]) -> None:
        """Hand the connection to Alembic; `work` gets it as SQLAlchemy's synchronous facade.

        Raises:
            MigrationFailedError: a revision failed; it names the revision, the error and what stays applied.
            LockLostError: the connection ended under way.
            CommandError: refusals, Alembic's own and those of a step, as they are.
        """
        try:
            async with _alembic(self.config.lock_wait):
                await self.steps.start()
                async with engine_over(self._connection).connect() as sqlalchemy_connection:
                    await sqlalchemy_connection.run_sync(work)
        except Exception as error:
            if _asked_to_stop():
                raise asyncio.CancelledError from error
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            refusal = self._refusal(error, cause)
            if self.steps.current is not None and not isinstance(refusal, LocksNotGrantedError):  # its tries are there
                await self._record_failure(
                    where(error, cause) if isinstance(refusal, MigrationFailedError) else str(refusal)
                )
            if refusal is error:
                raise
            raise refusal from error

    def _refusal(self, error: Exception, cause: BaseException) -> Exception:
        """What is said of an error that ended a run, which may be that error itself."""
        if isinstance(error, NotArchivedError):
            error.without_archive = self.steps.options.without_archive
        if isinstance(error, MigratorError):
            return error
        if self._connection.is_closed():
            return LockLostError(reason=describe(_first(error)), applied=self.steps.applied)
        if self.steps.current is not None:
            return MigrationFailedError(
                revision=self.steps.current,
                direction=self.steps.direction,
                error=where(error, cause),
                applied=self.steps.applied,
                partly=self.steps.partly,
            )
        if getattr(cause, "sqlstate", None) == "55P03":  # in the moment since they were free
            return LocksNotGrantedError(revision=None, waited=0, tries=1, blockers=())
        return not_loaded(error) or error  # Alembic loads all files before the first step

    async def _record_failure(self, error: str) -> None:
        """Write down that the step under way failed; where its connection went with it, over another."""
        with suppress(MigratorError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if not self._connection.is_closed():
                await self.steps.record_failure(error)
                return
            wait = min(self.config.database_wait, _RECORD_WAIT)
            connection = await connect(replace(self.config, database_wait=wait), migrating=True)
            try:
                async with asyncio.timeout(_RECORD_WAIT):
                    await self.steps.record_failure(error, over=connection)
            finally:
                await connection.close(timeout=_CLOSE_TIMEOUT)

    async def _until_granted(self, work: Callable[[], Awaitable[T]]) -> T:
        return await until_granted(self.config, self._connection, work)

    async def _not_our_books(self, error: Exception) -> MissingPrivilegeError:
        books = "relnamespace = to_regnamespace(quote_ident($1)) AND relname = ANY ($2)"
        [(name, tables)] = await self._connection.fetch(
            f"SELECT current_user, ARRAY(SELECT relname::text FROM pg_catalog.pg_class WHERE {books} ORDER BY 1)",
            self.config.schema,
            [VERSION_TABLE, LEDGER, FAILURES],
        )
        schema, role = quote_identifier(self.config.schema), quote_identifier(name)
        statements = [f"ALTER TABLE {schema}.{table} OWNER TO {role}" for table in tables]
        return MissingPrivilegeError(
            role=name,
            need=f"keep the migrator's own tables ({describe(error)})",
            statement="; ".join(statements or [f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"]),
        )

    async def _prepare_schema(self) -> None:
        [row] = await self._connection.fetch(
            "SELECT to_regnamespace(quote_ident($1)) AS schema, current_user AS role, current_database() AS database, "
            "has_database_privilege(current_database(), 'CREATE') AS may_create_schema",
            self.config.schema,
        )
        schema, role = quote_identifier(self.config.schema), quote_identifier(row["role"])
        if row["schema"] is None:
            if not row["may_create_schema"]:
                raise MissingPrivilegeError(
                    role=row["role"],
                    need=f"create schema {self.config.schema}",
                    statement=f"CREATE SCHEMA {schema} AUTHORIZATION {role}",
                )
            await self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        elif not await self._connection.fetchval(
            "SELECT has_schema_privilege(to_regnamespace(quote_ident($1)), 'USAGE') "
            "AND has_schema_privilege(to_regnamespace(quote_ident($1)), 'CREATE')",
            self.config.schema,
        ):
            raise MissingPrivilegeError(
                role=row["role"],
                need=f"create tables in schema {self.config.schema}",
                statement=f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",
            )


@asynccontextmanager
async def migration_session(
    config: MigratorConfig,
    revisions: Revisions,
    *,
    application: Application | None,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]],
) -> AsyncIterator[MigrationSession | None]:
    """Connect, refuse a pooler, wait for the lock; None once `not_needed` says that the work is done.

    `application` is what DATABASE_URL leads to, where that is another URL.

    Raises:
        DatabaseUnavailableError, DatabaseRefusedError, TransactionPoolerError, LockTimeoutError: as they say.
        DatabasesDifferError: the application serves from another database.
        LockLostError: the connection ended; it may be tried afresh.
    """
    connection = await connect(config, migrating=True)
    session: MigrationSession | None = None
    try:
        if await leads_through_pooler(connection):
            raise TransactionPoolerError(setting=config.migration_setting)
        if application:
            identities = {application.database, await database_identity(connection)}
            if len(identities) == 2 and None not in identities:
                raise DatabasesDifferError(setting=config.migration_setting)
        await prepare_session(connection, config)
        await connection.execute(f"SET lock_timeout = {TRY_LOCK_TIMEOUT_MS}")
        if not await _primary(connection, config, not_needed):
            yield None
            return
        role = await connection.fetchval("SELECT current_user::text")
        other_role = application.role if application and application.role != role else None
        async with migration_lock(
            connection, config.schema, wait=config.lock_wait, not_needed=lambda: not_needed(connection)
        ) as held:
            session = MigrationSession(config, connection, revisions, other_role) if held else None
            yield session
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        if not connection.is_closed():
            raise
        applied = session.steps.applied if session else ()
        raise LockLostError(reason=describe(error), applied=applied) from error
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await connection.close(timeout=_CLOSE_TIMEOUT)


async def _primary(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]],
) -> bool:
    """Wait for a standby to be promoted, or to replay what its primary was migrated to (then False)."""
    started = time.monotonic()
    while await connection.fetchval("SELECT pg_is_in_recovery()"):
        if await not_needed(connection):
            return False
        waited = time.monotonic() - started
        if waited >= config.lock_wait:
            raise ReadOnlyServerError(setting=config.migration_setting, in_recovery=True, waited=waited)
        await asyncio.sleep(min(_RECOVERY_POLL, max(0.05, config.lock_wait - waited)))
    return True


def engine_over(connection: asyncpg.Connection) -> AsyncEngine:
    """A SQLAlchemy engine whose only connection is the given one, which it never closes."""

    async def existing(*_args: object, **_options: object) -> asyncpg.Connection:
        return connection

    driver = PGDialect_asyncpg.import_dbapi()  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return create_async_engine(
        "postgresql+asyncpg://",
        poolclass=StaticPool,
        creator=lambda: driver.connect(async_creator_fn=existing, prepared_statement_cache_size=0),
    )


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


def _first(error: BaseException) -> BaseException:
    """What the others came of: SQLAlchemy's way out of a lost connection raises errors of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error
