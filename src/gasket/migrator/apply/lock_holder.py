"""Who holds the migration lock, and whether that session makes progress."""

from __future__ import annotations

import time
import zlib
from datetime import datetime

import asyncpg
import msgspec

from gasket.migrator.ledger.read import newest_rows
from gasket.postgres.messages import without_literals
from gasket.postgres.progress import StatementProgress, statement_progress

LOCK_CLASS = 0x6761736B
"""The first of the lock's two keys ("gask"): the same in every release, for ever."""
_UNREADABLE = (asyncpg.LockNotAvailableError, asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedTableError)
"""Another session has the books locked, they are hidden from this role, or were dropped in this moment."""
HOLDER_NOT_KNOWN = "the holder is not known, because the database does not answer"


def lock_key(schema: str) -> int:
    """The second key, 0 to 2**32 - 1 as `pg_locks.objid` shows it: installations in two schemas do not meet."""
    return zlib.crc32(schema.encode())


def lock_arguments(schema: str, lock_class: int = LOCK_CLASS) -> str:
    """Both keys as SQL text, for PostgreSQL's advisory lock functions: those of two keys take signed ones."""
    key = lock_key(schema)
    return f"{lock_class}, {key - 2**32 if key >= 2**31 else key}"


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock, as far as this role may see it.

    `busy`: it runs a statement, and waits neither for a lock nor for its client.
    """

    pid: int
    application: str
    client: str
    since: datetime | None
    query: str
    busy: bool = False

    def __str__(self) -> str:
        since = f", connected since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        return (
            f"held by pid {self.pid}, application {self.application or '(none)'!r}, client {self.client}{since}, "
            f"last statement: {self.query or '(not shown to this role)'}"
        )


async def find_holder(connection: asyncpg.Connection, schema: str) -> Holder | None:
    """Look the holder up in `pg_locks`; None when nobody holds the lock."""
    row = await connection.fetchrow(
        "SELECT l.pid, a.application_name, a.backend_start, "
        "coalesce(host(a.client_addr) || ':' || a.client_port, 'local socket') AS client, "
        "left(regexp_replace(a.query, '\\s+', ' ', 'g'), 200) AS query, "
        "coalesce(a.state = 'active' AND coalesce(a.wait_event_type, '') NOT IN ('Lock', 'Client'), false) AS busy "
        "FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = $1::oid AND l.objid = $2::oid "
        "AND l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
        LOCK_CLASS,
        lock_key(schema),
    )
    if row is None:
        return None
    return Holder(
        pid=row["pid"],
        application=row["application_name"] or "",
        client=row["client"],
        since=row["backend_start"],
        query=without_literals(row["query"] or ""),
        busy=row["busy"],
    )


class _Mark(msgspec.Struct, frozen=True):
    """What changes when the holder comes forward."""

    pid: int | None
    since: datetime | None
    rows: tuple[int | None, ...]
    statement: StatementProgress | None


class HolderWatch:
    """Follows the holder of the lock, for one who waits for it. All times are in seconds.

    Progress is another holder, a new row of the ledger or of a step's progress, a statement that PostgreSQL's progress
    views show moving, or a statement that runs and waits for nothing.
    """

    def __init__(self, schema: str) -> None:
        self.holder: Holder | None = None
        self.statement: StatementProgress | None = None
        self._schema = schema
        self._mark: _Mark | None = None
        self._started = self._moved = self._looked = time.monotonic()

    @property
    def waited(self) -> float:
        """Since the wait began."""
        return time.monotonic() - self._started

    @property
    def idle(self) -> float:
        """Since the holder was last seen to make progress, or, if never, since the wait began."""
        return time.monotonic() - self._moved

    @property
    def unseen(self) -> float:
        """Since the last look."""
        return time.monotonic() - self._looked

    async def look(self, connection: asyncpg.Connection) -> None:
        """See who holds the lock, and whether there was progress since the last look."""
        self.holder = holder = await find_holder(connection, self._schema)
        self.statement = await statement_progress(connection, holder.pid) if holder else None
        try:
            rows = await newest_rows(connection, self._schema)
        except _UNREADABLE:
            rows = self._mark.rows if self._mark else ()
        mark = _Mark(holder.pid if holder else None, holder.since if holder else None, rows, self.statement)
        moved = self._mark is not None and mark != self._mark
        self._mark = mark
        self._looked = time.monotonic()
        if moved or (holder and holder.busy):
            self._moved = self._looked
