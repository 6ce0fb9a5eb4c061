"""One batch of usage as one transaction: records, totals, and when keys were last used."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg
import msgspec

from gasket.postgres.quoting import quote_identifier
from gasket.usage.entry import UsageEntry, storable

# Each setting ends with the transaction, so a pooler hands nothing of it on. A server that loses sight of us between
# two statements must not keep the rows of the totals locked, for which every other replica then waits.
BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '10s';
SET LOCAL statement_timeout = '20s'
"""
"""Statements that begin a transaction of the writer's."""

_TYPES = {
    "request_id": "uuid",
    "started_at": "timestamptz",
    "key_id": "int",
    "user_email": "text",
    "profile_id": "int",
    "backend_id": "int",
    "model": "text",
    "path": "text",
    "status": "int",
    "outcome": "text",
    "first_byte_ms": "real",
    "duration_ms": "real",
    "bytes_in": "bigint",
    "bytes_out": "bigint",
    "prompt_tokens": "bigint",
    "completion_tokens": "bigint",
    "estimated": "bool",
    "retries": "int",
    "cached_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "audio_tokens": "bigint",
    "end_user": "text",
}

# JSON, for as arrays of the driver the same rows take four times as long on the event loop (8 us each instead of 2).
# Only what the first INSERT really added goes into the totals: of a batch whose commit was done though its answer got
# lost, that is nothing. Writers that lock rows of totals and slots in one order never wait in a circle.
# A model's name is believed once an upstream has answered for it: an invented one makes no row of the totals.
_ADD = """
WITH added AS (
    INSERT INTO {schema}.usage_records ({columns})
    SELECT {columns} FROM json_to_recordset($1::json) AS given ({typed})
    ON CONFLICT (request_id) DO NOTHING
    RETURNING *
), slots AS (
    INSERT INTO {schema}.usage_slots AS s (slot, bucket, requests, failed, tokens)
    SELECT date_bin('5 minutes', started_at, '2000-01-01Z'), floor(8 * ln(greatest(duration_ms, 1)) / ln(2))::smallint,
        count(*), count(*) FILTER (WHERE outcome <> 'client_gone' AND (status >= 400 OR outcome <> 'ok')),
        sum(prompt_tokens + completion_tokens)
    FROM added
    GROUP BY 1, 2
    ORDER BY 1, 2
    ON CONFLICT (slot, bucket) DO UPDATE SET
        requests = s.requests + excluded.requests,
        failed = s.failed + excluded.failed,
        tokens = s.tokens + excluded.tokens
)
INSERT INTO {schema}.usage_totals AS t (
    hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, audio_tokens
)
SELECT date_trunc('hour', started_at, 'UTC'), key_id, profile_id, coalesce(backend_id, 0),
    CASE WHEN status < 400 OR completion_tokens > 0 THEN coalesce(model, '') ELSE '' END,
    min(user_email), count(*), sum(prompt_tokens), sum(completion_tokens),
    sum(cached_tokens), sum(reasoning_tokens), sum(audio_tokens)
FROM added
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (hour, key_id, profile_id, backend_id, model) DO UPDATE SET
    requests = t.requests + excluded.requests,
    prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = t.completion_tokens + excluded.completion_tokens,
    cached_tokens = t.cached_tokens + excluded.cached_tokens,
    reasoning_tokens = t.reasoning_tokens + excluded.reasoning_tokens,
    audio_tokens = t.audio_tokens + excluded.audio_tokens
"""

# The last statements. They skip locked rows, so they neither wait for a change of a key nor delay one for long.
_TOUCH = """
UPDATE {table} AS k SET last_used_at = due.used_at
FROM (
    SELECT k.{column}, used.used_at
    FROM unnest($1::{type}[], $2::timestamptz[]) AS used ({column}, used_at)
    JOIN {table} AS k USING ({column})
    WHERE k.last_used_at IS NULL OR k.last_used_at <= used.used_at - interval '1 minute'
    FOR NO KEY UPDATE OF k SKIP LOCKED
) AS due
WHERE k.{column} = due.{column}
"""

_ENCODED_AT_ONCE = 128
"""Entries for which the event loop waits, some 0.2 ms. With 32, a batch took so many turns of a busy loop that entries
came faster than they were written.
"""


class UsageStore:
    """The statements, for the tables of one schema."""

    def __init__(self, schema: str) -> None:
        name, typed = quote_identifier(schema), ", ".join(f"{column} {kind}" for column, kind in _TYPES.items())
        self._add = _ADD.format(schema=name, columns=", ".join(_TYPES), typed=typed)
        self._touch = _TOUCH.format(table=f"{name}.api_keys", column="id", type="int")
        self._touch_previous = _TOUCH.format(table=f"{name}.previous_api_keys", column="key_value", type="text")

    async def write(
        self, connection: asyncpg.Connection, entries: Sequence[UsageEntry], used: Mapping[int | str, datetime]
    ) -> None:
        """Add what is not there yet, and say of these keys when they were last used: of ids, and of digests of keys
        that a rotation has replaced.

        After any error the connection must be closed: its transaction has not ended.
        """
        given = await _as_json(entries)
        await connection.execute(BEGIN)
        await connection.execute(self._add, given)
        for touch, kind in ((self._touch, int), (self._touch_previous, str)):
            if keys := [key for key in used if isinstance(key, kind)]:
                await connection.execute(touch, keys, [used[key] for key in keys])
        await connection.execute("COMMIT")


async def _as_json(entries: Sequence[UsageEntry]) -> str:
    """A list of them. Requests get a turn of the event loop after every few entries."""
    pieces = []
    for start in range(0, len(entries), _ENCODED_AT_ONCE):
        some = [storable(entry) for entry in entries[start : start + _ENCODED_AT_ONCE]]
        pieces.append(msgspec.json.encode(some)[1:-1])
        await asyncio.sleep(0)
    return f"[{b','.join(pieces).decode()}]"
