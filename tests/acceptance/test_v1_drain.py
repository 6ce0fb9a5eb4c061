"""A replica is told to stop while clients are being answered."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant, exchange, gateway_on, wire
from tests.acceptance.http11 import Message, compose
from tests.acceptance.processes import Replica, until
from tests.acceptance.upstream import End, answer, delta, stream

STREAMED = {**HELLO, "stream": True}
Start = Callable[..., AbstractAsyncContextManager[Tenant]]


@pytest.fixture
def start(shared_gateway: Gateway) -> Start:
    """Starts a replica with these drain settings, in seconds, for a tenant of its own."""

    @asynccontextmanager
    async def make(*, delay: float, grace: float) -> AsyncIterator[Tenant]:
        settings = {"GASKET_DRAIN_DELAY": str(delay), "GASKET_DRAIN_TIMEOUT": str(grace)}
        async with AsyncExitStack() as stack:
            replica = shared_gateway.installation.replica(settings)
            gateway = await stack.enter_async_context(gateway_on(shared_gateway.installation, replica))
            yield await gateway.tenant()
            await replica.stop()

    return make


def assert_stopped_as_told(replica: Replica) -> None:
    """The exit code is that of a stop which found nothing to do, and nothing went wrong on the way."""
    assert replica.exit_code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in replica.output, str(replica)


async def readiness(replica: Replica) -> int | None:
    """The status of `/health/ready`; None where nobody listens any more, or will not accept what waits for it."""
    async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False, verify=False) as client:
        try:
            return (await client.get("/health/ready")).status_code
        except httpx.TransportError:
            return None


async def begin(tenant: Tenant, stack: AsyncExitStack, body: Any) -> tuple[Any, Message]:
    """A request whose answer has begun; its connection ends with the stack."""
    wire = await stack.enter_async_context(tenant.wire())
    await wire.send(tenant.request(body=body))
    return wire, await wire.head()


async def test_first_it_says_so_then_it_listens_no_more_and_what_runs_ends_whole(start: Start) -> None:
    go_on = asyncio.Event()
    delay = 5.0  # long enough for all that is to happen in it, on a slow machine too
    async with start(delay=delay, grace=60) as tenant, AsyncExitStack() as stack:
        replica = tenant.replica
        tenant.upstream.plays(stream(delta("a"), go_on, delta("b")), answer(b'"still served"'))
        wire, head = await begin(tenant, stack, STREAMED)
        idle = await stack.enter_async_context(tenant.wire())
        await idle.send(tenant.request())
        assert (await idle.answer()).all("connection") == []
        told = time.monotonic()
        replica.signal(signal.SIGTERM)

        async def unready() -> bool:
            return await readiness(replica) == 503

        await until(unready, delay, "readiness 503")
        for _ in range(3):
            got = await tenant.ask()
            assert (got.status, got.body, got.one("connection").lower()) == (200, b'"still served"', "close")
        async with tenant.wire() as other:
            await other.send(compose("GET /health HTTP/1.1", [("Host", "gasket.test")]))
            assert (await other.answer()).one("connection") == "close"
        assert time.monotonic() - told < delay, "too slow to see anything"

        async def closed() -> bool:
            return await readiness(replica) is None

        await until(closed, 20, "a closed port")
        assert time.monotonic() - told >= delay
        assert replica.exit_code is None
        go_on.set()
        got = await wire.body(head)
        assert (got.body, got.whole) == (delta("a") + delta("b"), True)
        assert await idle.ended() == b""
        await replica.exited(within=20)  # and not until its grace time is over
        assert_stopped_as_told(replica)


async def test_what_takes_longer_than_the_grace_time_is_ended_as_broken(start: Start) -> None:
    async with start(delay=0, grace=1) as tenant, AsyncExitStack() as stack:
        [whole] = answer(b"x" * 1000)
        assert isinstance(whole, bytes)
        tenant.upstream.plays(stream(delta("a"), End.NEVER), (whole[:-500], End.NEVER), (End.NEVER,))
        streaming, stream_head = await begin(tenant, stack, STREAMED)
        plain, plain_head = await begin(tenant, stack, HELLO)
        waiting = asyncio.create_task(exchange(tenant.replica, tenant.request()))
        await tenant.upstream.asked(3)
        told = time.monotonic()
        tenant.replica.signal(signal.SIGTERM)
        got = await streaming.body(stream_head)
        assert got.whole
        assert got.body.startswith(delta("a"))
        assert got.last_error["code"] == "shutting_down"
        assert b"[DONE]" not in got.body
        assert not (await plain.body(plain_head)).whole
        assert (await waiting).error == (503, "shutting_down")
        await tenant.replica.exited(within=15)  # without the setting it would be 20 s
        assert time.monotonic() - told >= 0.9
        for seen in tenant.upstream.requests:
            await seen.left()
        assert_stopped_as_told(tenant.replica)


async def test_a_client_that_reads_nothing_is_not_waited_for(start: Start) -> None:
    """Neither one whose answer is complete but for what nobody takes, nor one whose answer is under way."""
    async with start(delay=0, grace=1) as tenant, AsyncExitStack() as stack:
        tenant.upstream.plays(answer(b"x" * 30_000_000), answer(b"x" * 4_000_000))
        for count in (1, 2):
            deaf = await stack.enter_async_context(tenant.wire())
            deaf.writer.transport.pause_reading()  # asyncio reads ahead
            await deaf.send(tenant.request())
            await tenant.upstream.asked(count)
        await tenant.upstream.blocked()
        told = time.monotonic()
        tenant.replica.signal(signal.SIGTERM)
        await tenant.replica.exited(within=10)
        assert time.monotonic() - told >= 0.9
        assert_stopped_as_told(tenant.replica)
        assert "ERROR" not in tenant.replica.output


async def test_an_idle_connection_lasts_as_long_as_is_set(shared_gateway: Gateway) -> None:
    replica = shared_gateway.installation.replica({"GASKET_KEEP_ALIVE": "1"})
    async with gateway_on(shared_gateway.installation, replica) as gateway, wire(replica) as idle:
        await idle.send(compose("GET /health HTTP/1.1", [("Host", "gasket.test")]))
        assert (await idle.answer()).all("connection") == []
        answered = time.monotonic()
        assert await idle.ended() == b""
        assert time.monotonic() - answered >= 0.9
        assert gateway.replica.exit_code is None
    await replica.stop()


async def test_with_nothing_to_do_it_stops_after_the_delay_and_on_ctrl_c_at_once(start: Start) -> None:
    for number, delay, least in ((signal.SIGTERM, 1, 0.9), (signal.SIGINT, 60, 0)):
        async with start(delay=delay, grace=60) as tenant, tenant.wire() as idle:
            await idle.send(tenant.request())
            assert (await idle.answer()).status == 200
            told = time.monotonic()
            tenant.replica.signal(number)
            await tenant.replica.exited(within=20)  # and not until the delay or the grace time of a minute is over
            assert time.monotonic() - told >= least


async def test_a_second_signal_ends_the_waiting(start: Start) -> None:
    async with start(delay=60, grace=60) as tenant, AsyncExitStack() as stack:
        tenant.upstream.plays(stream(delta("a"), End.NEVER))
        await begin(tenant, stack, STREAMED)
        tenant.replica.signal(signal.SIGINT)

        async def heeded() -> bool:
            return await readiness(tenant.replica) != 200

        await until(heeded, 20, "the first signal to be heeded: two that come together are one (signal(7))")
        assert tenant.replica.exit_code is None
        tenant.replica.signal(signal.SIGINT)
        await tenant.replica.exited(within=20)
