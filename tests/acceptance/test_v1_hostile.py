"""What one hostile connection, and twenty of them, do to a neighbour: nothing that it would notice."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance import hostile
from tests.acceptance.gateway import Gateway, Tenant
from tests.acceptance.upstream import End, delta, stream

_REQUESTS = 200


@contextmanager
def attacked(tenant: Tenant, name: str, connections: int, key: str) -> Iterator[None]:
    """A process that does nothing else."""
    port = str(urlsplit(tenant.replica.base_url).port)
    command = [sys.executable, str(Path(hostile.__file__)), name, str(connections), port, *([key] if key else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.kill()


async def p50(tenant: Tenant) -> float:
    """Of the neighbour's requests, on one connection, in milliseconds. Each of them has to be answered."""
    took = []
    async with tenant.wire() as wire:
        for _ in range(_REQUESTS):
            begun = time.perf_counter()
            await wire.send(tenant.request())
            assert (await wire.answer(10)).status == 200
            took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1000


CASES = [(name, True) for name in hostile.ATTACKS] + [(name, False) for name in hostile.WITHOUT_A_KEY]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "with_key"), CASES, ids=[f"{name}, {'a' if key else 'no'} key" for name, key in CASES]
)
async def test_a_neighbour_does_not_notice(gateway: Gateway, name: str, with_key: bool) -> None:
    neighbour = await gateway.tenant()
    attacker = await gateway.tenant()
    if name in hostile.UPSTREAM_STREAMS:
        attacker.upstream.plays(stream(*[delta("x" * 10_000)] * 1000))
    elif name in hostile.UPSTREAM_WAITS:
        attacker.upstream.plays((End.NEVER,))
    await p50(neighbour)
    before = await p50(neighbour)
    key = attacker.key if with_key else ""
    with attacked(attacker, name, 1, key):
        await asyncio.sleep(0.5)
        beside_one = await p50(neighbour)
    with attacked(attacker, name, 20, key):
        await asyncio.sleep(0.5)
        await p50(neighbour)
    assert beside_one < max(10.0, 4 * before), f"{before:.2f} ms before, {beside_one:.2f} ms beside one connection"
