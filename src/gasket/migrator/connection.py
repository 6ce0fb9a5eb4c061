"""How the migrator reaches the database: one plain asyncpg connection, waited for, pinned to one schema.

asyncpg's own autocommit is what makes waiting for the lock safe: a waiter that polls never has a transaction
open, so a CREATE INDEX CONCURRENTLY of the holder does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from sqlalchemy import MetaData

from gasket.migrator.blockers import Blocker, BlockerWatch
from gasket.migrator.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LocksNotGrantedError,
    MissingPrivilegeError,
)

log = logging.getLogger("gasket.migrator")

_CONNECT_TIMEOUT = 10.0
_SHORTEST_TRY = 2.0  # a server that answers at all has this long, also where GASKET_DATABASE_WAIT is 0
_RETRY_PAUSE = 0.25
_LONG_LOOK = 0.3  # then something may be in the way

_AWAY = (
    OSError,  # refused, no such host, no such socket, timed out
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.PostgresConnectionError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.ProtocolViolationError,  # PgBouncer's word for "I cannot reach the server"
)
_REFUSED = (
    ssl.SSLError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.UndefinedObjectError,  # an unknown parameter in the URL
    asyncpg.FeatureNotSupportedError,
    asyncpg.InvalidParameterValueError,
    asyncpg.PostgresSyntaxError,  # of `options`
    ValueError,
)

_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")

# Settings of the migration session. "0" is "no limit" (PostgreSQL manual, "Client Connection Defaults"): limits
# that a role carries are meant for requests. client_connection_check_interval makes a statement end soon after
# its client was killed; names that the server's version does not know are left out.
_SESSION_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "standard_conforming_strings": "on",
    "client_connection_check_interval": "500ms",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
PINNED = "concat_ws('|', {}, current_user)".format(
    ", ".join(f"current_setting('{name}', true)" for name in ("search_path", *_SESSION_SETTINGS))
)
"""SQL text: what `prepare_session` has set, and the role, as one value in which a change shows."""


@dataclass(frozen=True, kw_only=True)
class MigratorConfig:
    """What the migrator has to know; the application hands it over, the migrator imports nothing of it.

    URLs are libpq URLs, waits are seconds. `start_database` is entered by the command line, which has no
    application whose start would bring an embedded database up.
    """

    database_url: str
    migration_database_url: str | None = None
    schema: str = "public"
    release: str
    ini: Path
    metadata: MetaData
    database_wait: float = 30.0
    lock_wait: float = 600.0
    ddl_wait: float = 300.0
    scratch_url: str | None = None
    migrate_on_startup: bool = True
    start_database: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def migration_url(self) -> str:
        """The URL that schema changes go through."""
        return self.migration_database_url or self.database_url

    @property
    def migration_setting(self) -> str:
        """The name of the variable that `migration_url` comes from."""
        return "GASKET_MIGRATION_DATABASE_URL" if self.migration_database_url else "DATABASE_URL"

    def application_name(self, activity: str) -> str:
        """As `application_name` says it, of this release."""
        return application_name(activity, self.release)


def application_name(activity: str, release: str) -> str:
    """`<activity> <release> <host>:<pid>` in the 63 bytes that PostgreSQL keeps; the pid is never cut."""
    pid = f":{os.getpid()}"
    text = f"{activity} {release[:20]} {socket.gethostname()}"
    return text.encode("ascii", "replace")[: 63 - len(pid)].decode() + pid


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
        except _REFUSED as error:
            raise DatabaseRefusedError(setting=setting, reason=describe(error)) from None
        except _AWAY as error:
            if isinstance(error, OSError) and (
                reason := _no_tls(error) or _unreadable_file(config, migrating=migrating)
            ):
                raise DatabaseRefusedError(setting=setting, reason=reason) from None
            waited = time.monotonic() - started
            if waited >= config.database_wait:
                raise DatabaseUnavailableError(setting=setting, waited=waited, reason=describe(error)) from None
            if not announced:
                announced = True
                log.warning(
                    "waiting up to %.0f s for the database of %s: %s",
                    config.database_wait,
                    setting,
                    describe(error),
                )
        await asyncio.sleep(_RETRY_PAUSE)


@asynccontextmanager
async def looking(
    config: MigratorConfig, *, migrating: bool = False, schema: str | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the application's role, or the migrating one, to look at the books: every wait has its limit.

    `schema` is where those are that are looked at, if not in the configuration's.

    Raises:
        DatabaseUnavailableError, DatabaseRefusedError: as `connect`; also when it goes away or hangs under way.
        MissingPrivilegeError: the role may not read the books.
        LocksNotGrantedError: somebody holds them locked.
    """
    started = time.monotonic()
    connection = await connect(config, migrating=migrating)
    limit = max(_SHORTEST_TRY, config.database_wait)

    def say(blockers: list[Blocker]) -> None:
        log.warning("waiting up to %.0f s to read the migrator's own tables: %s", limit, "; ".join(map(str, blockers)))

    watch = BlockerWatch(
        lambda: open_connection(config, migrating=migrating), connection.get_server_pid(), on_first=say
    )
    try:
        async with asyncio.timeout(limit):
            with watch.watching(after=_LONG_LOOK):
                yield connection
    except asyncpg.InsufficientPrivilegeError as error:
        role = quote_identifier(await connection.fetchval("SELECT current_user", timeout=_SHORTEST_TRY))
        books = quote_identifier(schema or config.schema)
        raise MissingPrivilegeError(
            role=role,
            need=f"look at the schema's state ({describe(error)})",
            statement=f"GRANT USAGE ON SCHEMA {books} TO {role}; "
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {books} TO {role}",
        ) from None
    except _AWAY as error:
        waited = time.monotonic() - started
        if isinstance(error, TimeoutError) and watch.blockers:
            blockers = [str(blocker) for blocker in watch.blockers]
            raise LocksNotGrantedError(
                revision=None, waited=waited, tries=1, blockers=blockers, limit="GASKET_DATABASE_WAIT"
            ) from None
        setting = config.migration_setting if migrating else "DATABASE_URL"
        raise DatabaseUnavailableError(setting=setting, waited=waited, reason=describe(error)) from None
    finally:
        with suppress(*_AWAY):
            await connection.close(timeout=_SHORTEST_TRY)


async def open_connection(config: MigratorConfig, *, migrating: bool) -> asyncpg.Connection:
    """One try. Statements are not cached: under DDL a cached plan goes stale."""
    url = config.migration_url if migrating else config.database_url
    name = config.application_name("gasket-migrate" if migrating else "gasket-status")
    connection: asyncpg.Connection = await asyncpg.connect(
        url,
        timeout=_CONNECT_TIMEOUT,
        statement_cache_size=0,
        server_settings={"application_name": name},
    )
    return connection


def _no_tls(error: OSError) -> str | None:
    """The driver has no kind of error for a server without TLS, which waiting would not bring."""
    return f"{error} (sslmode asks for TLS, and it has none)" if "rejected SSL upgrade" in str(error) else None


def _unreadable_file(config: MigratorConfig, *, migrating: bool) -> str | None:
    """The TLS file of the URL, or of libpq's variable, that cannot be read: waiting would not help.

    The driver's error is the one of a server's socket that is missing, and does not name the file.
    """
    given = dict(parse_qsl(urlsplit(config.migration_url if migrating else config.database_url).query))
    for name in _TLS_FILES:
        path = given.get(name) or os.environ.get(f"PG{name.upper()}")
        if path and not os.access(path, os.R_OK):
            return f"{name} is {path}, which is no file that can be read"
    return None


async def leads_through_pooler(connection: asyncpg.Connection) -> bool:
    """Whether something between us and the server hands sessions around: it invents the pid that we are told."""
    return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())


async def database_identity(connection: asyncpg.Connection) -> str | None:
    """What tells a database from all others, but not from its physical standbys; None where this role may not know."""
    try:
        identity: str = await connection.fetchval(
            "SELECT concat_ws(' ', system_identifier, oid) FROM pg_catalog.pg_control_system(), pg_catalog.pg_database "
            "WHERE datname = current_database()"
        )
    except asyncpg.InsufficientPrivilegeError:
        return None
    return identity


async def prepare_session(connection: asyncpg.Connection, config: MigratorConfig) -> None:
    """Pin the session's settings and its `search_path`, whatever the role or the database set."""
    settings = {**_SESSION_SETTINGS, "search_path": quote_identifier(config.schema)}
    await connection.execute(
        "SELECT set_config(s.name, v.value, false) FROM unnest($1::text[], $2::text[]) AS v(name, value) "
        "JOIN pg_catalog.pg_settings AS s USING (name)",
        list(settings),
        list(settings.values()),
    )


def quote_identifier(name: str) -> str:
    """A name as SQL text (PostgreSQL manual, "Identifiers and Key Words")."""
    return '"' + name.replace('"', '""') + '"'


def describe(error: BaseException) -> str:
    """What a server or a driver said, in one line, without the URL that was used."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines) or type(error).__name__
    for name in ("detail", "hint"):
        if extra := getattr(error, name, None):
            text += f" ({name}: {extra})"
    code = getattr(error, "sqlstate", None)
    return f"{text} [SQLSTATE {code}]" if code else text
