"""How the live schema stands, asked while serving: for readiness probes and for `GET /api/migrations`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import cached_property

import asyncpg
import msgspec

from gasket.migrator.connection import MigratorConfig, open_connection
from gasket.migrator.ledger import read_versions
from gasket.migrator.plan import Plan
from gasket.migrator.report import StatusReport, report_on
from gasket.migrator.revisions import Revisions, migrations_directory, read_revisions
from gasket.migrator.verdict import read_situation

DATABASE_AWAY = "database_away"
LEAVING = "leaving"

_SHARED_FOR = 1.0
_PROBE_TIMEOUT = 2.0
_REPORT_TIMEOUT = 10.0
_GRACE = 30.0
_GONE = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class Readiness(msgspec.Struct, frozen=True):
    """`revision` is what is applied (None: nothing), `head` is what this release has, `detail` a warning."""

    ready: bool
    state: str
    revision: str | None
    head: str | None
    detail: str | None = None


class SchemaMonitor:
    """Looks at the schema for whoever asks, over one connection of its own.

    Probes are shared for a second, so that many probes cost one query. A database that is away does not take
    a replica out of the load balancer at once: for 30 s the last good answer stands.
    """

    def __init__(self, config: MigratorConfig) -> None:
        self._config = config
        self._connection: asyncpg.Connection | None = None
        self._opening: asyncio.Task[asyncpg.Connection] | None = None
        self._using = asyncio.Lock()
        self._probe: asyncio.Task[Readiness] | None = None
        self._probed_at = 0.0
        self._plan: Plan | None = None
        self._planned_for: frozenset[str] | None = None
        self._detail: str | None = None
        self._last_good: Readiness | None = None
        self._good_at = 0.0
        self._leaving = False

    @cached_property
    def _revisions(self) -> Revisions:
        return read_revisions(migrations_directory(self._config.ini))

    @property
    def pending(self) -> int | None:
        """How many revisions of this release were not applied when the database was last asked; None: never asked."""
        return len(self._plan.pending) if self._plan else None

    async def readiness(self) -> Readiness:
        """At most two seconds old is what this answers, within about two seconds."""
        if self._leaving:
            return self._not_for_long()
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now - self._probed_at >= _SHARED_FOR):
            self._probed_at = now
            self._probe = asyncio.create_task(self._look())
        return await asyncio.shield(self._probe)

    async def report(self, *, rows: int, drift: bool) -> StatusReport:
        """What `litestar database status` says too; `rows` bounds the history, `drift` asks for it.

        Raises:
            OSError, asyncpg.PostgresError: the database is away.
        """
        async with asyncio.timeout(_REPORT_TIMEOUT), self._using:
            try:
                connection = await self._connected()
                return await report_on(connection, self._config, self._revisions, rows=rows, drift=drift)
            except BaseException:
                self._drop_connection()
                raise

    def leave(self) -> None:
        """From now on the answer is no, whatever the schema's state is."""
        self._leaving = True

    async def close(self) -> None:
        """Give the connection back; harmless when there is none."""
        if self._probe is not None:
            self._probe.cancel()
        if self._opening is not None:
            self._opening.cancel()
        self._drop_connection()

    async def _look(self) -> Readiness:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT), self._using:
                try:
                    answer = await self._ask(await self._connected())
                except BaseException:
                    self._drop_connection()
                    raise
        except _GONE:  # a timeout is an OSError
            return self._away()
        self._last_good, self._good_at = answer, time.monotonic()
        return answer

    async def _ask(self, connection: asyncpg.Connection) -> Readiness:
        versions = await read_versions(connection, self._config.schema)
        if self._plan is None or versions != self._planned_for or not self._plan.serves:
            situation = await read_situation(connection, self._config, self._revisions)
            self._plan = situation.plan
            self._detail = "; ".join(map(str, situation.edits)) or None
            self._planned_for = versions
        plan, revision = self._plan, ", ".join(sorted(versions)) or None
        return Readiness(plan.serves, plan.state.value, revision, plan.head, self._detail)

    def _away(self) -> Readiness:
        last, age = self._last_good, time.monotonic() - self._good_at
        return self._as_of_last(ready=last is not None and last.ready and age < _GRACE, state=DATABASE_AWAY)

    def _not_for_long(self) -> Readiness:
        return self._as_of_last(ready=False, state=LEAVING)

    def _as_of_last(self, *, ready: bool, state: str) -> Readiness:
        last = self._last_good
        return Readiness(
            ready, state, revision=last.revision if last else None, head=self._plan.head if self._plan else None
        )

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            # Opened beside the probe: where the first of several hosts is silent, it takes longer than a probe may.
            if self._opening is None:
                self._opening = asyncio.create_task(open_connection(self._config, migrating=False))
                self._opening.add_done_callback(self._opened)
            opening = self._opening
            await asyncio.wait({opening})
            self._connection, self._opening = opening.result(), None
        return self._connection

    def _opened(self, opening: asyncio.Task[asyncpg.Connection]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None  # the next probe tries again

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_GONE):
                connection.terminate()
