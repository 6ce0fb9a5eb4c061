"""How the migrator reaches the database: one plain asyncpg connection, waited for, pinned to one schema.

asyncpg's own autocommit is what makes waiting for the lock safe: a waiter that polls never has a transaction
open, so a CREATE INDEX CONCURRENTLY of the holder does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import asyncpg

from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LocksNotGrantedError,
    MissingPrivilegeError,
)
from gasket.migrator.facts import Waiting, tell
from gasket.postgres import connections
from gasket.postgres.blockers import Blocker, BlockerWatch, only_prepared
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import AWAY, REFUSED, describe
from gasket.postgres.quoting import quote_identifier
from gasket.postgres.sessions import LOOKING, MIGRATING, insist
from gasket.postgres.urls import demands_tls, unreadable_tls_file

log = logging.getLogger("gasket.migrator")

_SHORTEST_TRY = 2.0  # a server that answers at all has this long, also where GASKET_DATABASE_WAIT is 0
_RETRY_PAUSE = 0.25
_LONG_LOOK = 0.3  # then something may be in the way
_TURNS_TO_CONNECT = 4
"""Of the event loop, until the server knows who connects, where the socket connects at once: from then on it works."""


async def connect(config: MigratorConfig, *, migrating: bool) -> asyncpg.Connection:
    """Open a connection, waiting up to `config.database_wait` for a server or a database that is not there yet.

    Raises:
        DatabaseUnavailableError: it stayed away.
        DatabaseRefusedError: it answers, but not to this role or these parameters.
    """
    setting = config.migration_setting if migrating else "DATABASE_URL"
    started = time.monotonic()
    announced = False
    while True:
        left = config.database_wait - (time.monotonic() - started)
        try:
            async with asyncio.timeout(max(_SHORTEST_TRY, left)):
                return await open_connection(config, migrating=migrating)
        except REFUSED as error:
            address = config.address(migrating=migrating)
            raise DatabaseRefusedError(address=address, setting=setting, reason=describe(error)) from None
        except AWAY as error:
            address = config.address(migrating=migrating)
            if isinstance(error, OSError) and (reason := _tls_problem(error, config.url(migrating=migrating))):
                raise DatabaseRefusedError(address=address, setting=setting, reason=reason) from None
            waited = time.monotonic() - started
            if waited >= config.database_wait:
                raise DatabaseUnavailableError(address=address, waited=waited, reason=describe(error)) from None
            if not announced:
                announced = True
                tell(Waiting("for the database"))
                log.warning(
                    "waiting up to %.0f s for the database %s: %s", config.database_wait, address, describe(error)
                )
        await asyncio.sleep(_RETRY_PAUSE)


@asynccontextmanager
async def connected(config: MigratorConfig, *, migrating: bool) -> AsyncIterator[asyncpg.Connection]:
    """A connection as `connect` opens it, closed at the end of the block."""
    connection = await connect(config, migrating=migrating)
    try:
        yield connection
    finally:
        await close_connection(connection)


@asynccontextmanager
async def opening(config: MigratorConfig) -> AsyncIterator[asyncio.Task[asyncpg.Connection]]:
    """A connection of the application's role, for `looking`: the server makes a process for it during the block.

    It is closed at the end of the block.
    """
    connecting = asyncio.create_task(connect(config, migrating=False))
    try:
        for _turn in range(_TURNS_TO_CONNECT):
            await asyncio.sleep(0)
        yield connecting
    finally:
        connecting.cancel()
        await asyncio.wait({connecting})
        if not connecting.cancelled() and connecting.exception() is None:
            await close_connection(connecting.result())  # nobody may have asked for it


@asynccontextmanager
async def looking(
    config: MigratorConfig,
    opened: Awaitable[asyncpg.Connection] | None = None,
    *,
    migrating: bool = False,
    schema: str | None = None,
) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the application's role, or the migrating one, to look at the books: every wait has its limit.

    `opened` is from `opening`, which closes it. `schema` is where those books are that are looked at, if not in the
    configuration's.

    Raises:
        DatabaseUnavailableError, DatabaseRefusedError: as `connect`; also when it goes away or hangs under way.
        MissingPrivilegeError: the role may not read the books.
        LocksNotGrantedError: another session holds them locked.
    """
    started = time.monotonic()
    connection = await (opened or connect(config, migrating=migrating))
    limit = max(_SHORTEST_TRY, config.database_wait)

    def say(blockers: list[Blocker]) -> None:
        tell(Waiting("for the migrator's own tables, which another session has locked"))
        log.warning("waiting up to %.0f s to read the migrator's own tables: %s", limit, "; ".join(map(str, blockers)))

    watch = BlockerWatch(
        lambda: open_connection(config, migrating=migrating), connection.get_server_pid(), on_others=say
    )
    try:
        async with asyncio.timeout(limit):
            with watch.watching(after=_LONG_LOOK):
                yield connection
    except asyncpg.QueryCanceledError as error:
        role, statement_timeout = await _role_and_limit(connection)
        raise MissingPrivilegeError(
            role=role,
            need=f"look at the schema's state ({describe(error)}; its statement_timeout is {statement_timeout})",
            statement=f"ALTER ROLE {role} SET statement_timeout = '30s'",
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        role, _ = await _role_and_limit(connection)
        books = quote_identifier(schema or config.schema)
        raise MissingPrivilegeError(
            role=role,
            need=f"look at the schema's state ({describe(error)})",
            statement=f"GRANT USAGE ON SCHEMA {books} TO {role}; "
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {books} TO {role}",
        ) from None
    except (*AWAY, asyncpg.LockNotAvailableError) as error:
        waited = time.monotonic() - started
        if isinstance(error, asyncpg.LockNotAvailableError) or (isinstance(error, TimeoutError) and watch.blockers):
            blockers = [str(blocker) for blocker in watch.blockers]
            raise LocksNotGrantedError(
                revision=None,
                waited=waited,
                tries=1,
                blockers=blockers,
                limit="GASKET_DATABASE_WAIT",
                only_prepared=only_prepared(watch.blockers),
            ) from None
        address = config.address(migrating=migrating)
        raise DatabaseUnavailableError(address=address, waited=waited, reason=describe(error)) from None
    finally:
        watch.close()
        if opened is None:
            await close_connection(connection)


async def _role_and_limit(connection: asyncpg.Connection) -> tuple[str, str]:
    """The quoted name of the connection's role, and its `statement_timeout`."""
    query = "SELECT current_user::text, current_setting('statement_timeout')"
    async with asyncio.timeout(_SHORTEST_TRY):
        [row] = await insist(lambda: connection.fetch(query))
    return quote_identifier(row[0]), row[1]


async def open_connection(
    config: MigratorConfig, *, migrating: bool, activity: str | None = None
) -> asyncpg.Connection:
    """One try. Statements are not cached: under DDL a cached plan goes stale."""
    name = config.application_name(activity or (MIGRATING if migrating else LOOKING))
    return await connections.open_connection(config.url(migrating=migrating), application_name=name)


def _tls_problem(error: OSError, url: str) -> str | None:
    """What waiting would not change. The driver has no kind of error for a server without TLS.

    It says the same of a stream that is out of order, which the next connection need not be.
    """
    if demands_tls(url) and "rejected SSL upgrade" in str(error):
        return f"{error} (sslmode asks for TLS, and it has none)"
    return unreadable_tls_file(url)
