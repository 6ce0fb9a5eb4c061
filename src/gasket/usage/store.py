"""One batch of usage as one transaction: records, totals, and when keys were last used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg
import msgspec

from gasket.migrator.connection import quote_identifier
from gasket.usage.entry import UsageEntry, storable

# Each setting ends with the transaction, so a pooler hands nothing of it on. A server that loses sight of us between
# two statements must not keep the rows of the totals locked, for which every other replica then waits.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '10s';
SET LOCAL statement_timeout = '20s'
"""

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
}

# JSON, for as arrays of the driver the same rows take four times as long on the event loop (8 us each instead of 2).
# Only what the first INSERT really added goes into the totals: of a batch whose commit was done though its answer got
# lost, that is nothing. Writers that lock the rows of the totals in one order never wait for each other in a circle.
# A model's name is believed once an upstream has answered for it: an invented one makes no row of the totals.
_ADD = """
WITH added AS (
    INSERT INTO {schema}.usage_records ({columns})
    SELECT {columns} FROM json_to_recordset($1::json) AS given ({typed})
    ON CONFLICT (request_id) DO NOTHING
    RETURNING *
)
INSERT INTO {schema}.usage_totals AS t (
    hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, completion_tokens
)
SELECT date_trunc('hour', started_at, 'UTC'), key_id, profile_id, coalesce(backend_id, 0),
    CASE WHEN status < 400 OR completion_tokens > 0 THEN coalesce(model, '') ELSE '' END,
    min(user_email), count(*), sum(prompt_tokens), sum(completion_tokens)
FROM added
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (hour, key_id, profile_id, backend_id, model) DO UPDATE SET
    requests = t.requests + excluded.requests,
    prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = t.completion_tokens + excluded.completion_tokens
"""

# The last statement, and one that waits for nobody: whoever changes a key at this moment is not held up, nor holds up.
_TOUCH = """
UPDATE {schema}.api_keys AS k SET last_used_at = due.used_at
FROM (
    SELECT k.id, used.used_at
    FROM unnest($1::int[], $2::timestamptz[]) AS used (id, used_at)
    JOIN {schema}.api_keys AS k USING (id)
    WHERE k.last_used_at IS NULL OR k.last_used_at <= used.used_at - interval '1 minute'
    FOR NO KEY UPDATE OF k SKIP LOCKED
) AS due
WHERE k.id = due.id
"""


class UsageStore:
    """The statements, for the tables of one schema."""

    def __init__(self, schema: str) -> None:
        name, typed = quote_identifier(schema), ", ".join(f"{column} {kind}" for column, kind in _TYPES.items())
        self._add = _ADD.format(schema=name, columns=", ".join(_TYPES), typed=typed)
        self._touch = _TOUCH.format(schema=name)

    async def write(
        self, connection: asyncpg.Connection, entries: Sequence[UsageEntry], used: Mapping[int, datetime]
    ) -> None:
        """Add what is not there yet, and say of these keys when they were last used.

        Whatever it raises, the connection is of no more use: its transaction has not ended.
        """
        given = msgspec.json.encode([storable(entry) for entry in entries]).decode()
        await connection.execute(_BEGIN)
        await connection.execute(self._add, given)
        if used:
            await connection.execute(self._touch, list(used), list(used.values()))
        await connection.execute("COMMIT")
