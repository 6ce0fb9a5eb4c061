"""The engine, the declarative base, and the only place that commits a request's transaction."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import asyncpg
import msgspec
from advanced_alchemy.config.asyncio import AlembicAsyncConfig, SQLAlchemyAsyncConfig
from advanced_alchemy.exceptions import NotFoundError as RepositoryNotFoundError
from advanced_alchemy.exceptions import RepositoryError
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Identity,
    Integer,
    MetaData,
    SQLColumnExpression,
    Text,
    any_,
    event,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.sql.selectable import ForUpdateParameter

from gasket.errors import (
    ConflictError,
    DatabaseAwayError,
    DatabaseBusyError,
    GasketError,
    NotFoundError,
    SchemaNotReadyError,
)
from gasket.origin import current_origin
from gasket.postgres.connections import open_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe, is_lost, lacks_object
from gasket.postgres.sessions import application_name

MAX_ID = 2**31 - 1
"""The largest value of PostgreSQL's type integer (manual, "Numeric Types")."""

FOR_CHANGE: ForUpdateParameter = {"key_share": True}
"""`FOR NO KEY UPDATE`: changes of the row take turns; inserting a row that references it does not wait."""

FOR_SHARE: ForUpdateParameter = {"read": True}
"""`FOR SHARE`: the row stays as it is until the transaction ends; several sessions may hold this lock at once."""

FOR_DELETION: ForUpdateParameter = True
"""`FOR UPDATE`: also waits for sessions that insert a reference to the row, so a count of references stays true."""

_RECYCLE_AFTER = 1800

# SQLSTATEs (PostgreSQL manual, "PostgreSQL Error Codes"). Busy: serialization failure, deadlock, lock timeout,
# cancelled by a timeout, no connection slot left, a server that became a standby.
_BUSY = frozenset({"40001", "40P01", "55P03", "57014", "53300", "25006"})


class Base(DeclarativeBase):
    """The base of every table: how its constraints are named, and which types its columns have."""

    # The names of all columns. With the first one alone, as in Advanced Alchemy's convention, two constraints that
    # begin with the same column get the same name.
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
    """A table whose rows have an integer identity `id` and the time of their creation."""

    __abstract__ = True

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), sort_order=100)


EntityT = TypeVar("EntityT", bound=Entity)


class Service(SQLAlchemyAsyncRepositoryService[EntityT, SQLAlchemyAsyncRepository[EntityT]], Generic[EntityT]):
    """The base of all services. They flush and never commit."""

    noun: ClassVar[str]
    """What an object of this service is called in messages."""

    # With the window function the total is 0 for a page after the last one.
    count_with_window_function = False

    def __init__(self, session: AsyncSession, **repository: Any) -> None:
        # Otherwise Advanced Alchemy turns a lost connection into its IntegrityError, which would be 409 instead of 503.
        super().__init__(session, **{**repository, "wrap_exceptions": False})
        self.session = session

    async def fetch(self, item_id: int, *, lock: ForUpdateParameter = None) -> EntityT:
        """The row with this id; with `lock`, locked, and as the session that had the lock before left it.

        Raises:
            NotFoundError: there is none, or the id does not fit into PostgreSQL's type integer.
        """
        options = {"populate_existing": True} if lock else None
        if 0 < item_id <= MAX_ID:
            row = await self.get_one_or_none(id=item_id, with_for_update=lock, execution_options=options)
            if row is not None:
                return row
        raise NotFoundError(f"There is no {self.noun} {item_id}.")

    async def assign(self, row: EntityT, fields: Mapping[str, Any]) -> EntityT:
        """Set these attributes and read the row back, with the values that the database computes."""
        for name, value in fields.items():
            setattr(row, name, value)
        await self.session.flush()
        await self.session.refresh(row)
        return row

    async def discard(self, row: EntityT) -> None:
        """Delete the row."""
        await self.session.delete(row)
        await self.session.flush()


def is_any_of(column: SQLColumnExpression[Any], ids: Collection[int]) -> ColumnElement[bool]:
    """Whether the column has one of these ids, which go as one array: a query has at most 32,767 parameters."""
    return column == any_(literal(list(ids), ARRAY(Integer)))


class PoolUse(NamedTuple):
    """How many connections a pool may have and has in use, and how many callers wait for one."""

    size: int
    in_use: int
    waiting: int


# SQLAlchemy names a pool's logger after its class: below `gasket`, it would tell at INFO of each pool that is closed.
logging.getLogger(f"{__name__}._Pool").setLevel(logging.WARNING)


class _Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, which also counts the callers that wait for a connection to become free or to be opened."""

    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        self.waiting += 1
        try:
            return super().connect()
        finally:
            self.waiting -= 1


def pool_use(engine: AsyncEngine) -> PoolUse:
    """How the pool of the engine is used; `create_engine` must have created the engine."""
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

    `database_url` is a libpq URL; asyncpg reads it, because SQLAlchemy's parser knows neither several hosts nor
    `sslmode`. No statement is cached: a newer release's DDL would make plans stale, and a pooler in transaction mode
    may give each transaction another server connection.

    `pool_timeout` (seconds) limits the wait for a free connection, `answer_timeout` the wait for one statement.
    """

    async def connect() -> asyncpg.Connection:
        name = application_name("gasket", release, schema)
        try:
            return await open_connection(database_url, application_name=name, answer_timeout=answer_timeout)
        except DRIVER_ERRORS as error:
            raise DatabaseAwayError from error

    def creator() -> DBAPIConnection:
        # `async_creator` cannot pass prepared_statement_cache_size on, so this does what it does inside.
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
        # The role may have another default. Locking a profile and then counting its keys needs a new snapshot for
        # each statement.
        isolation_level="READ COMMITTED",
        hide_parameters=True,
        execution_options={"schema_translate_map": {None: schema}},
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Let the pool replace a connection that the server has closed.

    asyncpg notices that without a query; `pool_pre_ping` costs three round trips for each request.
    """
    driver: Any = connection
    if driver.driver_connection.is_closed():
        raise DisconnectionError


def alchemy_config(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], alembic: AlembicAsyncConfig
) -> SQLAlchemyAsyncConfig:
    """What Advanced Alchemy's commands need."""
    return SQLAlchemyAsyncConfig(
        engine_instance=engine, session_maker=sessions, metadata=Base.metadata, alembic_config=alembic
    )


def closing(engine: AsyncEngine) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """A part of an application's lifespan, at whose end the connections of the engine's pool are closed."""

    @asynccontextmanager
    async def open_until_the_end(_app: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await engine.dispose()

    return open_until_the_end


class _TellingSession(Session):
    """A session whose transactions begin with saying who acts."""


@event.listens_for(_TellingSession, "after_begin")
def _tell_database(_session: _TellingSession, transaction: SessionTransaction, connection: Connection) -> None:
    """For this transaction alone, so that a pooler hands nothing on."""
    origin = current_origin()
    if origin is not None and not transaction.nested:
        value = msgspec.json.encode(origin).decode()
        connection.execute(select(func.set_config("gasket.audit", value, True)))


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions whose objects stay readable after the commit, and whose transactions say who acts (`origin.acting`)."""
    return async_sessionmaker(engine, expire_on_commit=False, sync_session_class=_TellingSession)


def session_provider(
    sessions: async_sessionmaker[AsyncSession],
) -> Callable[[], AsyncGenerator[AsyncSession, None]]:
    """The dependency `db_session`: one transaction for each request.

    Litestar runs the code after the `yield` before it sends the response, so a failed COMMIT becomes an error response
    and never a 201. It must stay the only generator dependency, because Litestar ends several of them concurrently.
    """

    async def db_session() -> AsyncGenerator[AsyncSession, None]:
        async with sessions.begin() as session:
            yield session

    return db_session


Transactions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
"""`async with transaction() as session`: a short transaction, for a handler that then waits for another server.

The session of `db_session` keeps its connection until the handler ends.
"""


@contextmanager
def refusing(violations: Mapping[str, GasketError]) -> Iterator[None]:
    """Raise the error of a violated constraint instead of IntegrityError; `violations` maps constraint to error."""
    try:
        yield
    except IntegrityError as error:
        cause = getattr(error.orig, "__cause__", None)
        known = violations.get(getattr(cause, "constraint_name", None) or "")
        if known is None:
            raise
        raise known from error


def told_by_command(error: SQLAlchemyError) -> str:
    """What a command says of a failed statement, without the full stop."""
    if lacks_object(error):
        return "The schema lacks what this release needs; to see what is applied run: gasket database status"
    return describe(error)


def explain(error: Exception, *, changes: bool = True) -> GasketError | None:
    """The error that the client should see for a failed statement; None if only Gasket can be at fault.

    `changes`: the request may have been about to change something.
    """
    retry = "The change may have been made: look before you try again." if changes else "Try again soon."
    match error:
        case RepositoryError(__cause__=SQLAlchemyError() as cause):
            return explain(cause, changes=changes)
        case RepositoryNotFoundError():
            return NotFoundError()
        case PoolTimeoutError():
            return DatabaseBusyError("All database connections of this replica are in use; nothing was changed.")
        case TimeoutError():
            return DatabaseBusyError(f"The database did not answer in time. {retry}")
        case IntegrityError():
            return ConflictError("The change conflicts with another one; nothing was changed.")
        case DBAPIError():
            if is_lost(error):
                return DatabaseAwayError(f"The connection to the database was lost. {retry}")
            if lacks_object(error):
                return SchemaNotReadyError()
            if getattr(error.orig, "sqlstate", None) in _BUSY:
                return DatabaseBusyError()
    return None
