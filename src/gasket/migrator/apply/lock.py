"""The migration lock: a session-level advisory lock, polled, on the same connection that runs the DDL.

If that connection dies, the lock and the statement under way die with it, so two migrations at once cannot be.
Waiters poll `pg_try_advisory_lock` outside any transaction. A blocking `pg_advisory_lock` would deadlock with
a CREATE INDEX CONCURRENTLY of the holder, which waits for every older snapshot, the waiters' included.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from gasket.migrator.apply.events import LockAwaited, lock_awaited
from gasket.migrator.apply.lock_holder import HOLDER_NOT_KNOWN, HolderWatch, lock_arguments
from gasket.migrator.errors import LockTimeoutError
from gasket.migrator.facts import tell
from gasket.postgres.errors import DRIVER_ERRORS

log = logging.getLogger("gasket.migrator")

_REPORT_EVERY = 10.0
_LOOK_EVERY = 1.0
_UNLOCK_TIMEOUT = 2.0
_SHORTEST_ANSWER = 2.0
ANSWER_LIMIT = 5.0
"""Seconds that a statement may take which the server answers at once: then the connection counts as lost."""


@asynccontextmanager
async def migration_lock(connection: asyncpg.Connection, schema: str, *, wait: float) -> AsyncIterator[None]:
    """Hold the lock, as `take_lock` takes it. It is given back in every case."""
    await take_lock(connection, schema, wait=wait, watch=HolderWatch(schema))
    try:
        yield
    finally:
        await give_back(connection, schema)


async def take_lock(
    connection: asyncpg.Connection,
    schema: str,
    *,
    wait: float,
    watch: HolderWatch,
    not_needed: Callable[[asyncpg.Connection], Awaitable[bool]] | None = None,
) -> bool:
    """Take the lock; False, without it, once `not_needed` says that another process has done the work.

    `wait` is in seconds since the holder's last progress, which `watch` follows; 0 is one try.

    Raises:
        LockTimeoutError: it was not free in time; the message names the holder.
        TimeoutError: the database has stopped to answer, and the connection is of no more use.
    """
    next_report = 0.0
    while True:
        left = max(0.0, wait - watch.idle)
        async with asyncio.timeout(min(ANSWER_LIMIT, left + _SHORTEST_ANSWER)):
            if await connection.fetchval(f"SELECT pg_try_advisory_lock({lock_arguments(schema)})"):
                return True
            if not_needed and await not_needed(connection):
                return False
        if watch.unseen >= _LOOK_EVERY or watch.idle >= wait or not next_report:
            holder = await _look(connection, watch)
            tell(LockAwaited(watch))
            if watch.idle >= wait:
                raise LockTimeoutError(waited=watch.waited, idle=watch.idle, holder=holder)
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + _REPORT_EVERY
                lock_awaited(watch, limit=wait, holder=holder)
        await asyncio.sleep(min(random.uniform(0.1, 0.25), max(0.0, wait - watch.idle)))


async def give_back(connection: asyncpg.Connection, schema: str) -> None:
    """By a statement while the connection is well; otherwise the lock ends with the session."""
    try:
        await connection.execute(f"SELECT pg_advisory_unlock({lock_arguments(schema)})", timeout=_UNLOCK_TIMEOUT)
    except DRIVER_ERRORS:
        log.warning("the migration lock is free once the server has noticed that this session is gone")


async def _look(connection: asyncpg.Connection, watch: HolderWatch) -> str:
    """Look at the holder; returns what is said of it."""
    try:
        async with asyncio.timeout(_SHORTEST_ANSWER):
            await watch.look(connection)
    except TimeoutError:
        connection.terminate()  # the answer may still come, and would be taken for another's
        return HOLDER_NOT_KNOWN
    return str(watch.holder) if watch.holder else "the holder has just left"
