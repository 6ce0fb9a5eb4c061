"""Requests that could mean two things, are too large, too slow or packed: refused, and nobody upstream is asked."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from tests.acceptance.gateway import CHAT, HELLO, Gateway, Tenant, exchange, request
from tests.acceptance.http11 import compose
from tests.acceptance.processes import until

LIMIT = 1_000_000
"""What the shared replica has as GASKET_MAX_BODY_SIZE."""
BODY = json.dumps(HELLO).encode()
CHUNKED = ("Transfer-Encoding", "chunked")


async def refused(tenant: Tenant, data: bytes, *codes: str) -> None:
    """The request is refused with one of these codes, or any other with 400; the upstream hears nothing."""
    got = await exchange(tenant.replica, data)
    if codes:
        assert got.error[1] in codes, got
    else:
        assert got.error[0] == 400, got
    assert tenant.upstream.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", str(len(BODY))), CHUNKED],
        [CHUNKED, ("Content-Length", str(len(BODY)))],
        [("Content-Length", "0"), CHUNKED],
    ],
)
async def test_two_framings_are_refused(tenant: Tenant, headers: list[tuple[str, str]]) -> None:
    """RFC 9112, 6.3: the two could be read differently by whoever is next (request smuggling)."""
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    await refused(tenant, tenant.request(body=data, headers=headers), "invalid_headers")


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Content-Length", str(len(BODY))), ("Content-Length", str(len(BODY)))],
        [("Content-Length", "9" * 25)],
        [("Content-Length", "-1")],
        [("Content-Length", "+5")],
        [("Content-Length", "0x10")],
        [("Transfer-Encoding", "chunked, identity")],
        [("Transfer-Encoding", "xchunked")],
        [("Content-Length ", "5")],
    ],
)
async def test_a_length_that_is_none_is_refused(tenant: Tenant, headers: list[tuple[str, str]]) -> None:
    host = [("Host", "gasket.test"), ("Authorization", f"Bearer {tenant.key}")]
    await refused(tenant, compose(f"POST {CHAT} HTTP/1.1", [*host, *headers], BODY), "invalid_headers")


AMBIGUOUS = [
    *["/v1/../api/backends", "/v1/%2e%2e/api/backends", "/v1/..", "/v1//chat/completions"],
    *["/v1/chat/../chat/completions", "/v1/chat/./completions", "/v1/chat/%2E%2E/chat/completions"],
    *["/v1/chat%2fcompletions", "/v1/chat%2Fcompletions", "/v1/chat%5ccompletions", "/v1/chat\\completions"],
    *["/v1/chat//completions", "/v1/chat/completions%00", "/v1/chat/completions%0d%0aX:%20y"],
]


async def test_a_path_that_could_mean_two_things_is_refused(tenant: Tenant) -> None:
    for path in AMBIGUOUS:
        got = await exchange(tenant.replica, tenant.request(path))
        assert got.error == (400, "invalid_path"), (path, got)
    got = await exchange(tenant.replica, tenant.request("/v1/chat/%252e%252e/completions"))
    assert got.error == (403, "endpoint_not_allowed"), "decoded once it has no dots"
    assert tenant.upstream.requests == []


async def test_an_absolute_uri_leads_nowhere_else(tenant: Tenant) -> None:
    """RFC 9112, 3.2.2: a server has to take it; what host it names decides nothing."""
    for target in (f"http://127.0.0.1:9{CHAT}", "http://127.0.0.1:9/v1/../api/backends"):
        got = await exchange(tenant.replica, tenant.request(target))
        assert got.status in (200, 400, 404), got
        assert got.status == 200 or got.json
    for seen in tenant.upstream.requests:
        assert seen.target == CHAT
        assert seen.message.one("host") == tenant.upstream.origin.removeprefix("http://")


async def test_the_query_goes_up_as_it_is(tenant: Tenant) -> None:
    query = "?api-version=1&x=%2F..%2F&y=a+b&z=%C3%B6&empty="
    assert (await tenant.ask(CHAT + query)).status == 200
    assert (await tenant.upstream.asked()).target == CHAT + query


async def test_connect_and_trace_are_not_for_a_gateway(tenant: Tenant) -> None:
    for method, target in (("CONNECT", "127.0.0.1:9"), ("TRACE", CHAT)):
        got = await exchange(tenant.replica, tenant.request(target, None, method=method))
        assert got.status >= 400, got
    assert tenant.upstream.requests == []


async def test_an_upgrade_is_not_made(tenant: Tenant) -> None:
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    key = [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
    got = await exchange(tenant.replica, tenant.request("/v1/realtime", None, headers=[*upgrade, *key]))
    assert got.error == (426, "websocket_not_supported")
    assert tenant.upstream.requests == []


async def test_a_client_that_would_rather_speak_http_2_is_answered(tenant: Tenant) -> None:
    """Java's HttpClient asks so on each new connection without TLS."""
    settings = ("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")
    upgrade = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), settings]
    async with tenant.wire() as wire:
        for count in (1, 2):
            await wire.send(tenant.request(headers=upgrade))
            assert (await wire.answer()).status == 200
            sent = (await tenant.upstream.asked(count)).message
            assert sent.body == BODY
            assert sent.all("http2-settings") == sent.all("upgrade") == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("together", [False, True], ids=["two segments", "one segment"])
async def test_the_body_of_a_request_that_asks_for_an_upgrade_is_no_request(
    tenant: Tenant, chunked: bool, together: bool
) -> None:
    """httptools stops parsing at such a head; what follows is still its body, and never goes anywhere by itself."""
    inner = tenant.request("/v1/embeddings", {"model": "model-b", "input": "smuggled"})
    framing = CHUNKED if chunked else ("Content-Length", str(len(inner)))
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner) if chunked else inner
    host = [("Host", "gasket.test"), ("Connection", "upgrade"), ("Upgrade", "foo"), framing]
    authorization = ("Authorization", f"Bearer {tenant.key}")
    for start, fields in (
        (f"POST {CHAT} HTTP/1.1", [*host, authorization, ("Content-Type", "application/json")]),
        ("GET /health HTTP/1.1", host),
    ):
        head = compose(start, fields)
        async with tenant.wire() as wire:
            unasked = "health" in start and not together
            await wire.send(head + body if together else head)
            if unasked:
                got = await wire.answer()
                await wire.send(body)
            else:
                await asyncio.sleep(0.05)
                await wire.send(b"" if together else body)
                got = await wire.answer()
            assert got.status == (200 if "health" in start else 400)
            await wire.send(compose("GET /health HTTP/1.1", [("Host", "gasket.test"), ("Connection", "close")]))
            rest = await wire.ended()
            if unasked:  # nobody waits for its body: it is answered, and nothing more is read
                assert (got.one("connection"), rest) == ("close", b"")
                continue
            assert rest.count(b"HTTP/1.1 ") == 1, rest
            assert rest.endswith(b'{"status":"up"}')
    assert tenant.upstream.requests == []


async def test_a_head_that_is_too_large_is_431(gateway: Gateway, tenant: Tenant) -> None:
    """Before there was a limit, 150 MB of it were taken into memory, without a key."""
    before = gateway.memory
    async with tenant.wire() as wire:
        with suppress(ConnectionError):
            await wire.send(compose(f"POST {CHAT} HTTP/1.1", [("Host", "gasket.test")])[:-2])
            for number in range(300):
                await wire.send(b"X-%d: %b\r\n" % (number, b"a" * 100_000))
        assert (await wire.answer()).error == (431, "headers_too_large")
    assert gateway.memory - before < 20


async def test_a_body_of_the_largest_size_goes_through(tenant: Tenant) -> None:
    body = b'{"model": "model-a", "x": "' + b"x" * (LIMIT - 29) + b'"}'
    assert len(body) == LIMIT
    assert (await tenant.ask(body=body)).status == 200
    await refused_for_its_size(tenant, tenant.request(body=body + b" "))


async def test_a_length_above_the_limit_is_refused_before_the_body_comes(tenant: Tenant) -> None:
    await refused_for_its_size(tenant, tenant.request(body=b"", headers=[("Content-Length", str(LIMIT + 1))]))
    await refused_for_its_size(tenant, tenant.request(body=b"", headers=[("Content-Length", "9" * 18)]))


async def test_chunks_are_counted_as_they_come(tenant: Tenant) -> None:
    """They never end; the answer comes as soon as there are too many."""
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=b"", headers=[CHUNKED]))

        async def pour() -> None:
            while True:
                await wire.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await asyncio.sleep(0)  # the answer is read before the server has discarded as much as it will

        pouring = asyncio.create_task(pour())
        got = await wire.answer()
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
    assert got.error == (413, "request_too_large")
    assert tenant.upstream.requests == []


async def refused_for_its_size(tenant: Tenant, data: bytes) -> None:
    """413; and the rest of the body is not taken for the next request."""
    before = len(tenant.upstream.requests)
    async with tenant.wire() as wire:
        await wire.send(data)
        assert (await wire.answer()).error == (413, "request_too_large")
    assert len(tenant.upstream.requests) == before


async def test_a_client_that_waits_for_100_gets_it_or_the_refusal(tenant: Tenant) -> None:
    expect = ("Expect", "100-continue")
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=b"", headers=[("Content-Length", str(len(BODY))), expect]))
        assert (await wire.head()).status == 100
        await wire.send(BODY)
        assert (await wire.answer()).status == 200
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=b"", headers=[("Content-Length", str(LIMIT + 1)), expect]))
        assert (await wire.head()).status == 413


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_a_compressed_body_is_415(tenant: Tenant, encoding: str) -> None:
    """Nobody could look for the model in it, or know how large it becomes."""
    await refused(
        tenant, tenant.request(body=b"\x1f\x8b", headers=[("Content-Encoding", encoding)]), "unsupported_encoding"
    )


async def test_identity_is_no_compression(tenant: Tenant) -> None:
    assert (await tenant.ask(headers=[("Content-Encoding", "identity")])).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": "model-a"} x', "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"model": 5}', "invalid_body"),
        (b'{"model": "model-a", "stream": "yes"}', "invalid_body"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b"[" * 100_000, None),
    ],
)
async def test_a_body_that_is_not_json_is_400(tenant: Tenant, body: bytes, code: str | None) -> None:
    await refused(tenant, tenant.request(body=body), *([code] if code else []))


async def test_of_pipelined_requests_the_first_is_answered(tenant: Tenant) -> None:
    """RFC 9112, 9.3.2: a client that pipelines has to send again what the end of the connection left unanswered."""
    async with tenant.wire() as wire:
        await wire.send(tenant.request() * 5)
        got = await wire.answer()
        assert (got.status, got.one("connection")) == (200, "close")
        assert await wire.ended() == b""
    assert len(tenant.upstream.requests) == 1


@pytest.mark.soak
async def test_a_body_that_stops_coming_is_408(tenant: Tenant) -> None:
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=BODY[:-5], headers=[("Content-Length", str(len(BODY)))]))
        assert (await wire.answer(within=40)).error == (408, "request_timeout")


@pytest.mark.soak
@pytest.mark.timeout(400)
async def test_a_body_that_drips_is_408(tenant: Tenant) -> None:
    """A byte every ten seconds keeps each wait short, and the whole within no time."""
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=b"", headers=[("Content-Length", str(len(BODY)))]))
        answering = asyncio.create_task(wire.answer(within=330))

        async def answered() -> bool:
            await wire.send(b"{")
            await asyncio.wait({answering}, timeout=10)
            return answering.done()

        await until(answered, 330, "408")
        assert (await answering).error == (408, "request_timeout")


async def test_without_a_key_nothing_is_read(tenant: Tenant) -> None:
    """The key comes first: whoever has none cannot make us keep a body."""
    async with tenant.wire() as wire:
        await wire.send(request(None, headers=[("Content-Length", "900000")], body=b""))
        assert (await wire.answer(within=15)).error == (401, "missing_api_key")
