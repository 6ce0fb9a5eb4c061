"""Who holds the locks that a session waits for, as far as this role may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime

import asyncpg
import msgspec

from gasket.postgres.errors import DRIVER_ERRORS
from gasket.postgres.messages import without_literals
from gasket.postgres.sessions import insist

_WATCH_EVERY = 0.02
_RECONNECT_AFTER = 1.0
_PREPARED_PID = 0  # what pg_blocking_pids() gives for a prepared transaction, which has no session
_BLOCKERS = """
SELECT a.pid, a.application_name, a.usename::text AS role, a.xact_start AS since, a.backend_type,
    left(regexp_replace(a.query, '\\s+', ' ', 'g'), 200) AS query,
    (SELECT l.relation::regclass::text FROM pg_catalog.pg_locks AS l WHERE l.pid = $1 AND NOT l.granted LIMIT 1)
        AS relation
FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = ANY ($2::int[])
    AND a.pid <> pg_backend_pid()
"""
# pg_locks shows the locks of a prepared transaction without a pid. One of them is on its own transaction's number; the
# virtual transaction is the same in all (PostgreSQL manual, "pg_locks").
_PREPARED = """
SELECT DISTINCT p.gid, p.owner::text AS role, p.prepared AS since
FROM pg_catalog.pg_locks AS wanted
JOIN pg_catalog.pg_locks AS held ON held.granted AND held.pid IS NULL AND held.locktype = wanted.locktype
    AND held.database IS NOT DISTINCT FROM wanted.database AND held.relation IS NOT DISTINCT FROM wanted.relation
    AND held.transactionid IS NOT DISTINCT FROM wanted.transactionid
JOIN pg_catalog.pg_locks AS own ON own.locktype = 'transactionid' AND own.pid IS NULL
    AND own.virtualtransaction = held.virtualtransaction
JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = own.transactionid
WHERE wanted.pid = $1 AND NOT wanted.granted
ORDER BY p.prepared
"""


class Blocker(msgspec.Struct, frozen=True):
    """A session whose lock is waited for, or with a `gid` a prepared transaction, which has no session.

    `relation` is the table that is waited for; None where it is something else.
    """

    pid: int
    application: str
    role: str
    since: datetime | None
    query: str
    autovacuum: bool = False
    gid: str | None = None
    relation: str | None = None

    @property
    def yields(self) -> bool:
        """An autovacuum worker that PostgreSQL cancels for a waiter; one against wraparound it does not."""
        return self.autovacuum and "to prevent wraparound" not in self.query

    def __str__(self) -> str:
        when = f"{self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        if self.gid is not None:
            gid = self.gid.replace("'", "''")
            return (
                f"a prepared transaction (gid '{gid}', role {self.role}, prepared at {when}; "
                f"to end it: ROLLBACK PREPARED '{gid}')"
            )
        since = f", in its transaction since {when}" if when else ""
        who = "an autovacuum worker" if self.autovacuum else f"application {self.application or '(none)'!r}"
        return f"pid {self.pid} ({who}, role {self.role or '(none)'}{since}: {self.query or '(not shown)'})"


def only_prepared(blockers: Sequence[Blocker]) -> bool:
    """Whether there are some, and each is a prepared transaction: no session that could be ended."""
    return bool(blockers) and all(blocker.gid is not None for blocker in blockers)


async def find_blockers(connection: asyncpg.Connection, pid: int) -> list[Blocker]:
    """Who holds what the session `pid` waits for."""
    # Asked once and first: it stops all who take a lock for a moment, and in a condition it would run for each session.
    pids: list[int] = await connection.fetchval("SELECT pg_blocking_pids($1)", pid)
    if not pids:
        return []
    sessions = [
        Blocker(
            pid=row["pid"],
            application=row["application_name"] or "",
            role=row["role"] or "",
            since=row["since"],
            query=without_literals(row["query"] or ""),
            autovacuum=row["backend_type"] == "autovacuum worker",
            relation=row["relation"],
        )
        for row in await connection.fetch(_BLOCKERS, pid, pids)
    ]
    if _PREPARED_PID not in pids:
        return sessions
    prepared = [
        Blocker(pid=_PREPARED_PID, application="", role=row["role"], since=row["since"], query="", gid=row["gid"])
        for row in await connection.fetch(_PREPARED, pid)
    ]
    return sessions + prepared


async def _find_without_limit(connection: asyncpg.Connection, pid: int) -> list[Blocker]:
    """Whatever `statement_timeout` the role has. For this transaction alone, because there may be a pooler."""
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        return await find_blockers(connection, pid)


_Identity = tuple[int, datetime | None, str | None]


def _identity(blocker: Blocker) -> _Identity:
    """A session in one of its transactions, or a prepared transaction."""
    return blocker.pid, blocker.since, blocker.gid


class BlockerWatch:
    """Finds out who blocks the session `pid`, over another connection, while it waits: later it cannot be known.

    `close` ends that connection, which is kept from one wait to the next: opening it may take longer than a wait.
    `on_others` is called with all who block when one of them did not at the look before; `every` is in seconds. A watch
    that loses its connection opens another one.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        pid: int,
        *,
        every: float = _WATCH_EVERY,
        on_others: Callable[[list[Blocker]], None] | None = None,
    ) -> None:
        self.blockers: list[Blocker] = []
        self._connect = connect
        self._pid = pid
        self._every = every
        self._on_others = on_others
        self._last_look: set[_Identity] = set()
        self._waits = asyncio.Event()
        self._watcher: asyncio.Future[None] | None = None

    def open(self, *, after: float = 0.0) -> None:
        """Connect, `after` seconds from now, for the next wait; harmless when that has begun."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._watch(after))

    def close(self) -> None:
        """Look no more; harmless when nobody looks."""
        if self._watcher is not None:
            self._watcher.cancel()

    @contextmanager
    def watching(self, *, after: float = 0.0) -> Iterator[None]:
        """Watch what happens inside, connecting after so many seconds; `blockers` are the last that were seen."""
        self.blockers = []
        self._last_look = set()
        self.open(after=after)
        self._waits.set()
        try:
            yield
        finally:
            self._waits.clear()

    async def _watch(self, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            with suppress(*DRIVER_ERRORS):
                connection = await self._connect()
                try:
                    await self._look_on(connection)
                finally:
                    connection.terminate()
            await asyncio.sleep(_RECONNECT_AFTER)

    async def _look_on(self, connection: asyncpg.Connection) -> None:
        while await self._waits.wait():
            blockers = await insist(lambda: _find_without_limit(connection, self._pid))
            seen = {_identity(blocker) for blocker in blockers}
            others = not seen <= self._last_look
            self._last_look = seen
            # A look that finds nobody keeps those before: the wait may have just ended, in an error that names them.
            self.blockers = blockers or self.blockers
            if others and self._on_others:
                self._on_others(blockers)
            await asyncio.sleep(self._every)
