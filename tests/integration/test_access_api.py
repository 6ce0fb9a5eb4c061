"""Access tokens, their roles, and who may do what."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, get_args

import asyncpg
import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute

from gasket import db
from gasket.access.authentication import Authenticator
from gasket.access.roles import ROUTES, TokenRole, allowed_roles, is_of_people
from gasket.peers import Peers
from gasket.ui.application import make_application
from tests.clock import Clock
from tests.integration.conftest import ADMIN_TOKEN, ApiAt, Post, assert_problem

ROLES: tuple[TokenRole, ...] = get_args(TokenRole)
_numbers = count(1)

Bearer = Callable[[str | None], httpx.AsyncClient]


@pytest.fixture
def bearer(client: httpx.AsyncClient) -> Bearer:
    """A client of the same replica with another token, from an address of its own."""
    transport: Any = client._transport
    return lambda token: _client_of(transport.app, token)


def _client_of(app: Any, token: str | None) -> httpx.AsyncClient:
    number = next(_numbers)
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(f"10.9.{number >> 8}.{number & 255}", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://gasket", headers=headers)


@pytest.fixture
def issue(post: Post) -> Callable[..., Awaitable[dict[str, Any]]]:
    async def issue(role: str = "viewer", **fields: object) -> dict[str, Any]:
        return await post("/api/tokens", name=f"the {role} {next(_numbers)}", role=role, **fields)

    return issue


Issue = Callable[..., Awaitable[dict[str, Any]]]


class TestLife:
    async def test_a_token_is_shown_once_and_stored_as_its_digest(
        self, client: httpx.AsyncClient, issue: Issue, database: asyncpg.Connection
    ) -> None:
        issued = await issue("viewer")
        token = issued.pop("token")
        assert token.startswith("gst_")
        assert issued["created_by"] == "root"
        shown = await client.get(f"/api/tokens/{issued['id']}")
        assert shown.json() == issued
        assert token not in (await client.get("/api/tokens")).text
        stored = await database.fetchval("SELECT access_tokens::text FROM access_tokens")
        assert token not in stored

    async def test_its_use_is_noted(self, client: httpx.AsyncClient, issue: Issue, bearer: Bearer) -> None:
        issued = await issue("metrics")
        assert issued["last_used_at"] is None
        assert (await bearer(issued["token"]).get("/metrics")).status_code == 200
        shown = (await client.get(f"/api/tokens/{issued['id']}")).json()
        assert datetime.now(UTC) - datetime.fromisoformat(shown["last_used_at"]) < timedelta(minutes=1)

    async def test_it_says_who_it_is(self, client: httpx.AsyncClient, issue: Issue, bearer: Bearer) -> None:
        issued = await issue("operator")
        me = (await bearer(issued["token"]).get("/api/me")).json()
        assert me == {"name": issued["name"], "role": "operator", "email": None}
        assert (await client.get("/api/me")).json() == {"name": "root", "role": "admin", "email": None}

    async def test_an_admin_s_token_makes_further_ones_in_its_own_name(self, issue: Issue, bearer: Bearer) -> None:
        maker = await issue("admin")
        made = await bearer(maker["token"]).post("/api/tokens", json={"name": "made by it", "role": "viewer"})
        assert made.json()["created_by"] == maker["name"]

    async def test_an_ended_one_is_refused_within_two_seconds_on_every_replica(
        self, client: httpx.AsyncClient, issue: Issue, bearer: Bearer, api_at: ApiAt, api_database_url: str
    ) -> None:
        issued = await issue("viewer")
        here = bearer(issued["token"])
        async with api_at(api_database_url) as other:
            transport: Any = other._transport
            there = _client_of(transport.app, issued["token"])
            assert [(await each.get("/api/keys")).status_code for each in (here, there)] == [200, 200]
            assert (await client.delete(f"/api/tokens/{issued['id']}")).status_code == 204
            await asyncio.sleep(2)  # the promise is this time
            for each in (here, there):
                assert_problem(await each.get("/api/keys"), 401, "unauthorized")
        assert_problem(await client.get(f"/api/tokens/{issued['id']}"), 404, "not-found")

    async def test_an_expired_one_is_refused(self, issue: Issue, bearer: Bearer, database: asyncpg.Connection) -> None:
        issued = await issue("viewer", expires_at="2100-01-01T00:00:00Z")
        await database.execute("UPDATE access_tokens SET expires_at = now() - interval '1 s'")
        assert_problem(await bearer(issued["token"]).get("/api/keys"), 401, "unauthorized")

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"role": "user"}, "role"),
            ({"role": "ADMIN"}, "role"),
            ({"name": ""}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
            ({"digest": "x"}, "body"),
            ({"created_by": "root"}, "body"),
        ],
    )
    async def test_what_a_token_cannot_be(self, client: httpx.AsyncClient, fields: dict[str, str], field: str) -> None:
        response = await client.post("/api/tokens", json={"name": "a", "role": "viewer"} | fields)
        assert_problem(response, 400, "invalid-input", field=field)

    async def test_a_name_is_somebody_s_alone(self, client: httpx.AsyncClient, issue: Issue) -> None:
        issued = await issue("viewer")
        for name in (issued["name"], "root"):
            response = await client.post("/api/tokens", json={"name": name, "role": "admin"})
            assert_problem(response, 409, "name-taken")


OPEN = {"/ui/sign-in"}
"""Pages for everybody."""


def _routes(app: Litestar) -> Iterator[tuple[str, str]]:
    for route in [*app.routes, *make_application(app).routes]:
        if isinstance(route, HTTPRoute) and route.path_format in OPEN:
            continue
        if isinstance(route, HTTPRoute) and route.path_format.startswith(("/api", "/metrics", "/schema", "/ui")):
            yield from ((method, route.path_format) for method in route.methods if method != "OPTIONS")


class TestRoles:
    async def test_every_route_is_in_the_table_and_the_table_has_no_other(self, client: httpx.AsyncClient) -> None:
        transport: Any = client._transport
        assert {f"{method} {path}" for method, path in _routes(transport.app)} == set(ROUTES)

    @pytest.mark.parametrize("role", ROLES)
    async def test_a_role_may_do_what_the_table_says_and_nothing_else(
        self, role: TokenRole, issue: Issue, bearer: Bearer, client: httpx.AsyncClient
    ) -> None:
        transport: Any = client._transport
        someone = bearer((await issue(role))["token"])
        for method, path in _routes(transport.app):
            response = await someone.request(method, _with_ids(path), json={})
            allowed = role in allowed_roles(method, path) and not is_of_people(path)
            assert (response.status_code != 403) == allowed, (method, path, response.text)

    async def test_a_refusal_says_which_role_is_needed(self, issue: Issue, bearer: Bearer) -> None:
        issued = await issue("viewer")
        detail = assert_problem(await bearer(issued["token"]).post("/api/backends", json={}), 403, "forbidden")
        assert issued["name"] in detail
        assert "needs the role admin" in detail

    @pytest.mark.parametrize("role", ["operator", "viewer", "metrics"])
    async def test_nobody_makes_himself_an_administrator(self, role: str, issue: Issue, bearer: Bearer) -> None:
        someone = bearer((await issue(role))["token"])
        for path in ("/api/tokens", "/api/tokens/", "//api/tokens", "/api//tokens"):
            response = await someone.post(path, json={"name": "more", "role": "admin"})
            assert response.status_code in (401, 403, 404), response.text

    @pytest.mark.parametrize("role", ROLES)
    async def test_no_token_gets_another_role(
        self, role: TokenRole, issue: Issue, bearer: Bearer, client: httpx.AsyncClient
    ) -> None:
        """There is no way to change one, not even for an administrator; and none to change it by an answer's fields."""
        issued = await issue(role)
        for someone in (bearer(issued["token"]), client):
            for method in ("PATCH", "PUT", "POST"):
                changed = await someone.request(method, f"/api/tokens/{issued['id']}", json={"role": "admin"})
                assert changed.status_code in (403, 404, 405), changed.text
            for path in ("/api/me", "/api/sessions"):
                changed = await someone.patch(path, json={"role": "admin"})
                assert changed.status_code == 405, changed.text
        assert (await bearer(issued["token"]).get("/api/me")).json()["role"] == role

    async def test_unknown_paths_are_hidden_from_strangers_alone(self, issue: Issue, bearer: Bearer) -> None:
        assert_problem(await bearer((await issue("metrics"))["token"]).get("/api/nothing"), 404, "not-found")
        assert_problem(await bearer("gst_wrong").get("/api/nothing"), 401, "unauthorized")


def _with_ids(path: str) -> str:
    return re.sub("{[^}]+}", "2147483647", path)


class TestGuessing:
    @pytest.mark.parametrize("wrong", ["nonsense", "gst_" + "0" * 48, ADMIN_TOKEN + "x", "schlüssel"])
    async def test_the_eleventh_wrong_token_of_a_minute_is_429_and_a_right_one_is_always_taken(
        self, bearer: Bearer, wrong: str
    ) -> None:
        guesser = bearer(None)
        answers = [
            await guesser.get("/api/keys", headers={b"Authorization": f"Bearer {wrong}".encode()}) for _ in range(12)
        ]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
        assert_problem(answers[-1], 429, "guessing")
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        right = await guesser.get("/api/keys", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        assert right.status_code == 200

    async def test_a_missing_token_is_no_guess(self, bearer: Bearer) -> None:
        stranger = bearer(None)
        assert {(await stranger.get("/metrics")).status_code for _ in range(30)} == {401}


class TestRoot:
    @pytest.mark.parametrize(("networks", "status"), [("10.9.0.0/16", 200), ("192.0.2.0/24, unix", 401)])
    async def test_its_networks_may_be_confined(
        self, api_at: ApiAt, api_database_url: str, networks: str, status: int
    ) -> None:
        async with api_at(api_database_url, GASKET_ADMIN_TOKEN_NETWORKS=networks) as replica:
            transport: Any = replica._transport
            assert (await _client_of(transport.app, ADMIN_TOKEN).get("/api/keys")).status_code == status


class TestAnAbsentDatabase:
    async def test_a_known_token_works_for_five_minutes_more(
        self, issue: Issue, api_database_url: str, url_with: Callable[..., str]
    ) -> None:
        """Long enough for `/metrics` to tell what happens."""
        known, unknown = (await issue("metrics"))["token"], (await issue("metrics"))["token"]
        nowhere = url_with(api_database_url, database="nonexistent")
        here, away = (
            db.create_engine(url, schema="public", release="0", pool_size=1) for url in (api_database_url, nowhere)
        )
        transactions, clock = db.create_sessions(here).begin, Clock()
        authenticator = Authenticator(lambda: transactions(), root_peers=Peers(), clock=clock)

        async def found(token: str) -> str:
            scope: Any = {"headers": [(b"authorization", f"Bearer {token}".encode())], "client": ("192.0.2.1", 1)}
            await authenticator.put_identity(scope)
            (answer,) = scope["state"].values()
            return type(answer).__name__

        assert await found(known) == "Identity"
        transactions = db.create_sessions(away).begin
        clock.now = 1.9
        assert await found(known) == "Identity", "asked again too soon"
        clock.now = 299
        assert await found(known) == "Identity"
        assert await found(unknown) == "DatabaseAwayError"
        clock.now = 301
        assert await found(known) == "DatabaseAwayError"
        transactions = db.create_sessions(here).begin
        assert await found(known) == "Identity"
        for engine in (here, away):
            await engine.dispose()
