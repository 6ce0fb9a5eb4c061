"""Credentials are encrypted at rest; keys are rotated; what no key opens harms nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import click
import httpx
import pytest
from click.testing import CliRunner, Result
from cryptography.fernet import Fernet

from gasket import db
from gasket.backends.cli import BackendsCLI
from gasket.backends.models import key_ring

from .conftest import SECRET_KEY, ApiAt, Post

URL = "https://api.example.com/v1"
NEW_KEY = Fernet.generate_key().decode()


@pytest.fixture
async def backend(post: Post) -> dict[str, Any]:
    """A backend with a credential under the session's key."""
    return await post("/api/backends", name="main", base_url=URL, api_key="sk-secret")


@pytest.fixture
async def stranger(backend: dict[str, Any], api_database_url: str, api_at: ApiAt) -> AsyncIterator[httpx.AsyncClient]:
    """A replica that has another secret key than the one that encrypted the backend's credential."""
    async with api_at(api_database_url, secret_keys=NEW_KEY) as other:
        yield other


async def stored(database: asyncpg.Connection, name: str = "main") -> str:
    token: str = await database.fetchval("SELECT api_key FROM openai_backends WHERE name = $1", name)
    return token


async def reencrypt(database_url: str, *keys: str) -> Result:
    """`gasket backends reencrypt`, in a thread, as it runs a loop of its own."""
    engine = db.create_engine(database_url, schema="public", release="0", pool_size=1)
    group = click.Group()
    BackendsCLI(engine).on_cli_init(group)
    key_ring.load(keys)
    try:
        return await asyncio.to_thread(CliRunner().invoke, group, ["backends", "reencrypt"])
    finally:
        key_ring.load([SECRET_KEY])


async def test_it_is_encrypted_at_rest(backend: dict[str, Any], database: asyncpg.Connection) -> None:
    assert Fernet(SECRET_KEY).decrypt(await stored(database)) == b"sk-secret"


async def test_a_change_of_something_else_leaves_it_as_it_is(
    client: httpx.AsyncClient, backend: dict[str, Any], database: asyncpg.Connection
) -> None:
    before = await stored(database)
    await client.patch(f"/api/backends/{backend['id']}", json={"skip_tls_verify": True})
    assert await stored(database) == before


class TestUnreadable:
    @pytest.mark.parametrize("damage", [None, "", "not a token", "gAAAAA=="])
    async def test_it_is_said_and_harms_nothing_else(
        self, stranger: httpx.AsyncClient, backend: dict[str, Any], database: asyncpg.Connection, damage: str | None
    ) -> None:
        if damage is not None:
            await database.execute("UPDATE openai_backends SET api_key = $1", damage)
        before = await stored(database)
        path = f"/api/backends/{backend['id']}"
        unreadable = backend | {"credential_unreadable": True}
        assert (await stranger.get(path)).json() == unreadable
        assert (await stranger.get("/api/backends")).json()["items"] == [unreadable]
        renamed = await stranger.patch(path, json={"name": "main", "skip_tls_verify": True})
        assert renamed.json() == unreadable | {"skip_tls_verify": True}
        assert await stored(database) == before
        assert (await stranger.delete(path)).status_code == 204

    async def test_headers_may_be_unreadable_as_well(
        self, stranger: httpx.AsyncClient, backend: dict[str, Any], database: asyncpg.Connection
    ) -> None:
        path = f"/api/backends/{backend['id']}"
        token = Fernet(SECRET_KEY).encrypt(b'{"X-Tenant":"secret"}').decode()
        await database.execute("UPDATE openai_backends SET api_key = NULL, headers = $1", token)
        shown = (await stranger.get(path)).json()
        assert (shown["has_api_key"], shown["credential_unreadable"], shown["header_names"]) == (False, True, [])
        healed = (await stranger.patch(path, json={"headers": {"X-Tenant": "new"}})).json()
        assert (healed["credential_unreadable"], healed["header_names"]) == (False, ["X-Tenant"])

    async def test_a_new_one_can_be_set(
        self, stranger: httpx.AsyncClient, backend: dict[str, Any], database: asyncpg.Connection
    ) -> None:
        response = await stranger.patch(f"/api/backends/{backend['id']}", json={"api_key": "sk-new"})
        assert (response.json()["has_api_key"], response.json()["credential_unreadable"]) == (True, False)
        assert Fernet(NEW_KEY).decrypt(await stored(database)) == b"sk-new"

    async def test_it_can_be_forgotten(self, stranger: httpx.AsyncClient, backend: dict[str, Any]) -> None:
        response = await stranger.patch(f"/api/backends/{backend['id']}", json={"api_key": None})
        assert (response.json()["has_api_key"], response.json()["credential_unreadable"]) == (False, False)

    async def test_every_key_of_the_ring_opens(
        self, api_database_url: str, api_at: ApiAt, backend: dict[str, Any]
    ) -> None:
        async with api_at(api_database_url, secret_keys=f"{NEW_KEY},{SECRET_KEY}") as both:
            assert (await both.get(f"/api/backends/{backend['id']}")).json() == backend


class TestReencrypt:
    async def test_it_rewrites_all_with_the_first_key(
        self, post: Post, backend: dict[str, Any], database: asyncpg.Connection, api_database_url: str
    ) -> None:
        await post("/api/backends", name="second", base_url=URL, api_key="sk-second")
        await post("/api/backends", name="bare", base_url=URL)
        result = await reencrypt(api_database_url, NEW_KEY, SECRET_KEY)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("2 credentials ")
        assert Fernet(NEW_KEY).decrypt(await stored(database)) == b"sk-secret"
        assert Fernet(NEW_KEY).decrypt(await stored(database, "second")) == b"sk-second"

    async def test_it_rewrites_headers_too(
        self, post: Post, backend: dict[str, Any], database: asyncpg.Connection, api_database_url: str
    ) -> None:
        await post("/api/backends", name="bare", base_url=URL, headers={"X-Tenant": "secret"})
        await post("/api/backends", name="half", base_url=URL, headers={"X-Tenant": "secret"}, api_key="sk-half")
        await post("/api/backends", name="far", base_url=URL, proxy_url="http://user:hunter2@proxy.example")
        await database.execute("UPDATE openai_backends SET api_key = 'not a token' WHERE name = 'half'")
        result = await reencrypt(api_database_url, NEW_KEY, SECRET_KEY)
        assert result.stdout.startswith("4 credentials ")
        assert result.stderr.splitlines()[1:] == ["  half"]
        for name in ("bare", "half"):
            token = await database.fetchval("SELECT headers FROM openai_backends WHERE name = $1", name)
            assert Fernet(NEW_KEY).decrypt(token) == b'{"X-Tenant":"secret"}'
        assert await stored(database, "half") == "not a token"
        token = await database.fetchval("SELECT proxy_url FROM openai_backends WHERE name = 'far'")
        assert Fernet(NEW_KEY).decrypt(token) == b"http://user:hunter2@proxy.example"

    async def test_it_names_those_that_no_key_opens(
        self, post: Post, backend: dict[str, Any], database: asyncpg.Connection, api_database_url: str
    ) -> None:
        lost = Fernet(Fernet.generate_key()).encrypt(b"lost").decode()
        await post("/api/backends", name="lost one", base_url=URL, api_key="x")
        await database.execute("UPDATE openai_backends SET api_key = $1 WHERE name = 'lost one'", lost)
        result = await reencrypt(api_database_url, NEW_KEY, SECRET_KEY)
        assert result.exit_code == 1
        assert "lost one" in result.stderr
        assert "main" not in result.stderr
        assert result.stdout.startswith("1 credential")
        assert Fernet(NEW_KEY).decrypt(await stored(database)) == b"sk-secret"
        assert await stored(database, "lost one") == lost

    async def test_a_change_at_the_same_time_is_not_lost(
        self, client: httpx.AsyncClient, backend: dict[str, Any], database: asyncpg.Connection, api_database_url: str
    ) -> None:
        token = Fernet(SECRET_KEY).encrypt(b"sk-newer").decode()
        async with database.transaction():
            await database.execute("UPDATE openai_backends SET api_key = $1", token)
            running = asyncio.create_task(reencrypt(api_database_url, NEW_KEY, SECRET_KEY))
            for _ in range(1000):
                await database.execute("SELECT pg_stat_clear_snapshot()")
                blocked = "SELECT true FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
                if await database.fetchval(blocked):
                    break
                await asyncio.sleep(0.01)
        assert (await running).exit_code == 0
        assert Fernet(NEW_KEY).decrypt(await stored(database)) == b"sk-newer"

    @pytest.mark.parametrize(
        ("keys", "where", "said"),
        [
            ((), None, "GASKET_SECRET_KEY"),
            ((NEW_KEY,), "postgresql://u:hunter2@127.0.0.1:1/x", "cannot be reached"),
            ((NEW_KEY,), "empty", "gasket database status"),
        ],
    )
    async def test_a_failure_is_one_sentence(
        self,
        api_database_url: str,
        database_url: str,
        url_with: Callable[..., str],
        keys: tuple[str, ...],
        where: str | None,
        said: str,
    ) -> None:
        url = {None: api_database_url, "empty": database_url}.get(where) or str(where)
        result = await reencrypt(url, *keys)
        assert result.exit_code == 1
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert "hunter2" not in result.stderr
