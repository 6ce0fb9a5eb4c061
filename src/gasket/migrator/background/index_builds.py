"""One index, built CONCURRENTLY: what an earlier try left INVALID is dropped, and what it has finished is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from gasket.migrator.apply.finished import what_is_left
from gasket.migrator.apply.leftovers import drop_invalid_indexes
from gasket.migrator.apply.lock import migration_lock
from gasket.migrator.background.backfills import StoppedError, WorkFailedError, may_pass
from gasket.migrator.background.worker_lock import is_wanted
from gasket.migrator.catalog.recorded import expect_index
from gasket.migrator.errors import InvalidIndexError, LockTimeoutError
from gasket.migrator.ledger.background import State, Work, lock_running, read_work
from gasket.migrator.sql.reader import built_index
from gasket.migrator.sql.render import Statement
from gasket.postgres.errors import describe, is_lost

_RECORD_TRIES = 100
_RECORD_POLL = 0.1


async def build_index(connection: asyncpg.Connection, schema: str, work: Work, *, yields: bool) -> None:
    """Build it, if it is not built already. No transaction is open.

    Raises:
        WorkFailedError: it cannot be built.
        StoppedError: a command or a downgrade has stopped it.

    After both errors what is left of it is INVALID, and is dropped if that can be done: a UNIQUE one would go on to
    refuse rows.
    """
    if yields and await is_wanted(connection, schema):
        raise StoppedError
    async with connection.transaction():  # the row may be locked by the downgrade that has ended the build before
        if await lock_running(connection, schema, work.id) is None:
            raise StoppedError
    try:
        async with _no_lock_timeout(connection):
            await _drop_leftover(connection, schema, work)
            left = await what_is_left(connection, schema, work.revision, work.statement, begun=True)
            if left is not None:
                await connection.execute(left)
                if await what_is_left(connection, schema, work.revision, work.statement, begun=True) is not None:
                    raise WorkFailedError("No index is built: IF NOT EXISTS has found another object with its name.")
    except InvalidIndexError as error:
        raise WorkFailedError(str(error)) from error
    except asyncpg.QueryCanceledError:
        if await _is_stopped(connection, schema, work):
            await _try_to_drop_leftover(connection, schema, work)
            raise StoppedError from None
        raise
    except asyncpg.PostgresError as error:
        if is_lost(error) or may_pass(error):
            raise
        async with _no_lock_timeout(connection):
            await _try_to_drop_leftover(connection, schema, work)
        raise WorkFailedError(f"{describe(error)}.") from error
    await _record(connection, schema, work)


async def _drop_leftover(connection: asyncpg.Connection, schema: str, work: Work) -> None:
    statement = Statement(work.statement, autocommit=True)
    await drop_invalid_indexes(connection, schema, work.revision, [statement])


async def _try_to_drop_leftover(connection: asyncpg.Connection, schema: str, work: Work) -> None:
    """Another session may hold the table, and a downgrade that does drops the index itself."""
    with suppress(asyncpg.PostgresError, InvalidIndexError):
        await _drop_leftover(connection, schema, work)


async def _is_stopped(connection: asyncpg.Connection, schema: str, work: Work) -> bool:
    now = await read_work(connection, schema, work.id)
    return now is None or now.state is not State.RUNNING


async def _record(connection: asyncpg.Connection, schema: str, work: Work) -> None:
    """Expect the index from now on, or it would be drift. The record is written under the migration lock.

    Another session may hold that and wait for this work. Then the index is not recorded, and `status` calls it tuning.
    """
    index = built_index(work.statement)
    assert index is not None
    assert index.index is not None
    for _ in range(_RECORD_TRIES):
        with suppress(LockTimeoutError):
            async with migration_lock(connection, schema, wait=0):
                await expect_index(connection, schema, index.index[-1])
                return
        if await is_wanted(connection, schema):
            return
        await asyncio.sleep(_RECORD_POLL)


@asynccontextmanager
async def _no_lock_timeout(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A build that times out leaves an INVALID index behind."""
    before = await connection.fetchval("SELECT current_setting('lock_timeout')")
    await connection.execute("SET lock_timeout = 0")
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"SET lock_timeout = '{before}'")
