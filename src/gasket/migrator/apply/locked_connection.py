"""A prepared connection that holds the migration lock: how it is opened, and opened again while it waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg
import msgspec

from gasket.migrator.apply.attempts import TRY_LOCK_TIMEOUT_MS
from gasket.migrator.apply.lock import ANSWER_LIMIT, take_lock
from gasket.migrator.apply.lock_holder import HOLDER_NOT_KNOWN, HolderWatch
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connect
from gasket.migrator.errors import (
    DatabasesDifferError,
    LockTimeoutError,
    ReadOnlyServerError,
    TransactionPoolerError,
)
from gasket.migrator.facts import Waiting, tell
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe, is_lost
from gasket.postgres.identity import database_identity
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.sessions import MIGRATING, insist, prepare_session

log = logging.getLogger("gasket.migrator")

_RECOVERY_POLL = 0.5
_RECONNECT_PAUSE = 0.5
_SILENCE_LIMIT = "300s"
"""How long the server waits for the holder's next statement: behind a proxy that passes nothing on, TCP stays alive.
Long, because the Python of a revision may compute between two statements; shorter than others wait for the lock."""


class Application(msgspec.Struct, frozen=True):
    """What DATABASE_URL leads to: as which role, and to which database, as `database_identity` has it."""

    role: str
    database: str | None


async def connection_with_lock(
    config: MigratorConfig,
    application: Application | None,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]] | None,
    opened: asyncpg.Connection | None,
) -> tuple[asyncpg.Connection, str | None]:
    """A prepared connection that holds the lock, and its role; no role once the work is not needed any more.

    `opened` is used while it is open. A connection that is lost meanwhile is opened again: all tries together take as
    long as one that waits.
    """
    watch = HolderWatch(config.schema)
    connection = opened
    remaining = config  # its waits are what is left of them for this try
    while True:
        if connection is None or connection.is_closed():
            connection = await connect(remaining, migrating=True)
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                role = await _prepare_connection(connection, config, application)
            if await _primary(connection, remaining, not_needed) and await take_lock(
                connection, config.schema, wait=config.lock_wait, watch=watch, not_needed=not_needed
            ):
                return connection, role
            return connection, None
        except DRIVER_ERRORS as error:
            lost = connection.is_closed() or isinstance(error, TimeoutError) or is_lost(error)
            connection.terminate()
            if not lost:
                raise
            if watch.idle >= config.lock_wait:
                raise LockTimeoutError(waited=watch.waited, holder=HOLDER_NOT_KNOWN) from error
            log.warning("the connection was lost before it had the lock (%s); connecting again", describe(error))
        except BaseException:
            await close_connection(connection)
            raise
        await asyncio.sleep(_RECONNECT_PAUSE)
        left = max(0.0, config.lock_wait - watch.idle)
        remaining = replace(config, lock_wait=left, database_wait=min(config.database_wait, left))


async def pin_settings(connection: asyncpg.Connection, config: MigratorConfig) -> str:
    """Those of a session that migrates, whatever was set in it; returns its role."""
    return await prepare_session(
        connection,
        config.schema,
        idle_limit=_SILENCE_LIMIT,
        lock_timeout=f"{TRY_LOCK_TIMEOUT_MS}ms",
        application_name=config.application_name(MIGRATING),
    )


async def _prepare_connection(
    connection: asyncpg.Connection, config: MigratorConfig, application: Application | None
) -> str:
    """Refuse what cannot hold the lock, pin the session's settings; returns the role."""
    if await insist(lambda: leads_through_pooler(connection)):
        raise TransactionPoolerError(setting=config.migration_setting)
    role = await pin_settings(connection, config)
    if application:
        identities = {application.database, await database_identity(connection)}
        if len(identities) == 2 and None not in identities:
            raise DatabasesDifferError(setting=config.migration_setting)
    return role


async def _primary(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]] | None,
) -> bool:
    """Wait for a standby to be promoted, or to replay what its primary was migrated to (then False)."""
    started = time.monotonic()
    while True:
        async with asyncio.timeout(ANSWER_LIMIT):
            if not await connection.fetchval("SELECT pg_is_in_recovery()"):
                return True
            if not_needed and await not_needed(connection):
                return False
        tell(Waiting("for the standby to be promoted, or to have the new schema"))
        waited = time.monotonic() - started
        if waited >= config.lock_wait:
            raise ReadOnlyServerError(setting=config.migration_setting, in_recovery=True, waited=waited)
        await asyncio.sleep(min(_RECOVERY_POLL, max(0.05, config.lock_wait - waited)))
