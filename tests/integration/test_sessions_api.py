"""Sessions of browsers: begun, used, listed and ended; and what forged requests get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import asyncpg
import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gasket.access.authentication import Authenticator
from gasket.access.csrf import csrf_token_of
from gasket.access.roles import is_of_people
from gasket.errors import ForbiddenError, GuessingError, UnauthorizedError
from gasket.ui.application import make_application
from tests.integration.conftest import ADMIN_TOKEN, AnotherReplica, ApiAt, Post, assert_problem

_numbers = count(1)


class Browser:
    """A browser of its own address, which keeps the cookie of its session."""

    def __init__(self, app: Any, value: str | None = None) -> None:
        self.app = app
        self.value = value
        self.address = f"10.10.{next(_numbers)}.1"
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(self.address, 1))
        self._client = httpx.AsyncClient(transport=transport, base_url="https://gasket")

    @property
    def authenticator(self) -> Authenticator:
        found: Authenticator = self.app.state.authenticator
        return found

    @property
    def csrf(self) -> dict[str, str]:
        assert self.value is not None
        return {"X-CSRF-Token": csrf_token_of(self.value)}

    def scope(self) -> Any:
        fields = [(b"host", b"gasket")]
        if self.value:
            fields.append((b"cookie", f"__Host-gasket={self.value}".encode()))
        return {"type": "http", "scheme": "https", "client": (self.address, 1), "headers": fields, "method": "POST"}

    async def sign_in(self, token: str = ADMIN_TOKEN) -> str:
        self.value = await self.authenticator.sign_in(self.scope(), token)
        return self.value

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Cookie": f"__Host-gasket={self.value}"} if self.value else {}
        return await self._client.request(method, path, **more | {"headers": headers | more.get("headers", {})})

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("GET", path, **more)


@pytest.fixture
def browser(client: httpx.AsyncClient) -> Callable[[], Browser]:
    transport: Any = client._transport
    return lambda: Browser(transport.app)


@pytest.fixture
def token(post: Post) -> Callable[..., Awaitable[str]]:
    async def issue(role: str = "viewer", **fields: object) -> str:
        issued = await post("/api/tokens", name=f"the {role} {next(_numbers)}", role=role, **fields)
        return str(issued["token"])

    return issue


Browsers = Callable[[], Browser]
Tokens = Callable[..., Awaitable[str]]


class TestLife:
    async def test_a_session_acts_as_the_token_that_began_it(self, browser: Browsers, token: Tokens) -> None:
        root, viewer = browser(), browser()
        await root.sign_in()
        await viewer.sign_in(await token("viewer"))
        assert (await root.get("/api/me")).json() == {"name": "root", "role": "admin", "email": None}
        assert (await viewer.get("/api/me")).json()["role"] == "viewer"
        assert (await viewer.get("/api/keys")).status_code == 200
        assert_problem(await viewer.get("/api/tokens"), 403, "forbidden")

    async def test_neither_the_cookie_nor_the_token_is_stored(
        self, browser: Browsers, token: Tokens, database: asyncpg.Connection
    ) -> None:
        secrets = [await token("viewer"), ADMIN_TOKEN]
        secrets += [await browser().sign_in(secret) for secret in secrets]
        secrets += [csrf_token_of(value) for value in secrets[2:]]
        stored = await database.fetchval("SELECT string_agg(s::text, ' ') FROM browser_sessions AS s")
        assert not [secret for secret in secrets if secret in stored]
        assert len(secrets[2]) == 43, "256 bits in base64"

    async def test_it_ends_with_its_token(
        self, browser: Browsers, token: Tokens, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        ended, expired = browser(), browser()
        await ended.sign_in(await token("viewer"))
        await expired.sign_in(await token("operator", expires_at="2100-01-01T00:00:00Z"))
        for token_id, role in await database.fetch("SELECT id, role FROM access_tokens"):
            if role == "viewer":
                await client.delete(f"/api/tokens/{token_id}")
        await database.execute("UPDATE access_tokens SET expires_at = now() - interval '1 s'")
        for each in (ended, expired):
            assert_problem(await each.get("/api/me"), 401, "unauthorized")

    async def test_root_s_session_ends_with_the_setting_and_holds_to_its_networks(
        self, browser: Browsers, api_at: ApiAt, api_database_url: str
    ) -> None:
        signed_in = browser()
        await signed_in.sign_in()
        statuses = []
        for settings in (
            {},
            {"tokens": "another-token-by-the-next-deploy"},
            {"GASKET_ADMIN_TOKEN_NETWORKS": "192.0.2.0/24"},
        ):
            async with api_at(api_database_url, **settings) as replica:
                transport: Any = replica._transport
                statuses.append((await Browser(transport.app, signed_in.value).get("/api/me")).status_code)
        assert statuses == [200, 401, 401]

    @pytest.mark.parametrize(
        ("age", "status"),
        [
            ("last_seen_at = now() - interval '7 h 58 min'", 200),
            ("last_seen_at = now() - interval '8 h 1 min'", 401),
            ("created_at = now() - interval '23 h 58 min'", 200),
            ("created_at = now() - interval '24 h 1 min'", 401),
            ("root_proof = NULL", 401),
            ("root_proof = 'x'", 401),
        ],
    )
    async def test_it_ends_idle_or_old_and_has_to_have_something_behind_it(
        self, browser: Browsers, database: asyncpg.Connection, age: str, status: int
    ) -> None:
        someone = browser()
        await someone.sign_in()
        await database.execute(f"UPDATE browser_sessions SET {age}")
        assert (await someone.get("/api/me")).status_code == status

    async def test_its_use_is_noted_once_a_minute(self, browser: Browsers, database: asyncpg.Connection) -> None:
        someone = browser()
        await someone.sign_in()
        seen = "SELECT now() - last_seen_at < interval '30 s' FROM browser_sessions"
        for ago, noted in (("50 s", False), ("70 s", True)):
            await database.execute(f"UPDATE browser_sessions SET last_seen_at = now() - interval '{ago}'")
            someone.authenticator._forget(someone.value)
            assert (await someone.get("/api/me")).status_code == 200
            assert await database.fetchval(seen) is noted

    async def test_each_sign_in_has_an_id_of_its_own_and_ends_the_one_before(self, browser: Browsers) -> None:
        """Session fixation: a cookie that was put into the browser before is worth nothing afterwards."""
        attacker = browser()
        planted = await attacker.sign_in()
        victim = browser()
        victim.value = planted
        assert await victim.sign_in() != planted
        assert_problem(await attacker.get("/api/me"), 401, "unauthorized")
        made_up = browser()
        made_up.value = "x" * 43
        assert await made_up.sign_in() != "x" * 43

    async def test_signing_out_ends_it_at_once(self, browser: Browsers) -> None:
        someone = browser()
        await someone.sign_in()
        assert (await someone.get("/api/me")).status_code == 200
        await someone.authenticator.sign_out(someone.scope())
        assert_problem(await someone.get("/api/me"), 401, "unauthorized")

    async def test_wrong_tokens_at_the_sign_in_count_and_stale_cookies_do_not(self, browser: Browsers) -> None:
        guesser = browser()
        for _ in range(10):
            with pytest.raises(UnauthorizedError):
                await guesser.sign_in("gst_" + "0" * 48)
        for wrong in ("nonsense", "\ud800", ADMIN_TOKEN + "x"):
            with pytest.raises(GuessingError):
                await guesser.sign_in(wrong)
        await guesser.sign_in()
        stale = browser()
        stale.value = "y" * 43
        assert {(await stale.get("/api/me")).status_code for _ in range(30)} == {401}

    async def test_there_is_nothing_for_the_role_metrics(self, browser: Browsers, token: Tokens) -> None:
        with pytest.raises(ForbiddenError, match="for /metrics alone"):
            await browser().sign_in(await token("metrics"))

    async def test_two_hundred_sign_in_at_once(self, browser: Browsers, database: asyncpg.Connection) -> None:
        async def sign_in() -> str:
            each = browser()
            while True:
                with suppress(PoolTimeoutError):  # a slow machine does not get to all within five seconds
                    return await each.sign_in()

        values = await asyncio.gather(*(sign_in() for _ in range(200)))
        assert len(set(values)) == 200
        assert await database.fetchval("SELECT count(*) FROM browser_sessions") == 200


class TestList:
    async def test_an_administrator_sees_everybody_s_and_others_their_own(
        self, browser: Browsers, token: Tokens, database: asyncpg.Connection
    ) -> None:
        viewer_token = await token("viewer")
        root, viewer, again, operator = (browser() for _ in range(4))
        await root.sign_in()
        await viewer.sign_in(viewer_token)
        await again.sign_in(viewer_token)
        await operator.sign_in(await token("operator"))
        await database.execute(
            "INSERT INTO browser_sessions (digest, name, role, last_seen_at) "
            "VALUES ('over', 'over', 'viewer', now() - interval '9 h')"
        )
        everybody = (await root.get("/api/sessions")).json()
        assert everybody["total"] == 4
        assert [item["current"] for item in everybody["items"]] == [True, False, False, False]
        theirs = (await viewer.get("/api/sessions")).json()
        assert [item["address"] for item in theirs["items"]] == [viewer.address, again.address]
        assert set(theirs["items"][0]) == {
            *("id", "name", "role", "email", "address", "last_seen_at", "expires_at", "created_at", "current"),
        }

    async def test_one_s_own_are_ended_by_oneself_and_all_by_an_administrator(
        self, browser: Browsers, token: Tokens
    ) -> None:
        viewer_token = await token("viewer")
        root, viewer, again = (browser() for _ in range(3))
        await root.sign_in()
        await viewer.sign_in(viewer_token)
        await again.sign_in(viewer_token)
        ids = [item["id"] for item in (await root.get("/api/sessions")).json()["items"]]
        refused = await viewer.request("DELETE", f"/api/sessions/{ids[0]}", headers=viewer.csrf)
        assert_problem(refused, 404, "not-found")
        gone = await viewer.request("DELETE", "/api/sessions/2147483647", headers=viewer.csrf)
        assert refused.json()["detail"].replace(str(ids[0]), "") == gone.json()["detail"].replace("2147483647", "")
        assert (await viewer.request("DELETE", f"/api/sessions/{ids[2]}", headers=viewer.csrf)).status_code == 204
        assert_problem(await again.get("/api/me"), 401, "unauthorized")
        assert (await root.request("DELETE", f"/api/sessions/{ids[1]}", headers=root.csrf)).status_code == 204
        assert [item["id"] for item in (await root.get("/api/sessions")).json()["items"]] == ids[:1]

    async def test_an_ended_one_is_refused_within_two_seconds_on_another_replica(
        self, browser: Browsers, another_replica: AnotherReplica
    ) -> None:
        here = browser()
        await here.sign_in()
        assert await another_replica.knows(here.value)
        await here.authenticator.sign_out(here.scope())
        another_replica.clock.now += 2
        assert not await another_replica.knows(here.value)


def changing_routes(app: Litestar) -> list[tuple[str, str]]:
    """Every route, wherever it is, whose method is not a safe one (RFC 9110, 9.2.1)."""
    return [
        (method, route.path_format)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method in sorted(route.methods - {"GET", "HEAD", "OPTIONS"})
    ]


def with_ids(path: str) -> str:
    start, brace, _ = path.partition("{")
    return f"{start}2147483647{path[path.index('}') + 1 :]}" if brace else path


BEFORE_A_SESSION: set[str] = set()
"""Changing routes that need no session, so that there is none to misuse. Each has a test of its own."""


class TestForgedRequests:
    async def test_every_changing_route_wants_the_csrf_token(self, browser: Browsers) -> None:
        someone, other = browser(), browser()
        right = csrf_token_of(await someone.sign_in())
        wrong = csrf_token_of(await other.sign_in())
        routes = sorted(changing_routes(someone.app), key=lambda route: route[1] == "/auth/logout")  # which ends it
        assert len(routes) > 10
        forged: list[dict[str, Any]] = [
            {"json": {}},
            {"data": {"csrf_token": "x"}},
            {"data": {"csrf_token": wrong}},
            {"files": {"csrf_token": (None, right)}},
            {"json": {"csrf_token": right}},
            {"headers": {"X-CSRF-Token": ""}},
            {"headers": {"X-CSRF-Token": wrong}, "data": {"csrf_token": right}},
            {"params": {"csrf_token": right}},
        ]
        for method, path in routes:
            if path in BEFORE_A_SESSION:
                continue
            for request in forged:
                response = await someone.request(method, with_ids(path), **request)
                assert_problem(response, 403, "csrf")
            genuine = await someone.request(method, with_ids(path), json={}, headers=someone.csrf)
            if is_of_people(path):  # root is nobody of the provider's
                assert "for people who have signed in" in assert_problem(genuine, 403, "forbidden")
            else:
                assert genuine.status_code not in (401, 403), (method, path, genuine.text)

    async def test_every_form_of_a_page_wants_it(self, browser: Browsers) -> None:
        someone, other = browser(), browser()
        right = csrf_token_of(await someone.sign_in())
        wrong = csrf_token_of(await other.sign_in())
        routes = [route for route in changing_routes(make_application(someone.app)) if route[1] != "/ui/sign-in"]
        ends_it = ("/ui/sign-out", "/auth/logout")
        assert len(routes) > 20
        page = {"Accept": "text/html"}
        for method, path in sorted(routes, key=lambda route: route[1] in ends_it):
            for form in ({}, {"csrf_token": wrong}, {"X-CSRF-Token": right}):
                forged = await someone.request(method, with_ids(path), data=form, headers=page)
                assert (forged.status_code, "needs its CSRF token" in forged.text) == (403, True), (path, forged.text)
            if path in ends_it:
                continue
            genuine = await someone.request(method, with_ids(path), data={"csrf_token": right}, headers=page)
            assert "needs its CSRF token" not in genuine.text, (path, genuine.text)
        assert (await someone.get("/api/me")).status_code == 200

    async def test_the_form_that_signs_in_is_taken_from_our_own_page_alone(self, browser: Browsers) -> None:
        """Login CSRF: another site's page must not sign its visitor in as somebody else."""
        form = {"token": ADMIN_TOKEN}
        for fetch in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://e.vil"}):
            forged = await browser().request("POST", "/ui/sign-in", data=form, headers=fetch)
            assert (forged.status_code, "set-cookie" in forged.headers) == (403, False)
        genuine = await browser().request("POST", "/ui/sign-in", data=form, headers={"Sec-Fetch-Site": "same-origin"})
        assert (genuine.status_code, "set-cookie" in genuine.headers) == (303, True)

    async def test_a_form_may_have_it_as_a_field(self, browser: Browsers) -> None:
        someone = browser()
        value = await someone.sign_in()
        form = {"csrf_token": csrf_token_of(value), "more": "x"}
        assert (await someone.request("DELETE", "/api/keys/2147483647", data=form)).status_code == 404

    async def test_a_token_needs_none_and_counts_before_the_session(self, browser: Browsers, token: Tokens) -> None:
        someone = browser()
        await someone.sign_in()
        viewer = {"Authorization": f"Bearer {await token('viewer')}"}
        assert (await someone.get("/api/me", headers=viewer)).json()["role"] == "viewer"
        assert_problem(await someone.request("POST", "/api/keys", json={}, headers=viewer), 403, "forbidden")
        wrong = {"Authorization": "Bearer wrong"}
        assert_problem(await someone.get("/api/me", headers=wrong), 401, "unauthorized")
        root = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert_problem(
            await someone.request("POST", "/api/keys", json={}, headers=root), 400, "invalid-input", field="body"
        )

    async def test_a_proxy_s_own_credentials_do_not_hide_the_session(self, browser: Browsers) -> None:
        someone = browser()
        await someone.sign_in()
        assert (await someone.get("/api/me", headers={"Authorization": "Basic eDp5"})).status_code == 200

    async def test_a_cookie_without_the_prefix_is_worth_nothing(self, browser: Browsers) -> None:
        """Cookie tossing: a neighbouring host can set `gasket`, and cannot set `__Host-gasket`."""
        someone, attacker = browser(), browser()
        value, planted = await someone.sign_in(), await attacker.sign_in()
        for cookie in (f"gasket={value}", f"__Host-gasket={value}; __Host-gasket={planted}"):
            assert_problem(await browser().get("/api/me", headers={"Cookie": cookie}), 401, "unauthorized")

    async def test_another_origin_never_acts_with_the_session(
        self, browser: Browsers, api_at: ApiAt, api_database_url: str
    ) -> None:
        someone = browser()
        await someone.sign_in()
        for origins in ("*", "https://chat.example"):
            async with api_at(api_database_url, GASKET_CORS_ORIGINS=origins) as replica:
                transport: Any = replica._transport
                there = Browser(transport.app, someone.value)
                script = {"Origin": "https://chat.example", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
                answers = [
                    await there.get("/api/me", headers=script),
                    await there.get("/api/me", headers={"Origin": "https://chat.example"}),
                    await there.request(
                        "OPTIONS", "/api/me", headers=script | {"Access-Control-Request-Method": "GET"}
                    ),
                ]
            assert [answer.status_code for answer in answers] == [401, 200, 204]
            assert not [answer for answer in answers if "access-control-allow-credentials" in answer.headers]

    async def test_the_gateway_takes_no_session(self, browser: Browsers) -> None:
        someone = browser()
        await someone.sign_in()
        assert (await someone.get("/v1/models")).status_code == 401
