"""Who holds the locks that somebody waits for, as far as this role may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg

_WATCH_EVERY = 0.02
_BLOCKERS = """
SELECT a.pid, a.application_name, a.usename::text AS role, a.xact_start AS since, a.backend_type,
    left(regexp_replace(a.query, '\\s+', ' ', 'g'), 200) AS query
FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = ANY (pg_blocking_pids($1))
"""


@dataclass(frozen=True, slots=True)
class Blocker:
    """Somebody whose lock is waited for."""

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


class BlockerWatch:
    """Looks, over a connection of its own, who blocks the backend `pid`: afterwards nobody could tell."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        pid: int,
        *,
        on_first: Callable[[list[Blocker]], None] | None = None,
    ) -> None:
        self.blockers: list[Blocker] = []
        self._connect = connect
        self._pid = pid
        self._on_first = on_first

    @contextmanager
    def watching(self, *, after: float = 0.0) -> Iterator[None]:
        """Watch what happens inside, from `after` seconds on; `blockers` are the last that were seen."""
        self.blockers = []
        watcher = asyncio.ensure_future(self._watch(after))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, after: float) -> None:
        await asyncio.sleep(after)
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            connection = await self._connect()
            try:
                while True:
                    if rows := await connection.fetch(_BLOCKERS, self._pid):
                        first = not self.blockers
                        self.blockers = [_blocker(row) for row in rows]
                        if first and self._on_first:
                            self._on_first(self.blockers)
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
