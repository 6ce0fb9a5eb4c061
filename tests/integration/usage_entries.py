"""Entries of usage for tests, and what the database holds of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg

from gasket.request_ids import new_request_id
from gasket.usage.entry import UsageEntry

SUMS = """
SELECT date_trunc('hour', started_at, 'UTC') AS hour, key_id, profile_id, coalesce(backend_id, 0) AS backend_id,
    CASE WHEN status < 400 OR completion_tokens > 0 THEN coalesce(model, '') ELSE '' END AS model,
    count(*) AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens, sum(audio_tokens)::bigint AS audio_tokens
FROM usage_records GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
"""
TOTALS = """
SELECT hour, key_id, profile_id, backend_id, model, requests, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, audio_tokens
FROM usage_totals ORDER BY 1, 2, 3, 4, 5
"""


def entry(**changes: Any) -> UsageEntry:
    """A request that went well, but for the changes."""
    fields: dict[str, Any] = {
        "request_id": new_request_id(),
        "started_at": datetime.now(UTC),
        "key_id": 1,
        "user_email": "ada@example.com",
        "profile_id": 2,
        "backend_id": 3,
        "model": "gpt-x",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "first_byte_ms": 12.5,
        "duration_ms": 250.0,
        "bytes_in": 384,
        "bytes_out": 1024,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "estimated": False,
        "retries": 0,
        "cached_tokens": 7,
        "reasoning_tokens": 2,
        "audio_tokens": 1,
        "end_user": "bob",
    }
    return UsageEntry(**{**fields, **changes})


async def assert_totals_agree(connection: asyncpg.Connection, *, records: int) -> None:
    """There are so many records, and the totals are exactly their sums."""
    assert await connection.fetchval("SELECT count(*) FROM usage_records") == records
    assert await connection.fetch(TOTALS) == await connection.fetch(SUMS)
    assert await connection.fetchval("SELECT coalesce(sum(requests), 0) FROM usage_slots") == records
