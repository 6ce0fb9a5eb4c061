"""One step, tried until it gets its locks: short tries under `lock_timeout`, longer and longer pauses between.

A queued ALTER TABLE stops every reader that comes after it. So no try waits longer than 100 ms for a lock;
what grows is the pause, in which readers and writers flow.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from gasket.migrator.connection import MigratorConfig, open_connection
from gasket.migrator.errors import LocksNotGrantedError

log = logging.getLogger("gasket.migrator")

TRY_LOCK_TIMEOUT_MS = 100
_AUTOVACUUM_MARGIN_MS = 200
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_WATCH_EVERY = 0.02
_RETRIED = {"55P03", "40P01"}  # lock_not_available, deadlock_detected

_BLOCKERS = """
SELECT a.pid, a.application_name, a.usename::text AS role, a.xact_start AS since, a.backend_type,
    left(regexp_replace(a.query, '\\s+', ' ', 'g'), 200) AS query
FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = ANY (pg_blocking_pids($1))
"""


@dataclass(frozen=True, slots=True)
class Blocker:
    """Somebody whose lock a step waited for, as far as this role may see it."""

    pid: int
    application: str
    role: str
    since: datetime | None
    query: str
    autovacuum: bool

    @property
    def yields(self) -> bool:
        """An autovacuum worker that PostgreSQL cancels for a waiter; one against wraparound it does not."""
        return self.autovacuum and "to prevent wraparound" not in self.query

    def __str__(self) -> str:
        since = f", in its transaction since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        who = "an autovacuum worker" if self.autovacuum else f"application {self.application or '(none)'!r}"
        return f"pid {self.pid} ({who}, role {self.role or '(none)'}{since}: {self.query or '(not shown)'})"


class Attempts:
    """Runs steps of one Alembic context on one connection. `on_failed_try` is told each try that found a lock taken."""

    def __init__(
        self,
        config: MigratorConfig,
        connection: asyncpg.Connection,
        on_failed_try: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._connection = connection
        self._on_failed_try = on_failed_try
        self._blockers: list[Blocker] = []
        self._lock_timeout = 0

    async def start(self) -> None:
        """Limit what every step waits for a lock from here on. No transaction is open; the session is prepared."""
        self._lock_timeout = 0
        await self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS)

    @contextmanager
    def no_lock_timeout(self) -> Iterator[None]:
        """For an autocommit block: a CREATE INDEX CONCURRENTLY that times out leaves an INVALID index behind."""
        await_only(self._set_lock_timeout(0))
        try:
            yield
        finally:
            if not self._connection.is_closed():
                await_only(self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS))

    def run(self, context: Any, revision: str, step: Callable[[int], None], *, may_retry: Callable[[], bool]) -> None:
        """Call `step(try_number)` in the context's transaction, again in a new one while its locks are taken.

        Nothing of a failed try is left: the transaction it ran in is rolled back. `may_retry` says no once an
        autocommit block has committed a part of the step.

        Raises:
            LocksNotGrantedError: not within GASKET_MIGRATION_DDL_WAIT; it names who blocks.
        """
        started, number = time.monotonic(), 1
        while True:
            try:
                with self._watched(number > 1):
                    step(number)
                await_only(self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS))
                return
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRIED or not may_retry():
                    raise
                context._transaction.rollback()
                self._on_failed_try(error.orig or error)
                waited = time.monotonic() - started
                if number > 1 and waited >= self._config.ddl_wait:
                    raise LocksNotGrantedError(
                        revision=revision, waited=waited, tries=number, blockers=[str(b) for b in self._blockers]
                    ) from error
            pause = min(_FIRST_PAUSE * 2 ** min(number - 1, 10), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            log.warning(
                "revision %s: its locks are taken (try %d, %.1f of at most %.0f s)%s; trying again in %.1f s",
                revision,
                number,
                waited,
                self._config.ddl_wait,
                ": " + "; ".join(map(str, self._blockers)) if self._blockers else "",
                pause,
            )
            await_only(asyncio.sleep(pause))
            # A worker is cancelled only for who has waited deadlock_timeout (PostgreSQL manual, "Routine Vacuuming").
            only_vacuum = bool(self._blockers) and all(blocker.yields for blocker in self._blockers)
            patience = await_only(self._past_deadlock_timeout()) if only_vacuum else TRY_LOCK_TIMEOUT_MS
            await_only(self._set_lock_timeout(patience))
            number += 1
            context._transaction = context.connection.begin()

    async def _set_lock_timeout(self, milliseconds: int) -> None:
        """For the session: SET LOCAL would end with the first autocommit block.

        A SET in a transaction that is rolled back is undone (PostgreSQL manual, "SET"), so between two tries it
        comes after the rollback.
        """
        if self._lock_timeout != milliseconds:
            await self._connection.execute(f"SET lock_timeout = {milliseconds}")
            self._lock_timeout = milliseconds

    async def _past_deadlock_timeout(self) -> int:
        setting = "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'"  # in milliseconds
        return int(await self._connection.fetchval(setting)) + _AUTOVACUUM_MARGIN_MS

    @contextmanager
    def _watched(self, wanted: bool) -> Iterator[None]:
        """From the second try on, another connection looks who blocks: afterwards nobody could tell."""
        if not wanted:
            yield
            return
        self._blockers = []
        watcher = asyncio.ensure_future(self._watch(self._connection.get_server_pid()))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, waiting_pid: int) -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            connection = await open_connection(self._config, migrating=True)
            try:
                while True:
                    if rows := await connection.fetch(_BLOCKERS, waiting_pid):
                        self._blockers = [_blocker(row) for row in rows]
                    await asyncio.sleep(_WATCH_EVERY)
            finally:
                connection.terminate()


def _blocker(row: asyncpg.Record) -> Blocker:
    return Blocker(
        pid=row["pid"],
        application=row["application_name"] or "",
        role=row["role"] or "",
        since=row["since"],
        query=row["query"] or "",
        autovacuum=row["backend_type"] == "autovacuum worker",
    )
