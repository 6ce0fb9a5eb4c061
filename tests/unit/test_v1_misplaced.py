from __future__ import annotations

import pytest

from gasket.app import create_app
from gasket.proxy.misplaced import find_mistake
from gasket.settings import read_settings
from tests.unit.test_server import ENVIRONMENT, ask, serving

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/v1/v1/chat/completions", CHAT),
        ("/v1/v1/v1/chat/completions", CHAT),
        ("/v1//chat/completions", CHAT),
        ("//v1/chat/completions", CHAT),
        ("//v1//v1//chat///completions", CHAT),
        ("/chat/completions", CHAT),
        ("//chat/completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/models", "/v1/models"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/responses/r_1/cancel", "/v1/responses/r_1/cancel"),
        ("/v1//files", "/v1/files"),
        ("/v1/v1/whatever", None),
        ("/v1", None),
        ("/v1/", None),
        ("/v1/v1", None),
    ],
)
def test_a_url_that_is_nearly_right(path: str, right: str | None) -> None:
    said = find_mistake(path)
    assert said is not None
    assert "has to end in /v1, once" in said
    assert (f"use {right}." in said) if right else ("use" not in said)


@pytest.mark.parametrize(
    "path",
    [CHAT, "/v1/files/v1", "/v1/models/v1/x", "/", "/api/keys", "/api", "/health", "/v10/x", "/modelsx", "/schema"],
)
def test_others_are_none_of_these(path: str) -> None:
    assert find_mistake(path) is None


@pytest.mark.parametrize(
    "path", ["/v1/v1/chat/completions", "/v1//chat/completions", "//v1/chat/completions", "/chat/completions"]
)
async def test_a_client_is_told_which_url_to_use(path: str) -> None:
    async with serving(create_app(read_settings(ENVIRONMENT))) as served, served.connect() as client:
        await client.send(ask(f"POST {path} HTTP/1.1", [("Content-Length", "0"), ("X-Request-Id", "mine")]))
        got = await client.answer()
        assert got.error == ((400, "invalid_path") if path.startswith("/v1//") else (404, "unknown_url"))
        assert f"use {CHAT}." in got.json["error"]["message"]
        assert got.one("x-request-id") == "mine"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=m"])
async def test_a_websocket_is_told_to_use_http(path: str) -> None:
    handshake = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    async with serving(create_app(read_settings(ENVIRONMENT))) as served, served.connect() as client:
        await client.send(ask(f"GET {path} HTTP/1.1", handshake))
        got = await client.answer()
        assert got.error == (426, "websocket_not_supported")
        assert "use HTTP" in got.json["error"]["message"]
        assert got.one("upgrade") == "HTTP/1.1"
        assert got.one("connection") == "upgrade"
