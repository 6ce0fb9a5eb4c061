from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import asyncpg
import httpx
import pytest

from .conftest import Post, assert_problem

Expire = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture
async def profile(post: Post) -> dict[str, Any]:
    """A profile without rules."""
    return await post("/api/profiles", name="open")


@pytest.fixture
async def key(post: Post, profile: dict[str, Any]) -> dict[str, Any]:
    """A key that is active and never expires, as it was issued."""
    return await post("/api/keys", user_email="Ada@Example.com", name="laptop", profile_id=profile["id"])


@pytest.fixture
def expire(database: asyncpg.Connection) -> Expire:
    """Let a key's time run out."""

    async def run_out(key: dict[str, Any]) -> None:
        await database.execute("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", key["id"])

    return run_out


def shown(key: dict[str, Any]) -> dict[str, Any]:
    """The key as it is shown once it was issued."""
    return {name: value for name, value in key.items() if name != "key"}


def digest_of(key: dict[str, Any]) -> str:
    return sha256(key["key"].encode()).hexdigest()


def days_from_now(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


async def test_the_key_is_shown_once_and_stored_nowhere(
    client: httpx.AsyncClient, key: dict[str, Any], database: asyncpg.Connection
) -> None:
    secret = key["key"]
    assert re.fullmatch(r"gsk_[0-9a-f]{48}", secret)
    assert key["key_preview"] == f"gsk_...{secret[-4:]}"
    assert (key["user_email"], key["name"], key["state"]) == ("Ada@Example.com", "laptop", "active")
    assert (key["expires_at"], key["revoked_at"], key["revoked_by"]) == (None, None, None)

    again = await client.get(f"/api/keys/{key['id']}")
    assert again.json() == shown(key)
    assert (await client.get("/api/keys")).json()["items"] == [shown(key)]

    row = await database.fetchrow("SELECT * FROM api_keys WHERE id = $1", key["id"])
    assert row is not None
    assert row["key_value"] == sha256(secret.encode()).hexdigest()
    assert secret not in str(row)


async def test_secrets_are_not_to_be_cached(client: httpx.AsyncClient, profile: dict[str, Any]) -> None:
    body = {"user_email": "a@example.com", "name": "k", "profile_id": profile["id"]}
    response = await client.post("/api/keys", json=body)
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("profile_id", [0, -1, 2147483647, 2147483648, 10**30])
async def test_the_profile_has_to_exist(client: httpx.AsyncClient, profile_id: int) -> None:
    body = {"user_email": "a@example.com", "name": "k", "profile_id": profile_id}
    assert_problem(await client.post("/api/keys", json=body), 404, "not-found")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_email", None),
        ("user_email", ""),
        ("user_email", "ada"),
        ("user_email", "ada@"),
        ("user_email", "@example.com"),
        ("user_email", "a@b@c"),
        ("user_email", "ada @example.com"),
        ("user_email", "Ada <ada@example.com>"),
        ("user_email", "ada@example.com,bob@example.com"),
        ("user_email", "ada@.com"),
        ("user_email", "a\0@example.com"),
        ("user_email", f"{'a' * 250}@b.de"),
        ("name", None),
        ("name", ""),
        ("name", "n" * 101),
        ("name", "a\u2028b"),
        ("profile_id", None),
        ("profile_id", "1"),
        ("profile_id", True),
        ("expires_at", "2001-01-01T00:00:00Z"),
        ("expires_at", "2999-01-01T00:00:00"),
        ("expires_at", "2999-01-01"),
        ("expires_at", "tomorrow"),
        ("expires_at", 253402300800),
        ("expires_at", 2524608000),
        ("expires_at", "9999-12-31T23:59:59-23:00"),
        ("expires_at", "0001-01-01T00:00:00+23:00"),
    ],
)
async def test_values_are_checked(
    client: httpx.AsyncClient, profile: dict[str, Any], field: str, value: object
) -> None:
    body = {"user_email": "a@example.com", "name": "k", "profile_id": profile["id"], field: value}
    assert_problem(await client.post("/api/keys", json=body), 400, "invalid-input", field=field)


async def test_a_lone_surrogate_is_refused(client: httpx.AsyncClient, profile: dict[str, Any]) -> None:
    body = f'{{"user_email": "a@example.com", "name": "\\ud800", "profile_id": {profile["id"]}}}'
    response = await client.post("/api/keys", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


class TestExpiry:
    async def test_the_profile_gives_it_when_it_is_not_given(self, post: Post) -> None:
        profile = await post("/api/profiles", name="default", default_expiry_days=90)
        fields = {"user_email": "a@example.com", "name": "k", "profile_id": profile["id"]}
        made = await post("/api/keys", **fields)
        created = datetime.fromisoformat(made["created_at"])
        assert datetime.fromisoformat(made["expires_at"]) == created + timedelta(days=90)
        assert (await post("/api/keys", **fields, expires_at=None))["expires_at"] is None
        later = await post("/api/keys", **fields, expires_at="2999-01-01T01:00:00+01:00")
        assert later["expires_at"] == "2999-01-01T00:00:00Z"

    async def test_an_enforced_one_is_the_latest(self, client: httpx.AsyncClient, post: Post) -> None:
        profile = await post("/api/profiles", name="strict", default_expiry_days=90, enforce_expiry=True)
        fields = {"user_email": "a@example.com", "name": "k", "profile_id": profile["id"]}
        for refused in (None, days_from_now(90.01).isoformat()):
            response = await client.post("/api/keys", json=fields | {"expires_at": refused})
            assert "'strict'" in assert_problem(response, 400, "invalid-input", field="expires_at")
        key = await post("/api/keys", **fields, expires_at=days_from_now(89.9).isoformat())

        path = f"/api/keys/{key['id']}"
        for refused in (None, days_from_now(90.01).isoformat(), days_from_now(-1).isoformat()):
            response = await client.patch(path, json={"expires_at": refused})
            assert_problem(response, 400, "invalid-input", field="expires_at")
        latest = datetime.fromisoformat(key["created_at"]) + timedelta(days=90)
        response = await client.patch(path, json={"expires_at": latest.isoformat()})
        assert datetime.fromisoformat(response.json()["expires_at"]) == latest

    async def test_new_rules_leave_keys_as_they_are(
        self, client: httpx.AsyncClient, key: dict[str, Any], profile: dict[str, Any]
    ) -> None:
        rules = {"default_expiry_days": 1, "enforce_expiry": True}
        assert (await client.patch(f"/api/profiles/{profile['id']}", json=rules)).status_code == 200
        renamed = await client.patch(f"/api/keys/{key['id']}", json={"name": "desktop"})
        assert renamed.json() == shown(key) | {"name": "desktop"}

    async def test_it_can_be_taken_away_and_given_back(
        self, client: httpx.AsyncClient, key: dict[str, Any], expire: Expire
    ) -> None:
        path = f"/api/keys/{key['id']}"
        await expire(key)
        assert (await client.get(path)).json()["state"] == "expired"
        revived = await client.patch(path, json={"expires_at": None})
        assert (revived.json()["state"], revived.json()["expires_at"]) == ("active", None)


@pytest.mark.parametrize(
    "body",
    [
        {"name": None},
        {"name": ""},
        {"user_email": "b@example.com"},
        {"profile_id": 1},
        {"revoked_at": None},
        {"id": 1},
        {"key_value": "0" * 64},
        {"digest": "0" * 64},
        {"issuer": "https://login.example"},
        {"person_id": 1},
        {"orphaned_at": None},
        {"profile": {"id": 1}},
    ],
)
async def test_a_patch_changes_name_and_expiry_only(
    client: httpx.AsyncClient, key: dict[str, Any], body: dict[str, object]
) -> None:
    response = await client.patch(f"/api/keys/{key['id']}", json=body)
    assert response.status_code == 400
    assert next(iter(body)) in response.text
    assert (await client.get(f"/api/keys/{key['id']}")).json() == shown(key)


class TestLifecycle:
    async def test_revoke_keeps_the_first_call_on_record(self, client: httpx.AsyncClient, key: dict[str, Any]) -> None:
        path = f"/api/keys/{key['id']}/revoke"
        first = await client.post(path, json={"revoked_by": "security@example.com"})
        assert first.status_code == 200
        assert (first.json()["state"], first.json()["revoked_by"]) == ("revoked", "root")
        assert datetime.fromisoformat(first.json()["revoked_at"]) <= datetime.now(UTC)
        second = await client.post(path, json={"revoked_by": "somebody@example.com"})
        assert second.json() == first.json()

    @pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"revoked_by": null}'])
    async def test_revoke_needs_no_name(self, client: httpx.AsyncClient, key: dict[str, Any], body: bytes) -> None:
        response = await client.post(f"/api/keys/{key['id']}/revoke", content=body)
        assert (response.json()["state"], response.json()["revoked_by"]) == ("revoked", "root")

    async def test_revoke_refuses_a_typo(self, client: httpx.AsyncClient, key: dict[str, Any]) -> None:
        response = await client.post(f"/api/keys/{key['id']}/revoke", json={"revokedBy": "x"})
        assert "revokedBy" in assert_problem(response, 400, "invalid-input", field="body")
        assert (await client.get(f"/api/keys/{key['id']}")).json()["state"] == "active"

    async def test_restore_takes_a_revocation_back(self, client: httpx.AsyncClient, key: dict[str, Any]) -> None:
        path = f"/api/keys/{key['id']}"
        await client.post(f"{path}/revoke", json={"revoked_by": "x"})
        restored = await client.post(f"{path}/restore")
        assert (restored.status_code, restored.json()) == (200, shown(key))
        assert (await client.post(f"{path}/restore")).json() == shown(key)

    async def test_an_expired_key_is_not_restored(
        self, client: httpx.AsyncClient, key: dict[str, Any], expire: Expire
    ) -> None:
        path = f"/api/keys/{key['id']}"
        await expire(key)
        assert "expires_at" in assert_problem(await client.post(f"{path}/restore"), 409, "key-state")
        await client.post(f"{path}/revoke")
        assert_problem(await client.post(f"{path}/restore"), 409, "key-state")
        assert (await client.get(path)).json()["state"] == "revoked"

    async def test_rotate_replaces_the_key_and_keeps_the_rest(
        self, client: httpx.AsyncClient, key: dict[str, Any], database: asyncpg.Connection
    ) -> None:
        response = await client.post(f"/api/keys/{key['id']}/rotate")
        assert response.status_code == 200
        fresh = response.json()
        assert fresh["key"] != key["key"]
        assert fresh["key_preview"] == f"gsk_...{fresh['key'][-4:]}"
        assert fresh | {"key": 0, "key_preview": 0} == key | {"key": 0, "key_preview": 0}
        stored = await database.fetchval("SELECT key_value FROM api_keys WHERE id = $1", key["id"])
        assert stored == sha256(fresh["key"].encode()).hexdigest()

    async def test_rotate_with_grace_keeps_the_key_before_it_for_that_time(
        self, client: httpx.AsyncClient, key: dict[str, Any], database: asyncpg.Connection
    ) -> None:
        path = f"/api/keys/{key['id']}"
        fresh = (await client.post(f"{path}/rotate", json={"grace_seconds": 3600})).json()
        ends_at = datetime.fromisoformat(fresh["previous_expires_at"])
        assert abs(ends_at - days_from_now(1 / 24)) < timedelta(minutes=1)
        assert fresh["previous_last_used_at"] is None
        assert (await client.get(path)).json() == shown(fresh)
        assert await database.fetchval("SELECT key_value FROM previous_api_keys") == digest_of(key)

        newest = (await client.post(f"{path}/rotate", json={"grace_seconds": 60})).json()
        assert await database.fetchval("SELECT array_agg(key_value) FROM previous_api_keys") == [digest_of(fresh)]
        assert newest["previous_expires_at"] < fresh["previous_expires_at"]
        last = (await client.post(f"{path}/rotate", json={"grace_seconds": 0})).json()
        assert (last["previous_expires_at"], last["previous_last_used_at"]) == (None, None)

    @pytest.mark.parametrize("grace", [-1, 2_592_001, 1.5, "60", None])
    async def test_the_grace_is_checked(self, client: httpx.AsyncClient, key: dict[str, Any], grace: object) -> None:
        response = await client.post(f"/api/keys/{key['id']}/rotate", json={"grace_seconds": grace})
        assert_problem(response, 400, "invalid-input", field="grace_seconds")

    async def test_revoke_ends_the_key_before_too(
        self, client: httpx.AsyncClient, key: dict[str, Any], database: asyncpg.Connection
    ) -> None:
        path = f"/api/keys/{key['id']}"
        await client.post(f"{path}/rotate", json={"grace_seconds": 60})
        await client.post(f"{path}/revoke")
        restored = (await client.post(f"{path}/restore")).json()
        assert restored["previous_expires_at"] is None
        assert await database.fetchval("SELECT count(*) FROM previous_api_keys") == 0

    async def test_rotate_needs_an_active_key(
        self, client: httpx.AsyncClient, key: dict[str, Any], expire: Expire, database: asyncpg.Connection
    ) -> None:
        before = await database.fetchval("SELECT key_value FROM api_keys WHERE id = $1", key["id"])
        path = f"/api/keys/{key['id']}"
        await client.post(f"{path}/revoke")
        assert "revoked" in assert_problem(await client.post(f"{path}/rotate"), 409, "key-state")
        await client.post(f"{path}/restore")
        await expire(key)
        assert "expired" in assert_problem(await client.post(f"{path}/rotate"), 409, "key-state")
        assert await database.fetchval("SELECT key_value FROM api_keys WHERE id = $1", key["id"]) == before

    async def test_delete_leaves_nothing(self, client: httpx.AsyncClient, key: dict[str, Any]) -> None:
        path = f"/api/keys/{key['id']}"
        assert (await client.delete(path)).status_code == 204
        assert_problem(await client.get(path), 404, "not-found")
        assert_problem(await client.delete(path), 404, "not-found")


@pytest.mark.parametrize("key_id", ["0", "-1", "2147483647", "2147483648", "9" * 30, "abc"])
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, key_id: str) -> None:
    path = f"/api/keys/{key_id}"
    for response in (
        await client.get(path),
        await client.patch(path, json={"expires_at": None}),
        await client.delete(path),
        await client.post(f"{path}/revoke"),
        await client.post(f"{path}/restore"),
        await client.post(f"{path}/rotate"),
    ):
        assert_problem(response, 404, "not-found")


class TestLists:
    @pytest.fixture(autouse=True)
    async def keys(self, client: httpx.AsyncClient, post: Post, profile: dict[str, Any], expire: Expire) -> None:
        other = await post("/api/profiles", name="other")
        for name, email, profile_id in (
            ("active", "Ada@Example.com", profile["id"]),
            ("revoked", "ada@example.com", profile["id"]),
            ("expired", "ADA@EXAMPLE.COM", other["id"]),
            ("both", "bob@example.com", other["id"]),
        ):
            key = await post("/api/keys", name=name, user_email=email, profile_id=profile_id)
            if name in ("expired", "both"):
                await expire(key)
            if name in ("revoked", "both"):
                await client.post(f"/api/keys/{key['id']}/revoke")

    async def names(self, client: httpx.AsyncClient, **query: object) -> list[str]:
        response = await client.get("/api/keys", params={name: str(value) for name, value in query.items()})
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["total"] == len(body["items"])
        return [item["name"] for item in body["items"]]

    async def test_by_state(self, client: httpx.AsyncClient) -> None:
        assert await self.names(client, state="active") == ["active"]
        assert await self.names(client, state="revoked") == ["revoked", "both"]
        assert await self.names(client, state="expired") == ["expired"]

    async def test_by_user_in_any_case(self, client: httpx.AsyncClient) -> None:
        assert await self.names(client, user="aDa@example.COM") == ["active", "revoked", "expired"]
        assert await self.names(client, user="ada") == []

    async def test_by_profile(self, client: httpx.AsyncClient, profile: dict[str, Any]) -> None:
        assert await self.names(client, profile=profile["id"]) == ["active", "revoked"]
        assert await self.names(client, profile=2147483647) == []

    async def test_all_at_once(self, client: httpx.AsyncClient, profile: dict[str, Any]) -> None:
        query = {"user": "ada@example.com", "profile": profile["id"], "state": "revoked", "searchString": "REV"}
        assert await self.names(client, **query, orderBy="name") == ["revoked"]

    async def test_rows_that_are_alike_stand_in_the_order_of_their_ids(
        self, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await database.execute("UPDATE api_keys SET name = 'same'")
        await database.execute("UPDATE api_keys SET key_preview = 'moved' WHERE id = (SELECT min(id) FROM api_keys)")
        items = (await client.get("/api/keys?orderBy=name")).json()["items"]
        assert items[0]["key_preview"] == "moved"
        assert [item["id"] for item in items] == sorted(item["id"] for item in items)

    async def test_null_comes_last_in_either_order(self, client: httpx.AsyncClient) -> None:
        for order in ("asc", "desc"):
            names = await self.names(client, orderBy="expires_at", sortOrder=order)
            assert set(names[:2]) == {"expired", "both"}

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", "asleep"),
            ("profile", "0"),
            ("profile", "2147483648"),
            ("profile", "first"),
            ("user", "%00"),
            ("orderBy", "key_value"),
            ("orderBy", "digest"),
            ("user_email", "ada@example.com"),
        ],
    )
    async def test_parameters_are_checked(self, client: httpx.AsyncClient, field: str, value: str) -> None:
        assert_problem(await client.get(f"/api/keys?{field}={value}"), 400, "invalid-input", field=field)
