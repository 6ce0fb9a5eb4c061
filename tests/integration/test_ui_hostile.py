"""Names that people and programs have given, however hostile: on every page that shows them, and in files."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping
from html.parser import HTMLParser
from typing import Any

import asyncpg
import httpx
import pytest

from gasket.access.roles import ROUTES
from tests.integration.conftest import client_of

MARK = "hostile-name"
HOSTILE = f"=1+1\"'><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\u2066&amp;{{{{ 7 * 7 }}}}{MARK}"
LONG = HOSTILE + "W" * 10_000
SESSION = "the session of a person with a hostile name"
MOST = 100_000
"""Bytes of a page."""

PATHS = sorted(
    route.removeprefix("GET ")
    for route in ROUTES
    if route.startswith("GET /ui") and not route.startswith(("GET /ui/reference", "GET /ui/schema"))
    if route != "GET /ui/usage.csv"
) + [f"/ui/usage?by={by}" for by in ("user", "profile", "model", "backend")]
"""Those of the schema are in `tests/acceptance/test_ui_schema.py`, which has a ledger of its own."""
WITHOUT_NAMES = ["/ui/access/tokens/new", "/ui/backends/new"]

_ISOLATING = ("bdi", "option", "textarea", "title")
"""Where a name may stand: nothing around it takes its direction. In all but the first there can be no element."""
_VOID = {"meta", "link", "input", "img", "br", "hr", "rect"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and its texts with the elements around them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """An element ends."""
        while tag in self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Text."""
        self.texts.append((tuple(self._open), data))


_FILL = """
INSERT INTO openai_backends (name, base_url, credential_header, response_headers)
VALUES ($1, 'http://b.test/' || $1, $1, ARRAY[$1]);
INSERT INTO backend_models (backend_id, position, name, backend_model, priority)
SELECT id, 0, $1, $1, 0 FROM openai_backends;
INSERT INTO backend_profiles (name, description, allowed_models, user_header, claim_rules, open_to_groups)
SELECT $1, $1, ARRAY[$1], $1, jsonb_build_array(jsonb_build_object('issuer', t, 'claim', t, 'pattern', t)), ARRAY[$1]
FROM left($1, 300) AS t;
INSERT INTO people (issuer, subject, name, email, groups) VALUES ($1, $1, $1, $1, ARRAY[$1]);
INSERT INTO profile_backends SELECT p.id, b.id, 0 FROM backend_profiles AS p, openai_backends AS b;
INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, revoked_at, revoked_by, person_id)
SELECT $1, $1, 'a digest', $1, p.id, now(), $1, o.id FROM backend_profiles AS p, people AS o;
INSERT INTO access_tokens (name, digest, preview, role, created_by) VALUES ($1, 'a digest', $1, 'viewer', $1);
INSERT INTO browser_sessions (digest, name, email, role, person_id, address)
SELECT encode(sha256(convert_to($2, 'UTF8')), 'hex'), $1, $1, 'admin', id, $1 FROM people;
INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens,
    completion_tokens)
SELECT date_trunc('hour', now()), k.id, k.profile_id, b.id, $1, $1, 1, 1, 1 FROM api_keys AS k, openai_backends AS b;
INSERT INTO audit_log (actor, actor_kind, how, source, request_id, action, object_kind, object_id, changed, before,
    after)
VALUES ($1, 'token', 'api', $1, $1, 'change', 'key', $1, ARRAY[$1], jsonb_build_object($1, $1),
    jsonb_build_object($1, $1))
"""


@pytest.fixture
async def ids(client: httpx.AsyncClient, database: asyncpg.Connection) -> Mapping[str, str]:
    """An installation in which every name is hostile and long; the ids of its objects."""
    for statement in _FILL.split(";\n"):
        await database.execute(
            statement, *[value for name, value in (("$1", LONG), ("$2", SESSION)) if name in statement]
        )
    tables = {"backend": "openai_backends", "profile": "backend_profiles", "key": "api_keys"}
    return {f"{name}_id": str(await database.fetchval(f"SELECT id FROM {table}")) for name, table in tables.items()}


@pytest.fixture
async def person(client: httpx.AsyncClient, ids: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """An administrator of the identity provider, whose name, address and groups are hostile, too."""
    transport: Any = client._transport
    async with client_of(transport.app, token=None) as browser:
        browser.headers["cookie"] = f"__Host-gasket={SESSION}"
        yield browser


@pytest.fixture
async def hostile_replica(api_database_url: str) -> AsyncIterator[None]:
    """A program that says it is a replica, of a release and on a host whose names are hostile."""
    connection = await asyncpg.connect(
        api_database_url, timeout=10, server_settings={"application_name": f"gasket-ready <b>{MARK} <i>{MARK}\u202e:1"}
    )
    yield
    await connection.close(timeout=10)


async def test_hostile_names_stay_names_on_every_page(
    person: httpx.AsyncClient, ids: Mapping[str, str], hostile_replica: None
) -> None:
    seen = set()
    for path in PATHS:
        answer = await person.get(path.format(**ids))
        assert answer.status_code == 200, path
        assert len(answer.content) <= MOST, path
        page = Page(answer.text)
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")], (path, tag, attributes)
            assert tag != "script" or (attributes["src"] or "").startswith("/ui/static/"), (path, attributes)
            assert tag not in ("b", "i"), path
            assert tag != "img" or (attributes["src"] or "").startswith("/ui/static/"), (path, attributes)
        for around, text in page.texts:
            if MARK in text:
                assert set(around) & set(_ISOLATING), (path, around, text[:100])
                seen |= {path} if "main" in around else set()
    assert [path for path in PATHS if path not in seen] == WITHOUT_NAMES


async def test_hostile_names_are_no_formulas_in_files(client: httpx.AsyncClient, ids: Mapping[str, str]) -> None:
    for by in ("key", "user", "profile", "model", "backend"):
        rows = list(csv.reader(io.StringIO((await client.get(f"/ui/usage.csv?by={by}")).text)))
        assert any(MARK in cell for row in rows for cell in row), by
        assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))], by
