"""Answers of any size, in pieces of any size, to readers of any speed: every byte, and no memory for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant
from tests.acceptance.upstream import Answer, answer, chunked, stream

MIB = 2**20
STREAMED = {**HELLO, "stream": True}
GROWTH = 16.0
"""MiB. Buffers of a connection are a fraction of it, and every answer below is a multiple."""


@asynccontextmanager
async def peak(gateway: Gateway) -> AsyncIterator[None]:
    """The replica may not grow by more than `GROWTH` while the block runs."""
    before, highest = gateway.memory, 0.0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, gateway.memory)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
    assert highest - before < GROWTH, f"{before:.0f} MiB before, {highest:.0f} at most"


def _large(kind: str) -> tuple[Answer, bytes]:
    """An answer of 50 MB, and the digest of its body."""
    block = bytes(range(256)) * 256
    blocks = [block] * (50_000_000 // len(block))
    digest = sha256(b"".join(blocks)).digest()
    match kind:
        case "length":
            [head] = answer(headers=[("Content-Type", "application/octet-stream")], length=False)
            assert isinstance(head, bytes)
            length = f"Content-Length: {len(block) * len(blocks)}\r\n\r\n".encode()
            return (head.removesuffix(b"\r\n") + length, *blocks), digest
        case "chunks":
            return chunked(*blocks), digest
        case _:
            return stream(*blocks), digest


@pytest.mark.parametrize("kind", ["length", "chunks", "stream"])
async def test_fifty_megabytes_come_through_and_leave_no_trace(gateway: Gateway, tenant: Tenant, kind: str) -> None:
    script, digest = _large(kind)
    tenant.upstream.plays(answer(b"{}"), script)
    await tenant.ask()
    async with peak(gateway):
        got = await tenant.ask(body=STREAMED if kind == "stream" else HELLO)
    assert got.whole
    assert sha256(got.body).digest() == digest
    assert got.all("content-length") == ([str(len(got.body))] if kind == "length" else [])


async def test_ten_thousand_tiny_chunks(gateway: Gateway, tenant: Tenant) -> None:
    pieces = [b"data: %d\n\n" % number for number in range(10_000)]
    tenant.upstream.plays(answer(b"{}"), stream(*pieces))
    await tenant.ask()
    async with peak(gateway):
        got = await tenant.ask(body=STREAMED)
    assert got.whole
    assert got.body == b"".join(pieces)


async def test_a_slow_reader_holds_the_upstream_back(gateway: Gateway, tenant: Tenant) -> None:
    """Three clients that read nothing: the upstream cannot get rid of its 50 MB, and nothing in between takes them."""
    script, digest = _large("stream")
    tenant.upstream.plays(script)
    async with peak(gateway), tenant.wire() as first, tenant.wire() as second, tenant.wire() as third:
        for wire in (first, second, third):
            await wire.send(tenant.request(body=STREAMED))
        await tenant.upstream.asked(3)
        assert max(await tenant.upstream.blocked()) < 25_000_000
        got = await first.answer()
    assert got.whole
    assert sha256(got.body).digest() == digest
    for seen in tenant.upstream.requests[1:]:
        await seen.left()  # that it is soon is shown where clients read


async def test_a_large_request_goes_up_whole(gateway: Gateway, tenant: Tenant) -> None:
    body = b'{"model": "model-a", "pad": "' + b"x" * 900_000 + b'"}'
    async with peak(gateway):
        for framed in ([], [("Transfer-Encoding", "chunked")]):
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if framed else body
            assert (await tenant.ask(body=data, headers=framed)).status == 200
    for seen in tenant.upstream.requests:
        assert seen.message.body == body
        assert seen.message.one("content-length") == str(len(body))
