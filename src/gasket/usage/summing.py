"""Days that are over are summed up, one at a time, so that questions about them take few rows.

Blocks of four days are summed, too, and of 16 and 64: a month of 10,000 keys is 300,000 rows of days, and about 100,000
of blocks.

Nobody is locked out meanwhile, and no sum stays wrong. Whoever changes totals of a day that is over adds a mark to it
(`mark_usage_days`, a trigger). Here the marks of the day are deleted first, and only then, in a newer snapshot, the
totals are read. A change that the sums lack has a mark that was not deleted, and the day is summed again.

A change of a day that is not over has no mark, so a day is summed only when all transactions that may have made such a
change have ended.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import date
from typing import NamedTuple

import asyncpg

from gasket.postgres.quoting import quote_identifier
from gasket.usage.groups import SUMMED
from gasket.usage.store import BEGIN

TIMES = 4
SIZES = tuple(TIMES**power for power in range(4))
"""The lengths of blocks of days that have sums of their own."""
KINDS = ("all", "key", "user", "profile", "model", "backend")
"""What they are summed by."""

log = logging.getLogger("gasket.usage")

LOCK_KEY = "hashtextextended('gasket usage days ' || $1::text, 0)"
"""SQL for the advisory lock under which days of the schema `$1` are summed."""

_HOUR = 3600.0
_EVERY = (0.9 * _HOUR, 1.1 * _HOUR)
_FIRST = (30.0, 90.0)
_LONGEST_WAIT = 0.5 * _HOUR

_TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})"

# Most records of a day are there an hour after its end. An id is given to a transaction when it first writes.
_OVER = """
SELECT ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date AS before, pg_current_xact_id()::text AS transaction_id
"""
_HAVE_ENDED = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8"

# Which sums are good, `UsageDay` says. `gasket.usage.days` has the same rule, for reading: change both.
_GOOD = """
WITH found AS (
    SELECT days, day, name = tableoid::text AS good FROM {schema}.usage_days WHERE by = 'all'
    UNION ALL
    SELECT size, {block}, false FROM {schema}.usage_days, unnest($1::int[]) AS size WHERE by = 'changed'
), good AS (
    SELECT days, day FROM found GROUP BY days, day HAVING bool_and(good)
)
"""
_BLOCK = "(day - (day - '0001-01-01'::date) % size)"

# The newest day first: that is what people look at.
_NEXT_DAY = """
SELECT 1 AS days, $2::date - ago AS day FROM generate_series(1, $2::date - least(
    (SELECT (min(hour) AT TIME ZONE 'UTC')::date FROM {schema}.usage_totals),
    (SELECT min(day) FROM {schema}.usage_days WHERE by IN ('all', 'changed'))
)) AS ago
WHERE $2::date - ago NOT IN (SELECT day FROM good WHERE days = 1)
ORDER BY ago LIMIT 1
"""
_NEXT_BLOCK = """
SELECT size AS days, {block} AS day FROM good JOIN unnest($1::int[]) AS size ON size = {times} * days
GROUP BY 1, 2 HAVING count(*) = {times}
EXCEPT SELECT days, day FROM good
ORDER BY days, day DESC LIMIT 1
"""

# With a day, its marks go, and the longer blocks that it is in.
_DELETE = """
DELETE FROM {schema}.usage_days AS d USING unnest($1::int[]) AS size
WHERE d.by = ANY ($2::text[]) AND d.days = size AND d.day = (SELECT {block} FROM (SELECT $3::date AS day) AS given)
"""

# Of the columns that are grouped by, only the one of the row's own grouping set is not null. A day without usage has
# the row of `all`.
_ADD_DAY = """
INSERT INTO {schema}.usage_days (by, days, day, name, {columns})
SELECT
    CASE
        WHEN key_id IS NOT NULL THEN 'key'
        WHEN address IS NOT NULL THEN 'user'
        WHEN profile_id IS NOT NULL THEN 'profile'
        WHEN model IS NOT NULL THEN 'model'
        WHEN backend_id IS NOT NULL THEN 'backend'
        ELSE 'all'
    END,
    1, $1::date,
    coalesce(key_id::text, address, profile_id::text, model, backend_id::text, $2::text::regclass::oid::text),
    {sums}
FROM (
    SELECT *, lower(user_email) AS address FROM {schema}.usage_totals
    WHERE hour >= $1::date::timestamp AT TIME ZONE 'UTC' AND hour < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
) AS totals
GROUP BY GROUPING SETS ((), (key_id), (address), (profile_id), (model), (backend_id))
"""
_ADD_BLOCK = """
INSERT INTO {schema}.usage_days (by, days, day, name, {columns})
SELECT by, $3, $1, name, {sums} FROM {schema}.usage_days
WHERE by = ANY ($2::text[]) AND days = $3 / {times} AND day >= $1 AND day < $1 + $3
GROUP BY by, name
"""


class Block(NamedTuple):
    """So many days, from `day` on."""

    days: int
    day: date


class DaySums:
    """Sums up the days that are over and have no sums, or no good ones; once an hour it looks for such days.

    `first` is the range of seconds from now on in which it begins, at random.
    """

    def __init__(self, schema: str, *, first: tuple[float, float] = _FIRST) -> None:
        self._schema = schema
        self._table = f"{quote_identifier(schema)}.usage_days"
        parts = {
            "schema": quote_identifier(schema),
            "block": _BLOCK,
            "times": TIMES,
            "columns": ", ".join(SUMMED),
            "sums": ", ".join(f"coalesce(sum({column}), 0)" for column in SUMMED),
        }
        self._next_day = (_GOOD + _NEXT_DAY).format(**parts)
        self._next_block = (_GOOD + _NEXT_BLOCK).format(**parts)
        self._delete = _DELETE.format(**parts)
        self._add_day = _ADD_DAY.format(**parts)
        self._add_block = _ADD_BLOCK.format(**parts)
        self._over: asyncpg.Record | None = None
        self._begun = 0.0
        self._next = time.monotonic() + random.uniform(*first)

    def due(self) -> bool:
        """Whether `step` has something to do now."""
        return time.monotonic() >= self._next

    async def step(self, connection: asyncpg.Connection) -> Block | None:
        """Sum up one day, or one block of several; None: there was nothing to do, or not yet.

        After any error the connection must be closed: its transaction has not ended.
        """
        await connection.execute(BEGIN)
        block = await self._step(connection)
        await connection.execute("COMMIT")
        return block

    def postpone(self) -> None:
        """Begin anew in about an hour; replicas that began together drift apart."""
        self._over = None
        self._next = time.monotonic() + random.uniform(*_EVERY)

    async def _step(self, connection: asyncpg.Connection) -> Block | None:
        if not await connection.fetchval(_TRY_LOCK, self._schema):
            self.postpone()  # another replica sums the days
            return None
        if self._over is None:
            self._over = await connection.fetchrow(_OVER)
            self._begun = time.monotonic()
            return None
        if not await connection.fetchval(_HAVE_ENDED, self._over["transaction_id"]):
            self._wait_for_others()
            return None
        found = await connection.fetchrow(self._next_day, SIZES, self._over["before"])
        found = found or await connection.fetchrow(self._next_block, SIZES)
        if found is None:
            self.postpone()
            return None
        block = Block(*found)
        if block.days == 1:
            await connection.execute(self._delete, SIZES, [*KINDS, "changed"], block.day)
            await connection.execute(self._add_day, block.day, self._table)
        else:
            await connection.execute(self._delete, [block.days], KINDS, block.day)
            await connection.execute(self._add_block, block.day, KINDS, block.days)
        return block

    def _wait_for_others(self) -> None:
        if time.monotonic() - self._begun > _LONGEST_WAIT:
            log.warning(
                "days of usage are not summed up for another hour: a transaction has been open for %.0f minutes; see "
                "pg_stat_activity and pg_prepared_xacts (meanwhile the page Usage takes longer, and stays right)",
                (time.monotonic() - self._begun) / 60,
            )
            self.postpone()
