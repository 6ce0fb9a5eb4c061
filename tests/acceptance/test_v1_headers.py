"""Header fields on both ways: RFC 9110, 7.6.1, and what docs/gateway.md says beyond it."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from tests.acceptance.gateway import Gateway, Tenant
from tests.acceptance.upstream import End, answer, chunked

HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5, max=100"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers, deflate;q=0.5"),
    ("Trailer", "X-Checksum"),
    ("Upgrade", "h2c, websocket"),
    ("Proxy-Authenticate", 'Basic realm="x"'),
    ("Proxy-Authorization", "Basic eDp5"),
]
NAMED = [("X-Hop", "1"), ("x-other-HOP", "2")]
CONNECTION = [("Connection", "X-Hop , x-absent"), ("connection", "X-OTHER-HOP")]
END_TO_END = [("X-Mine", "a"), ("X-Mine", "b"), ("OpenAI-Organization", "org-1"), ("Accept", "text/event-stream")]
OURS = {"host", "authorization", "content-length", "accept-encoding", "connection", "via"}


async def test_towards_the_upstream(tenant: Tenant) -> None:
    private = [
        ("Cookie", "session=secret"),
        ("Expect", "100-continue"),
        ("Forwarded", "for=192.0.2.1"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Host", "example.com"),
        ("X-Forwarded-Anything", "x"),
        ("X-Real-IP", "192.0.2.1"),
        ("X-OpenWebUI-User-Email", "ada@example.com"),
        ("CF-Connecting-IP", "192.0.2.1"),
    ]
    theirs = [("Accept-Encoding", "gzip, br"), ("User-Agent", "client/1"), ("Content-Type", "application/json")]
    got = await tenant.ask(headers=[*HOP_BY_HOP, *NAMED, *CONNECTION, *private, *theirs, *END_TO_END])
    assert got.status == 200
    sent = (await tenant.upstream.asked()).message
    names = {name.lower() for name, _ in sent.headers}
    assert not names & {name.lower() for name, _ in [*HOP_BY_HOP, *NAMED, *private]}
    assert sent.one("host") == tenant.upstream.origin.removeprefix("http://")
    assert sent.one("authorization") == "Bearer sk-upstream"
    assert sent.one("accept-encoding") == "identity"
    assert sent.one("content-length") == str(len(sent.body))
    assert sent.one("user-agent") == "client/1"
    assert sent.all("x-mine") == ["a", "b"]
    assert set(sent.all("connection")) <= {"keep-alive"}
    expected = {name.lower() for name, _ in [*theirs, *END_TO_END]} | OURS
    assert names <= expected | {"x-request-id"}, "added"
    assert expected - {"connection"} <= names, "lost"


async def test_a_backend_without_a_credential_gets_none(gateway: Gateway) -> None:
    tenant = await gateway.tenant(backend={"api_key": None})
    assert (await tenant.ask()).status == 200
    assert (await tenant.upstream.asked()).message.all("authorization") == []


@pytest.mark.parametrize("chunks", [False, True])
async def test_towards_the_client(tenant: Tenant, chunks: bool) -> None:
    private = [("Set-Cookie", "a=1; Path=/"), ("set-cookie", "b=2"), ("X-Accel-Redirect", "/secret"), ("X-Mine", "a")]
    kept = [
        *[("OpenAI-Note", "a"), ("OpenAI-Note", "b"), ("x-request-id", "req-1"), ("openai-processing-ms", "12")],
        *[("retry-after", "3"), ("x-ratelimit-limit-tokens", "10"), ("Content-Type", "application/json")],
        *[("Cache-Control", "no-store"), ("ETag", '"x"'), ("OpenAI-Latin", "caf\xe9")],
    ]
    fields = [*HOP_BY_HOP, *NAMED, *CONNECTION, *private, *kept]
    tenant.upstream.plays(chunked(b"{", b"}", headers=fields) if chunks else answer(b"{}", headers=fields))
    got = await tenant.ask()
    assert (got.status, got.body) == (200, b"{}")
    dropped = {name.lower() for name, _ in [*HOP_BY_HOP, *NAMED, *private]}
    assert not {name.lower() for name, _ in got.headers} & dropped
    lowered = [(name.lower(), value) for name, value in got.headers]
    for name, value in kept:
        assert (name.lower(), value) in lowered
    assert got.all("openai-note") == ["a", "b"]
    assert (got.all("content-length"), got.all("transfer-encoding")) == (([], ["chunked"]) if chunks else (["2"], []))
    assert len(got.all("date")) <= 1
    assert UUID(got.one("x-gasket-request-id")).version == 7


async def test_the_upstreams_wish_to_close_is_between_it_and_us(tenant: Tenant) -> None:
    """It leaves the closing to us; its connection is not used again, and the client's stays."""
    tenant.upstream.plays((*answer(b"{}", headers=[("Connection", "close")]), End.NEVER), answer(b"{}"))
    async with tenant.wire() as wire:
        for _ in range(2):
            await wire.send(tenant.request())
            got = await wire.answer()
            assert (got.status, got.all("connection")) == (200, [])
    await tenant.upstream.requests[0].left()


async def test_trailers_do_not_come_through(tenant: Tenant) -> None:
    *before, _ = chunked(b"{}", headers=[("Trailer", "X-Checksum")])
    tenant.upstream.plays((*before, b"0\r\nX-Checksum: 1\r\n\r\n"), answer(b'"next"'))
    got = await tenant.ask()
    assert (got.body, got.trailers, got.all("x-checksum"), got.whole) == (b"{}", [], [], True)
    assert (await tenant.ask()).body == b'"next"'


async def test_chunks_of_a_request_become_one_body(tenant: Tenant) -> None:
    data = b'A;x=y\r\n{"model": \r\n00a;z\r\n"model-a"}\r\n0;last\r\n\r\n'
    assert (await tenant.ask(body=data, headers=[("Transfer-Encoding", "chunked")])).status == 200
    sent = (await tenant.upstream.asked()).message
    assert (sent.body, sent.one("content-length")) == (b'{"model": "model-a"}', "20")


@pytest.mark.parametrize(
    ("trailer", "status"),
    [
        ("Authorization: Bearer gsk_other", 200),
        ("Content-Length: 5", 400),
        ("Content-Encoding: gzip", 200),
        ("X-Request-Id: other", 200),
        ("X-Mine: 1", 200),
    ],
)
async def test_a_trailer_does_nothing(tenant: Tenant, trailer: str, status: int) -> None:
    """A server may drop it (RFC 9110, 6.5.1); a length after the body is no HTTP."""
    data = b'14\r\n{"model": "model-a"}\r\n0\r\n' + trailer.encode() + b"\r\n\r\n"
    assert (await tenant.ask(body=data, headers=[("Transfer-Encoding", "chunked")])).status == status
    for seen in tenant.upstream.requests:
        assert seen.message.trailers == []
        assert trailer.partition(": ")[2] not in [value for _, value in seen.message.headers]


@pytest.mark.parametrize("given", ["req-42", "x" * 128, "a b/c=;~!"])
async def test_a_clients_request_id_goes_up_and_comes_back(tenant: Tenant, given: str) -> None:
    got = await tenant.ask(headers=[("X-Request-Id", given)])
    assert got.all("x-request-id") == [given]
    assert (await tenant.upstream.asked()).message.all("x-request-id") == [given]
    tenant.upstream.plays(answer(b"{}", headers=[("x-request-id", "theirs")]))
    assert (await tenant.ask(headers=[("X-Request-Id", given)])).all("x-request-id") == ["theirs"]


@pytest.mark.parametrize("given", ["x" * 129, "caf\xe9", "tab\there", ""])
async def test_one_that_is_too_long_or_not_printable_does_not(tenant: Tenant, given: str) -> None:
    got = await tenant.ask(headers=[("X-Request-Id", given)])
    assert (got.status, got.all("x-request-id")) == (200, [])
    assert (await tenant.upstream.asked()).message.all("x-request-id") == []


async def test_our_own_id_is_new_each_time_and_never_the_clients(tenant: Tenant) -> None:
    ours = [("X-Gasket-Request-Id", "018f0000-0000-7000-8000-000000000000")]
    ids = [(await tenant.ask(headers=ours)).one("x-gasket-request-id") for _ in range(3)]
    assert len({*ids, ours[0][1]}) == 4
    tenant.upstream.plays(answer(b"{}", headers=ours))
    assert (await tenant.ask()).one("x-gasket-request-id") != ours[0][1]


async def test_bytes_of_the_body_are_not_touched(tenant: Tenant) -> None:
    """Spaces, order, repeated and escaped names: a body that nothing had to be changed in is the client's own."""
    body = b' { "stream" : false,\n"model":"model\\u002da", "x": [1.0, 1e2], "x": "\\ud83d\\ude42" }\r\n'
    assert (await tenant.ask(body=body)).status == 200
    assert (await tenant.upstream.asked()).message.body == body
    assert json.loads(body)["model"] == "model-a"
