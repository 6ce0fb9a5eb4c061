"""People make keys for themselves in profiles that their groups open, and lose them with their groups."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import asyncpg
import httpx
import pytest
from litestar import Litestar

from gasket import db
from gasket.access.csrf import csrf_token_of
from gasket.access.roles import ROUTES, allowed_roles, is_of_people
from gasket.audit.plugin import AuditPlugin
from gasket.audit.refusals import RefusedSignIns
from tests.acceptance.processes import until
from tests.identity_provider import IdentityProvider, identity_provider
from tests.integration.conftest import AnotherReplica, ApiAt, Post, assert_problem
from tests.integration.test_sign_in import SETTINGS, Browser, waiting

WITHIN = 30


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
async def app(provider: IdentityProvider, api_at: ApiAt, api_database_url: str) -> AsyncIterator[Litestar]:
    async with api_at(api_database_url, GASKET_OIDC_ISSUER=provider.url, **SETTINGS) as replica:
        transport: Any = replica._transport
        yield transport.app


class Person:
    """Somebody with a browser."""

    def __init__(self, app: Litestar, provider: IdentityProvider, subject: str, email: str | None) -> None:
        self.browser = Browser(app)
        self.subject = subject
        self.email = email
        self._app: Any = app
        self._provider = provider

    async def sign_in(self, *groups: str) -> httpx.Response:
        told = {"sub": self.subject, "email": self.email, "groups": list(groups)}
        self._provider.person = {name: value for name, value in told.items() if value is not None}
        answer = await self.browser.sign_in(self._provider)
        self._app.state.authenticator._known.clear()  # at the latest after two seconds
        return answer

    async def send(self, method: str, path: str, **fields: object) -> httpx.Response:
        csrf = {"X-CSRF-Token": csrf_token_of(self.browser.session or "")}
        return await self.browser.client.request(method, path, json=fields or None, headers=csrf)

    async def get(self, path: str) -> Any:
        answer = await self.send("GET", path)
        assert answer.is_success, answer.text
        return answer.json()

    async def make(self, profile: int, **fields: object) -> dict[str, Any]:
        answer = await self.send("POST", "/api/me/keys", **{"name": "laptop", "profile_id": profile} | fields)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def signed_in(self) -> bool:
        self._app.state.authenticator._known.clear()
        return (await self.browser.client.get("/api/me")).status_code == 200


People = Callable[..., Awaitable[Person]]


@pytest.fixture
def person(app: Litestar, provider: IdentityProvider, client: object) -> People:
    """Somebody who has signed in; without groups a member of the team."""

    async def make(*groups: str, subject: str = "1", email: str | None = "augusta@example.com") -> Person:
        someone = Person(app, provider, subject, email)
        await someone.sign_in(*(groups or ("staff", "team")))
        return someone

    return make


@pytest.fixture
async def team(post: Post) -> int:
    """A profile that is open to the team."""
    return int((await post("/api/profiles", name="for the team", open_to_groups=["team", "guests"]))["id"])


class TestOwnKeys:
    async def test_from_the_first_to_the_last_of_a_key(self, person: People, team: int, post: Post) -> None:
        await post("/api/profiles", name="closed")
        await post("/api/profiles", name="for others", open_to_groups=["others"])
        ada = await person()
        assert [entry["name"] for entry in (await ada.get("/api/me/profiles"))["items"]] == ["for the team"]

        made = await ada.make(team, expires_at="2100-01-01T00:00:00Z")
        key = made.pop("key")
        assert re.fullmatch("gsk_[0-9a-f]{48}", key)
        assert (made["user_email"], made["state"], made["orphaned_at"]) == ("augusta@example.com", "active", None)
        assert await ada.get(f"/api/me/keys/{made['id']}") == made
        assert (await ada.get("/api/me/keys"))["items"] == [made]
        assert (await ada.get("/api/me/keys?searchString=lap"))["total"] == 1

        path = f"/api/me/keys/{made['id']}"
        rotated = (await ada.send("POST", f"{path}/rotate", grace_seconds=60)).json()
        assert rotated["key"] != key
        assert rotated["previous_expires_at"] is not None
        revoked = (await ada.send("POST", f"{path}/revoke")).json()
        assert (revoked["state"], revoked["revoked_by"]) == ("revoked", "augusta@example.com")
        assert_problem(await ada.send("POST", f"{path}/rotate"), 409, "key-state")
        assert (await ada.send("POST", f"{path}/restore")).json()["state"] == "active"

    @pytest.mark.parametrize("groups", [None, ["others"], ["Team"]])
    async def test_a_profile_that_is_not_open_to_me_is_as_if_it_were_not_there(
        self, person: People, post: Post, groups: list[str] | None
    ) -> None:
        ada, profile = await person(), await post("/api/profiles", name="not for the team", open_to_groups=groups)
        assert (await ada.get("/api/me/profiles"))["total"] == 0
        absent = await ada.send("POST", "/api/me/keys", name="laptop", profile_id=profile["id"] + 1)
        closed = await ada.send("POST", "/api/me/keys", name="laptop", profile_id=profile["id"])
        for answer in (absent, closed):
            assert_problem(answer, 404, "not-found")
        assert closed.json()["detail"] == f"There is no profile {profile['id']}."

    @pytest.mark.parametrize("verb", ["", "/rotate", "/revoke", "/restore"])
    async def test_other_people_s_keys_are_not_there(
        self, person: People, team: int, client: httpx.AsyncClient, verb: str
    ) -> None:
        ada, eve = await person(), await person(subject="2", email="eve@example.com")
        made = await ada.make(team)
        answer = await eve.send("POST" if verb else "GET", f"/api/me/keys/{made['id']}{verb}")
        assert_problem(answer, 404, "not-found")
        assert (await eve.get("/api/me/keys"))["total"] == 0
        shown = (await client.get(f"/api/keys/{made['id']}")).json()
        assert (shown["state"], shown["key_preview"]) == ("active", made["key_preview"])

    async def test_who_gets_an_address_does_not_get_the_keys_of_who_had_it(self, person: People, team: int) -> None:
        before, after = await person(), await person(subject="2")
        made = await before.make(team)
        assert (await after.get("/api/me/keys"))["total"] == 0
        before.email = "augusta.new@example.com"
        await before.sign_in("staff", "team")
        assert [key["id"] for key in (await before.get("/api/me/keys"))["items"]] == [made["id"]]

    async def test_who_is_erased_loses_keys_of_an_earlier_address_too(
        self, person: People, team: int, client: httpx.AsyncClient
    ) -> None:
        ada = await person()
        made = await ada.make(team)
        ada.email = "augusta.new@example.com"
        await ada.sign_in("staff", "team")
        exported = (await client.get("/api/users/augusta.new@example.com/export")).json()
        assert [row["id"] for row in exported["api_keys"]] == [made["id"]]
        erased = (await client.delete("/api/users/augusta.new@example.com")).json()
        assert erased["keys_revoked"] == 1
        key = (await client.get(f"/api/keys/{made['id']}")).json()
        assert (key["state"], key["user_email"]) == ("revoked", erased["pseudonym"])

    async def test_who_is_erased_while_making_a_key_loses_it(
        self, person: People, team: int, client: httpx.AsyncClient, database: asyncpg.Connection, api_database_url: str
    ) -> None:
        ada = await person()
        async with connected(api_database_url) as one, one.transaction():
            await one.execute("SELECT FROM backend_profiles FOR UPDATE")
            making = asyncio.create_task(ada.send("POST", "/api/me/keys", name="laptop", profile_id=team))
            await until(lambda: waiting(database, 1), WITHIN, "a request that waits")
            erasing = asyncio.create_task(client.delete("/api/users/augusta@example.com"))
            await until(lambda: waiting(database, 2), WITHIN, "an erasure that waits")
        assert (await making).status_code == 201
        assert (await erasing).json()["keys_revoked"] == 1
        (key,) = (await client.get("/api/keys")).json()["items"]
        assert (key["state"], key["user_email"]) == ("revoked", (await erasing).json()["pseudonym"])

    async def test_a_key_that_an_administrator_made_for_the_address_is_one_s_own(
        self, person: People, team: int, post: Post, client: httpx.AsyncClient
    ) -> None:
        closed = await post("/api/profiles", name="closed")
        fields = {"user_email": "AUGUSTA@example.com", "name": "given"}
        here = await post("/api/keys", profile_id=team, **fields)
        there = await post("/api/keys", profile_id=closed["id"], **fields)
        ada = await person()
        assert (await ada.get("/api/me/keys"))["total"] == 2
        assert (await ada.send("POST", f"/api/me/keys/{here['id']}/rotate")).status_code == 200
        detail = assert_problem(await ada.send("POST", f"/api/me/keys/{there['id']}/rotate"), 409, "key-state")
        assert "you can only revoke it" in detail
        assert (await ada.send("POST", f"/api/me/keys/{there['id']}/revoke")).json()["state"] == "revoked"
        assert_problem(await ada.send("POST", f"/api/me/keys/{there['id']}/restore"), 409, "key-state")
        await client.post(f"/api/keys/{here['id']}/revoke")
        detail = assert_problem(await ada.send("POST", f"/api/me/keys/{here['id']}/restore"), 409, "key-state")
        assert "was revoked by root" in detail

    async def test_what_stands_for_one_s_signed_tokens_is_no_key(
        self, person: People, team: int, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, issuer) "
            "VALUES ('augusta@example.com', 'tokens', 'digest', '', $1, 'https://login.example')",
            team,
        )
        assert (await (await person()).get("/api/me/keys"))["total"] == 0

    @pytest.mark.parametrize(
        "field",
        [
            {"user_email": "eve@example.com"},
            {"person_id": 2},
            {"requests_per_minute": 1},
            {"max_concurrency": None},
            {"orphaned_at": None},
        ],
    )
    async def test_nothing_else_can_be_asked_for(self, person: People, team: int, field: dict[str, object]) -> None:
        answer = await (await person()).send("POST", "/api/me/keys", name="laptop", profile_id=team, **field)
        assert_problem(answer, 400, "invalid-input", field="body")

    async def test_the_rules_of_the_profile_hold(self, person: People, post: Post) -> None:
        rules = {"default_expiry_days": 7, "enforce_expiry": True, "open_to_groups": ["team"]}
        ada, profile = await person(), await post("/api/profiles", name="strict", **rules)
        for expires_at in (None, "2100-01-01T00:00:00Z"):
            answer = await ada.send(
                "POST", "/api/me/keys", name="laptop", profile_id=profile["id"], expires_at=expires_at
            )
            assert_problem(answer, 400, "invalid-input", field="expires_at")
        assert (await ada.make(profile["id"]))["expires_at"] is not None

    async def test_twenty_at_once_are_no_more_than_the_limit(
        self, person: People, post: Post, database: asyncpg.Connection
    ) -> None:
        ada = await person()
        profile = await post("/api/profiles", name="limited", open_to_groups=["team"], max_keys_per_user=3)
        given = await post("/api/keys", user_email="Augusta@Example.com", name="given", profile_id=profile["id"])
        answers = await asyncio.gather(
            *(ada.send("POST", "/api/me/keys", name=f"k{n}", profile_id=profile["id"]) for n in range(20))
        )
        assert sorted(answer.status_code for answer in answers) == [201] * 2 + [409] * 18
        assert await database.fetchval("SELECT count(*) FROM api_keys") == 3
        ada.email = "augusta.new@example.com"
        await ada.sign_in("team", "staff")
        another = await ada.send("POST", "/api/me/keys", name="one more", profile_id=profile["id"])
        assert another.status_code == 201, "the key for the address before is not hers any more"
        more = await ada.send("POST", "/api/me/keys", name="one more", profile_id=profile["id"])
        assert_problem(more, 409, "key-limit")
        assert given["state"] == "active"

    async def test_without_a_verified_address_there_is_no_key_and_no_usage(
        self, person: People, team: int, database: asyncpg.Connection, post: Post
    ) -> None:
        """The subject may be anything, also the address of somebody else."""
        given = await post("/api/keys", user_email="augusta@example.com", name="given", profile_id=team)
        await use(database, given["id"], "augusta@example.com")
        eve = await person(subject="augusta@example.com", email=None)
        assert (await eve.get("/api/me/keys"))["total"] == 0
        assert (await eve.get("/api/me/usage"))["total"] == 0
        answer = await eve.send("POST", "/api/me/keys", name="laptop", profile_id=team)
        assert "none that is verified" in assert_problem(answer, 403, "forbidden")


async def use(database: asyncpg.Connection, key: int, email: str, *, requests: int = 1) -> None:
    """Requests of this hour."""
    await database.execute(
        "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, "
        "completion_tokens) VALUES (date_trunc('hour', now()), $1, 1, 0, 'm', $2, $3, 5, 7)",
        key,
        email,
        requests,
    )


async def test_own_usage_is_that_of_one_s_own_keys(
    person: People, database: asyncpg.Connection, post: Post, team: int
) -> None:
    ada, eve = await person(), await person(subject="2")
    mine, theirs = await ada.make(team), await eve.make(team)
    await use(database, mine["id"], "augusta@example.com", requests=3)
    await use(database, theirs["id"], "augusta@example.com", requests=100)
    (sums,) = (await ada.get("/api/me/usage?group=key"))["items"]
    assert (sums["key"], sums["requests"], sums["total_tokens"]) == (mine["id"], 3, 12)
    assert (await ada.get(f"/api/me/usage?key={theirs['id']}"))["total"] == 0
    assert (await ada.get("/api/me/usage?group=end_user"))["total"] == 0
    assert (await ada.get("/api/me/usage?user=eve@example.com"))["total"] == 0


class TestWhoMay:
    @pytest.mark.parametrize("groups", [("staff",), ("auditors",), ("wheel",)])
    async def test_people_of_each_role_have_keys_of_their_own(
        self, person: People, team: int, groups: tuple[str, ...]
    ) -> None:
        await (await person("team", *groups)).make(team)

    async def test_tokens_have_none(self, client: httpx.AsyncClient, post: Post) -> None:
        token = (await post("/api/tokens", name="an admin", role="admin"))["token"]
        for method, _, path in (route.partition(" ") for route in ROUTES if " /api/me/" in route):
            for headers in ({}, {"Authorization": f"Bearer {token}"}):
                answer = await client.request(method, with_ids(path), json={}, headers=headers)
                assert "for people who have signed in" in assert_problem(answer, 403, "forbidden"), path

    async def test_a_user_may_do_nothing_else(self, person: People) -> None:
        ada = await person()
        for route in ROUTES:
            method, _, path = route.partition(" ")
            if path.startswith(("/api", "/metrics")):
                answer = await ada.send(method, with_ids(path), unknown=True)
                assert (answer.status_code != 403) == ("user" in allowed_roles(method, path)), (route, answer.text)
                assert not is_of_people(path) or answer.status_code < 500

    async def test_a_forged_request_makes_none(self, person: People, team: int) -> None:
        ada = await person()
        answer = await ada.browser.client.post("/api/me/keys", json={"name": "laptop", "profile_id": team})
        assert_problem(answer, 403, "csrf")

    async def test_the_audit_names_the_person(self, person: People, team: int, client: httpx.AsyncClient) -> None:
        ada = await person()
        made = await ada.make(team)
        await ada.send("POST", f"/api/me/keys/{made['id']}/revoke")
        found = (await client.get(f"/api/audit?object=key&object_id={made['id']}")).json()["items"]
        assert [entry["action"] for entry in found] == ["change", "create"]
        assert {(entry["actor"], entry["actor_kind"]) for entry in found} == {("augusta@example.com", "person")}
        assert made["key"] not in str(found)


def with_ids(path: str) -> str:
    return re.sub("{[^}]+}", "2147483647", path)


class TestLostGroups:
    async def test_at_a_sign_in_sessions_end_and_keys_are_listed(
        self, person: People, team: int, client: httpx.AsyncClient
    ) -> None:
        here = await person("staff", "team", "guests")
        made = await here.make(team)
        there = await person("staff", "guests")
        assert await here.signed_in(), "another group still opens it"
        await there.sign_in("staff")
        assert await there.signed_in()
        assert not await here.signed_in()
        (listed,) = (await client.get("/api/keys?orphaned=true")).json()["items"]
        assert (listed["id"], listed["state"]) == (made["id"], "active")
        assert listed["orphaned_at"] is not None
        assert (await client.get("/api/keys?orphaned=false")).json()["total"] == 0
        path = f"/api/me/keys/{made['id']}"
        assert_problem(await there.send("POST", f"{path}/rotate"), 409, "key-state")
        await there.sign_in("staff", "team")
        assert (await there.get(path))["orphaned_at"] is None

    async def test_sessions_end_on_another_replica_within_two_seconds(
        self, person: People, team: int, another_replica: AnotherReplica
    ) -> None:
        ada = await person()
        await ada.make(team)
        assert await another_replica.knows(ada.browser.session)
        await person("staff")
        another_replica.clock.now += 2
        assert not await another_replica.knows(ada.browser.session)

    async def test_a_profile_that_is_closed_ends_sessions_of_users(
        self, person: People, team: int, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        ada = await person()
        eve = await person("staff", "guests", subject="2", email="eve@example.com")
        admin = await person("team", "wheel", subject="3", email="lin@example.com")
        made = [await each.make(team) for each in (ada, eve, admin)]
        await client.patch(f"/api/profiles/{team}", json={"open_to_groups": ["guests", "others"]})
        assert [await each.signed_in() for each in (ada, eve, admin)] == [False, True, True]
        orphaned = (await client.get("/api/keys?orphaned=true")).json()["items"]
        assert [key["id"] for key in orphaned] == [made[0]["id"], made[2]["id"]]
        await client.patch(f"/api/profiles/{team}", json={"open_to_groups": None, "description": "closed"})
        assert [await each.signed_in() for each in (ada, eve, admin)] == [False, False, True]
        assert (await client.get("/api/keys?orphaned=true")).json()["total"] == 3
        await client.patch(f"/api/profiles/{team}", json={"open_to_groups": ["guests", "team"]})
        assert (await client.get("/api/keys?orphaned=true")).json()["total"] == 0
        ended = await client.get("/api/audit?object=session&action=delete")
        assert {entry["actor"] for entry in ended.json()["items"][:2]} == {"root"}

    async def test_keys_of_administrators_making_are_never_orphaned(
        self, person: People, team: int, post: Post, client: httpx.AsyncClient
    ) -> None:
        await post("/api/keys", user_email="augusta@example.com", name="given", profile_id=team)
        await (await person()).sign_in("staff")
        await client.patch(f"/api/profiles/{team}", json={"open_to_groups": None})
        assert (await client.get("/api/keys?orphaned=true")).json()["total"] == 0

    async def test_changes_at_once_do_not_miss_each_other(
        self, person: People, team: int, database: asyncpg.Connection, api_database_url: str, client: httpx.AsyncClient
    ) -> None:
        """Each of the two leaves a group that opens the profile; both together leave none."""
        ada = await person("staff", "team", "guests")
        await ada.make(team)
        async with connected(api_database_url) as one, connected(api_database_url) as other:
            transaction = one.transaction()
            await transaction.start()
            await one.execute("UPDATE people SET groups = '{guests}'")
            closing = asyncio.create_task(other.execute("UPDATE backend_profiles SET open_to_groups = '{team}'"))
            await until(lambda: is_waiting(database, other), WITHIN, "a turn that is waited for")
            await transaction.commit()
            await closing
        assert (await client.get("/api/keys?orphaned=true")).json()["total"] == 1

    async def test_a_key_is_not_made_while_the_group_is_taken_away(
        self, person: People, team: int, database: asyncpg.Connection, api_database_url: str
    ) -> None:
        ada = await person()
        async with connected(api_database_url) as one:
            transaction = one.transaction()
            await transaction.start()
            await one.execute("UPDATE people SET groups = '{staff}'")
            making = asyncio.create_task(ada.send("POST", "/api/me/keys", name="laptop", profile_id=team))
            await until(lambda: waiting(database, 1), WITHIN, "a request that waits")
            await transaction.commit()
        # The sign-in has ended the session; the request had begun with it.
        assert_problem(await making, 404, "not-found")

    @pytest.mark.parametrize("verb", ["restore", "rotate"])
    @pytest.mark.parametrize(
        "closing",
        ["UPDATE backend_profiles SET open_to_groups = '{others}'", "UPDATE people SET groups = '{staff}'"],
    )
    async def test_a_key_does_not_come_back_while_its_profile_is_closed(
        self, person: People, team: int, database: asyncpg.Connection, api_database_url: str, verb: str, closing: str
    ) -> None:
        ada = await person()
        path = f"/api/me/keys/{(await ada.make(team))['id']}"
        if verb == "restore":
            await ada.send("POST", f"{path}/revoke")
        async with connected(api_database_url) as one, one.transaction():
            await one.execute(closing)
            asking = asyncio.create_task(ada.send("POST", f"{path}/{verb}"))
            await until(lambda: waiting(database, 1), WITHIN, "a request that waits")
        assert_problem(await asking, 409, "key-state")

    async def test_a_revocation_that_comes_meanwhile_is_not_taken_back(
        self, person: People, team: int, database: asyncpg.Connection, api_database_url: str
    ) -> None:
        ada = await person()
        path = f"/api/me/keys/{(await ada.make(team))['id']}"
        await ada.send("POST", f"{path}/revoke")
        async with connected(api_database_url) as one, one.transaction():
            await one.execute("UPDATE api_keys SET revoked_by = 'root'")
            asking = asyncio.create_task(ada.send("POST", f"{path}/restore"))
            await until(lambda: waiting(database, 1), WITHIN, "a request that waits")
        assert "was revoked by root" in assert_problem(await asking, 409, "key-state")

    async def test_after_so_many_days_keys_are_revoked_and_replicas_are_told(
        self, person: People, team: int, database: asyncpg.Connection, api_database_url: str, client: httpx.AsyncClient
    ) -> None:
        ada = await person()
        made = await ada.make(team)
        rotated = (await ada.send("POST", f"/api/me/keys/{made['id']}/rotate", grace_seconds=86_400)).json()
        fresh = await ada.make(team)
        await client.patch(f"/api/profiles/{team}", json={"open_to_groups": None})
        await database.execute("UPDATE api_keys SET orphaned_at = now() - interval '7 d' WHERE id = $1", made["id"])
        async with plugin(api_database_url, days=8) as early, plugin(api_database_url, days=0) as never:
            await early._end_old()
            await never._end_old()
        assert (await client.get("/api/keys?state=revoked")).json()["total"] == 0

        heard: list[object] = []
        async with connected(api_database_url) as listener, plugin(api_database_url, days=7) as due:
            await listener.add_listener("gasket_public", lambda *event: heard.append(event[-1]))
            await due._end_old()
            expected = {f"key:{sha256(key.encode()).hexdigest()}" for key in (made["key"], rotated["key"])}
            await until(lambda: expected <= set(heard), WITHIN, "word of both keys")
        (revoked,) = (await client.get("/api/keys?state=revoked")).json()["items"]
        assert (revoked["id"], revoked["revoked_by"]) == (made["id"], "GASKET_ORPHANED_KEYS_DAYS")
        assert revoked["previous_expires_at"] is None
        kind = await database.fetchval(
            "SELECT actor_kind FROM audit_log WHERE table_name = 'api_keys' ORDER BY id DESC LIMIT 1"
        )
        assert kind == "replica"
        assert (await client.get(f"/api/keys/{fresh['id']}")).json()["state"] == "active"

        await client.post(f"/api/keys/{made['id']}/restore")
        async with plugin(api_database_url, days=7) as due:
            await due._end_old()
        assert (await client.get(f"/api/keys/{made['id']}")).json()["state"] == "active", "its days count anew"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=WITHIN)
    try:
        yield connection
    finally:
        await connection.close(timeout=WITHIN)


@asynccontextmanager
async def plugin(url: str, *, days: int) -> AsyncIterator[AuditPlugin]:
    engine = db.create_engine(url, schema="public", release="test", pool_size=2)
    yield AuditPlugin(db.create_sessions(engine).begin, RefusedSignIns(), retention_days=0, orphaned_keys_days=days)
    await engine.dispose()


async def is_waiting(database: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
    return bool(await database.fetchval(query, other.get_server_pid()))
