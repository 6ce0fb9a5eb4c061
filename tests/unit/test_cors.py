from __future__ import annotations

from typing import Any

import pytest

from gasket.app import create_app
from gasket.cors import CorsOrigins
from gasket.settings import read_settings
from tests.unit.test_server import ENVIRONMENT

PAGE = b"https://chat.example"
PREFLIGHT = [
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang"),
]


async def ask(origins: str, method: str, path: str, *fields: tuple[bytes, bytes]) -> tuple[int, list[Any]]:
    """What the whole application answers to a request without a key."""
    application = create_app(read_settings({**ENVIRONMENT, "GASKET_CORS_ORIGINS": origins}))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("gasket", 80),
        "client": ("127.0.0.1", 1),
        "headers": list(fields),
    }
    await application(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"]


def of(fields: list[Any], name: bytes) -> list[bytes]:
    return [value for field, value in fields if field == name]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/keys"])
@pytest.mark.parametrize(("origins", "allowed"), [("https://chat.example", PAGE), ("*", b"*")])
async def test_a_preflight_needs_no_key(origins: str, allowed: bytes, path: str) -> None:
    status, fields = await ask(origins, "OPTIONS", path, (b"origin", PAGE), *PREFLIGHT)
    assert status == 204
    assert of(fields, b"access-control-allow-origin") == [allowed]
    assert of(fields, b"access-control-allow-headers") == [PREFLIGHT[1][1]]
    [methods] = of(fields, b"access-control-allow-methods")
    assert {b"GET", b"POST", b"PATCH", b"DELETE"} <= set(methods.split(b", "))
    assert of(fields, b"vary") == ([] if allowed == b"*" else [b"origin"])
    assert of(fields, b"access-control-allow-credentials") == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/keys"])
async def test_an_error_can_be_read_too(path: str) -> None:
    method = "POST" if path.startswith("/v1") else "GET"
    status, fields = await ask("http://a, https://chat.example/", method, path, (b"origin", PAGE))
    assert status == 401
    assert of(fields, b"access-control-allow-origin") == [PAGE]
    [shown] = of(fields, b"access-control-expose-headers")
    assert {b"x-request-id", b"x-should-retry", b"*"} <= set(shown.split(b", "))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/keys"])
@pytest.mark.parametrize(
    "origin", [b"https://chat.example.evil", b"http://chat.example", b"https://chat.example:8443", b"null", b""]
)
@pytest.mark.parametrize("preflight", [True, False])
async def test_another_origin_gets_nothing_of_it(origin: bytes, path: str, preflight: bool) -> None:
    method = "OPTIONS" if preflight else "GET"
    fields = [(b"origin", origin), *(PREFLIGHT if preflight else [])]
    status, got = await ask("https://chat.example", method, path, *fields)
    assert status in (401, 405)
    assert of(got, b"access-control-allow-origin") == []
    assert b"origin" in of(got, b"vary")


@pytest.mark.parametrize("fields", [[(b"origin", PAGE)], PREFLIGHT], ids=["no method asked for", "no origin"])
async def test_options_of_another_kind_are_no_preflight(fields: list[tuple[bytes, bytes]]) -> None:
    status, _ = await ask("*", "OPTIONS", "/v1/chat/completions", *fields)
    assert status == 401


async def test_a_header_that_is_none_is_not_echoed() -> None:
    evil = (b"access-control-request-headers", b"a\r\nset-cookie: b")
    status, fields = await ask("*", "OPTIONS", "/v1/models", (b"origin", PAGE), PREFLIGHT[0], evil)
    assert (status, of(fields, b"access-control-allow-headers")) == (204, [])


async def test_without_the_setting_and_elsewhere_there_is_none() -> None:
    for origins, path in (("", "/v1/models"), ("*", "/health")):
        _, fields = await ask(origins, "GET", path, (b"origin", PAGE))
        assert of(fields, b"access-control-allow-origin") == []


@pytest.mark.parametrize("origin", ["https://a/b", "a", "null", "https://", "https://a b", "https://*.a"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="in entry 2"):
        CorsOrigins.parse(f"*, {origin}")


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://chat.example:443", b"https://chat.example"),
        ("http://[::1]:80", b"http://[::1]"),
        ("http://chat.example:443", b"http://chat.example:443"),
    ],
)
def test_a_port_that_the_scheme_implies_is_one_that_browsers_leave_out(entry: str, origin: bytes) -> None:
    assert CorsOrigins.parse(entry).origins == {origin}
