"""How far the standbys lag behind. A backfill writes faster than some of them replay."""

from __future__ import annotations

import time
from collections import deque

import asyncpg

_LOOK_EVERY = 1.0
# Both are NULL for a role that may not see them (PostgreSQL manual, "pg_stat_replication"), and without a standby.
_POSITIONS = """
SELECT pg_current_wal_lsn() - '0/0' AS written,
    (SELECT min(r.replay_lsn) - '0/0' FROM pg_catalog.pg_stat_replication AS r
     LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.active_pid = r.pid
     WHERE s.slot_type IS DISTINCT FROM 'logical') AS replayed
"""


class Standbys:
    """Remembers what was written when. A standby lags by the age of the oldest that it has not replayed.

    `pg_stat_replication.replay_lag` does not serve: it stays as it was while a standby replays nothing at all.
    """

    def __init__(self) -> None:
        self._written: deque[tuple[float, int]] = deque()
        self._looked_at = 0.0
        self._lag = 0.0

    async def lag(self, connection: asyncpg.Connection) -> float:
        """In seconds, of the slowest standby; at most a second old."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at = now
            [(written, replayed)] = await connection.fetch(_POSITIONS)
            self.note(now, int(written), None if replayed is None else int(replayed))
        return self._lag

    def note(self, now: float, written: int, replayed: int | None) -> None:
        """At this time so much was written, and so much of it replayed by all."""
        self._written.append((now, written))
        while self._written and (replayed is None or self._written[0][1] <= replayed):
            self._written.popleft()
        self._lag = now - self._written[0][0] if self._written else 0.0
