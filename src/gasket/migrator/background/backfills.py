"""One backfill, batch by batch: rows and cursor are committed together, so no row is changed twice or left out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import msgspec
from msgspec.structs import replace

from gasket.migrator.background.pace import Pace
from gasket.migrator.background.standbys import Standbys
from gasket.migrator.background.walk import LOCAL_SETTINGS, Key, Walk, count_rows, make_walk
from gasket.migrator.background.worker_lock import is_wanted
from gasket.migrator.ledger.background import (
    State,
    Work,
    lock_running,
    note_error,
    read_work,
    save_cursor,
    set_estimate,
)
from gasket.postgres.errors import describe, is_lost, lacks_object

log = logging.getLogger("gasket.migrator")

_WINDOW = 20_000
"""Rows that one range looks at, at most."""
_LONGEST_LAG = 10.0
_BETWEEN_WALKS = 1.0
_LAG_POLL = 1.0
_PAUSE_POLL = 1.0
_TOLD_FROM = 5.0
"""The pause in seconds from which a failed try is logged: others have held it up for longer than that."""
# Another try may succeed (PostgreSQL manual, "PostgreSQL Error Codes"): locks and serialization; resources; a
# statement that an administrator has ended. Of class 55 only what others hold: the rest lasts until it is mended.
_PASSING = ("40", "53", "55006", "55P03", "57")
_OF_THE_STATEMENT = ("0A", "42")
_REST = "The rows before it are done, and none was lost."
_WAITERS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS w
    WHERE NOT w.granted AND w.pid <> pg_backend_pid() AND pg_backend_pid() = ANY (pg_blocking_pids(w.pid)))
"""


class WorkFailedError(Exception):
    """The work cannot go on; the text is a sentence for a person."""


class StoppedError(Exception):
    """Its state is not `running` any more, or another process takes the work over."""


class _Batch(msgspec.Struct, frozen=True):
    """`rows` were changed. `cursor` is None where the walk is at its end."""

    rows: int
    cursor: Key | None
    in_the_way: bool


class BackfillRun:
    """A backfill that is `running`, on the connection that holds the worker's lock.

    `yields`: it is left after a batch when a start or a command wants to do it. `tell` is called after every batch.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        schema: str,
        work: Work,
        pace: Pace,
        *,
        yields: bool,
        tell: Callable[[Work], None],
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._work = work
        self._pace = pace
        self._yields = yields
        self._tell = tell
        self._standbys = Standbys()
        self._window = _WINDOW
        self._seen_to_fail = False
        self._tried: Key | None = None

    async def run(self) -> None:
        """Walk through the table, again and again until nothing matches.

        Raises:
            WorkFailedError: a row cannot be changed, or the work would never end.
            StoppedError: it is paused, cancelled or void, or another process takes it over.
        """
        try:
            walk = await self._prepare()
            while True:
                await self._walk_through(walk)
                if not await self._finds_any(walk):
                    return
                if key := await self._unchangeable(walk):
                    raise WorkFailedError(
                        f"The row {walk.name(key)} of {walk.table} matches, also after an UPDATE of it: a trigger or a "
                        "rule of the table leaves it as it is, or changes it back."
                    )
                await asyncio.sleep(_BETWEEN_WALKS)  # writers have made new rows meanwhile: do not run after them
        except asyncpg.PostgresError as error:
            if is_lost(error) or may_pass(error):
                raise
            raise WorkFailedError(f"{describe(error)}.") from error

    async def _prepare(self) -> Walk:
        work = self._work
        walk = await make_walk(
            self._connection, table=work.table_name, assignments=work.statement, condition=work.condition or "true"
        )
        if walk is None:
            raise WorkFailedError(f"Table {work.table_name} is not there, or has no primary key to walk along.")
        if work.rows_estimated is None:
            rows = await count_rows(self._connection, self._schema, walk.table, walk.condition) or 0
            await set_estimate(self._connection, self._schema, work.id, rows)
            self._work = replace(work, rows_estimated=rows)
        return walk

    async def _finds_any(self, walk: Walk) -> bool:
        """Whether a row matches. Where `where` fails on a row that is new, another walk finds that row."""
        try:
            return await walk.finds_any(self._connection)
        except asyncpg.PostgresError as error:
            if self._seen_to_fail or not _fails_on_rows(error):
                raise
            self._seen_to_fail = True
            return True

    async def _unchangeable(self, walk: Walk) -> Key | None:
        """A row that no walk will ever change; None where none is seen. Where it fails, the next walk names the row."""
        try:
            return await walk.unchangeable(self._connection)
        except asyncpg.PostgresError as error:
            if is_lost(error) or self._connection.is_closed():
                raise
            return None

    async def _walk_through(self, walk: Walk) -> None:
        """From the cursor to the end of the table."""
        while True:
            await self._wait_for_standbys()
            await self._leave_if_wanted()
            started = time.monotonic()
            try:
                batch = await self._batch(walk)
            except asyncpg.PostgresError as error:
                if is_lost(error) or self._connection.is_closed():
                    raise
                pause = await self._after_failure(walk, error)
            else:
                self._window = min(2 * self._window, _WINDOW)
                self._tell(self._work)
                seconds = time.monotonic() - started
                pause = self._pace.after_batch(seconds, batch.rows, in_the_way=batch.in_the_way)
                if batch.cursor is None:
                    return
            await self._pause(pause)

    async def _batch(self, walk: Walk) -> _Batch:
        connection = self._connection
        self._tried = None
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(LOCAL_SETTINGS)
            work = await lock_running(connection, self._schema, self._work.id)
            if work is None:
                raise StoppedError
            rows, cursor, last = 0, work.cursor, True
            if found := await walk.end_of_batch(connection, cursor, self._pace.size, self._window):
                end, last = found
                self._tried = end
                rows, still = await walk.change(connection, cursor, end)
                if still:
                    raise WorkFailedError(
                        f"{still} of {rows} rows match its `where` after its `set` as before, so the work would never "
                        f"end; these rows are unchanged. The first batch with such a row ends at {walk.name(end)}."
                    )
                cursor = end
            cursor, number = (None, work.walk + 1) if last else (cursor, work.walk)
            await save_cursor(connection, self._schema, work.id, cursor=cursor, walk=number, rows=rows)
            in_the_way = bool(await connection.fetchval(_WAITERS))
        self._work = replace(work, cursor=cursor, walk=number, rows_done=work.rows_done + rows)
        return _Batch(rows, cursor, in_the_way)

    async def _after_failure(self, walk: Walk, error: asyncpg.PostgresError) -> float:
        """The pause before the next try. What the batch has done was rolled back.

        Raises:
            WorkFailedError: no try can succeed; of a batch of one row the row is named.
        """
        if may_pass(error):
            pause = self._pace.retreat()
            if pause >= _TOLD_FROM:
                log.warning("%s: %s; trying again in %.0f s", self._work, describe(error), pause)
                await self._note(f"{describe(error)}; it is tried again")
            return pause
        if not _fails_on_rows(error):
            raise WorkFailedError(f"{describe(error)}.") from error
        if self._tried is None:
            return await self._after_failed_look(walk, error)
        if self._pace.split():
            return 0.0
        raise WorkFailedError(
            f"The row {walk.name(self._tried)} of {walk.table} cannot be changed: {describe(error)}. {_REST}"
        ) from error

    async def _after_failed_look(self, walk: Walk, error: asyncpg.PostgresError) -> float:
        """Before anything was changed: `where` fails on one of the rows that were looked at."""
        if self._window > 1:
            self._window //= 2
            return 0.0
        key = await walk.first_after(self._connection, self._work.cursor)
        if key is not None and await self._where_fails_on(walk, key):
            raise WorkFailedError(
                f"`where` fails on the row {walk.name(key)} of {walk.table}: {describe(error)}. {_REST}"
            )
        raise WorkFailedError(f"{describe(error)}.") from error

    async def _where_fails_on(self, walk: Walk, key: Key) -> bool:
        """Of several partitions, PostgreSQL looks at the first row of each."""
        try:
            await walk.look_at(self._connection, key)
        except asyncpg.PostgresError as error:
            return _fails_on_rows(error)
        return False

    async def _wait_for_standbys(self) -> None:
        told = False
        while (lag := await self._standbys.lag(self._connection)) > _LONGEST_LAG:
            if not told:
                told = True
                log.info("%s waits: a standby has replayed nothing newer than %.0f s", self._work, lag)
                await self._note("waits for a standby, which has replayed nothing for more than 10 s")
            await self._leave_if_stopped()
            await asyncio.sleep(_LAG_POLL)

    async def _note(self, what: str) -> None:
        """For `status`, which sees the row alone. A command or a downgrade may have that locked."""
        with suppress(asyncpg.LockNotAvailableError):
            await note_error(self._connection, self._schema, self._work.id, what)

    async def _pause(self, seconds: float) -> None:
        """Between two batches. The session is never silent for long, or it would be taken for one that is cut off."""
        while seconds > _PAUSE_POLL:
            await asyncio.sleep(_PAUSE_POLL)
            seconds -= _PAUSE_POLL
            await self._leave_if_stopped()
        if seconds:
            await asyncio.sleep(seconds)

    async def _leave_if_stopped(self) -> None:
        await self._leave_if_wanted()
        now = await read_work(self._connection, self._schema, self._work.id)
        if now is None or now.state is not State.RUNNING:
            raise StoppedError

    async def _leave_if_wanted(self) -> None:
        if self._yields and await is_wanted(self._connection, self._schema):
            raise StoppedError


def _fails_on_rows(error: asyncpg.PostgresError) -> bool:
    """Whether other rows may be without the error, and the statement itself is right."""
    lost = is_lost(error) or may_pass(error)
    return not (lost or lacks_object(error) or (error.sqlstate or "").startswith(_OF_THE_STATEMENT))


def may_pass(error: BaseException) -> bool:
    """Whether another try may succeed, though nothing is changed."""
    return (getattr(error, "sqlstate", None) or "").startswith(_PASSING)
