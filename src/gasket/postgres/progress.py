"""How far a statement of another session has come, as PostgreSQL's progress views show it.

PostgreSQL manual, "Progress Reporting". A role sees its own sessions, and with pg_read_all_stats those of all.
"""

from __future__ import annotations

import asyncpg
import msgspec

# Each phase has counters of its own, and those of the phase before keep their last value. While a scan is at its first
# block, PostgreSQL says that all of them are done (heapam_scan_get_blocks_done, src/backend/access/heap).
_QUERY = """
SELECT command, phase, relid::regclass::text AS relation,
    CASE WHEN phase LIKE 'waiting%' THEN lockers_done WHEN phase LIKE '%tuples%' THEN tuples_done
        ELSE nullif(blocks_done, blocks_total) END AS done,
    CASE WHEN phase LIKE 'waiting%' THEN lockers_total WHEN phase LIKE '%tuples%' THEN tuples_total
        ELSE blocks_total END AS total
FROM pg_catalog.pg_stat_progress_create_index WHERE pid = $1
UNION ALL
SELECT command, phase, relid::regclass::text,
    CASE WHEN phase LIKE 'seq scanning%' THEN heap_blks_scanned END,
    CASE WHEN phase LIKE 'seq scanning%' THEN heap_blks_total END
FROM pg_catalog.pg_stat_progress_cluster WHERE pid = $1
"""


class StatementProgress(msgspec.Struct, frozen=True):
    """A CREATE INDEX, REINDEX, CLUSTER or VACUUM FULL. `done` of `total` are of the phase, in what it counts."""

    command: str
    phase: str
    relation: str | None
    done: int | None
    total: int | None

    @property
    def percent(self) -> float | None:
        """Of the phase; None where PostgreSQL does not count, or has not begun to."""
        if self.done is None or not self.total:
            return None
        return min(100.0, 100.0 * self.done / self.total)


async def statement_progress(connection: asyncpg.Connection, pid: int) -> StatementProgress | None:
    """Of the statement that the session `pid` runs; None where it is of another kind, or hidden from this role."""
    row = await connection.fetchrow(_QUERY, pid)
    if row is None or row["command"] is None:
        return None
    return StatementProgress(row["command"], row["phase"], row["relation"], row["done"], row["total"])
