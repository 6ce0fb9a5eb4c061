"""What `GET /api/usage` takes for a month of ten million requests, against the bare statement on the same totals."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
from cryptography.fernet import Fernet

from bench.harness import Row, alternate, database, markdown, open_folder, server, timed, verdict
from bench.migrated import at_head
from gasket.app import create_app
from gasket.settings import read_settings

TITLE = "GET /api/usage over a month of 10 million requests, against the bare statement"
REPEATS = 15
GOAL = 300.0
"""Milliseconds that a month by day may take."""

_TOKEN = "an-admin-token-for-the-bench"
# Requests of 300 keys, some of them used a hundred times as much as others; each with two models and two backends.
_FILL = """
INSERT INTO usage_totals
SELECT hour, key, key % 10 + 1, backend, model, 'user' || key || '@example.com', count(*), sum(prompt), sum(completion)
FROM (
    SELECT date_trunc('hour', now(), 'UTC') - make_interval(hours => floor(random() * 720)::int) AS hour, key,
        'model-' || (key + (random() < 0.3)::int) % 5 AS model, 1 + (random() < 0.2)::int AS backend,
        (random() * 2000)::int AS prompt, (random() * 500)::int AS completion
    FROM (SELECT 1 + floor(300 * random() ^ 2)::int AS key FROM generate_series(1, 10000000)) AS keys
) AS requests
GROUP BY 1, 2, 3, 4, 5
"""
_BARE = (
    "SELECT {groups}, sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM usage_totals "
    "WHERE hour >= $1 GROUP BY {numbers} ORDER BY {numbers} LIMIT 200"
)
_GROUPS = {
    "day": "(hour AT TIME ZONE 'UTC')::date",
    "hour": "hour",
    "key": "key_id",
    "user": "lower(user_email)",
    "model": "nullif(model, '')",
}


async def measure(repeats: int) -> str:
    """One row for each way to group them; the goal is that of the first."""
    with open_folder() as folder, server(folder) as server_url:
        async with database(server_url) as url:
            await at_head(url)
            connection = await asyncpg.connect(url)
            try:
                await connection.execute(_FILL, timeout=600)
                await connection.execute("VACUUM ANALYZE usage_totals", timeout=600)
                count = await connection.fetchval("SELECT count(*) FROM usage_totals")
                async with _client(url) as client:
                    ways = (("day",), ("hour",), ("key",), ("user",), ("model",), ("model", "day"))
                    rows = [await _by(groups, connection, client, repeats) for groups in ways]
            finally:
                await connection.close()
    first = rows[0].median_ms("GET /api/usage")
    case = f"{rows[0].case} ({count:,} rows of totals)"
    return markdown([replace(rows[0], case=case, goal=verdict(f"at most {GOAL:.0f} ms", first <= GOAL)), *rows[1:]])


def _client(url: str) -> httpx.AsyncClient:
    app = create_app(
        read_settings(
            {
                "DATABASE_URL": url,
                "GASKET_ADMIN_TOKEN": _TOKEN,
                "GASKET_SECRET_KEY": Fernet.generate_key().decode(),
            }
        )
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),  # type: ignore[arg-type]  # the same protocol, spelt with other types
        base_url="http://gasket",
        headers={"Authorization": f"Bearer {_TOKEN}"},
        timeout=60,
    )


async def _by(groups: tuple[str, ...], connection: asyncpg.Connection, client: httpx.AsyncClient, repeats: int) -> Row:
    since = datetime.now(UTC) - timedelta(days=30)
    numbers = ", ".join(map(str, range(1, len(groups) + 1)))
    statement = _BARE.format(groups=", ".join(_GROUPS[group] for group in groups), numbers=numbers)
    parameters = {"group": list(groups), "from": [since.isoformat()], "pageSize": ["200"]}

    async def ask() -> None:
        answer = await client.get("/api/usage", params=parameters)
        answer.raise_for_status()

    seconds = await alternate(
        repeats,
        {
            "bare statement": lambda: timed(connection.fetch(statement, since)),
            "GET /api/usage": lambda: timed(ask()),
        },
    )
    return Row(f"by {' and '.join(groups)}", seconds)
