"""The migration lock: a session-level advisory lock, polled, on the same connection that runs the DDL.

If that connection dies, the lock and the statement under way die with it, so two migrations at once cannot be.
Waiters poll `pg_try_advisory_lock` outside any transaction. A blocking `pg_advisory_lock` would deadlock with
a CREATE INDEX CONCURRENTLY of the holder, which waits for every older snapshot, the waiters' included.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from gasket.migrator.errors import LockTimeoutError
from gasket.migrator.events import lock_awaited

LOCK_CLASS = 0x6761736B
"""The first of the lock's two keys ("gask"): the same in every release, for ever."""

_REPORT_EVERY = 10.0
_CLOSE_TIMEOUT = 2.0


def lock_key(schema: str) -> int:
    """The second key, 0 to 2**32 - 1 as `pg_locks.objid` shows it: installations in two schemas do not meet."""
    return zlib.crc32(schema.encode())


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, as far as this role may see it."""

    pid: int
    application: str
    client: str
    since: datetime | None
    query: str

    def __str__(self) -> str:
        since = f", connected since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        return (
            f"held by pid {self.pid}, application {self.application or '(none)'!r}, client {self.client}{since}, "
            f"last statement: {self.query or '(not shown to this role)'}"
        )


async def find_holder(connection: asyncpg.Connection, schema: str) -> Holder | None:
    """Look the holder up in `pg_locks`; None when nobody holds the lock."""
    row = await connection.fetchrow(
        "SELECT l.pid, a.application_name, a.backend_start, "
        "coalesce(host(a.client_addr) || ':' || a.client_port, 'local socket') AS client, "
        "left(regexp_replace(a.query, '\\s+', ' ', 'g'), 200) AS query "
        "FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = $1::oid AND l.objid = $2::oid "
        "AND l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
        LOCK_CLASS,
        lock_key(schema),
    )
    if row is None:
        return None
    return Holder(
        pid=row["pid"],
        application=row["application_name"] or "",
        client=row["client"],
        since=row["backend_start"],
        query=row["query"] or "",
    )


@asynccontextmanager
async def migration_lock(
    connection: asyncpg.Connection,
    schema: str,
    *,
    wait: float,
    not_needed: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bool]:
    """Hold the lock; yields False, without it, once `not_needed()` says that somebody else did the work.

    `wait` is in seconds; 0 is one try. The lock is given back in every case: by the statement while the
    connection is healthy, by closing the connection otherwise.

    Raises:
        LockTimeoutError: it was not free in time; the message names the holder.
    """
    if not await _acquire(connection, schema, wait=wait, not_needed=not_needed):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await asyncio.wait_for(
                connection.execute("SELECT pg_advisory_unlock($1, $2)", *_signed_keys(schema)), _CLOSE_TIMEOUT
            )


async def _acquire(
    connection: asyncpg.Connection, schema: str, *, wait: float, not_needed: Callable[[], Awaitable[bool]]
) -> bool:
    started = time.monotonic()
    next_report = started
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", *_signed_keys(schema)):
        if await not_needed():
            return False
        now = time.monotonic()
        if now - started >= wait:
            raise LockTimeoutError(waited=now - started, holder=await _describe_holder(connection, schema))
        if now >= next_report:
            next_report = now + _REPORT_EVERY
            lock_awaited(elapsed=now - started, limit=wait, holder=await _describe_holder(connection, schema))
        await asyncio.sleep(min(random.uniform(0.1, 0.25), max(0.0, started + wait - now)))
    return True


async def _describe_holder(connection: asyncpg.Connection, schema: str) -> str:
    holder = await find_holder(connection, schema)
    return str(holder) if holder else "the holder has just left"


def _signed_keys(schema: str) -> tuple[int, int]:
    key = lock_key(schema)
    return LOCK_CLASS, key - 2**32 if key >= 2**31 else key
