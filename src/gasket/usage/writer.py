"""Usage on its way into the database: a bounded queue, and one task with one connection that empties it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any

import asyncpg

from gasket.postgres.connections import open_connection
from gasket.postgres.errors import describe
from gasket.usage.entry import UsageEntry
from gasket.usage.retention import Retention
from gasket.usage.store import UsageStore
from gasket.usage.summing import DaySums

log = logging.getLogger("gasket.usage")

MOST_WAITING = 50_000
"""Entries that wait at most; further ones are dropped."""

BATCH = 500
"""Entries that one transaction takes; as soon as so many wait, they are written."""

INTERVAL = 1.0
"""Seconds after which fewer are written, too."""

CLOSE_TIMEOUT = 5.0
"""Seconds that `close` has."""

_ANSWER_TIMEOUT = 30.0
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
_PAUSE_WHILE_CLOSING = 0.1
_TOUCHED_EVERY = 60.0
_MOST_KEYS = 50_000

# Errors about values, from PostgreSQL (classes 22 and 23) and the encoder: to try again would change nothing.
_REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, TypeError, OverflowError)


class UsageWriter:
    """Takes entries without ever waiting, and writes them once a second or 500 at a time.

    An entry leaves the queue when its transaction is committed, and is written once even if the answer to the COMMIT
    is lost. `database_url` is a libpq URL; a pooler in transaction mode will do.
    """

    def __init__(
        self,
        database_url: str,
        *,
        schema: str,
        application_name: str,
        retention: Retention | None = None,
        day_sums: DaySums | None = None,
    ) -> None:
        self.dropped = 0
        """Entries that were lost: the queue was full, the database refused the very entry, or the end came first."""
        self.written = 0
        """Entries that are in the database."""
        self._url = database_url
        self._application_name = application_name
        self._store = UsageStore(schema)
        self._retention = retention
        self._day_sums = day_sums
        self._queue: deque[UsageEntry] = deque()
        self._enough = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection | None = None
        self._pause = _FIRST_PAUSE
        self._away = False
        self._full = False
        self._touched: dict[int | str, float] = {}
        self._previous: dict[int | str, datetime] = {}
        """When keys that a rotation has replaced were last used, as far as the database is still to be told."""

    @property
    def waiting(self) -> int:
        """Entries that are not in the database yet."""
        return len(self._queue)

    def put(self, entry: UsageEntry, *, previous_digest: str | None = None) -> None:
        """Have the entry written soon. `previous_digest` is of the request's key, if a rotation has replaced it."""
        if self._closing.is_set() or len(self._queue) >= MOST_WAITING:
            self._drop()
            return
        self._queue.append(entry)
        if previous_digest is not None:
            self._previous[previous_digest] = entry.started_at
        if len(self._queue) >= BATCH:
            self._enough.set()
        self.start()

    def start(self) -> None:
        """Begin the background work; otherwise the first entry does. A second call does nothing."""
        if self._task is None and not self._closing.is_set():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> int:
        """Write what waits, within 5 s; how many entries had to be left behind. Further ones are dropped."""
        self._closing.set()
        self._enough.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._disconnect()
        left = len(self._queue)
        if left:
            self._queue.clear()
            self.dropped += left
            log.error("%d usage records are lost: the database did not take them before the end", left)
        return left

    def _drop(self) -> None:
        self.dropped += 1
        if not self._full and not self._closing.is_set():
            self._full = True
            log.error("usage records are being dropped: %d wait for the database already", len(self._queue))

    async def _run(self) -> None:
        while self._queue or not self._closing.is_set():
            await self._until_due()
            try:
                await self._write(min(len(self._queue), BATCH))
                self._is_back()
            except Exception as error:  # whatever it is: what comes next must not wait for a restart
                await self._is_away(error)
            else:
                await self._delete_old()
                await self._sum_day()

    async def _until_due(self) -> None:
        if len(self._queue) < BATCH and not self._closing.is_set():
            self._enough.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._enough.wait()

    async def _write(self, count: int) -> None:
        """Write the first `count` that wait, and only then take them off.

        A batch that is refused for its values is halved until the one entry is found that is at fault.
        """
        if not count:
            return
        batch = list(islice(self._queue, count))
        connection = await self._connected()  # not below: what is wrong with the URL is no fault of an entry's
        try:
            used = self._to_touch(batch)
            await self._store.write(connection, batch, used)
        except _REFUSED as error:
            self._disconnect()
            if count > 1:
                await self._write(count // 2)
                await self._write(count - count // 2)
                return
            self.dropped += 1
            log.error("the usage record of request %s is dropped: %.300s", batch[0].request_id, describe(error))
        except BaseException:
            self._disconnect()
            raise
        else:
            self.written += count
            self._touched.update((key, moment.timestamp()) for key, moment in used.items())
            self._previous = {digest: moment for digest, moment in self._previous.items() if digest not in used}
        for _ in batch:
            self._queue.popleft()

    def _to_touch(self, batch: list[UsageEntry]) -> dict[int | str, datetime]:
        """The keys of which it is a minute since the database was told that they are in use, and when they were: ids,
        and digests of keys that a rotation has replaced.
        """
        if len(self._touched) > _MOST_KEYS:
            self._touched.clear()
        used = {entry.key_id: entry.started_at for entry in batch} | self._previous
        return {
            key: moment
            for key, moment in used.items()
            if moment.timestamp() - self._touched.get(key, 0.0) >= _TOUCHED_EVERY
        }

    async def _delete_old(self) -> None:
        """One batch of old records between two of new ones: a long clean-up holds nothing up."""
        if self._retention is not None:
            await self._between_batches(self._retention, "old usage records stay for another hour")

    async def _sum_day(self) -> None:
        """One day, unless a whole batch of records waits: that comes first, for a day can take longer than a batch."""
        if self._day_sums is not None and len(self._queue) < BATCH:
            failure = "days of usage are not summed up for another hour (the page Usage takes longer, and stays right)"
            await self._between_batches(self._day_sums, failure)

    async def _between_batches(self, work: Retention | DaySums, failure: str) -> None:
        if not work.due() or self._closing.is_set():
            return
        try:
            connection = await self._connected()
            await self._unless_closing(work.step(connection))
        except Exception as error:  # the new ones go on; this can wait
            self._disconnect()
            work.postpone()
            log.warning("%s: %s", failure, describe(error))

    async def _unless_closing(self, step: Coroutine[Any, Any, object]) -> None:
        """Give the step up when the end comes: what waits has only so long to be written."""
        running, closing = asyncio.create_task(step), asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait((running, closing), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            else:
                self._disconnect()
        finally:
            running.cancel()
            closing.cancel()
            await asyncio.gather(running, closing, return_exceptions=True)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await open_connection(
                self._url, application_name=self._application_name, answer_timeout=_ANSWER_TIMEOUT
            )
        return self._connection

    def _disconnect(self) -> None:
        """Terminate the connection. Closing it in the normal way would wait for the running statement."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _is_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.warning("usage is not written, up to %d records wait: %s", MOST_WAITING, describe(error))
        if self._closing.is_set():
            await asyncio.sleep(_PAUSE_WHILE_CLOSING)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._closing.wait()
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _is_back(self) -> None:
        self._pause = _FIRST_PAUSE
        if self._away:
            self._away = False
            log.info("usage is written again, %d records still wait", len(self._queue))
        if self._full and len(self._queue) < MOST_WAITING - BATCH:
            self._full = False
            log.warning("usage records are kept again; %d have been dropped since the start", self.dropped)
