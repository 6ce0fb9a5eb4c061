"""Old records are deleted, a few at a time, and slots after eight days; totals stay."""

from __future__ import annotations

import random
import time
from uuid import UUID

import asyncpg

from gasket.postgres.quoting import quote_identifier

MOST_AT_ONCE = 5000
"""Records that one statement deletes."""

_HOUR = 3600.0
_EVERY = (0.9 * _HOUR, 1.1 * _HOUR)
_FIRST = (0.02 * _HOUR, 0.2 * _HOUR)
_NIL = UUID(int=0)

# By the primary key, which begins with the time in milliseconds (RFC 9562, 5.7), and by the database's clock: one
# replica whose clock is wrong deletes nothing. Several replicas at it each take what the others leave. A moment
# before 1970 counts as 1970: of a negative number `to_hex` gives the two's complement, and every id comes before that.
_DELETE = """
WITH old AS (
    SELECT request_id FROM {schema}.usage_records
    WHERE request_id > $1 AND request_id < (
        lpad(
            to_hex(greatest(0, floor(extract(epoch FROM now() - make_interval(days => $2)) * 1000))::bigint), 12, '0'
        )
        || repeat('0', 20)
    )::uuid
    ORDER BY request_id LIMIT $3
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {schema}.usage_records AS r USING old WHERE r.request_id = old.request_id
)
SELECT count(*) AS deleted, (array_agg(request_id ORDER BY request_id DESC))[1] AS last FROM old
"""

# About 600 rows an hour.
_DELETE_SLOTS = """
DELETE FROM {schema}.usage_slots WHERE (slot, bucket) IN (
    SELECT slot, bucket FROM {schema}.usage_slots WHERE slot < now() - interval '8 days' FOR UPDATE SKIP LOCKED
)
"""


class Retention:
    """Deletes records that are older than `days`; 0: never. `at_once` records at a time, once an hour."""

    def __init__(self, schema: str, *, days: int, at_once: int = MOST_AT_ONCE) -> None:
        self._days = days
        self._at_once = at_once
        self._delete = _DELETE.format(schema=quote_identifier(schema))
        self._delete_slots = _DELETE_SLOTS.format(schema=quote_identifier(schema))
        self._begun = _NIL
        self._next = time.monotonic() + random.uniform(*_FIRST)

    def due(self) -> bool:
        """Whether `step` has something to do now."""
        return time.monotonic() >= self._next

    async def step(self, connection: asyncpg.Connection) -> int:
        """Delete one batch of records, and say how many; after the last one nothing is due for about an hour.

        Before the first one it deletes old slots.
        """
        if self._begun == _NIL:
            await connection.execute(self._delete_slots)
        if not self._days:
            self.postpone()
            return 0
        row = await connection.fetchrow(self._delete, self._begun, self._days, self._at_once)
        assert row is not None
        if row["deleted"] < self._at_once:
            self.postpone()
        else:
            self._begun = row["last"]
        return int(row["deleted"])

    def postpone(self) -> None:
        """Begin anew in about an hour; replicas that began together drift apart."""
        self._begun = _NIL
        self._next = time.monotonic() + random.uniform(*_EVERY)
