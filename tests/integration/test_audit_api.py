"""`/api/audit`, and whose the entries are of what `/api` changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from gasket.access.authentication import Authenticator
from gasket.access.roles import ROOT
from gasket.keys.schemas import KeyRevoke
from tests.integration.conftest import ADMIN_TOKEN, Post, assert_problem, client_of

Entries = Callable[..., Awaitable[list[dict[str, Any]]]]


@pytest.fixture
async def entries(client: httpx.AsyncClient, database: asyncpg.Connection) -> Entries:
    """Those of this test alone that the parameters ask for, the newest first."""
    last = await database.fetchval("SELECT max(id) FROM audit_log") or 0

    async def entries(**query: str | int) -> list[dict[str, Any]]:
        response = await client.get("/api/audit", params={"pageSize": 200, **query})
        assert response.status_code == 200, response.text
        return [entry for entry in response.json()["items"] if entry["id"] > last]

    return entries


@pytest.fixture
async def issued(post: Post) -> dict[str, Any]:
    """An administrator's token."""
    return await post("/api/tokens", name="the deputy", role="admin")


class TestWho:
    async def test_root_by_the_api(self, client: httpx.AsyncClient, post: Post, entries: Entries) -> None:
        profile = await post("/api/profiles", name="p")
        response = await client.patch(f"/api/profiles/{profile['id']}", json={"description": "words"})
        changed, created = await entries(object="profile")
        assert (created["action"], changed["action"]) == ("create", "change")
        assert changed["object_id"] == str(profile["id"])
        assert changed["changed"] == ["description"]
        assert (changed["before"]["description"], changed["after"]["description"]) == (None, "words")
        for entry in (created, changed):
            assert (entry["actor"], entry["actor_kind"], entry["how"]) == ("root", "root", "api")
            assert entry["source"] == "127.0.0.1"
        assert changed["request_id"] == response.headers["x-request-id"]

    async def test_a_token_by_its_name(
        self, client: httpx.AsyncClient, issued: dict[str, Any], entries: Entries
    ) -> None:
        headers = {"Authorization": f"Bearer {issued['token']}", "x-request-id": "my-request"}
        response = await client.post("/api/profiles", json={"name": "p"}, headers=headers)
        assert response.status_code == 201
        (entry,) = await entries(who="THE deputy")
        assert (entry["actor"], entry["actor_kind"], entry["request_id"]) == ("the deputy", "token", "my-request")

    async def test_a_session_s_pages(self, client: httpx.AsyncClient, entries: Entries) -> None:
        transport: Any = client._transport
        authenticator: Authenticator = transport.app.state.authenticator
        scope: Any = {"type": "http", "method": "GET", "headers": [], "client": ("192.0.2.9", 1), "state": {}}
        await authenticator.begin_session(scope, ROOT, root_token=authenticator.root_tokens[0])
        (entry,) = await entries(object="session")
        assert (entry["action"], entry["actor"], entry["how"]) == ("create", "root", "page")
        assert entry["source"] == "192.0.2.9"
        assert entry["after"].keys().isdisjoint({"digest", "root_proof"})

    async def test_a_token_named_as_a_database_role_is_still_a_token(
        self, client: httpx.AsyncClient, post: Post, entries: Entries, database: asyncpg.Connection
    ) -> None:
        role = await database.fetchval("SELECT session_user")
        token = (await post("/api/tokens", name=role, role="admin"))["token"]
        await client.post("/api/profiles", json={"name": "p"}, headers={"Authorization": f"Bearer {token}"})
        (entry,) = await entries(who=role)
        assert (entry["actor_kind"], entry["database_role"]) == ("token", role)

    async def test_reading_leaves_no_entry_and_says_nothing_to_the_database(
        self, client: httpx.AsyncClient, entries: Entries
    ) -> None:
        for path in ("/api/profiles", "/api/keys", "/api/me"):
            assert (await client.get(path)).status_code == 200
        assert await entries() == []

    async def test_what_is_refused_leaves_none(self, client: httpx.AsyncClient, post: Post, entries: Entries) -> None:
        await post("/api/profiles", name="p")
        assert_problem(await client.post("/api/profiles", json={"name": "p"}), 409, "name-taken")
        assert len(await entries(object="profile")) == 1

    async def test_who_revokes_is_whose_token_it_is(
        self, client: httpx.AsyncClient, post: Post, issued: dict[str, Any], entries: Entries
    ) -> None:
        profile = await post("/api/profiles", name="p")
        key = await post("/api/keys", user_email="a@example.com", name="k", profile_id=profile["id"])
        headers = {"Authorization": f"Bearer {issued['token']}"}
        revoked = await client.post(f"/api/keys/{key['id']}/revoke", json={"revoked_by": "ada"}, headers=headers)
        assert revoked.json()["revoked_by"] == "the deputy"
        entry = (await entries(object="key", object_id=key["id"]))[0]
        assert (entry["actor"], entry["after"]["revoked_by"]) == ("the deputy", "the deputy")
        assert "ada" not in str(entry)

    async def test_its_field_is_deprecated(self, client: httpx.AsyncClient) -> None:
        schema = (await client.get("/schema/openapi.json")).json()["components"]["schemas"][KeyRevoke.__name__]
        assert schema["properties"]["revoked_by"]["deprecated"] is True


class TestSecrets:
    async def test_no_answer_has_one(self, client: httpx.AsyncClient, post: Post, database: asyncpg.Connection) -> None:
        backend = await post("/api/backends", name="b", base_url="http://b.example/v1", api_key="sk-a-secret")
        await client.patch(f"/api/backends/{backend['id']}", json={"headers": {"x-a": "a-secret-value"}})
        profile = await post("/api/profiles", name="p")
        key = await post("/api/keys", user_email="a@example.com", name="k", profile_id=profile["id"])
        rotated = await post(f"/api/keys/{key['id']}/rotate", grace_seconds=60)
        token = await post("/api/tokens", name="t", role="viewer")
        shown = (await client.get("/api/audit", params={"pageSize": 200})).text
        stored = await database.fetch(
            "SELECT api_key FROM openai_backends UNION ALL SELECT headers FROM openai_backends UNION ALL "
            "SELECT key_value FROM api_keys UNION ALL SELECT key_value FROM previous_api_keys UNION ALL "
            "SELECT digest FROM access_tokens"
        )
        secrets = [key["key"], rotated["key"], token["token"], "sk-a-secret", "a-secret-value", ADMIN_TOKEN]
        secrets += [row[0] for row in stored if row[0] is not None]
        assert len(secrets) >= 11
        assert not [secret for secret in secrets if secret in shown]


class TestPages:
    async def test_pages_by_cursor_have_every_entry_once(
        self, client: httpx.AsyncClient, post: Post, entries: Entries
    ) -> None:
        for number in range(5):
            await post("/api/profiles", name=f"p{number}")
        found = list[dict[str, Any]]()
        cursor: int | None = None
        wanted = await entries(object="profile")
        for _ in range(3):
            query: dict[str, str | int] = {"pageSize": 2, "object": "profile"}
            if cursor:
                query["cursor"] = cursor
            page = (await client.get("/api/audit", params=query)).json()
            found += page["items"]
            cursor = page["next"]
            await post("/api/profiles", name=f"meanwhile {cursor}")  # what is new meanwhile moves no page
        assert found[:5] == wanted
        assert [entry["after"]["name"] for entry in wanted] == ["p4", "p3", "p2", "p1", "p0"]

    async def test_the_last_page_says_so(self, client: httpx.AsyncClient, post: Post) -> None:
        profile = await post("/api/profiles", name="p")
        query = {"object": "profile", "object_id": profile["id"], "pageSize": 1}
        page = (await client.get("/api/audit", params=query)).json()
        assert (len(page["items"]), page["next"]) == (1, None)

    async def test_what_is_asked_for(self, client: httpx.AsyncClient, post: Post, entries: Entries) -> None:
        profile = await post("/api/profiles", name="p")
        await client.delete(f"/api/profiles/{profile['id']}")
        assert [entry["action"] for entry in await entries(action="delete")] == ["delete"]
        assert [entry["action"] for entry in await entries(object="profile", object_id=profile["id"])] == [
            "delete",
            "create",
        ]
        assert await entries(object="profile", object_id=0) == []
        assert await entries(who="nobody") == []
        assert await entries(to="2001-01-01T00:00:00Z") == []
        assert len(await entries(**{"from": "2001-01-01T00:00:00Z", "to": "9000-01-01T00:00:00Z"})) == 2

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("pageSize=201", "pageSize"),
            ("pageSize=0", "pageSize"),
            ("cursor=0", "cursor"),
            ("cursor=x", "cursor"),
            ("cursor=9223372036854775808", "cursor"),
            ("from=yesterday", "from"),
            ("from=0", "from"),
            ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
            ("orderBy=at", "orderBy"),
            (f"who={quote(chr(0))}", "who"),
        ],
    )
    async def test_what_is_no_query(self, client: httpx.AsyncClient, query: str, field: str) -> None:
        assert_problem(await client.get(f"/api/audit?{query}"), 400, "invalid-input", field=field)


@pytest.mark.parametrize("role", ["operator", "viewer", "metrics"])
async def test_it_is_for_administrators(client: httpx.AsyncClient, post: Post, role: str) -> None:
    token = (await post("/api/tokens", name="t", role=role))["token"]
    response = await client.get("/api/audit", headers={"Authorization": f"Bearer {token}"})
    assert_problem(response, 403, "forbidden")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_nobody_writes_it(client: httpx.AsyncClient, method: str) -> None:
    assert_problem(await client.request(method, "/api/audit", json={}), 405, "method-not-allowed")


async def test_nobody_reads_it_without_a_token(client: httpx.AsyncClient) -> None:
    transport: Any = client._transport
    async with client_of(transport.app, token=None) as stranger:
        assert_problem(await stranger.get("/api/audit"), 401, "unauthorized")
