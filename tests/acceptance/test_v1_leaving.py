"""A client goes away. Whatever the upstream is doing for it then, it learns of it within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant
from tests.acceptance.http11 import compose, reset_when_closed
from tests.acceptance.upstream import Answer, End, Seen, Step, answer, delta, stream

STREAMED = {**HELLO, "stream": True}
HEAD = answer(b"x" * 1000)[0]
assert isinstance(HEAD, bytes)

BEFORE_THE_FIRST_BYTE: Answer = (End.NEVER,)
AFTER_HEADERS: Answer = (compose("HTTP/1.1 200 OK", [("Content-Type", "text/event-stream")]), End.NEVER)
IN_A_STREAM = stream(delta("Hel"), End.NEVER)
IN_A_PLAIN_ANSWER: Answer = (HEAD[:-500], End.NEVER)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("body", "script", "reads"),
    [
        (HELLO, BEFORE_THE_FIRST_BYTE, 0),
        (STREAMED, BEFORE_THE_FIRST_BYTE, 0),
        (STREAMED, AFTER_HEADERS, 1),
        (STREAMED, IN_A_STREAM, 1),
        (HELLO, IN_A_PLAIN_ANSWER, 1),
    ],
    ids=["plain, no answer yet", "stream, no answer yet", "headers", "in a stream", "in a plain answer"],
)
async def test_the_upstream_sees_it_within_a_second(
    tenant: Tenant, body: dict[str, object], script: Answer, reads: int, reset: bool
) -> None:
    tenant.upstream.plays(script)

    async def leave(count: int) -> Seen:
        async with tenant.wire() as wire:
            await wire.send(tenant.request(body=body))
            seen = await tenant.upstream.asked(count)
            if reads:
                assert (await wire.head()).status == 200
            if reset:
                reset_when_closed(wire.writer)
            assert not seen.closed_at
        return seen

    await seen_within_a_second(leave)


async def seen_within_a_second(leave: Callable[[int], Awaitable[Seen]]) -> int:
    """Each time the upstream learns of it. Other processes may keep the replica waiting: one time it has to be soon.

    Returns how many tries there were.
    """
    loop, took = asyncio.get_running_loop(), list[float]()
    for count in range(1, 6):
        seen = await leave(count)
        left = loop.time()
        took.append(await seen.left() - left)
        if took[-1] <= 1:
            return count
    raise AssertionError(f"seen after {took} s")


async def test_a_client_that_reads_no_more_is_seen_to_leave(tenant: Tenant) -> None:
    """The upstream has more to say than all buffers hold; nobody waits for it to be read."""
    tenant.upstream.plays(stream(*[b"x" * 2**16] * 800, End.NEVER))

    async def leave(count: int) -> Seen:
        async with tenant.wire() as wire:
            await wire.send(tenant.request(body=STREAMED))
            assert (await wire.head()).status == 200
            seen = await tenant.upstream.asked(count)
            await tenant.upstream.blocked()
            assert not seen.closed_at
        return seen

    await seen_within_a_second(leave)


async def test_a_client_that_has_sent_its_next_request_is_seen_to_leave(tenant: Tenant) -> None:
    tenant.upstream.plays(IN_A_STREAM)

    async def leave(count: int) -> Seen:
        async with tenant.wire() as wire:
            await wire.send(tenant.request(body=STREAMED) * 2)
            seen = await tenant.upstream.asked(count)
            assert (await wire.head()).status == 200
            await wire.send(tenant.request())
            assert not seen.closed_at
        return seen

    tries = await seen_within_a_second(leave)
    assert len(tenant.upstream.requests) == tries


async def test_leaving_while_the_body_is_on_its_way_asks_nobody(tenant: Tenant) -> None:
    async with tenant.wire() as wire:
        await wire.send(tenant.request(headers=[("Content-Length", "5000")]))
    assert (await tenant.ask()).status == 200
    assert len(tenant.upstream.requests) == 1


async def test_a_place_is_free_again(gateway: Gateway) -> None:
    tenant = await gateway.tenant(backend={"max_concurrency": 1})
    answers: list[Step] = [delta("Hel"), End.NEVER]
    tenant.upstream.plays(stream(*answers), stream(*answers), answer(b"{}"))
    for count in (1, 2):
        async with tenant.wire() as wire:
            await wire.send(tenant.request(body=STREAMED))
            seen = await tenant.upstream.asked(count)
            assert (await wire.head()).status == 200
            assert (await tenant.ask()).error == (503, "overloaded")
        await seen.left()
    assert (await tenant.ask()).status == 200


async def test_the_next_request_on_the_connection_gets_its_own_answer(tenant: Tenant) -> None:
    """What was left over of one upstream answer never becomes the beginning of another client's."""
    tenant.upstream.plays(IN_A_STREAM, answer(b'{"mine": true}'))
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body=STREAMED))
        await wire.head()
    await (await tenant.upstream.asked()).left()
    assert (await tenant.ask()).json == {"mine": True}
    assert tenant.upstream.connections >= 2
