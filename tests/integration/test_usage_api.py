"""`GET /api/usage`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
import httpx
import pytest

from gasket.usage.writer import UsageWriter

from .conftest import ApiAt, assert_problem
from .usage_entries import entry

# hour, key, profile, backend, model, user, requests, tokens of prompts and of completions
TOTALS = [
    ("2026-10-31T23:00:00Z", 1, 10, 5, "small", "ada@example.com", 1, 10, 1),
    ("2026-11-01T00:00:00Z", 1, 10, 5, "small", "ada@example.com", 2, 20, 2),
    ("2026-11-01T00:00:00Z", 1, 10, 6, "large", "ada@example.com", 4, 40, 4),
    ("2026-11-01T23:00:00Z", 2, 10, 5, "small", "Ada@Example.com", 8, 80, 8),
    ("2026-11-02T00:00:00Z", 3, 11, 6, "large", "bob@example.com", 16, 160, 16),
    ("2026-11-02T00:00:00Z", 3, 11, 0, "", "bob@example.com", 32, 0, 0),
]


@pytest.fixture
async def totals(client: httpx.AsyncClient, database: asyncpg.Connection) -> None:
    """Three keys of two users over two months; `client` empties the tables afterwards."""
    rows = [(datetime.fromisoformat(hour), *rest) for hour, *rest in TOTALS]
    details = "7 * $7::bigint, 2 * $7::bigint, $7"
    await database.executemany(f"INSERT INTO usage_totals VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, {details})", rows)


async def asked(client: httpx.AsyncClient, *groups: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The groups of the answer, each with its number of requests."""
    answer = await client.get("/api/usage", params={"group": list(groups), **parameters})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["total"] == len(body["items"])
    for item in body["items"]:
        assert list(item) == sorted(groups or ["day"], key=ORDER.index) + SUMS
        assert item["total_tokens"] == item["prompt_tokens"] + item["completion_tokens"]
    return [(*(item[group] for group in groups or ["day"]), item["requests"]) for item in body["items"]]


ORDER = ["key", "user", "profile", "model", "backend", "end_user", "hour", "day", "month"]
DETAILS = ["cached_tokens", "reasoning_tokens", "audio_tokens"]
SUMS = ["requests", "prompt_tokens", "completion_tokens", *DETAILS, "total_tokens"]


async def test_without_parameters_it_is_all_by_day(client: httpx.AsyncClient, totals: None) -> None:
    answer = await client.get("/api/usage")
    assert answer.json() == {
        "items": [
            {
                "day": day,
                "requests": n,
                "prompt_tokens": p,
                "completion_tokens": c,
                "cached_tokens": 7 * n,
                "reasoning_tokens": 2 * n,
                "audio_tokens": n,
                "total_tokens": p + c,
            }
            for day, n, p, c in (("2026-10-31", 1, 10, 1), ("2026-11-01", 14, 140, 14), ("2026-11-02", 48, 160, 16))
        ],
        "limit": 20,
        "offset": 0,
        "total": 3,
    }


async def test_without_usage_it_is_empty(client: httpx.AsyncClient) -> None:
    for parameters in ("", "currentPage=2", "group=key"):
        answer = (await client.get("/api/usage", params=parameters)).json()
        assert (answer["items"], answer["total"]) == ([], 0)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["key"], [(1, 7), (2, 8), (3, 48)]),
        (["user"], [("ada@example.com", 15), ("bob@example.com", 48)]),
        (["profile"], [(10, 15), (11, 48)]),
        (["model"], [("large", 20), ("small", 11), (None, 32)]),
        (["backend"], [(5, 11), (6, 20), (None, 32)]),
        (["month"], [("2026-10", 1), ("2026-11", 62)]),
        (
            ["hour"],
            [
                ("2026-10-31T23:00:00Z", 1),
                ("2026-11-01T00:00:00Z", 6),
                ("2026-11-01T23:00:00Z", 8),
                ("2026-11-02T00:00:00Z", 48),
            ],
        ),
        (["month", "profile"], [("2026-10", 10, 1), ("2026-11", 10, 14), ("2026-11", 11, 48)]),
        (["profile", "month"], [(10, "2026-10", 1), (10, "2026-11", 14), (11, "2026-11", 48)]),
        (
            ["day", "model"],
            [
                ("2026-10-31", "small", 1),
                ("2026-11-01", "large", 4),
                ("2026-11-01", "small", 10),
                ("2026-11-02", "large", 16),
                ("2026-11-02", None, 32),
            ],
        ),
        (["day", "month", "day"], [("2026-10-31", "2026-10", 1), ("2026-11-01", "2026-11", 14)]),
    ],
)
async def test_groups(
    client: httpx.AsyncClient, totals: None, groups: list[str], expected: Sequence[tuple[Any, ...]]
) -> None:
    if len(set(groups)) < len(groups):  # naming one twice changes nothing
        answer = await client.get("/api/usage", params={"group": groups, "pageSize": 2})
        assert [(item["day"], item["month"], item["requests"]) for item in answer.json()["items"]] == expected
        return
    assert await asked(client, *groups) == expected
    assert await asked(client, *groups, sortOrder="desc") == expected[::-1]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"key": 1}, 7),
        ({"key": 99}, 0),
        ({"user": "ADA@example.com"}, 15),
        ({"profile": 11}, 48),
        ({"model": "small"}, 11),
        ({"model": ""}, 32),
        ({"backend": 6}, 20),
        ({"backend": 0}, 32),
        ({"key": 1, "backend": 5, "from": "2026-11-01T00:00:00Z"}, 2),
        ({"from": "2026-11-01T00:00:00Z"}, 62),
        ({"to": "2026-11-01T00:00:00Z"}, 1),
        ({"from": "2026-11-01T00:00:00Z", "to": "2026-11-02T00:00:00Z"}, 14),
        ({"from": "2026-11-01T00:00:00+01:00", "to": "2026-11-02T00:00:00+01:00"}, 7),
        # Ranges take in every hour that they touch, also of offsets that are not whole hours.
        ({"from": "2026-10-31T23:59:59.999999Z", "to": "2026-11-01T00:00:00.000001Z"}, 7),
        ({"from": "2026-11-01T05:30:00+05:30", "to": "2026-11-02T05:30:00+05:30"}, 14),
        ({"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:00:00Z"}, 63),
    ],
)
async def test_filters_and_ranges(
    client: httpx.AsyncClient, totals: None, parameters: dict[str, Any], expected: int
) -> None:
    assert sum(requests for _, requests in await asked(client, **parameters)) == expected


async def test_days_are_those_of_utc_whatever_the_sessions_time_zone(
    client: httpx.AsyncClient, totals: None, database: asyncpg.Connection, api_at: ApiAt, api_database_url: str
) -> None:
    """A role or a database may have a zone of its own, even one in which the clock goes back on this very day."""
    name = await database.fetchval("SELECT current_database()")
    expected = [await asked(client, group) for group in ("day", "month", "hour")]
    await database.execute(f"ALTER DATABASE {name} SET timezone = 'America/New_York'")
    try:
        async with api_at(api_database_url) as other:  # a replica whose sessions begin now
            assert [await asked(other, group) for group in ("day", "month", "hour")] == expected
    finally:
        await database.execute(f"ALTER DATABASE {name} RESET timezone")


async def test_pages(client: httpx.AsyncClient, totals: None) -> None:
    async def page(number: int) -> tuple[list[Any], int]:
        answer = (await client.get(f"/api/usage?group=hour&group=key&pageSize=2&currentPage={number}")).json()
        assert (answer["limit"], answer["offset"]) == (2, 2 * (number - 1))
        return [(item["hour"][:13], item["key"]) for item in answer["items"]], answer["total"]

    assert await page(1) == ([("2026-10-31T23", 1), ("2026-11-01T00", 1)], 4)
    assert await page(2) == ([("2026-11-01T23", 2), ("2026-11-02T00", 3)], 4)
    assert await page(3) == ([], 4)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"group": "week"}, "group"),
        ({"group": ["day", ""]}, "group"),
        ({"from": "2026-11-01"}, "from"),
        ({"from": "2026-11-01T00:00:00"}, "from"),
        ({"to": "yesterday"}, "to"),
        ({"to": ""}, "to"),
        ({"from": 0}, "from"),
        ({"from": "1764028800.5"}, "from"),
        ({"from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"}, "to"),
        ({"from": "2026-11-02T00:00:00Z", "to": "2026-11-02T00:00:00Z"}, "to"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "9999-12-31T23:30:00Z"}, "to"),
        ({"key": 0}, "key"),
        ({"key": 2**31}, "key"),
        ({"profile": "open"}, "profile"),
        ({"backend": -1}, "backend"),
        ({"user": "a\0"}, "user"),
        ({"currentPage": 0}, "currentPage"),
        ({"pageSize": 201}, "pageSize"),
        ({"sortOrder": "up"}, "sortOrder"),
        ({"groupBy": "day"}, "groupBy"),
        ({"orderBy": "day"}, "orderBy"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, parameters: dict[str, Any], field: str) -> None:
    assert_problem(await client.get("/api/usage", params=parameters), 400, "invalid-input", field=field)


async def test_what_was_written_is_in_the_sums(client: httpx.AsyncClient, api_database_url: str) -> None:
    writer = UsageWriter(api_database_url, schema="public", application_name="gasket-usage-test")
    writer.put(entry(started_at=datetime.fromisoformat("2026-11-25T18:59:59Z")))
    writer.put(entry(started_at=datetime.fromisoformat("2026-11-25T19:00:00Z"), status=500, completion_tokens=0))
    assert await writer.close() == 0
    assert await asked(client, "hour", "model") == [
        ("2026-11-25T18:00:00Z", "gpt-x", 1),
        ("2026-11-25T19:00:00Z", None, 1),
    ]


async def test_by_end_user_the_records_count(client: httpx.AsyncClient, api_database_url: str) -> None:
    writer = UsageWriter(api_database_url, schema="public", application_name="gasket-usage-test")
    first, second = (datetime.fromisoformat(f"2026-11-25T{time}Z") for time in ("18:59:59", "19:00:00"))
    writer.put(entry(started_at=first))
    writer.put(entry(started_at=second, key_id=4, backend_id=None, end_user="eve"))
    writer.put(entry(started_at=second, status=500, completion_tokens=0, end_user=None))
    assert await writer.close() == 0
    assert await asked(client, "end_user") == [("bob", 1), ("eve", 1), (None, 1)]
    one_hour = {"from": "2026-11-25T19:00:00Z", "to": "2026-11-25T20:00:00Z"}
    assert await asked(client, "end_user", "model", **one_hour) == [("eve", "gpt-x", 1), (None, None, 1)]
    assert await asked(client, "key", "backend", end_user="eve") == [(4, None, 1)]
    assert await asked(client, "key", end_user="eve") == [(4, 1)]
    assert await asked(client, "hour", end_user="") == [("2026-11-25T19:00:00Z", 1)]
    every = ["key", "user", "profile", "model", "backend", "hour", "day", "month"]
    by_all = [*(await asked(client, *every, end_user="bob")), *(await asked(client, *every, end_user="eve"))]
    by_all += await asked(client, *every, end_user="")
    assert sorted(by_all, key=str) == sorted(await asked(client, *every), key=str)
