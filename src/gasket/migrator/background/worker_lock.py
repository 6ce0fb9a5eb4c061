"""One worker among all replicas: an advisory lock of its own, and the wish of a start or a command to take it over.

Both are session locks on the connection that does the work, so they end with it. Nobody waits for them inside of
PostgreSQL: who does not get the lock tries again later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from gasket.migrator.apply.lock_holder import lock_arguments, lock_key
from gasket.migrator.background import INDEX
from gasket.migrator.ledger.background import State, read_works

log = logging.getLogger("gasket.migrator")

_WORKER_CLASS = 0x67617362
_WANTED_CLASS = 0x67617377
_POLL = 0.1
_STOPPED_AFTER = 15.0
"""Seconds. A worker that has sent nothing for so long will not make way: in a pause it looks around every second."""
_HELD = (
    "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted "
    "AND classid = $1::oid AND objid = $2::oid "
    "AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) LIMIT 1"
)
_END_STOPPED = (
    "SELECT pid, pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
    f"WHERE pid = ({_HELD}) AND state LIKE 'idle%' AND state_change < clock_timestamp() - make_interval(secs => $3)"
)


async def try_worker_lock(connection: asyncpg.Connection, schema: str) -> bool:
    """Become the worker; False where another session is, or wants to be at once."""
    if await is_wanted(connection, schema):
        return False
    return bool(await connection.fetchval(f"SELECT pg_try_advisory_lock({lock_arguments(schema, _WORKER_CLASS)})"))


async def find_worker(connection: asyncpg.Connection, schema: str) -> int | None:
    """The pid of the session that works; on a standby always None."""
    pid: int | None = await connection.fetchval(_HELD, _WORKER_CLASS, lock_key(schema))
    return pid


async def is_wanted(connection: asyncpg.Connection, schema: str) -> bool:
    """Whether a start or a command waits to do the work itself. A worker then leaves it after its batch."""
    return await connection.fetchval(_HELD, _WANTED_CLASS, lock_key(schema)) is not None


@asynccontextmanager
async def taken_over(connection: asyncpg.Connection, schema: str) -> AsyncIterator[None]:
    """Be the worker in here, in the place of the replica that was. An index that it builds is waited for.

    The session of a process that is stopped or cut off is ended; what it has committed stays.
    """
    wanted, worker = lock_arguments(schema, _WANTED_CLASS), lock_arguments(schema, _WORKER_CLASS)
    await connection.execute(f"SELECT pg_advisory_lock_shared({wanted})")  # nobody holds it alone
    try:
        announced = False
        while not await connection.fetchval(f"SELECT pg_try_advisory_lock({worker})"):
            if not announced:
                announced = True
                log.info("taking background work over from pid %s", await find_worker(connection, schema))
            await asyncio.sleep(_POLL)
            await _end_stopped_worker(connection, schema)
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"SELECT pg_advisory_unlock({worker})")
            await connection.execute(f"SELECT pg_advisory_unlock_shared({wanted})")


async def _end_stopped_worker(connection: asyncpg.Connection, schema: str) -> None:
    with suppress(asyncpg.InsufficientPrivilegeError):  # it has another role: then it is waited for
        for pid, _ in await connection.fetch(_END_STOPPED, _WORKER_CLASS, lock_key(schema), _STOPPED_AFTER):
            log.warning("the worker with pid %s has sent nothing for %.0f s; its session is ended", pid, _STOPPED_AFTER)


async def interrupt_worker(connection: asyncpg.Connection, schema: str) -> None:
    """End the statement that the worker runs: an index build looks at nothing until it is complete.

    The worker goes on after a pause, if its work is not stopped by then.
    """
    pid = await find_worker(connection, schema)
    if pid is not None:
        await connection.execute("SELECT pg_cancel_backend($1)", pid)


async def interrupt_index_build(connection: asyncpg.Connection, schema: str, revision: str) -> None:
    """The same, where it builds an index of this revision."""
    running = await read_works(connection, schema, states={State.RUNNING})
    if any(work.kind == INDEX and work.revision == revision for work in running):
        await interrupt_worker(connection, schema)
