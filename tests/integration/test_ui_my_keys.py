"""The page My keys, on a database: whose keys and whose usage are on it, and what profiles have for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from gasket.access.csrf import csrf_token_of
from tests.integration.conftest import Post, client_of

USE = (
    "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, "
    "completion_tokens) VALUES ($1, $2, 1, 0, $3, $4, $5, $6, 0)"
)
HOSTILE = "<script>alert(1)</script>\u202e"


class Page:
    """A browser of somebody who has signed in at the identity provider."""

    def __init__(self, client: httpx.AsyncClient, session: str) -> None:
        self.client = client
        self._csrf = csrf_token_of(session)

    async def show(self, path: str = "/ui/my-keys", status: int = 200) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    async def send(self, path: str, **fields: str) -> httpx.Response:
        return await self.client.post(path, data={"csrf_token": self._csrf, **fields})


@pytest.fixture
async def page(client: httpx.AsyncClient, database: asyncpg.Connection) -> AsyncIterator[Page]:
    """Augusta's, of the team."""
    session = uuid4().hex
    await database.execute(
        "WITH person AS (INSERT INTO people (issuer, subject, name, email, groups) "
        "VALUES ('https://login.example', '1', 'augusta@example.com', 'augusta@example.com', '{team}') RETURNING *) "
        "INSERT INTO browser_sessions (digest, name, email, role, person_id) "
        "SELECT $1, name, email, 'user', id FROM person",
        sha256(session.encode()).hexdigest(),
    )
    transport: Any = client._transport
    async with client_of(transport.app, token=None) as browser:
        browser.headers["cookie"] = f"__Host-gasket={session}"
        yield Page(browser, session)


@pytest.fixture
async def team(post: Post) -> int:
    fields = {"name": HOSTILE, "open_to_groups": ["team"], "allowed_models": [HOSTILE]}
    return int((await post("/api/profiles", **fields))["id"])


async def test_own_keys_and_own_usage_are_on_it(
    page: Page, team: int, post: Post, database: asyncpg.Connection
) -> None:
    made = await post("/api/keys", user_email="augusta@example.com", name=HOSTILE, profile_id=team)
    second = await post("/api/keys", user_email="augusta@example.com", name="second", profile_id=team)
    theirs = await post("/api/keys", user_email="eve@example.com", name="of somebody else", profile_id=team)
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for key, model, email, requests, tokens in (
        (made["id"], "large", "Augusta@example.com", 2, 1000),
        (made["id"], "small", "augusta@example.com", 3, 200),
        (second["id"], "large", "augusta@example.com", 5, 34),
        (theirs["id"], "theirs", "eve@example.com", 70_000, 70_000),
    ):
        await database.execute(USE, now, key, model, email, requests, tokens)
    for days in ("", "?days=7", "?days=365", "?days=8", "?days=x"):
        shown = await page.show(f"/ui/my-keys{days}")
        assert "<dd>10</dd>" in shown, "requests"
        assert "1\u202f234" in shown, "tokens"
        assert shown.index("large</bdi>") < shown.index("small</bdi>")
        assert ">1\u202f200</td>" in shown, "tokens of the key"
        assert ": 10</title>" in shown, "the bar of its day, hour or month"
        for foreign in ("theirs", "of somebody else", "70\u202f000", "<script>alert"):
            assert foreign not in shown, foreign
    assert "theirs" not in await page.show("/ui/my-keys?days=365&search=theirs")
    assert "Requests by hour" in await page.show("/ui/my-keys?days=1") or datetime.now(UTC) - now > timedelta(hours=1)


async def test_an_empty_one_says_what_to_do(page: Page, post: Post) -> None:
    shown = await page.show()
    assert "no profile is open to you" in shown
    assert "sign-in: <bdi" in shown, "one's groups"
    assert "/ui/my-keys/new" not in shown
    assert "No profile is open to you" in await page.show("/ui/my-keys/new")
    profile = await post("/api/profiles", name="open now", open_to_groups=["team"])
    assert "Make your first key" in await page.show()
    assert f"/ui/my-keys/new?profile={profile['id']}" in await page.show()


async def test_what_is_refused_is_told_on_the_page(page: Page, team: int, post: Post) -> None:
    answer = await page.send("/ui/my-keys", name="", profile_id=str(team))
    assert (answer.status_code, "must not be empty" in answer.text) == (400, True)
    closed = await post("/api/profiles", name="closed")
    answer = await page.send("/ui/my-keys", name="laptop", profile_id=str(closed["id"]))
    assert (answer.status_code, f"There is no profile {closed['id']}." in answer.text) == (404, True)
    given = await post("/api/keys", user_email="augusta@example.com", name="k", profile_id=closed["id"])
    path = f"/ui/my-keys/{given['id']}"
    shown = await page.show(path)
    assert "None of your groups opens" in shown
    assert f"{path}/rotate" not in shown
    answer = await page.send(f"{path}/rotate")
    assert (answer.status_code, "you can only revoke it" in answer.text) == (409, True)
    assert (await page.send(f"{path}/revoke")).headers["location"] == path
    shown = await page.show(path)
    assert "Revoked" in shown
    assert f"{path}/restore" not in shown
    answer = await page.send(f"{path}/restore")
    assert answer.status_code == 409


async def test_other_people_s_keys_are_not_there(page: Page, team: int, post: Post) -> None:
    other = await post("/api/keys", user_email="eve@example.com", name="k", profile_id=team)
    path = f"/ui/my-keys/{other['id']}"
    await page.show(path, 404)
    for verb in ("rotate", "revoke", "restore"):
        assert (await page.send(f"{path}/{verb}")).status_code == 404


async def test_an_administrator_opens_a_profile_and_finds_orphaned_keys(
    page: Page, client: httpx.AsyncClient, post: Post
) -> None:
    profile = await post("/api/profiles", name="team")
    path = f"/ui/profiles/{profile['id']}"
    fields = {"name": "team", "routing": "ordered", "token_window": "60"}
    answer = await client.post(path, data={**fields, "open_to_groups": " team \r\n\r\nother people\r\n"})
    assert answer.status_code == 303
    shown = await client.get(f"/api/profiles/{profile['id']}")
    assert shown.json() == profile | {"open_to_groups": ["team", "other people"]}
    answer = await client.get(path)
    assert "team\nother people</textarea>" in answer.text
    assert "those of <bdi" in answer.text
    answer = await client.post(path, data={**fields, "open_to_groups": "a\na"})
    assert (answer.status_code, "w-open_to_groups" in answer.text) == (400, True)

    issued = await page.send("/ui/my-keys", name="mine", profile_id=str(profile["id"]))
    assert (issued.status_code, "gsk_" in issued.text) == (200, True)
    assert "No key matches" in (await client.get("/ui/keys?state=orphaned")).text
    assert (await client.post(path, data=fields)).status_code == 303
    assert (await client.get(f"/api/profiles/{profile['id']}")).json()["open_to_groups"] is None
    listed = (await client.get("/ui/keys?state=orphaned")).text
    assert "mine</bdi>" in listed
    assert "orphaned <time" in listed
