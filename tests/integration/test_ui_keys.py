"""The pages of keys and profiles, over HTTP: forms, roles, what is shown and what is not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.conftest import ADMIN_TOKEN, Post, assert_problem, client_of

HOSTILE = "<script>alert(1)</script>\u202e\"'&{{ 7 + 7 }}"
SECRET = re.compile(r"gsk_[0-9a-f]{48}")

Page = Callable[..., Awaitable[str]]


@pytest.fixture
async def role_client(client: httpx.AsyncClient, post: Post) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A client with a token of this role."""
    transport: Any = client._transport
    clients = []

    async def make(role: str) -> httpx.AsyncClient:
        issued = await post("/api/tokens", name=f"the {role}", role=role)
        clients.append(client_of(transport.app, token=issued["token"]))
        return clients[-1]

    yield make
    for made in clients:
        await made.aclose()


@pytest.fixture
def show(client: httpx.AsyncClient) -> Page:
    """GET a page that has to be there; its HTML."""

    async def get(path: str, status: int = 200) -> str:
        response = await client.get(path)
        assert response.status_code == status, response.text
        assert response.headers["cache-control"] == "no-store"
        return response.text

    return get


@pytest.fixture
def send(client: httpx.AsyncClient) -> Callable[..., Awaitable[httpx.Response]]:
    """Send a form."""

    async def send(path: str, **fields: str) -> httpx.Response:
        return await client.post(path, data=fields)

    return send


Send = Callable[..., Awaitable[httpx.Response]]
KEY = {"user_email": "ada@example.com", "name": "laptop", "token_window": "60"}


async def profile(post: Post, **fields: object) -> int:
    return int((await post("/api/profiles", **{"name": "staff", **fields}))["id"])


async def key(post: Post, **fields: object) -> dict[str, Any]:
    profile_id = fields.get("profile_id") or await profile(post)
    return await post(
        "/api/keys", **{"user_email": "ada@example.com", "name": "laptop", "profile_id": profile_id} | fields
    )


class TestNewKey:
    async def test_it_is_shown_once_with_settings_for_this_address(
        self, client: httpx.AsyncClient, post: Post, send: Send, show: Page, database: asyncpg.Connection
    ) -> None:
        profile_id = await profile(post, allowed_models=["llama*", "gpt-x"])
        response = await send("/ui/keys", **KEY, profile_id=str(profile_id), requests_per_minute="7")
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        [secret] = set(SECRET.findall(response.text))
        for text in ("https://gasket/v1", "ANTHROPIC_BASE_URL=https://gasket", "gpt-x", "model_providers", "apiBase"):
            assert text in response.text
        assert "in the place of" not in response.text
        stored = await database.fetchrow("SELECT * FROM api_keys")
        assert stored
        assert stored["requests_per_minute"] == 7
        assert stored["tokens_per_window"] is None
        for path in ("/ui/keys", f"/ui/keys/{stored['id']}"):
            assert secret not in await show(path)

    async def test_where_no_model_is_known_the_settings_say_so(self, post: Post, send: Send) -> None:
        response = await send("/ui/keys", **KEY, profile_id=str(await profile(post)))
        assert "in the place of <code>gpt-5-mini</code>" in response.text

    @pytest.mark.parametrize(
        ("fields", "name", "words"),
        [
            ({"user_email": "nobody"}, "user_email", "must be an address"),
            ({"name": ""}, "name", "must not be empty"),
            ({"name": "x" * 101}, "name", "100 characters or fewer"),
            ({"requests_per_minute": "many"}, "requests_per_minute", "must be a whole number"),
            ({"max_concurrency": "0"}, "max_concurrency", "must be 1 or more"),
            ({"token_window": ""}, "token_window", "must be a whole number"),
            ({"expires_at": "2001-01-01T00:00"}, "expires_at", "is in the past"),
            ({"expires_at": "soon"}, "expires_at", "must be a date and a time"),
        ],
    )
    async def test_an_error_is_beside_its_field_and_the_rest_stays(
        self, post: Post, send: Send, database: asyncpg.Connection, fields: dict[str, str], name: str, words: str
    ) -> None:
        profile_id = await profile(post)
        response = await send("/ui/keys", **{**KEY, "profile_id": str(profile_id), "tokens_per_window": "99", **fields})
        assert response.status_code == 400
        found = re.search(rf'<p class="wrong" id="w-{name}">(.*?)</p>', response.text)
        assert found, response.text
        assert words in found[1]
        assert 'name="tokens_per_window" type="number" autocomplete="off" value="99"' in response.text
        assert await database.fetchval("SELECT count(*) FROM api_keys") == 0

    async def test_the_limit_of_the_profile_is_told(self, post: Post, send: Send) -> None:
        profile_id = await profile(post, max_keys_per_user=1)
        first = await send("/ui/keys", **KEY, profile_id=str(profile_id))
        assert first.status_code == 200
        second = await send("/ui/keys", **KEY, profile_id=str(profile_id))
        assert second.status_code == 409
        assert "has 1 active keys" in second.text

    async def test_its_expiry(self, post: Post, send: Send, database: asyncpg.Connection) -> None:
        profile_id = await profile(post, default_expiry_days=10)
        for fields in ({}, {"never": "true"}, {"expires_at": "2100-01-31T12:00"}):
            assert (await send("/ui/keys", **KEY, profile_id=str(profile_id), **fields)).status_code == 200
        by_profile, never, chosen = await database.fetch("SELECT expires_at FROM api_keys ORDER BY id")
        assert timedelta(days=9) < by_profile[0] - datetime.now(UTC) <= timedelta(days=10)
        assert never[0] is None
        assert chosen[0] == datetime(2100, 1, 31, 12, tzinfo=UTC)

    async def test_without_a_profile_there_is_a_way_to_make_one(self, show: Page) -> None:
        assert "/ui/profiles/new" in await show("/ui/keys/new")


class TestKey:
    async def test_only_what_is_different_is_changed(
        self, post: Post, send: Send, show: Page, database: asyncpg.Connection
    ) -> None:
        issued = await key(post, expires_at="2100-01-31T12:00:30.123456Z")
        path = f"/ui/keys/{issued['id']}"
        shown = dict(re.findall(r'name="(\w+)"[^>]*? value="([^"]*)"', await show(path)))
        assert shown["expires_at"] == "2100-01-31T12:00:30"
        response = await send(path, **{**shown, "name": "desk", "tokens_per_window": "5000", "token_window": "86400"})
        assert (response.status_code, response.headers["location"]) == (303, path)
        stored = await database.fetchrow("SELECT * FROM api_keys")
        assert stored
        assert (stored["name"], stored["tokens_per_window"], stored["token_window"]) == ("desk", 5000, 86400)
        assert stored["expires_at"] == datetime(2100, 1, 31, 12, 0, 30, 123456, tzinfo=UTC)

    async def test_an_expired_one_can_be_renamed(self, post: Post, send: Send, database: asyncpg.Connection) -> None:
        issued = await key(post)
        await database.execute("UPDATE api_keys SET expires_at = '2020-01-01T00:00:00Z'")
        response = await send(
            f"/ui/keys/{issued['id']}", name="old", expires_at="2020-01-01T00:00:00", token_window="60"
        )
        assert response.status_code == 303, response.text
        assert await database.fetchval("SELECT name FROM api_keys") == "old"

    async def test_it_is_rotated_with_a_grace(self, post: Post, send: Send, database: asyncpg.Connection) -> None:
        issued = await key(post)
        response = await send(f"/ui/keys/{issued['id']}/rotate", grace_seconds="3600")
        assert response.status_code == 200
        [secret] = set(SECRET.findall(response.text))
        assert secret != issued["key"]
        assert "The key before works until" in response.text
        assert await database.fetchval("SELECT count(*) FROM previous_api_keys") == 1

    async def test_it_is_revoked_restored_and_deleted(
        self, post: Post, send: Send, show: Page, database: asyncpg.Connection
    ) -> None:
        path = f"/ui/keys/{(await key(post))['id']}"
        assert (await send(f"{path}/revoke")).headers["location"] == path
        assert "Revoked" in await show(path)
        refused = await send(f"{path}/rotate", grace_seconds="0")
        assert refused.status_code == 409
        assert "only an active key can be rotated" in refused.text
        assert (await send(f"{path}/restore")).status_code == 303
        assert "Active" in await show(path)
        assert (await send(f"{path}/delete")).headers["location"] == "/ui/keys"
        await show(path, 404)
        assert await database.fetchval("SELECT count(*) FROM api_keys") == 0

    async def test_it_shows_how_much_of_its_limits_is_used(
        self, post: Post, show: Page, database: asyncpg.Connection
    ) -> None:
        issued = await key(post, requests_per_minute=60, max_concurrency=5)
        subject = f"key:{issued['id']}"
        # A window that has just begun, whatever the time is, so that all of it counts.
        await database.execute(
            "INSERT INTO limit_windows SELECT $1, 'requests', begin, begin + interval '1 minute', 41 "
            "FROM (SELECT date_trunc('minute', now()) AS begin) AS this",
            subject,
        )
        await database.execute(
            "INSERT INTO limit_slots VALUES ($1, gen_random_uuid(), 2, now() + interval '1 hour'), "
            "($1, gen_random_uuid(), 1, now() + interval '1 hour'), "
            "($1, gen_random_uuid(), 4, now() - interval '1 s')",
            subject,
        )
        try:
            shown = await show(f"/ui/keys/{issued['id']}")
            assert "Requests at once: 3 of 5" in shown
            # Between the two statements another minute may have begun: then some of it counts no more.
            used = re.search(r"Requests a minute: (\d+) of 60", shown)
            assert used
            assert 0 < int(used[1]) <= 41
            assert "/ 60" in await show("/ui/keys")
        finally:
            await database.execute("DELETE FROM limit_windows; DELETE FROM limit_slots")


class TestList:
    async def test_it_is_searched_and_paged_on_the_server(
        self, post: Post, show: Page, database: asyncpg.Connection
    ) -> None:
        profile_id = await profile(post)
        await database.execute(
            "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, requests_per_minute, "
            "tokens_per_window, max_concurrency) SELECT 'user' || i || '@example.com', 'key number ' || i, "
            "md5(i::text), 'gsk_...' || i, $1, 60, 100000, 5 FROM generate_series(1, 10000) AS i",
            profile_id,
        )
        first = await show("/ui/keys")
        assert len(first.encode()) < 100_000
        assert "1 to 50 of 10\u202f000 keys" in first
        assert "key number 10000<" in first
        assert "?page=2" in first
        last = await show("/ui/keys?page=200")
        assert "key number 1<" in last
        assert "?page=201" not in last
        found = await show("/ui/keys?search=NUMBER 777&state=active")
        assert "11 keys" in found
        assert "No key matches" in await show("/ui/keys?search=%25")
        assert "No key matches" in await show("/ui/keys?page=999999")
        for query in ("page=0", "page=-1", "page=x", "page=99999999999999999999", "profile=x", "state=x", "search=%00"):
            await show(f"/ui/keys?{query}")

    async def test_it_can_be_of_one_profile(self, post: Post, show: Page) -> None:
        await key(post)
        other = await profile(post, name="others")
        await key(post, profile_id=other, name="theirs")
        shown = await show(f"/ui/keys?profile={other}")
        assert "theirs" in shown
        assert "laptop" not in shown
        assert "Keys of the profile" in shown


class TestProfiles:
    async def test_one_is_made_changed_and_deleted(
        self, client: httpx.AsyncClient, post: Post, send: Send, show: Page
    ) -> None:
        ids = [(await post("/api/backends", name=name, base_url="http://b.test/v1"))["id"] for name in ("a", "b", "c")]
        first = {f"place-{ids[0]}": "2", f"place-{ids[1]}": "", f"place-{ids[2]}": "1"}
        fields = {
            "name": "staff",
            "routing": "sticky",
            "token_window": "60",
            "allowed_models": "llama*\r\n\r\ngpt-x\r\n",
        }
        response = await send("/ui/profiles", **fields, **first, user_header="x-end-user")
        assert response.status_code == 303, response.text
        path = response.headers["location"]
        made = (await client.get(path.replace("/ui", "/api"))).json()
        assert made["backends"] == [ids[2], ids[0]]
        assert made["allowed_models"] == ["llama*", "gpt-x"]
        assert (made["routing"], made["user_header"], made["description"]) == ("sticky", "x-end-user", None)
        changes = {
            **fields,
            **first,
            "description": "two\r\nlines",
            "enforce_expiry": "true",
            "default_expiry_days": "9",
            "claim_rules": "https://a.example  /a/b  x y*\r\n\r\nhttps://a.example sub *",
        }
        assert (await send(path, **changes)).status_code == 303
        changed = (await client.get(path.replace("/ui", "/api"))).json()
        expected: dict[str, Any] = {
            "description": "two\nlines",
            "enforce_expiry": True,
            "default_expiry_days": 9,
            "user_header": None,
        }
        rules = [{"claim": "/a/b", "pattern": "x y*"}, {"claim": "sub", "pattern": "*"}]
        expected["claim_rules"] = [{"issuer": "https://a.example", **rule} for rule in rules]
        assert changed == made | expected
        claim, pattern = (f'<code><bdi class="name">{text}</bdi></code>' for text in ("/a/b", "x y*"))
        assert f"{claim} is {pattern}, of" in await show(path)
        assert "https://a.example /a/b x y*\nhttps://a.example sub *</textarea>" in await show(path)
        assert (await send(f"{path}/delete")).headers["location"] == "/ui/profiles"
        await show(path, 404)

    @pytest.mark.parametrize(
        ("fields", "name", "words"),
        [
            ({"name": ""}, "name", "must not be empty"),
            ({"name": "taken"}, "name", "There is a profile named"),
            ({"allowed_models": "a*b"}, "allowed_models", "at the end of a name only"),
            ({"user_header": "cookie"}, "user_header", "not about users"),
            ({"user_header": "a b"}, "user_header", "not allowed here"),
            ({"enforce_expiry": "true"}, "enforce_expiry", "needs default_expiry_days"),
            ({"claim_rules": "https://a.example sub"}, "claim_rules", "an issuer, a claim and a pattern"),
            ({"claim_rules": "http://a.example sub x"}, "claim_rules", "https URL of an issuer"),
            ({"routing": "random"}, "routing", "Choose one"),
            ({"place-1": "1", "place-2": "1"}, "backends", "Two backends have the place 1"),
            ({"place-1": "first"}, "backends", "A place is a whole number"),
            ({"place-\u00b2": "1"}, "backends", "A place is a whole number"),
            ({"place-999999999": "1"}, "backends", "There is no backend 999999999"),
        ],
    )
    async def test_an_error_is_beside_its_field_and_nothing_is_made(
        self, post: Post, send: Send, database: asyncpg.Connection, fields: dict[str, str], name: str, words: str
    ) -> None:
        await profile(post, name="taken")
        response = await send("/ui/profiles", **{"name": "staff", "routing": "ordered", "token_window": "60", **fields})
        assert response.status_code in (400, 409)
        found = re.search(rf'<p class="wrong" id="w-{name}">(.*?)</p>', response.text)
        assert found, response.text
        assert words in found[1]
        assert await database.fetchval("SELECT count(*) FROM backend_profiles") == 1

    async def test_one_with_keys_cannot_be_deleted(self, post: Post, send: Send, show: Page) -> None:
        profile_id = await profile(post)
        await key(post, profile_id=profile_id)
        response = await send(f"/ui/profiles/{profile_id}/delete")
        assert response.status_code == 409
        assert "has 1 key; delete them first" in response.text
        await show(f"/ui/profiles/{profile_id}")

    async def test_one_with_subjects_alone_is_deleted_with_them(
        self, client: httpx.AsyncClient, post: Post, send: Send, show: Page, database: asyncpg.Connection
    ) -> None:
        issued = await key(post)
        await database.execute("UPDATE api_keys SET issuer = 'https://i.example'")
        shown = await show(f"/ui/keys/{issued['id']}")
        assert "https://i.example" in shown
        assert "Rotate" not in shown
        refused = await client.post(f"/api/keys/{issued['id']}/rotate")
        assert "whose tokens https://i.example signs" in assert_problem(refused, 409, "key-state")
        assert (await send(f"/ui/profiles/{issued['profile_id']}/delete")).status_code == 303
        assert await database.fetchval("SELECT count(*) FROM api_keys") == 0


async def test_hostile_names_are_text(post: Post, show: Page, database: asyncpg.Connection) -> None:
    profile_id = await profile(post, name=HOSTILE, description=HOSTILE, allowed_models=[HOSTILE])
    rule = '[{"issuer": "https://i", "claim": "<script>alert(1)", "pattern": "<script>alert(2)"}]'
    await database.execute("UPDATE backend_profiles SET claim_rules = $1", rule)
    issued = await key(post, profile_id=profile_id, name=HOSTILE)
    await database.execute("UPDATE api_keys SET user_email = $1, revoked_at = now(), revoked_by = $1", HOSTILE)
    paths = ["/ui/keys", f"/ui/keys/{issued['id']}", f"/ui/keys?profile={profile_id}", "/ui/keys/new"]
    for path in [*paths, "/ui/profiles", f"/ui/profiles/{profile_id}", f"/ui/keys?search={HOSTILE}"]:
        shown = await show(path)
        assert "<script>alert" not in shown
        assert "{{ 7 + 7 }}" in shown
    await database.execute("UPDATE api_keys SET name = repeat('x', 10000), user_email = repeat('y', 10000)")
    shown = await show("/ui/keys")
    assert "x" * 300 in shown
    assert len(shown.encode()) < 100_000


async def test_a_form_of_a_session_needs_its_token(client: httpx.AsyncClient, post: Post) -> None:
    issued = await key(post)
    path = f"/ui/keys/{issued['id']}"
    transport: Any = client._transport
    async with client_of(transport.app, token=None) as browser:
        assert (await browser.get(path)).headers["location"].startswith("/ui/sign-in")
        signed_in = await browser.post("/ui/sign-in", data={"token": ADMIN_TOKEN})
        name, _, value = signed_in.headers["set-cookie"].partition(";")[0].partition("=")
        browser.headers["cookie"] = f"{name}={value}"
        page = (await browser.get(path)).text
        forms = re.findall(r"<form [^>]*method=\"post\".*?</form>", page, re.DOTALL)
        tokens = {re.search(r'name="csrf_token" value="(\w+)"', form)[1] for form in forms}  # type: ignore[index]
        assert len(tokens) == 1
        refused = await browser.post(f"{path}/revoke")
        assert refused.status_code == 403
        taken = await browser.post(f"{path}/revoke", data={"csrf_token": tokens.pop()})
        assert (taken.status_code, taken.headers["location"]) == (303, path)


async def test_a_form_changes_what_it_shows_and_nothing_else(post: Post, send: Send, client: httpx.AsyncClient) -> None:
    """Nobody moves a key to another profile, or to another user, by a field that the form does not have."""
    issued, other = await key(post), await profile(post, name="others")
    more = {"profile_id": str(other), "user_email": "eve@example.com", "issuer": "https://i", "key_value": "0" * 64}
    fields = {"name": "renamed", "token_window": "60", **more, "revoked_at": "", "person_id": "1", "id": "1"}
    assert (await send(f"/ui/keys/{issued['id']}", **fields)).status_code == 303
    changed = (await client.get(f"/api/keys/{issued['id']}")).json()
    del issued["key"]
    assert changed == issued | {"name": "renamed"}


async def test_what_a_viewer_and_an_operator_see(post: Post, role_client: Callable[..., Awaitable[Any]]) -> None:
    issued = await key(post)
    path = f"/ui/keys/{issued['id']}"
    viewer, operator = await role_client("viewer"), await role_client("operator")
    for page in (path, "/ui/keys", "/ui/profiles", f"/ui/profiles/{issued['profile_id']}"):
        seen = await viewer.get(page)
        assert seen.status_code == 200
        assert set(re.findall(r'action="(/ui/[^"]*)"', seen.text)) <= {"/ui/keys", "/ui/profiles", "/ui/sign-out"}
        assert "/new" not in seen.text
        assert 'method="post" action="/ui/keys"' not in seen.text
    assert f"{path}/revoke" in (await operator.get(path)).text
    assert f"{path}/rotate" not in (await operator.get(path)).text
    assert (await viewer.post(f"{path}/revoke")).status_code == 403
    assert (await operator.post(f"{path}/rotate")).status_code == 403
    assert (await operator.post(f"{path}/revoke")).status_code == 303
