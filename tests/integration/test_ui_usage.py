"""The page of usage and its file, on a database."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest

from gasket.ui.csv_files import cell

TOTAL = (
    "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, "
    "completion_tokens) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAYS = {"from": "2026-11-24", "to": "2026-11-25"}
HOSTILE = "=HYPERLINK(1)<script>\u202e"


@pytest.fixture
async def used(client: httpx.AsyncClient, database: asyncpg.Connection) -> httpx.AsyncClient:
    """Three models, of which one has a hostile name and one most of the tokens."""
    for number, (model, tokens) in enumerate([(HOSTILE, 10), ("large", 5000), ("", 1)]):
        await database.execute(TOTAL, NOON, 900 + number, 1, 0, model, "ada@example.com", 2, tokens, tokens)
    return client


async def test_the_largest_comes_first_and_names_are_escaped(used: httpx.AsyncClient) -> None:
    page = (await used.get("/ui/usage", params={"by": "model", **DAYS})).text
    assert "<script>\u202e" not in page
    assert page.index("large</bdi>") < page.index("=HYPERLINK(1)&lt;script&gt;")
    assert "style=" not in page
    assert "Nov 25, 12:00: 6" in page


async def test_a_file_has_every_group_and_no_formula(used: httpx.AsyncClient) -> None:
    response = await used.get("/ui/usage.csv", params={"by": "model", **DAYS})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == (
        'attachment; filename="usage-by-model-2026-11-24-2026-11-25.csv"'
    )
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["name"] for row in rows] == ["large", f"'{HOSTILE}", ""]
    assert rows[0]["id"] == "large"
    assert rows[0]["total_tokens"] == "10000"


async def test_a_file_names_more_keys_than_a_query_has_parameters(
    client: httpx.AsyncClient, database: asyncpg.Connection
) -> None:
    await database.execute(
        "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, "
        "completion_tokens) SELECT $1, n, 1, 0, '', 'ada@example.com', 1, 1, 1 FROM generate_series(1, 32768) n",
        NOON,
    )
    response = await client.get("/ui/usage.csv", params={"by": "key", **DAYS})
    assert response.status_code == 200
    assert len(response.text.splitlines()) == 1 + 32768


async def test_what_is_still_there_has_its_name(client: httpx.AsyncClient, database: asyncpg.Connection) -> None:
    backend = (await client.post("/api/backends", json={"name": "berlin", "base_url": "http://127.0.0.1:9/v1"})).json()
    new_profile = {"name": "research", "backends": [backend["id"]]}
    profile = (await client.post("/api/profiles", json=new_profile)).json()
    new_key = {"name": "notebook", "user_email": "ada@example.com", "profile_id": profile["id"]}
    key = (await client.post("/api/keys", json=new_key)).json()
    await database.execute(TOTAL, NOON, key["id"], profile["id"], backend["id"], "m", "ada@example.com", 1, 1, 1)
    for by, name in [("backend", "berlin"), ("profile", "research"), ("key", "notebook")]:
        assert name in (await client.get("/ui/usage.csv", params={"by": by, **DAYS})).text


async def test_what_was_deleted_keeps_its_number(used: httpx.AsyncClient) -> None:
    page = (await used.get("/ui/usage", params={"by": "key", **DAYS})).text
    assert "key 901" in page
    assert "deleted" in page


@pytest.mark.parametrize("days", [1, 2, 3, 60, 200])
async def test_the_bars_add_up_to_what_the_table_has(
    client: httpx.AsyncClient, database: asyncpg.Connection, days: int
) -> None:
    """Of hours, days and months. The range ends today, on which something is used in this hour and the day's first."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    expected: Counter[str] = Counter()
    slot = "%b %d, %H:%M" if days <= 2 else "%b %d" if days < 100 else "%Y-%m"
    for hour in {now, now.replace(hour=0), *(now - timedelta(days=ago) for ago in range(1, days))}:
        await database.execute(TOTAL, hour, 7, 1, 0, "m", "ada@example.com", 3, 1, 1)
        expected[f"{hour:{slot}}"] += 3
    first, last = now.date() - timedelta(days=days - 1), now.date()
    page = (await client.get("/ui/usage", params={"by": "key", "from": str(first), "to": str(last)})).text
    bars = re.findall(r"<g><title>([^<]*): (\d+)</title>", page.partition("Tokens by")[0])
    assert {name: int(number) for name, number in bars if number != "0"} == expected


@pytest.mark.parametrize("query", [{"by": "nothing"}, {"from": "x"}, {"to": "1999-01-01"}, {"from": "9999-12-31"}])
async def test_a_range_that_is_none(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    for path in ("/ui/usage", "/ui/usage.csv"):
        response = await client.get(path, params=query)
        assert response.status_code == 400
        assert response.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_cells_that_look_like_formulas(text: str) -> None:
    assert cell(text) == f"'{text}"


def test_other_cells() -> None:
    assert [cell("a=1"), cell(-1), cell(None)] == ["a=1", -1, ""]
