"""What the database tells the replicas when keys, profiles and backends change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from .conftest import migrate

Heard = Callable[[str], Awaitable[set[str]]]


SEED = """
INSERT INTO openai_backends (id, name, base_url) VALUES (1001, 'a', 'http://a'), (1002, 'b', 'http://b');
INSERT INTO backend_profiles (id, name) VALUES (1001, 'p'), (1002, 'q');
INSERT INTO profile_backends VALUES (1001, 1001, 0);
INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) VALUES ('a@b.c', 'k', 'one', '', 1001)
"""


@pytest.fixture
async def heard(database: asyncpg.Connection, client: httpx.AsyncClient) -> AsyncIterator[Heard]:
    """Call it with a statement for the payloads that it brings. There are a key of digest `one`, and ids 1001 and 1002.

    `client` is there to empty the tables afterwards.
    """
    await database.execute(SEED)
    async with listener(database) as heard:
        yield heard


@asynccontextmanager
async def listener(connection: asyncpg.Connection) -> AsyncIterator[Heard]:
    """A session hears its own notifications in the order of its commits: when the last one has come, all have."""
    payloads: list[str] = []
    arrived = asyncio.Event()

    def note(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        payloads.append(payload)
        if payload == "end":
            arrived.set()

    async def execute(statement: str) -> set[str]:
        payloads.clear()
        arrived.clear()
        await connection.execute(statement)
        await connection.execute("NOTIFY gasket_public, 'end'")
        async with asyncio.timeout(30):
            await arrived.wait()
        assert len(payloads) == len(set(payloads))
        return set(payloads) - {"end"}

    await connection.add_listener("gasket_public", note)
    try:
        yield execute
    finally:
        await connection.remove_listener("gasket_public", note)


@asynccontextmanager
async def seeded(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """For tests that change the schema: a database of their own."""
    await migrate(database_url)
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        await connection.execute(SEED)
        yield connection
    finally:
        await connection.close(timeout=10)


NEW_KEY = (
    "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) VALUES ('x', 'x', 'new', '', 1001)"
)
NEW_MODELS = """
INSERT INTO backend_models (backend_id, position, name, backend_model, priority)
SELECT id, n, 'm', n, 0 FROM openai_backends CROSS JOIN generate_series(0, 1) AS n
"""
NEW_PREVIOUS = "INSERT INTO previous_api_keys (key_id, key_value, expires_at) SELECT id, 'old', now() FROM api_keys"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (NEW_KEY, {"key:new"}),
        ("UPDATE api_keys SET key_value = 'two'", {"key:one", "key:two"}),
        ("UPDATE api_keys SET revoked_at = now()", {"key:one"}),
        ("UPDATE api_keys SET expires_at = now()", {"key:one"}),
        ("UPDATE api_keys SET profile_id = 1002", {"key:one"}),
        ("UPDATE api_keys SET name = 'other', revoked_by = 'x', key_preview = 'y'", set()),
        ("UPDATE api_keys SET last_used_at = now()", set()),
        ("DELETE FROM api_keys", {"key:one"}),
        (f"BEGIN; {NEW_KEY}; ROLLBACK", set()),
        ("INSERT INTO backend_profiles (id, name) VALUES (1003, 'r')", {"profile:1003"}),
        ("UPDATE backend_profiles SET allowed_models = '{m}'", {"profile:1001", "profile:1002"}),
        ("DELETE FROM backend_profiles WHERE id = 1001", {"profile:1001", "key:one"}),
        ("INSERT INTO profile_backends VALUES (1002, 1002, 0), (1002, 1001, 1)", {"profile:1002"}),
        ("UPDATE profile_backends SET position = 1", {"profile:1001"}),
        ("UPDATE profile_backends SET profile_id = 1002", {"profile:1001", "profile:1002"}),
        ("DELETE FROM profile_backends", {"profile:1001"}),
        ("INSERT INTO openai_backends (name, base_url) VALUES ('c', 'http://c')", set()),
        ("UPDATE openai_backends SET api_key = 'x' WHERE id = 1001", {"backend:1001"}),
        ("DELETE FROM openai_backends WHERE id = 1002", {"backend:1002"}),
        (NEW_MODELS, {"backend:1001", "backend:1002"}),
        ("UPDATE backend_profiles SET routing = 'sticky' WHERE id = 1002", {"profile:1002"}),
    ],
)
async def test_what_is_told(heard: Heard, statement: str, expected: set[str]) -> None:
    assert await heard(statement) == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE api_keys SET revoked_at = now()", {"key:one", "key:old"}),
        ("UPDATE api_keys SET expires_at = now()", {"key:one", "key:old"}),
        ("UPDATE api_keys SET last_used_at = now()", set()),
        ("UPDATE previous_api_keys SET key_value = 'older'", {"key:old", "key:older"}),
        ("UPDATE previous_api_keys SET last_used_at = now()", set()),
        ("DELETE FROM previous_api_keys", {"key:old"}),
        ("DELETE FROM api_keys", {"key:one", "key:old"}),
    ],
)
async def test_what_is_told_of_a_key_and_the_one_before_it(heard: Heard, statement: str, expected: set[str]) -> None:
    await heard(NEW_PREVIOUS)
    assert await heard(statement) == expected


@pytest.mark.parametrize("statement", ["UPDATE backend_models SET weight = 2", "DELETE FROM backend_models"])
async def test_what_is_told_of_the_models_of_a_backend(heard: Heard, statement: str) -> None:
    await heard(NEW_MODELS)
    assert await heard(f"{statement} WHERE backend_id = 1002") == {"backend:1002"}


async def test_it_depends_on_no_search_path_and_survives_new_columns(database_url: str) -> None:
    """A function of the same name in a schema that is searched first must not be taken for PostgreSQL's."""
    async with seeded(database_url) as connection, listener(connection) as heard:
        await connection.execute(
            """
            CREATE SCHEMA trap;
            CREATE FUNCTION trap.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT 1 / 0';
            CREATE FUNCTION trap.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT (1 / 0)::text::jsonb';
            SET search_path = trap, pg_catalog
            """
        )
        revoke = "UPDATE public.api_keys SET revoked_at = now()"
        assert await heard(revoke) == {"key:one"}
        await connection.execute("ALTER TABLE public.api_keys ADD a_later_one timestamptz")
        assert await heard("UPDATE public.api_keys SET a_later_one = now()") == set()
        assert await heard(revoke) == {"key:one"}


async def test_each_schema_has_its_own_channel(database_url: str) -> None:
    async with seeded(database_url) as connection, listener(connection) as heard:
        await connection.execute("ALTER SCHEMA public RENAME TO other; CREATE SCHEMA public")
        assert await heard("UPDATE other.api_keys SET revoked_at = now()") == set()
