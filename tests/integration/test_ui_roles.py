"""No page shows or does what `/api` refuses to the role of who looks at it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Any, get_args
from uuid import uuid4

import asyncpg
import httpx
import pytest
from litestar.routes import HTTPRoute

from gasket.access.csrf import csrf_token_of
from gasket.access.roles import ROUTES, Role, allowed_roles, is_of_people
from gasket.ui.application import make_application
from gasket.ui.navigation import PAGES
from tests.integration.conftest import Post, client_of

ROLES: tuple[Role, ...] = get_args(Role)

OF_THE_API = {
    "/ui/access/tokens": "/api/tokens",
    "/ui/access/sessions": "/api/sessions",
    "/ui/schema": "/api/migrations",
    "/ui/my-keys": "/api/me/keys",
}
"""Where a page is called otherwise than what it shows."""
SHOWS = {
    "GET /ui": ("GET /api/usage", "GET /api/backends", "GET /api/migrations"),
    "GET /ui/access": ("GET /api/sessions",),  # tokens are on it for administrators alone: see below
    "GET /ui/reference": ("GET /schema/openapi.json",),
    "GET /ui/schema/revisions/{revision}/sql": ("GET /api/migrations/revisions/{revision}",),
    "GET /ui/reference/{tag}": ("GET /schema/openapi.json",),
    "GET /ui/usage.csv": ("GET /api/usage",),
    "GET /ui/my-keys": ("GET /api/me/keys", "GET /api/me/usage", "GET /api/me/profiles"),
    "POST /ui/sign-out": ("DELETE /api/sessions/{session_id}",),
}
"""What a page shows or does, where its path does not say that."""
WITHOUT_SESSION = {
    *("GET /ui/sign-in", "POST /ui/sign-in"),
    *("GET /auth/login", "GET /auth/callback", "POST /auth/logout"),
}
"""For everybody, whatever the role."""

PAGE_ROUTES = sorted(route for route in ROUTES if " /ui" in route)


def in_the_api(route: str) -> tuple[str, ...]:
    """The routes of `/api` that show or do what this page does.

    `POST /ui/keys/{key_id}` changes a key, `.../delete` and `.../end` delete it, any other verb is the API's own.
    """
    if route in SHOWS:
        return SHOWS[route]
    method, _, path = route.partition(" ")
    for page, ours in OF_THE_API.items():
        if path == page or path.startswith(f"{page}/"):
            path = ours + path.removeprefix(page)
    path = path.replace("/ui/", "/api/")
    rest, _, verb = path.rpartition("/")
    if verb == "new":
        return (f"POST {rest}",)
    if method == "GET" and verb == "change":
        return (f"PATCH {rest}",)
    if verb in ("delete", "end"):
        return (f"DELETE {rest}",)
    if method == "POST" and verb.startswith("{"):
        return (f"PATCH {path}",)
    return (f"{method} {path}",)


@pytest.mark.parametrize("route", PAGE_ROUTES)
def test_a_page_is_for_no_role_that_the_api_refuses(route: str) -> None:
    for counterpart in in_the_api(route):
        assert counterpart in ROUTES, f"{route}: say in SHOWS or OF_THE_API what of /api it shows or does"
        method, _, path = counterpart.partition(" ")
        assert ROUTES[route] - {"metrics"} <= allowed_roles(method, path), f"{route} shows or does {counterpart}"
        assert is_of_people(path) <= is_of_people(route.partition(" ")[2]), f"{route}: tokens have no {counterpart}"


class Visitor:
    """A browser that is signed in with this role: as a person of the identity provider, or with a token."""

    def __init__(self, client: httpx.AsyncClient, role: Role, csrf_token: str, *, person: bool) -> None:
        self.client = client
        self.role = role
        self.csrf_token = csrf_token
        self.person = person

    def may(self, route: str) -> bool:
        return self.role in ROUTES[route] and (self.person or not is_of_people(route.partition(" ")[2]))


@pytest.fixture
async def visitors(client: httpx.AsyncClient, post: Post, database: asyncpg.Connection) -> AsyncIterator[list[Visitor]]:
    """A person of each role, and a token of each that tokens have. Rows of sessions, which need no sign-in."""
    token = await post("/api/tokens", name="whoever", role="viewer")
    transport: Any = client._transport
    person = await database.fetchval(
        "INSERT INTO people (issuer, subject, name, email, groups) "
        "VALUES ('https://login.example', '1', 'augusta@example.com', 'augusta@example.com', '{team}') RETURNING id"
    )
    made = []
    for role, is_person in [(role, is_person) for role in ROLES for is_person in (True, False)]:
        if role == "metrics" or (role == "user" and not is_person):
            continue
        value = uuid4().hex  # a replica knows a session for two seconds
        await database.execute(
            "INSERT INTO browser_sessions (digest, name, email, role, token_id, person_id) "
            "VALUES ($1, 'augusta@example.com', 'augusta@example.com', $2, $3, $4)",
            sha256(value.encode()).hexdigest(),
            role,
            None if is_person else token["id"],
            person if is_person else None,
        )
        browser = client_of(transport.app, token=None)
        browser.headers["cookie"] = f"__Host-gasket={value}"
        made.append(Visitor(browser, role, csrf_token_of(value), person=is_person))
    yield made
    for visitor in made:
        await visitor.client.aclose()


@pytest.fixture
async def objects(post: Post) -> Mapping[str, str]:
    """An id for each parameter of a path."""
    backend = await post("/api/backends", name="b", base_url="http://b.test/v1")
    profile = await post("/api/profiles", name="p", backends=[backend["id"]], open_to_groups=["team"])
    key = await post("/api/keys", user_email="ada@example.com", name="k", profile_id=profile["id"])
    token = await post("/api/tokens", name="t", role="viewer")
    ids = {"backend_id": backend["id"], "profile_id": profile["id"], "key_id": key["id"], "token_id": token["id"]}
    return {name: str(value) for name, value in ids.items()} | {"tag": "keys"}


def path_of(route: str, objects: Mapping[str, str]) -> str:
    """Of what is not there the id is 1, which is enough to be refused."""
    return re.sub(r"\{(\w+)\}", lambda found: objects.get(found[1], "1"), route.partition(" ")[2])


def route_of(method: str, path: str) -> str:
    """The row of the table for a link or the target of a form. Of several the one with the fewest parameters."""
    bare = path.partition("?")[0].partition("#")[0]
    found = [
        route
        for route in PAGE_ROUTES
        if route.startswith(f"{method} ") and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route.split(" ")[1]), bare)
    ]
    assert found, f"no route is {method} {bare}"
    return min(found, key=lambda route: route.count("{"))


async def test_every_page_is_shown_to_the_roles_of_the_table_and_leads_nowhere_else(
    visitors: list[Visitor], objects: Mapping[str, str]
) -> None:
    for visitor in visitors:
        for route in [route for route in PAGE_ROUTES if route.startswith("GET ")]:
            answer = await visitor.client.get(path_of(route, objects))
            if not visitor.may(route):
                # Who may not see the first page is led to another one.
                assert answer.status_code == (303 if route == "GET /ui" else 403), (visitor.role, route)
                continue
            assert answer.status_code in (200, 400, 404), (visitor.role, route, answer.text)
            for target in re.findall(r'href="(/ui[^"]*)"', answer.text):
                if not target.startswith("/ui/static/") and target != "/ui":
                    assert visitor.may(route_of("GET", target)), f"{visitor.role} on {route}: a link to {target}"
            for form in re.findall(r"<form\b[^>]*>", answer.text):
                found = re.search(r'action="([^"]*)"', form)
                target = found[1] if found else path_of(route, objects)
                method = "POST" if 'method="post"' in form else "GET"
                assert visitor.may(route_of(method, target)), f"{visitor.role} on {route}: a form for {target}"


async def test_no_form_is_taken_from_a_role_that_may_not_send_it(
    visitors: list[Visitor], objects: Mapping[str, str]
) -> None:
    for visitor in visitors:
        for route in [route for route in PAGE_ROUTES if route.startswith("POST ")]:
            path = path_of(route, objects)
            forged = await visitor.client.post(path)
            assert forged.status_code == 403, (visitor.role, route)
            if not visitor.may(route):
                answer = await visitor.client.post(path, data={"csrf_token": visitor.csrf_token})
                assert answer.status_code == 403, (visitor.role, route)


async def test_tokens_are_shown_to_administrators_alone(visitors: list[Visitor], objects: Mapping[str, str]) -> None:
    for visitor in visitors:
        shown = (await visitor.client.get("/ui/access")).text
        assert ("/ui/access/tokens/" in shown) == (visitor.role == "admin")
        assert ("Made by" in shown) == (visitor.role == "admin")


async def test_nav_has_the_pages_of_the_role(visitors: list[Visitor]) -> None:
    for visitor in visitors:
        start = await visitor.client.get("/ui")
        if start.has_redirect_location:  # by hand, because httpx leaves our cookie out
            start = await visitor.client.get(start.headers["location"])
        assert start.status_code == 200
        nav = start.text.partition("<nav")[2].partition("</nav>")[0]
        expected = [path for _, path in PAGES if f"GET {path}" in ROUTES and visitor.may(f"GET {path}")]
        assert re.findall(r'href="([^"]*)"', nav) == expected


async def test_the_first_page_of_a_user_is_that_of_the_keys(visitors: list[Visitor]) -> None:
    for visitor in visitors:
        answer = await visitor.client.get("/ui")
        assert answer.headers.get("location") == ("/ui/my-keys" if visitor.role == "user" else None)


async def test_what_is_not_there_is_told_to_who_is_signed_in(
    visitors: list[Visitor], client: httpx.AsyncClient
) -> None:
    transport: Any = client._transport
    stranger = client_of(transport.app, token=None)
    for method, path, status in (("POST", "/ui/nothing", 404), ("GET", "/ui/nothing", 404), ("POST", "/ui/usage", 405)):
        for visitor in visitors:
            assert (await visitor.client.request(method, path)).status_code == status, (method, path)
        answer = await stranger.request(method, path)
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/ui/sign-in")


async def test_every_page_is_in_the_table(client: httpx.AsyncClient) -> None:
    transport: Any = client._transport
    routes = {
        f"{method} {route.path_format}"
        for route in make_application(transport.app).routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    }
    assert routes - WITHOUT_SESSION == set(PAGE_ROUTES)
