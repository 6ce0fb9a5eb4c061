"""Answers that are HTTP, but not as most servers write it; and connections that serve more than one request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant
from tests.acceptance.upstream import Answer, End, Step, answer, chunked, json_answer
from tests.tls import certificate, context_of

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "body"),
    [
        ((CHUNKED + b"2;a=b\r\n{}\r\n0;c\r\n\r\n",), b"{}"),
        ((CHUNKED + b"00002\r\n{}\r\n000\r\n\r\n",), b"{}"),
        ((CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n",), b"0123456789"),
        ((OK + b"TRANSFER-encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",), b"{}"),
        ((OK + b"content-LENGTH:2\r\n\r\n{}",), b"{}"),
        ((OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",), None),
        ((b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.1 200 \xc3\x84 reason\r\nContent-Length: 2\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), b""),
        ((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", End.FIN), b"{}"),
        ((b"HTTP/1.1 200 OK\r\n\r\n{}", End.FIN), b"{}"),
    ],
)
async def test_unusual_and_legal(tenant: Tenant, script: Answer, body: bytes | None) -> None:
    """Where `body` is None it may be refused as well; either way the next request gets its own answer."""
    tenant.upstream.plays(script, answer(b'"next"'))
    got = await tenant.ask()
    assert got.whole
    if body is not None:
        assert (got.status, got.body) == (200, body)
    assert (await tenant.ask()).body == b'"next"'


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
async def test_two_framings_never_become_two_answers(tenant: Tenant, head: bytes) -> None:
    """RFC 9112, 6.3: Transfer-Encoding counts, or it is an error; the connection is not used again."""
    smuggled = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"smuggled"'
    tenant.upstream.plays((head + smuggled,), answer(b'"next"'))
    got = await tenant.ask()
    assert (got.status, got.body) == (200, b"{}") or got.error == (502, "upstream_failed")
    assert (got.status != 200) or got.all("content-length") == [] or got.one("content-length") == "2"
    assert (await tenant.ask()).body == b'"next"'


@pytest.mark.parametrize(
    "script",
    [
        (OK + b"Content-Length: x\r\n\r\n{}",),
        (OK + b"Content-Length: -2\r\n\r\n{}",),
        (OK + b"No colon\r\nContent-Length: 2\r\n\r\n{}",),
        (OK + b"X: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",),
        (OK + b"X: \0\r\nContent-Length: 2\r\n\r\n{}",),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", End.NEVER),
        (b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}",),
        (b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\n{}",),
        (b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\n{}",),
        (b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\n{}",),
    ],
)
async def test_what_is_not_http_is_502_at_once(tenant: Tenant, script: Answer) -> None:
    tenant.upstream.plays(script, answer(b'"next"'))
    async with asyncio.timeout(20):
        got = await tenant.ask()
    assert got.error == (502, "upstream_failed")
    assert (await tenant.ask()).body == b'"next"'


@pytest.mark.parametrize(
    "script",
    [
        (CHUNKED + b"2\r\n{}\r\nxyz\r\n{}\r\n0\r\n\r\n",),
        (CHUNKED + b"2\r\n{}\r\n-1\r\n",),
        (CHUNKED + b"2\r\n{}\r\nFFFFFFFFFFFFFFFFFF\r\n",),
        (CHUNKED + b"2\r\n{}XX",),
    ],
)
async def test_chunks_that_are_none_break_the_answer_off(tenant: Tenant, script: Answer) -> None:
    tenant.upstream.plays(script, answer(b'"next"'))
    async with asyncio.timeout(20):
        got = await tenant.ask()
    if got.status == 200:
        assert not got.whole
        assert b"{}".startswith(got.body)
    else:
        assert got.error == (502, "upstream_failed")
    assert (await tenant.ask()).body == b'"next"'


async def test_a_head_may_come_byte_by_byte(tenant: Tenant) -> None:
    [whole] = json_answer({"x": 1}, headers=[("ETag", "yes")])
    assert isinstance(whole, bytes)
    steps: list[Step] = [whole[number : number + 1] for number in range(len(whole))]
    tenant.upstream.plays(tuple(steps))
    got = await tenant.ask()
    assert (got.json, got.one("etag")) == ({"x": 1}, "yes")


async def test_a_head_does_not_wait_for_a_body_that_is_late(tenant: Tenant) -> None:
    tenant.upstream.plays((OK + b"Content-Length: 5\r\n\r\n", End.NEVER))
    async with tenant.wire() as wire:
        await wire.send(tenant.request())
        assert (await wire.head(within=10)).one("content-length") == "5"


async def test_a_head_request_has_no_body_and_leaves_the_connection_in_step(gateway: Gateway) -> None:
    tenant = await gateway.tenant(allow_stateful_endpoints=True)
    tenant.upstream.plays((OK + b"Content-Length: 500\r\n\r\n",), answer(b'"next"'))
    async with tenant.wire() as wire:
        await wire.send(tenant.request("/v1/files/file-1/content", None, method="HEAD"))
        got = await wire.head()
        assert got.status == 200
        await wire.send(tenant.request("/v1/files", None))
        assert (await wire.answer()).body == b'"next"'


async def test_an_answer_that_comes_before_the_request_was_read_counts(tenant: Tenant) -> None:
    """An upstream that refuses a large body does not read it first: its answer must not drown in a broken pipe."""
    refused = json_answer({"error": {"message": "too large", "type": "x", "param": None, "code": "early"}}, status=413)
    tenant.upstream.early = (*refused, 0.2, End.FIN)
    got = await tenant.ask(body={**HELLO, "pad": "x" * 900_000})
    assert got.error == (413, "early")


async def test_connections_are_kept_and_used_again(tenant: Tenant) -> None:
    tenant.upstream.plays(answer(b"{}"), chunked(b"{", b"}"), answer(b"{}", status=404), answer(b"{}"))
    for _ in range(8):
        await tenant.ask()
    assert len(tenant.upstream.requests) == 8
    asked_for_models = 1
    assert tenant.upstream.connections <= 1 + asked_for_models


async def test_a_connection_serves_one_request_at_a_time(tenant: Tenant) -> None:
    go_on = asyncio.Event()
    tenant.upstream.plays((go_on, *answer(b"{}")))
    asking = [asyncio.create_task(tenant.ask()) for _ in range(10)]
    await tenant.upstream.asked(10)
    go_on.set()
    assert {(await task).body for task in asking} == {b"{}"}


async def test_a_certificate_has_to_be_trusted_unless_the_backend_says_otherwise(
    gateway: Gateway, tmp_path: Path
) -> None:
    context = context_of(certificate(tmp_path))
    strict = await gateway.tenant({"tls": context})
    lenient = await gateway.tenant({"tls": context}, backend={"skip_tls_verify": True})
    for _ in range(2):
        got = await strict.ask()
        assert got.error in ((502, "upstream_unreachable"), (502, "upstream_failed"))
        await gateway.replica.says("certificate")
        assert (await lenient.ask()).status == 200
    assert strict.upstream.requests == []
    streamed = chunked(*[b"x" * 5000] * 200)
    lenient.upstream.plays(streamed, (OK + b"Content-Length: 10\r\n\r\n12345", End.FIN))
    assert (await lenient.ask()).body == b"x" * 1_000_000
    assert not (await lenient.ask()).whole


async def test_https_where_http_is_spoken_is_said_so(gateway: Gateway, tmp_path: Path) -> None:
    wrong = await gateway.tenant_of([], [gateway.replica.base_url.replace("http:", "https:")])
    got = await wrong.ask()
    assert got.error in ((502, "upstream_unreachable"), (502, "upstream_failed"))
    await gateway.replica.says("TLS")
    secret = await gateway.tenant({"tls": context_of(certificate(tmp_path))}, backend={"skip_tls_verify": True})
    wrong = await gateway.tenant_of([], [secret.upstream.origin.replace("https:", "http:")])
    assert (await wrong.ask()).error == (502, "upstream_failed")
