"""The engine, the declarative base, and the one place where a request's transaction is committed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import asyncpg
from advanced_alchemy.config.asyncio import AlembicAsyncConfig
from advanced_alchemy.exceptions import NotFoundError as RepositoryNotFoundError
from advanced_alchemy.exceptions import RepositoryError
from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from sqlalchemy import DateTime, Identity, MetaData, Text, event, func
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.sql.selectable import ForUpdateParameter

from gasket.errors import ConflictError, DatabaseAwayError, DatabaseBusyError, GasketError, NotFoundError
from gasket.migrator.connection import application_name

MAX_ID = 2**31 - 1
"""The largest value of PostgreSQL's type integer (manual, "Numeric Types")."""

FOR_CHANGE: ForUpdateParameter = {"key_share": True}
"""`FOR NO KEY UPDATE`: changes of the row take turns, rows that merely reference it are not held up."""

FOR_DELETION: ForUpdateParameter = True
"""`FOR UPDATE`: waits for whoever is adding a reference to the row, too: a count made after it is final."""

_CONNECT_TIMEOUT = 10.0
_RECYCLE_AFTER = 1800

# SQLSTATEs (PostgreSQL manual, "PostgreSQL Error Codes"). Busy: serialization failure, deadlock, lock timeout,
# cancelled by a timeout, no connection slot left, a server that became a standby. Away: it shuts down or starts.
_BUSY = frozenset({"40001", "40P01", "55P03", "57014", "53300", "25006"})
_AWAY = frozenset({"57P01", "57P02", "57P03"})
_CONNECTION_EXCEPTION = "08"

DATABASE_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when the database does not answer, or not as it should; a timeout is an OSError."""


class Base(DeclarativeBase):
    """What every table has: the naming of its constraints, and the types of its columns."""

    # All columns' names, not the first alone as in Advanced Alchemy's convention, or two constraints of one
    # table that begin with the same column are given the same name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text(), datetime: DateTime(timezone=True)}


class Entity(Base):
    """A table whose rows have an integer identity `id`, and the time at which they were made."""

    __abstract__ = True

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), sort_order=100)


EntityT = TypeVar("EntityT", bound=Entity)


class Service(SQLAlchemyAsyncRepositoryService[EntityT, SQLAlchemyAsyncRepository[EntityT]], Generic[EntityT]):
    """What the services of all rooms share. They flush, and never commit."""

    noun: ClassVar[str]

    # The window function says "0 in total" for a page behind the last one.
    count_with_window_function = False

    def __init__(self, session: AsyncSession, **repository: Any) -> None:
        # Advanced Alchemy would turn a lost connection into its IntegrityError: 409 where 503 is meant.
        super().__init__(session, **{**repository, "wrap_exceptions": False})
        self.session = session

    async def fetch(self, item_id: int, *, lock: ForUpdateParameter = None) -> EntityT:
        """The row with this id, as it is after whoever held its lock has finished.

        Raises:
            NotFoundError: there is none, or the id is not one that PostgreSQL's integer can hold.
        """
        options = {"populate_existing": True} if lock else None
        if 0 < item_id <= MAX_ID:
            row = await self.get_one_or_none(id=item_id, with_for_update=lock, execution_options=options)
            if row is not None:
                return row
        raise NotFoundError(f"There is no {self.noun} {item_id}.")

    async def assign(self, row: EntityT, fields: Mapping[str, Any]) -> EntityT:
        """Set these attributes and read the row back, with what the database computes."""
        for name, value in fields.items():
            setattr(row, name, value)
        await self.session.flush()
        await self.session.refresh(row)
        return row

    async def discard(self, row: EntityT) -> None:
        """Delete the row."""
        await self.session.delete(row)
        await self.session.flush()


async def open_plain_connection(
    database_url: str, *, application_name: str, answer_timeout: float | None = None
) -> asyncpg.Connection:
    """A connection without SQLAlchemy.

    Statements are not cached: under the DDL of a newer release none goes stale, and a pooler in transaction mode may
    hand out another server connection for each. `answer_timeout` is in seconds, for each statement.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: the database is away, or refuses.
    """
    connection: asyncpg.Connection = await asyncpg.connect(
        database_url,
        timeout=_CONNECT_TIMEOUT,
        command_timeout=answer_timeout,
        statement_cache_size=0,
        server_settings={"application_name": application_name},
    )
    return connection


class PoolUse(NamedTuple):
    """How a pool of connections is used at the moment: `waiting` is how many ask for one and have not got it yet."""

    size: int
    in_use: int
    waiting: int


class _Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's, which knows how many wait: for a free connection, or for one to be opened."""

    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        self.waiting += 1
        try:
            return super().connect()
        finally:
            self.waiting -= 1


def pool_use(engine: AsyncEngine) -> PoolUse:
    """Of an engine that `create_engine` made."""
    pool = engine.pool
    assert isinstance(pool, _Pool)
    return PoolUse(pool.size(), pool.checkedout(), pool.waiting)


def create_engine(
    database_url: str,
    *,
    schema: str,
    release: str,
    pool_size: int,
    pool_timeout: float = 5.0,
    answer_timeout: float = 30.0,
) -> AsyncEngine:
    """An engine whose pool starts empty and whose tables are all in `schema`, whatever `search_path` says.

    `database_url` is a libpq URL; asyncpg reads it, because SQLAlchemy's own parser knows neither several
    hosts nor `sslmode`. Statements are cached nowhere: under the DDL of a newer release nothing goes stale,
    and a pooler in transaction mode may hand out another server connection for each transaction.

    Times are in seconds: to wait for a free connection, and for the answer to one statement.
    """

    async def connect() -> asyncpg.Connection:
        name = application_name("gasket", release)
        try:
            return await open_plain_connection(database_url, application_name=name, answer_timeout=answer_timeout)
        except DATABASE_AWAY as error:
            raise DatabaseAwayError from error

    def creator() -> DBAPIConnection:
        # `async_creator` has no way to hand over prepared_statement_cache_size; this is what it does inside.
        dialect: Any = engine.dialect
        connection: DBAPIConnection = dialect.dbapi.connect(async_creator_fn=connect, prepared_statement_cache_size=0)
        return connection

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=creator,
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        pool_recycle=_RECYCLE_AFTER,
        # Whatever the role's default is: locking a profile and counting its keys needs a fresh look each time.
        isolation_level="READ COMMITTED",
        hide_parameters=True,
        execution_options={"schema_translate_map": {None: schema}},
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Let the pool replace a connection that the server has closed meanwhile.

    asyncpg knows it without asking, whereas `pool_pre_ping` costs three round trips for each request.
    """
    driver: Any = connection
    if driver.driver_connection.is_closed():
        raise DisconnectionError


def sqlalchemy_config(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], *, ini: Path, migrations: Path
) -> SQLAlchemyAsyncConfig:
    """What Advanced Alchemy's plugin needs: the engine's lifetime and `litestar database ...`."""
    return SQLAlchemyAsyncConfig(
        engine_instance=engine,
        session_maker=sessions,
        metadata=Base.metadata,
        # Advanced Alchemy's own dependency: nothing would commit such a session, so nobody asks for it.
        session_dependency_key="uncommitted_session",
        set_default_exception_handler=False,
        alembic_config=AlembicAsyncConfig(
            script_config=str(ini), script_location=str(migrations), version_table_name="alembic_version"
        ),
    )


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions whose objects stay readable after the commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


def session_provider(
    sessions: async_sessionmaker[AsyncSession],
) -> Callable[[], AsyncGenerator[AsyncSession, None]]:
    """The dependency `db_session`: one transaction for each request.

    Litestar runs the part after the `yield` before it sends the response: a COMMIT that fails is an error
    response, never a 201. It must stay the only dependency of its kind, for Litestar ends several of them
    side by side.
    """

    async def db_session() -> AsyncGenerator[AsyncSession, None]:
        async with sessions.begin() as session:
            yield session

    return db_session


Transactions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
"""`async with transaction() as session`: a short transaction of its own, for a request that then waits for others.

What `db_session` gives lasts, with its connection, until the handler ends.
"""


@contextmanager
def refusing(violations: Mapping[str, GasketError]) -> Iterator[None]:
    """Raise the error that stands for a violated constraint, by the constraint's name."""
    try:
        yield
    except IntegrityError as error:
        cause = getattr(error.orig, "__cause__", None)
        known = violations.get(getattr(cause, "constraint_name", None) or "")
        if known is None:
            raise
        raise known from error


def explain(error: Exception) -> GasketError | None:
    """What a failed statement means to whoever made the request; None if it can only be a fault of ours."""
    match error:
        case RepositoryError(__cause__=SQLAlchemyError() as cause):
            return explain(cause)
        case RepositoryNotFoundError():
            return NotFoundError()
        case PoolTimeoutError():
            return DatabaseBusyError("This replica's database connections are all in use; nothing was changed.")
        case TimeoutError():
            return DatabaseBusyError("The database did not answer in time. Look before you try again.")
        case IntegrityError():
            return ConflictError("The change conflicts with another one; nothing was changed.")
        case DBAPIError():
            state = getattr(error.orig, "sqlstate", None) or ""
            # The driver's own state is upset when a connection goes while another statement is under way on it.
            upset = isinstance(getattr(error.orig, "__cause__", None), asyncpg.InternalClientError)
            if error.connection_invalidated or upset or state in _AWAY or state.startswith(_CONNECTION_EXCEPTION):
                return DatabaseAwayError("The connection to the database was lost. Look before you try again.")
            if state in _BUSY:
                return DatabaseBusyError()
    return None
