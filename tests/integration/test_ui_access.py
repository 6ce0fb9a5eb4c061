"""The pages of tokens, sessions and the audit, over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.conftest import Post, client_of

HOSTILE = "<script>alert(1)</script>\u202e\"'&"
TOKEN = re.compile(r"gst_[0-9a-f]{48}")


async def show(client: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await client.get(path)
    assert response.status_code == status, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.text


def with_token(client: httpx.AsyncClient, token: str) -> httpx.AsyncClient:
    transport: Any = client._transport
    return client_of(transport.app, token=token)


@asynccontextmanager
async def signed_in(client: httpx.AsyncClient, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """Another browser, with a session."""
    transport: Any = client._transport
    async with client_of(transport.app, token=None) as browser:
        answer = await browser.post("/ui/sign-in", data={"token": token})
        assert answer.status_code == 303, answer.text
        browser.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]
        yield browser


def own_path(sessions: httpx.Response) -> str:
    """Where the session ends that has asked."""
    [current] = [item["id"] for item in sessions.json()["items"] if item["current"]]
    return f"/ui/access/sessions/{current}/end"


class TestTokens:
    async def test_one_is_made_shown_once_and_ended(
        self, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        fields = {"name": "prometheus", "role": "metrics", "expires_at": "2100-01-31T12:00"}
        made = await client.post("/ui/access/tokens", data=fields)
        assert made.status_code == 200
        assert made.headers["cache-control"] == "no-store"
        [token] = set(TOKEN.findall(made.text))
        listed = await show(client, "/ui/access")
        assert "prometheus" in listed
        assert token not in listed
        async with with_token(client, token) as scraper:
            assert (await scraper.get("/metrics")).status_code == 200
            assert (await scraper.get("/ui/access")).status_code == 403
        stored = await database.fetchrow("SELECT * FROM access_tokens")
        assert stored
        assert (stored["role"], stored["created_by"], stored["expires_at"].year) == ("metrics", "root", 2100)
        ended = await client.post(f"/ui/access/tokens/{stored['id']}/end")
        assert (ended.status_code, ended.headers["location"]) == (303, "/ui/access")
        assert await database.fetchval("SELECT count(*) FROM access_tokens") == 0
        assert "There is no token yet" in await show(client, "/ui/access")

    @pytest.mark.parametrize(
        ("fields", "name", "words"),
        [
            ({"name": ""}, "name", "must not be empty"),
            ({"name": "root"}, "name", "is the name of GASKET_ADMIN_TOKEN"),
            ({"role": "user"}, "role", "Choose one"),
            ({"expires_at": "2001-01-01T00:00"}, "expires_at", "is in the past"),
        ],
    )
    async def test_an_error_is_beside_its_field(
        self, client: httpx.AsyncClient, fields: dict[str, str], name: str, words: str
    ) -> None:
        sent = {"name": "a", "role": "viewer", "expires_at": "", **fields}
        response = await client.post("/ui/access/tokens", data=sent)
        assert response.status_code in (400, 409)
        found = re.search(rf'<p class="wrong" id="w-{name}">(.*?)</p>', response.text)
        assert found, response.text
        assert words in found[1]

    async def test_they_are_searched_and_paged(self, client: httpx.AsyncClient, database: asyncpg.Connection) -> None:
        await database.execute(
            "INSERT INTO access_tokens (name, role, digest, preview, created_by) "
            "SELECT 'token number ' || i, 'viewer', i::text, 'gst_...' || i, 'root' FROM generate_series(1, 120) AS i"
        )
        first = await show(client, "/ui/access")
        assert len(first.encode()) < 100_000
        assert "1 to 50 of 120 tokens" in first
        assert "token number 1<" in await show(client, "/ui/access?page=3&sessions=1")
        assert "11 tokens" in await show(client, "/ui/access?search=NUMBER 11")
        assert "No token matches" in await show(client, "/ui/access?search=%25")


class TestSessions:
    async def test_a_page_beyond_the_last_one_does_not_say_that_there_are_none(self, client: httpx.AsyncClient) -> None:
        assert "There are no sessions on this page" in await show(client, "/ui/access?sessions=9")
        assert "No browser is signed in" in await show(client, "/ui/access")

    async def test_an_administrator_sees_and_ends_all_of_them(self, client: httpx.AsyncClient, post: Post) -> None:
        viewer = await post("/api/tokens", name="the viewer", role="viewer")
        async with signed_in(client, viewer["token"]) as browser:
            assert "this browser" in await show(browser, "/ui/access")
            [path] = re.findall(r'action="(/ui/access/sessions/\d+/end)"', await show(client, "/ui/access"))
            assert (await client.post(path)).status_code == 303
            assert "No browser is signed in" in await show(client, "/ui/access")
            assert (await client.post(path)).status_code == 404

    async def test_others_see_and_end_their_own(self, client: httpx.AsyncClient, post: Post) -> None:
        ada, grace = [await post("/api/tokens", name=name, role="viewer") for name in ("ada", "grace")]
        async with (
            signed_in(client, ada["token"]) as mine,
            signed_in(client, ada["token"]),
            signed_in(client, grace["token"]),
        ):
            shown = await show(mine, "/ui/access")
            assert "grace" not in shown
            assert "New token" not in shown
            assert "/ui/access/tokens" not in shown
            [path] = re.findall(r'action="(/ui/access/sessions/\d+/end)"', shown)
            csrf = re.findall(r'name="csrf_token" value="(\w+)"', shown)[0]
            assert (await mine.post(path)).status_code == 403
            all_of_them = re.findall(r"/ui/access/sessions/\d+/end", await show(client, "/ui/access"))
            assert len(all_of_them) == 3
            [theirs] = [end for end in all_of_them if end not in (path, own_path(await mine.get("/api/sessions")))]
            assert (await mine.post(theirs, data={"csrf_token": csrf})).status_code == 404
            assert (await mine.post(path, data={"csrf_token": csrf})).status_code == 303


class TestAudit:
    async def test_it_says_who_did_what(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post("/api/profiles", name="staff")
        await client.post(
            f"/ui/profiles/{made['id']}", data={"name": "crew", "routing": "ordered", "token_window": "60"}
        )
        shown = await show(client, f"/ui/audit?object=profile&object_id={made['id']}")
        assert f'href="/ui/profiles/{made["id"]}"' in shown
        assert "change profile" in shown
        assert "create profile" in shown
        assert shown.index("change profile") < shown.index("create profile")
        assert re.search(r"staff</bdi> → .*crew</bdi>", shown)

    async def test_secrets_are_not_told(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post("/api/profiles", name="staff")
        key = await post("/api/keys", user_email="ada@example.com", name="k", profile_id=made["id"])
        await post(f"/api/keys/{key['id']}/rotate")
        shown = await show(client, f"/ui/audit?object=key&object_id={key['id']}")
        assert "key_value" in shown
        assert "not told" in shown
        assert "gsk_" not in shown.replace("gsk_...", "")

    async def test_it_is_filtered_and_goes_on_with_a_cursor(self, client: httpx.AsyncClient, post: Post) -> None:
        for number in range(45):
            await post("/api/backends", name=f"b{number}", base_url="http://b.test/v1")
        # Other tests have left entries: what is asked for is narrow.
        first = await show(client, "/ui/audit?who=root&object=backend&action=create")
        assert len(first.encode()) < 100_000
        assert first.count("create backend") == 40
        [older] = re.findall(r'href="(/ui/audit\?[^"]*)" rel="next"', first)
        assert "cursor=" in older
        assert "who=root" in older
        assert "create backend" in await show(client, older.replace("&amp;", "&"))
        assert "No entry matches" in await show(client, "/ui/audit?who=nobody-at-all")
        assert "No entry matches" in await show(client, "/ui/audit?to=2001-01-01T00:00")
        for query in ("cursor=x", "cursor=99999999999999999999999", "cursor=-1", "who=%00", "object=x"):
            await show(client, f"/ui/audit?{query}")

    @pytest.mark.parametrize(
        ("query", "name"),
        [("from=yesterday", "from"), ("to=soon", "to"), ("from=2026-01-02T00:00&to=2026-01-01T00:00", "to")],
    )
    async def test_a_time_that_is_none_is_told_beside_its_field(
        self, client: httpx.AsyncClient, query: str, name: str
    ) -> None:
        assert f'id="w-{name}"' in await show(client, f"/ui/audit?{query}", 400)


async def test_hostile_names_are_text(client: httpx.AsyncClient, post: Post, database: asyncpg.Connection) -> None:
    await post("/api/profiles", name=HOSTILE, description="x" * 2000)
    token = await post("/api/tokens", name=HOSTILE, role="viewer")
    async with signed_in(client, token["token"]):
        for path in ("/ui/access", "/ui/audit", f"/ui/access?search={HOSTILE}", f"/ui/audit?who={HOSTILE}"):
            shown = await show(client, path)
            assert "<script>alert" not in shown
            assert "&lt;script&gt;alert" in shown
        assert "x" * 100 not in await show(client, "/ui/audit")


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_the_audit_and_tokens_are_for_administrators(client: httpx.AsyncClient, post: Post, role: str) -> None:
    issued = await post("/api/tokens", name=f"the {role}", role=role)
    async with with_token(client, issued["token"]) as other:
        await show(other, "/ui/audit", 403)
        await show(other, "/ui/access/tokens/new", 403)
        assert (await other.post("/ui/access/tokens", data={"name": "x", "role": "admin"})).status_code == 403
        assert (await other.post(f"/ui/access/tokens/{issued['id']}/end")).status_code == 403
        shown = await show(other, "/ui/access")
        assert "/ui/audit" not in shown
        assert "Made by" not in shown
