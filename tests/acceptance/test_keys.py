"""Two replicas and the rows they share: limits that hold, commits that fail, and secrets that are replaced."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet

from tests.acceptance.installation import ADMIN_TOKEN, SECRET_KEY, Installation, api

OTHER_TOKEN = "another-admin-token-for-tests"


async def test_creations_at_once_on_two_replicas_stop_at_the_limit(installation: Installation) -> None:
    replicas = [installation.replica(), installation.replica()]
    await asyncio.gather(*(replica.ready() for replica in replicas))
    async with api(replicas[0]) as first, api(replicas[1]) as second:
        profile = (await first.post("/profiles", json={"name": "limited", "max_keys_per_user": 5})).json()
        body = {"user_email": "Ada@example.com", "name": "a key", "profile_id": profile["id"]}
        answers = await asyncio.gather(*((first, second)[n % 2].post("/keys", json=body) for n in range(20)))
        assert Counter(answer.status_code for answer in answers) == {201: 5, 409: 15}
        listed = (await second.get("/keys", params={"user": "ada@EXAMPLE.com", "state": "active"})).json()
        assert listed["total"] == 5

        # Restoring and creating race for the one place that a revocation made free.
        revoked = listed["items"][0]["id"]
        assert (await first.post(f"/keys/{revoked}/revoke")).status_code == 200
        racing = [(first, second)[n % 2].post("/keys", json=body) for n in range(5)]
        racing += [(first, second)[n % 2].post(f"/keys/{revoked}/restore") for n in range(5)]
        await asyncio.gather(*racing)
        assert (await first.get("/keys", params={"profile": profile["id"], "state": "active"})).json()["total"] == 5


async def test_a_commit_that_fails_is_an_error_and_no_201(installation: Installation) -> None:
    replica = installation.replica()
    await replica.ready()
    look = await installation.look()
    await look.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not at commit'; END $$; "
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON openai_backends DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    async with api(replica) as client:
        answer = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        assert answer.status_code >= 500, answer.text
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert (await client.get("/backends")).json()["total"] == 0
        await look.execute("DROP TRIGGER refuse ON openai_backends")
        answer = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        assert answer.status_code == 201, answer.text
    assert await look.fetchval("SELECT count(*) FROM openai_backends") == 1


async def test_an_admin_token_is_replaced_without_a_gap(installation: Installation) -> None:
    await installation.migrate()
    old = await _statuses(installation, ADMIN_TOKEN)
    both = await _statuses(installation, f"{OTHER_TOKEN}, {ADMIN_TOKEN}")
    new = await _statuses(installation, OTHER_TOKEN)
    assert (old, both, new) == ([200, 401], [200, 200], [401, 200])


async def _statuses(installation: Installation, tokens: str) -> list[int]:
    """What a replica with these tokens answers to the old and to the new one."""
    replica = installation.replica({"GASKET_ADMIN_TOKEN": tokens})
    await replica.ready()
    statuses = []
    for token in (ADMIN_TOKEN, OTHER_TOKEN):
        async with api(replica, token) as client:
            statuses.append((await client.get("/backends")).status_code)
    for secret in (ADMIN_TOKEN, OTHER_TOKEN, SECRET_KEY):
        assert secret not in replica.output
    return statuses


async def test_a_secret_key_is_replaced_without_losing_a_credential(installation: Installation) -> None:
    new_key, stranger = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    replica = installation.replica()
    await replica.ready()
    async with api(replica) as client:
        for name in ("one", "two"):
            body = {"name": name, "base_url": "https://example.com", "api_key": f"sk-{name}"}
            assert (await client.post("/backends", json=body)).status_code == 201
    look = await installation.look()
    assert await _opened(look, SECRET_KEY) == {"one": "sk-one", "two": "sk-two"}

    both = f"{new_key},{SECRET_KEY}"
    assert await _unreadable(installation, both) == {"one": False, "two": False}
    reencrypt = ("gasket", "backends", "reencrypt")
    done = await installation.run(*reencrypt, settings={"GASKET_SECRET_KEY": both})
    assert done.exit_code == 0, done.output
    named, told = done.output.splitlines()
    assert named.startswith("Database ")
    assert ", schema public. 1 replica is serving: " in named
    assert told.startswith("2 credentials ")
    by = await look.fetch("SELECT how, actor_kind, changed FROM audit_log ORDER BY id DESC LIMIT 2")
    assert [tuple(row) for row in by] == [("command", "os_user", ["api_key"])] * 2
    assert await _opened(look, new_key) == {"one": "sk-one", "two": "sk-two"}
    assert await _unreadable(installation, new_key) == {"one": False, "two": False}

    # With neither key: said of each backend, and no 500. The command says it too, and leaves the rows as they are.
    assert await _unreadable(installation, stranger) == {"one": True, "two": True}
    before = await look.fetch("SELECT * FROM openai_backends ORDER BY id")
    done = await installation.run(*reencrypt, settings={"GASKET_SECRET_KEY": stranger})
    assert done.exit_code > 0
    assert "Traceback" not in done.output
    assert before == await look.fetch("SELECT * FROM openai_backends ORDER BY id")


async def _opened(look: asyncpg.Connection, key: str) -> dict[str, str]:
    """The credentials as they stand in the database, opened with this one key."""
    rows = await look.fetch("SELECT name, api_key FROM openai_backends")
    return {row["name"]: Fernet(key).decrypt(row["api_key"]).decode() for row in rows}


async def _unreadable(installation: Installation, keys: str) -> dict[str, bool]:
    """What a replica with these keys says of each backend's credential; replacing one works in any case."""
    replica = installation.replica({"GASKET_SECRET_KEY": keys})
    await replica.ready()
    async with api(replica) as client:
        listed = await _get(client, "/backends")
        for item in listed["items"]:
            assert await _get(client, f"/backends/{item['id']}") == item
    await replica.stop()
    return {item["name"]: item["credential_unreadable"] for item in listed["items"]}


async def _get(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GASKET_ADMIN_TOKEN", None),
        ("GASKET_ADMIN_TOKEN", "short"),
        ("GASKET_ADMIN_TOKEN", f"{ADMIN_TOKEN},short"),
        ("GASKET_SECRET_KEY", None),
        ("GASKET_SECRET_KEY", "not-a-fernet-key"),
        ("GASKET_SECRET_KEY", f"{SECRET_KEY},"),
    ],
)
async def test_without_its_secrets_it_does_not_touch_the_database(
    installation: Installation, name: str, value: str | None
) -> None:
    replica = installation.replica({name: value, "DATABASE_URL": f"{installation.database_url}&host=/nonexistent"})
    said = await replica.refused()
    assert name in said
    assert "nonexistent" not in said
    assert not value or value not in said
    assert ADMIN_TOKEN not in said
    assert SECRET_KEY not in said
