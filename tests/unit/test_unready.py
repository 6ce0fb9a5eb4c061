"""What is answered before a replica is ready, in the shape of each API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from gasket.migrator.starting import BlockingSession, StartReport
from gasket.server.connections import Connections
from gasket.startup import Gasket
from gasket.ui.assets import address_of
from gasket.unready import Unready


async def look() -> StartReport:
    return StartReport(
        state="migrating",
        detail="applying <b>revision</b> 2 of 3, for 3 s",
        revision="3c9e58d1a7f4",
        description="a <i>title",
        number=2,
        total=3,
        elapsed=3.0,
        percent=41.6,
    )


async def look_at_a_blocked_one() -> StartReport:
    blocker = BlockingSession(7, "psql", "api_keys", 4.0)
    return msgspec.structs.replace(await look(), blockers=[blocker])


async def ask(application: Any, path: str, *fields: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, fields and body of an answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": list(fields)}
    await application(scope, None, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


@pytest.mark.parametrize("path", ["/v1", "/v1/chat/completions", "/chat/completions", "/v1/v1/models"])
async def test_openai_clients_get_their_error(path: str) -> None:
    status, fields, body = await ask(Unready(look), path)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (503, "migrating", "server_error")
    assert int(fields[b"retry-after"]) > 0
    assert fields[b"x-request-id"]
    assert "revision" not in error["message"]  # a key holder is told no more


async def test_probes_get_how_far_the_start_is() -> None:
    status, fields, body = await ask(Unready(look), "/health/ready")
    assert (status, fields[b"content-type"]) == (503, b"application/json")
    assert int(fields[b"retry-after"]) > 0
    answer = json.loads(body)
    assert (answer["ready"], answer["state"], answer["percent"], answer["eta"]) == (False, "migrating", 41.6, None)
    assert answer["blockers"] == []


async def test_anthropics_clients_get_theirs() -> None:
    _, _, body = await ask(Unready(look), "/v1/messages")
    assert json.loads(body)["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("path", ["/api/keys", "/", "/schema", "/nowhere"])
async def test_programs_get_a_problem(path: str) -> None:
    status, fields, body = await ask(Unready(look), path)
    assert (status, fields[b"content-type"]) == (503, b"application/problem+json")
    assert json.loads(body)["type"] == "urn:gasket:problem:schema-not-ready"


@pytest.mark.parametrize("path", ["/", "/schema"])
async def test_browsers_get_a_page_that_says_it_and_asks_again(path: str) -> None:
    status, fields, body = await ask(
        Unready(look_at_a_blocked_one), path, (b"accept", b"text/html,application/xml;q=0.9")
    )
    page = body.decode()
    assert (status, fields[b"content-type"]) == (503, b"text/html; charset=utf-8")
    assert "applying &lt;b&gt;revision&lt;/b&gt; 2 of 3, for 3 s" in page
    assert '<progress max="100" aria-label="How far it is" value="42">' in page
    assert '<meta http-equiv="refresh" content="2">' in page
    assert b"default-src 'self';" in fields[b"content-security-policy"]
    assert "2 of 3" in page
    assert "<bdi>a &lt;i&gt;title</bdi>" in page
    assert "held by <bdi>psql</bdi> (pid 7)" in page
    for inline in ("<script>", "<style", "style=", "onload"):
        assert inline not in page


async def test_the_application_serves_once_its_start_is_complete() -> None:
    app = Gasket(logging_config=None, openapi_config=None)
    app.connections, app.unready, app.starting = Connections(), Unready(look), True

    async def passed_on(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.gateway = passed_on
    assert (await ask(app, "/v1/models"))[0] == 503
    said: asyncio.Queue[Any] = asyncio.Queue()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    await heard.put({"type": "lifespan.startup"})
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    life = asyncio.create_task(app(scope, heard.get, said.put))
    assert await asyncio.wait_for(said.get(), 5) == {"type": "lifespan.startup.complete"}
    assert (await ask(app, "/v1/models"))[0] == 200
    await heard.put({"type": "lifespan.shutdown"})
    await life


async def test_the_stylesheet_is_there_while_it_starts() -> None:
    app = Gasket(logging_config=None, openapi_config=None)
    app.connections, app.unready, app.starting = Connections(), Unready(look), True
    status, fields, body = await ask(app, address_of("gasket.css"))
    assert (status, fields[b"content-type"]) == (200, b"text/css; charset=utf-8")
    assert b"immutable" in fields[b"cache-control"]
    assert body
    assert (await ask(app, "/ui/static/0/gasket.css"))[1][b"cache-control"] == b"no-store"
    assert (await ask(app, "/ui/static/0/../__init__.py"))[0] == 404
    assert (await ask(app, "/ui"))[0] == 503
