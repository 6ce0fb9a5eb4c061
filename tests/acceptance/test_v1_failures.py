"""What the client gets when the upstream misbehaves: exactly the bytes there were, and an end that says the truth."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant
from tests.acceptance.http11 import chunk, compose
from tests.acceptance.processes import free_port
from tests.acceptance.upstream import (
    DONE,
    Answer,
    End,
    answer,
    chunked,
    completion,
    delta,
    failure,
    json_answer,
    stream,
)

STREAMED = {**HELLO, "stream": True}
EVENTS = [delta("Hel"), delta("lo, "), delta("wörld"), DONE]
SSE = compose("HTTP/1.1 200 OK", [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    "script",
    [
        (End.FIN,),
        (End.RST,),
        (b"HTTP/1.1 200 OK\r\nContent-Le", End.FIN),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)), End.FIN),
        (b"SSH-2.0-OpenSSH_9.2\r\n", End.FIN),
        (b"HTTP/1.1 999999 No\r\n\r\n", End.FIN),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", End.FIN),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", End.FIN),
    ],
    ids=["closed", "reset", "half a header", "TLS", "SSH", "no status", "two lengths", "endless header"],
)
async def test_before_the_first_byte_it_is_502(tenant: Tenant, body: object, script: Answer) -> None:
    tenant.upstream.plays(script)
    got = await tenant.ask(body=body)
    assert got.error == (502, "upstream_failed")
    assert got.one("content-type") == "application/json"


async def test_a_port_where_nobody_listens_is_502(gateway: Gateway) -> None:
    gone = await gateway.tenant_of([], [f"http://127.0.0.1:{free_port()}"])
    assert (await gone.ask()).error == (502, "upstream_unreachable")


async def test_a_connection_that_nobody_accepts_is_502_in_time(gateway: Gateway) -> None:
    """A full backlog: as from a host that is gone, nothing comes back."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        tenant = await gateway.tenant_of([], [url], backend={"connect_timeout": 1})
        async with asyncio.timeout(20):
            got = await tenant.ask()
        for filler in fillers:
            filler.close()
    assert got.error == (502, "upstream_unreachable")
    assert "connect_timeout" in (await tenant.line(got))["error"]


async def test_an_upstream_that_never_answers_is_504(gateway: Gateway) -> None:
    tenant = await gateway.tenant(backend={"first_byte_timeout": 1})
    tenant.upstream.plays((End.NEVER,))
    assert (await tenant.ask()).error == (504, "upstream_timeout")
    await tenant.upstream.requests[0].left()


@pytest.mark.parametrize("end", [End.FIN, End.RST])
async def test_in_the_middle_of_a_stream_it_is_an_event_and_the_end(tenant: Tenant, end: End) -> None:
    tenant.upstream.plays(stream(*EVENTS[:2], end, whole=False))
    got = await tenant.ask(body=STREAMED)
    assert (got.status, got.whole) == (200, True)
    assert got.body.startswith(b"".join(EVENTS[:2]))
    assert b"[DONE]" not in got.body
    assert got.last_error["code"] == "upstream_failed"


async def test_an_error_event_never_grows_together_with_half_an_event(tenant: Tenant) -> None:
    tenant.upstream.plays(stream(EVENTS[0], delta("lo, ")[:-20], End.FIN, whole=False))
    got = await tenant.ask(body=STREAMED)
    assert (got.whole, got.last_error["code"]) == (True, "upstream_failed")
    assert got.body[: got.body.rindex(b'data: {"error"')] == EVENTS[0]


async def test_a_stream_cut_in_an_event_that_has_gone_out_in_part_breaks_off(tenant: Tenant) -> None:
    """Whatever came behind the half event, a client would take it, or both together, for a whole one."""
    half = delta("lo, " * 50_000)[:-20]
    tenant.upstream.plays(stream(EVENTS[0], half, End.FIN, whole=False))
    got = await tenant.ask(body=STREAMED)
    assert not got.whole
    assert got.body.startswith(EVENTS[0])
    assert (EVENTS[0] + half).startswith(got.body)
    assert (await tenant.line(got))["outcome"] == "upstream_failed"


@pytest.mark.parametrize("end", [DONE, DONE[:-1], DONE[:-2], b"data:[DONE]\r\n", b"data: [DO", b"data: {\n"])
async def test_a_stream_without_a_length_is_whole_if_it_ends_with_done(tenant: Tenant, end: bytes) -> None:
    """With or without the blank line behind it; `[DONE]` is what tells the end from a connection that broke."""
    head = compose("HTTP/1.1 200 OK", [("Content-Type", "text/event-stream"), ("Connection", "close")])
    tenant.upstream.plays((head + EVENTS[0] + end, End.FIN))
    got = await tenant.ask(body=STREAMED)
    if b"[DONE]" in end:
        assert (got.body, got.whole) == (EVENTS[0] + end, True)
    else:
        assert got.body.startswith(EVENTS[0] + b'data: {"error"')
        assert got.last_error["code"] == "upstream_failed"


async def test_a_stream_that_falls_silent_ends_with_an_event(gateway: Gateway) -> None:
    """Each pause is far from the limit, and all together are longer than it."""
    tenant = await gateway.tenant(backend={"chunk_timeout": 2})
    sent = [EVENTS[0], *[EVENTS[1]] * 4]
    tenant.upstream.plays(stream(*(step for event in sent for step in (event, 0.5)), End.NEVER))
    got = await tenant.ask(body=STREAMED)
    assert got.body.startswith(b"".join(sent))
    assert got.last_error["code"] == "upstream_timeout"
    await tenant.upstream.requests[0].left()


@pytest.mark.parametrize("end", [End.FIN, End.RST])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_in_the_middle_of_anything_else_the_connection_breaks_off(tenant: Tenant, end: End, framing: str) -> None:
    whole = json.dumps(completion("x" * 1000)).encode()
    [full] = json_answer(completion("x" * 1000))
    assert isinstance(full, bytes)
    tenant.upstream.plays((full[:-500], end) if framing == "length" else chunked(whole[:-500], end, whole=False))
    got = await tenant.ask()
    assert (got.status, got.whole) == (200, False)
    assert whole[:-500].startswith(got.body)


async def test_an_answer_without_a_length_ends_with_its_connection(tenant: Tenant) -> None:
    """HTTP/1.0 servers answer so; that it was whole nobody can know, and nobody could say otherwise."""
    tenant.upstream.plays((b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it", End.FIN))
    got = await tenant.ask()
    assert (got.status, got.body, got.whole) == (200, b"all of it", True)


async def test_pauses_are_no_failures_and_nothing_is_held_back(tenant: Tenant) -> None:
    steps = [asyncio.Event() for _ in EVENTS]
    script = [step for pair in zip(steps, EVENTS, strict=True) for step in pair]
    tenant.upstream.plays(stream(*script))
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=STREAMED))
        for number, (step, piece) in enumerate(zip(steps, EVENTS, strict=True)):
            step.set()
            if not number:
                head = await wire.head()
                assert head.one("content-type") == "text/event-stream; charset=utf-8"
                assert head.one("x-accel-buffering") == "no"
            async with asyncio.timeout(20):
                assert await wire.reader.readexactly(len(chunk(piece))) == chunk(piece)
        async with asyncio.timeout(20):
            assert await wire.reader.readexactly(5) == chunk(b"")


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_events_may_be_split_anywhere(tenant: Tenant, size: int) -> None:
    text = b": a comment\r\n\r\n" + b"".join(EVENTS)
    tenant.upstream.plays(stream(*(text[start : start + size] for start in range(0, len(text), size))))
    got = await tenant.ask(body=STREAMED)
    assert (got.body, got.whole) == (text, True)


async def test_an_answer_comes_through_whatever_its_status(tenant: Tenant) -> None:
    limits = [("retry-after", "7"), ("x-ratelimit-remaining-requests", "0"), ("x-request-id", "req-1")]
    for status in (400, 401, 429, 500, 502, 503, 504):
        tenant.upstream.plays(failure(status, headers=limits))
        got = await tenant.ask()
        assert (got.status, got.json["error"]["message"]) == (status, f"scripted {status}")
        assert [(name, got.one(name)) for name, _ in limits] == limits
        assert len(got.all("x-gasket-request-id")) == 1
        tenant.upstream.plays(answer(b"{}"))  # two in a row of those that count, and a backend is not set aside
        assert (await tenant.ask()).status == 200


async def test_what_comes_before_the_answer_is_skipped(tenant: Tenant) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    tenant.upstream.plays((early, *json_answer({"it": "is this one"})))
    got = await tenant.ask()
    assert (got.status, got.json, got.all("link")) == (200, {"it": "is this one"}, [])


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("length", [[], ["Content-Length: 5"]], ids=["", "with a length"])
async def test_answers_without_a_body(tenant: Tenant, status: int, length: list[str]) -> None:
    """304 may say how long the body would be, and some servers say so of 204 (RFC 9110, 8.6)."""
    head = "\r\n".join([f"HTTP/1.1 {status} Whatever", 'ETag: "a"', *length, "", ""])
    tenant.upstream.plays((head.encode(),))
    async with tenant.wire() as wire:
        for count in (1, 2):  # the connection is in step after the first
            await wire.send(tenant.request())
            got = await wire.answer()
            assert (got.status, got.one("etag")) == (status, '"a"')
            assert got.all("transfer-encoding") == got.all("content-length") == []
            assert (await tenant.line(got))["outcome"] == "ok"
            assert len(tenant.upstream.requests) == count


async def test_a_redirect_is_neither_handed_on_nor_followed(tenant: Tenant) -> None:
    tenant.upstream.plays(answer(status=307, headers=[("Location", "http://127.0.0.1:9/elsewhere")]))
    got = await tenant.ask()
    assert (got.status, got.json["error"]["code"], got.all("location")) == (502, "upstream_redirected", [])
    assert len(tenant.upstream.requests) == 1


async def test_compressed_bytes_are_decoded_or_a_failure(tenant: Tenant) -> None:
    """An upstream that compresses although it was asked not to."""
    packed = [("Content-Encoding", "gzip")]
    tenant.upstream.plays(answer(gzip.compress(b"{}"), headers=packed), answer(b"\x1f\x8b not really", headers=packed))
    got = await tenant.ask()
    assert (got.body, got.all("content-encoding"), got.whole) == (b"{}", [], True)
    assert (await tenant.ask()).error == (502, "upstream_failed")


async def test_bytes_after_the_answer_are_nobodys(tenant: Tenant) -> None:
    tenant.upstream.plays((*answer(b"{}"), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"), answer(b'"mine"'))
    assert (await tenant.ask()).body == b"{}"
    assert (await tenant.ask()).body == b'"mine"'


async def test_a_connection_that_died_while_idle_is_not_the_clients_concern(tenant: Tenant) -> None:
    """The upstream closes a kept connection just as the next request comes: it did not begin to answer it."""
    closing = asyncio.Event()
    tenant.upstream.plays((*answer(b"{}"), closing, End.RST), answer(b'"again"'))
    assert (await tenant.ask()).body == b"{}"
    closing.set()
    assert (await tenant.ask()).body == b'"again"'


async def test_a_request_that_comes_back_is_refused(gateway: Gateway) -> None:
    """A backend that leads back to the gateway, with a key of its own: one request is one loop, and no more."""
    inner = await gateway.tenant()
    outer = await gateway.tenant_of([], [f"{gateway.replica.base_url}/v1"], backend={"api_key": inner.key})
    got = await outer.ask()
    assert (got.status, got.json["error"]["code"]) == (508, "loop_detected")
    assert inner.upstream.requests == []
