"""`max_keys_per_user` and deletions hold while requests on two replicas, two pools, come all at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import asyncpg
import httpx
import pytest

from gasket import db
from gasket.backends.service import ProfileService
from gasket.keys.service import KeyService

from .conftest import ApiAt, Post, assert_problem

LIMIT = 5


@pytest.fixture
async def second(api_database_url: str, api_at: ApiAt) -> AsyncIterator[httpx.AsyncClient]:
    """Another replica on the same database."""
    async with api_at(api_database_url) as client:
        yield client


@pytest.fixture
async def profile_id(post: Post) -> int:
    """A profile that allows five keys."""
    profile = await post("/api/profiles", name="limited", max_keys_per_user=LIMIT)
    return int(profile["id"])


def body(profile_id: int, email: str = "ada@example.com") -> dict[str, Any]:
    return {"user_email": email, "name": "k", "profile_id": profile_id}


async def statuses(*requests: Coroutine[Any, Any, httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in await asyncio.gather(*requests))


async def active(client: httpx.AsyncClient) -> int:
    total: int = (await client.get("/api/keys?state=active")).json()["total"]
    return total


async def test_the_limit_is_per_user_and_profile(client: httpx.AsyncClient, post: Post, profile_id: int) -> None:
    other = await post("/api/profiles", name="other", max_keys_per_user=1)
    await post("/api/keys", **body(other["id"]))
    for email in ("ada@example.com", "ADA@example.com", "Ada@Example.COM", "ada@example.com", "ada@example.com"):
        await post("/api/keys", **body(profile_id, email))
    await post("/api/keys", **body(profile_id, "bob@example.com"))
    said = assert_problem(await client.post("/api/keys", json=body(profile_id, "aDA@example.com")), 409, "key-limit")
    assert "5 active keys" in said
    assert "'limited'" in said


async def test_neither_revoked_nor_expired_keys_count(
    client: httpx.AsyncClient, post: Post, profile_id: int, database: asyncpg.Connection
) -> None:
    keys = [await post("/api/keys", **body(profile_id)) for _ in range(LIMIT)]
    await client.post(f"/api/keys/{keys[0]['id']}/revoke")
    await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", keys[1]["id"])
    assert await statuses(*(client.post("/api/keys", json=body(profile_id)) for _ in range(4))) == {201: 2, 409: 2}

    revived = await client.patch(f"/api/keys/{keys[1]['id']}", json={"expires_at": None})
    assert_problem(revived, 409, "key-limit")
    assert_problem(await client.post(f"/api/keys/{keys[0]['id']}/restore"), 409, "key-limit")
    await client.delete(f"/api/keys/{keys[2]['id']}")
    assert (await client.post(f"/api/keys/{keys[0]['id']}/restore")).status_code == 200
    assert await active(client) == LIMIT


async def test_a_lower_limit_takes_no_key_away(client: httpx.AsyncClient, post: Post, profile_id: int) -> None:
    keys = [await post("/api/keys", **body(profile_id)) for _ in range(LIMIT)]
    path = f"/api/profiles/{profile_id}"
    assert (await client.patch(path, json={"max_keys_per_user": 1})).status_code == 200
    assert await active(client) == LIMIT
    assert (await client.patch(f"/api/keys/{keys[0]['id']}", json={"expires_at": None})).status_code == 200
    assert (await client.patch(path, json={"max_keys_per_user": None})).status_code == 200
    assert (await client.post("/api/keys", json=body(profile_id))).status_code == 201


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
async def test_creations_at_once_stop_at_the_limit(
    client: httpx.AsyncClient,
    api_at: ApiAt,
    api_database_url: str,
    profile_id: int,
    database: asyncpg.Connection,
    isolation: str,
) -> None:
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    try:
        async with api_at(api_database_url) as one, api_at(api_database_url) as two:
            requests = [replica.post("/api/keys", json=body(profile_id)) for replica in (one, two) for _ in range(10)]
            assert await statuses(*requests) == {201: LIMIT, 409: 20 - LIMIT}
    finally:
        await database.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
    assert await active(client) == LIMIT


async def test_restoring_reviving_and_creating_share_the_limit(
    client: httpx.AsyncClient, second: httpx.AsyncClient, post: Post, profile_id: int, database: asyncpg.Connection
) -> None:
    keys = [await post("/api/keys", **body(profile_id)) for _ in range(LIMIT)]
    for key in keys[:3]:
        await client.post(f"/api/keys/{key['id']}/revoke")
    await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", keys[3]["id"])
    requests = [second.post(f"/api/keys/{key['id']}/restore") for key in keys[:3]]
    requests += [client.patch(f"/api/keys/{keys[3]['id']}", json={"expires_at": None})]
    requests += [client.post("/api/keys", json=body(profile_id)) for _ in range(6)]
    answered = await statuses(*requests)
    assert answered[409] == 6
    assert answered[200] + answered[201] == 4
    assert await active(client) == LIMIT


async def test_a_profile_is_deleted_or_has_a_key_never_both(
    client: httpx.AsyncClient, second: httpx.AsyncClient, post: Post, database: asyncpg.Connection
) -> None:
    for attempt in range(15):
        profile = await post("/api/profiles", name=f"short-lived {attempt}")
        issued, deleted = await asyncio.gather(
            client.post("/api/keys", json=body(profile["id"])), second.delete(f"/api/profiles/{profile['id']}")
        )
        assert (issued.status_code, deleted.status_code) in {(201, 409), (404, 204)}
        found = await database.fetchval("SELECT count(*) FROM api_keys WHERE profile_id = $1", profile["id"])
        assert found == (1 if issued.is_success else 0)


async def test_a_key_of_an_older_release_is_not_lost_with_its_profile(
    client: httpx.AsyncClient, post: Post, database: asyncpg.Connection
) -> None:
    """A release that takes no lock adds a key while the profile is being deleted."""
    profile = await post("/api/profiles", name="team")
    async with database.transaction():
        await database.execute(
            "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) "
            "VALUES ('a@b', 'k', 'd', 'p', $1)",
            profile["id"],
        )
        deletion = asyncio.create_task(client.delete(f"/api/profiles/{profile['id']}"))
        await waits_for_a_lock(database)
    assert_problem(await deletion, 409, "in-use")
    assert await database.fetchval("SELECT count(*) FROM api_keys") == 1


async def test_a_locked_row_is_read_anew(
    post: Post, profile_id: int, database: asyncpg.Connection, api_database_url: str
) -> None:
    key = await post("/api/keys", **body(profile_id))
    engine = db.create_engine(api_database_url, schema="public", release="0", pool_size=1)
    async with db.create_sessions(engine).begin() as session:
        keys = KeyService(session, profiles=ProfileService(session))
        seen = await keys.fetch(key["id"])
        await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", key["id"])
        assert (await keys.fetch(key["id"], lock=db.FOR_CHANGE)).expires_at is not None
        assert seen.expires_at is not None
    await engine.dispose()


async def test_revoking_and_rotating_take_turns(client: httpx.AsyncClient, post: Post, profile_id: int) -> None:
    for _ in range(5):
        key = await post("/api/keys", **body(profile_id))
        path = f"/api/keys/{key['id']}"
        rotated, revoked = await asyncio.gather(client.post(f"{path}/rotate"), client.post(f"{path}/revoke"))
        assert revoked.status_code == 200
        assert rotated.status_code in (200, 409)
        assert (await client.get(path)).json()["state"] == "revoked"


async def waits_for_a_lock(database: asyncpg.Connection) -> None:
    """Until another session waits for the one that asks."""
    for _ in range(1000):
        await database.execute("SELECT pg_stat_clear_snapshot()")
        blocked = "SELECT true FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        if await database.fetchval(blocked):
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("nobody waits")
