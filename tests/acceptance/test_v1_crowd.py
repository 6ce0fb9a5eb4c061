"""A thousand streams that have begun and wait, on one replica; and one more request than it may take."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.acceptance.gateway import HELLO, Gateway, gateway_on
from tests.acceptance.upstream import answer, delta, stream

CROWD = 1000
FILES = 8192
"""Descriptors: two a stream for the replica, and two here, where client and upstream are one process."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the test needs, here and in the processes started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    assert wanted >= 3 * CROWD, f"the hard limit of open files is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_idle_streams_need_less_than_200_mb(shared_gateway: Gateway) -> None:
    installation = shared_gateway.installation
    replica = installation.replica(cold=True)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_on(installation, replica))
        tenant = await gateway.tenant()
        go_on = asyncio.Event()
        tenant.upstream.plays(stream(delta("a"), go_on, delta("b")))
        ask = tenant.request(body={**HELLO, "stream": True})
        wires = [await stack.enter_async_context(tenant.wire()) for _ in range(CROWD)]
        for wire in wires:
            await wire.send(ask)
        heads = [await wire.head() for wire in wires]
        await tenant.upstream.asked(CROWD)
        assert {head.status for head in heads} == {200}
        memory = psutil.Process(replica.pid).memory_info().rss
        assert memory < 200_000_000, f"{memory / 1e6:.0f} MB"

        fresh = await gateway.tenant()
        async with asyncio.timeout(20):  # one more client is not in the crowd's way, nor it in the client's
            assert (await fresh.ask()).status == 200
        go_on.set()
        bodies = [(await wire.body(head)).body for wire, head in zip(wires, heads, strict=True)]
        assert set(bodies) == {delta("a") + delta("b")}
        await replica.stop()


async def test_a_replica_takes_no_more_requests_than_it_may(shared_gateway: Gateway) -> None:
    installation = shared_gateway.installation
    replica = installation.replica({"GASKET_MAX_REQUESTS": "3", "GASKET_KEY_SHARE": "100"})
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_on(installation, replica))
        tenant = await gateway.tenant()
        go_on = asyncio.Event()
        tenant.upstream.plays((go_on, *answer(b"{}")))
        running = [asyncio.create_task(tenant.ask()) for _ in range(3)]
        await tenant.upstream.asked(3)
        for _ in range(3):
            got = await tenant.ask()
            assert got.error == (503, "overloaded")
            assert int(got.one("retry-after")) >= 1
        go_on.set()
        assert {(await task).status for task in running} == {200}
        assert (await tenant.ask()).status == 200
        assert len(tenant.upstream.requests) == 4
        await replica.stop()
