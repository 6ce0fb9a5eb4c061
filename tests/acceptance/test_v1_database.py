"""The database, or the listener's way to it, is cut: what a replica remembers counts for its time and no longer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from tests.acceptance.gateway import Gateway, Tenant, created, exchange, gateway_on, request
from tests.acceptance.processes import until
from tests.acceptance.wire import Tap, tapped

LONG, SHORT = 30.0, 3.0
"""For how many seconds a replica may believe a key: longer than any of these tests takes, or to be waited for."""
KEYS = "gasket-keys"
"""The name of the connections over which keys are looked up."""


@dataclass
class Cut:
    """A replica that reaches the database over two taps: the pool's, and the listener's."""

    gateway: Gateway
    pool: Tap
    listener: Tap
    ttl: float

    async def status(self, key: str) -> tuple[int, str | None]:
        """What the replica says to this key; 200 has no code."""
        got = await exchange(self.gateway.replica, request(key))
        return (200, None) if got.status == 200 else got.error

    async def listen_again(self) -> None:
        """Let the listener reach the database, and wait until it does."""
        before = len(self.listener.sent)
        await self.listener.open()

        def listens() -> bool:
            return any("LISTEN" in said.upper() for said in itertools.chain(*self.listener.statements[before:]))

        await until(listens, 30, "a new LISTEN")

    async def has_heard_everything(self, tenant: Tenant) -> None:
        """Wait until the replica listens, and knows all that has changed so far: notifications come in order."""
        issued = await self.gateway.issue(tenant.profile)
        assert await self.status(issued["key"]) == (200, None)
        await created(await tenant.api.post(f"/keys/{issued['id']}/revoke"), 200)
        await self.until_status(issued["key"], (401, "revoked_api_key"), within=10)

    async def until_status(self, key: str, expected: tuple[int, str | None], within: float) -> None:
        """Wait for an answer; nothing but 200 may come before it."""

        async def arrived() -> bool:
            got = await self.status(key)
            assert got in (expected, (200, None))
            return got == expected

        await until(arrived, within, f"{expected}")

    async def until_its_time_is_over(self, key: str, expected: tuple[int, str | None]) -> None:
        """Wait for an answer to a key that nothing is heard of any more. Whoever asks later than that is told it."""
        loop = asyncio.get_running_loop()
        over = loop.time() + self.ttl
        asked_at, got = loop.time(), await self.status(key)
        while got == (200, None):
            assert asked_at <= over, "it is believed for longer than it may be"
            await asyncio.sleep(0.03)
            asked_at, got = loop.time(), await self.status(key)
        assert got == expected


def believing_for(ttl: float) -> pytest.MarkDecorator:
    """For how many seconds keys live in the memory of the test's replica."""
    return pytest.mark.parametrize("cut", [ttl], indirect=True, ids=[f"{ttl:.0f} s"])


@pytest.fixture
async def cut(request: pytest.FixtureRequest, shared_gateway: Gateway) -> AsyncIterator[Cut]:
    """A replica of its own on the shared database."""
    ttl: float = request.param
    installation = shared_gateway.installation
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(tapped(installation.database_url))
        listener = await stack.enter_async_context(tapped(installation.database_url))
        settings = {
            "DATABASE_URL": pool.url,
            "GASKET_MIGRATION_DATABASE_URL": listener.url,
            "GASKET_KEY_CACHE_TTL": str(int(ttl)),
        }
        replica = installation.replica(settings)
        gateway = await stack.enter_async_context(gateway_on(installation, replica))
        cut = Cut(gateway, pool, listener, ttl)
        await cut.has_heard_everything(await gateway.tenant())
        yield cut
        await replica.stop()
        assert "Traceback" not in replica.output, str(replica)


async def tenant_elsewhere(cut: Cut, shared: Gateway) -> Tenant:
    """One whose changes are made over the other replica, which has the database."""
    tenant = await cut.gateway.tenant()
    tenant.api = shared.api
    return tenant


async def revoke(tenant: Tenant) -> None:
    """Revoke the key."""
    await created(await tenant.api.post(f"/keys/{tenant.key_id}/revoke"), 200)


@believing_for(SHORT)
async def test_without_its_listener_a_replica_believes_a_key_for_its_time_and_no_longer(
    cut: Cut, shared_gateway: Gateway
) -> None:
    tenant = await tenant_elsewhere(cut, shared_gateway)
    await cut.listener.cut()
    assert await cut.status(tenant.key) == (200, None)
    await revoke(tenant)
    await cut.until_its_time_is_over(tenant.key, (401, "revoked_api_key"))


@believing_for(LONG)
async def test_what_changed_while_nobody_listened_is_known_once_somebody_does(
    cut: Cut, shared_gateway: Gateway
) -> None:
    tenant = await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(tenant.key) == (200, None)
    await cut.listener.cut()
    await revoke(tenant)
    await cut.listen_again()
    await cut.until_status(tenant.key, (401, "revoked_api_key"), within=5)


@believing_for(LONG)
async def test_a_listener_whose_connection_was_killed_is_back_at_once(cut: Cut, shared_gateway: Gateway) -> None:
    tenant = await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(tenant.key) == (200, None)
    await cut.listener.cut()
    await cut.listen_again()
    await revoke(tenant)
    await cut.until_status(tenant.key, (401, "revoked_api_key"), within=5)


@believing_for(LONG)
async def test_a_lookup_that_a_revocation_overtakes_is_not_kept(cut: Cut, shared_gateway: Gateway) -> None:
    """The database's answer "valid" is on its way while the key is revoked and the notification arrives."""
    for _ in range(5):  # a slow machine takes longer for it than the replica waits for an answer
        tenant = await tenant_elsewhere(cut, shared_gateway)
        answered = await _overtaken(cut, shared_gateway, tenant)
        for _ in range(3):
            assert await cut.status(tenant.key) == (401, "revoked_api_key")
        if answered != (503, "database_unavailable"):
            break
    assert answered in ((200, None), (401, "revoked_api_key"))


async def _overtaken(cut: Cut, shared: Gateway, tenant: Tenant) -> tuple[int, str | None]:
    """What a request is told whose look-up is answered once the replica has heard of the key's revocation."""
    warm = await tenant_elsewhere(cut, shared)
    assert await cut.status(warm.key) == (200, None)
    cut.pool.hold()
    asking = asyncio.create_task(cut.status(tenant.key))
    await until(lambda: cut.pool.held(KEYS) == 1, 30, "the look-up of a key, answered and kept back")
    await revoke(tenant)
    await revoke(warm)
    forgotten: list[asyncio.Task[object]] = []

    async def has_heard() -> bool:
        """Notifications come in order: who no longer knows the second key by heart has heard of the first."""
        forgotten.append(asyncio.create_task(cut.status(warm.key)))
        await asyncio.wait(forgotten[-1:], timeout=0.1)
        return cut.pool.held(KEYS) == 2 or asking.done()

    await until(has_heard, 4, "the look-up of the other key")
    cut.pool.release()
    await asyncio.gather(*forgotten)
    return await asking


@believing_for(LONG)
async def test_without_a_database_known_keys_go_on_and_others_are_not_called_wrong(
    cut: Cut, shared_gateway: Gateway
) -> None:
    known, other = await tenant_elsewhere(cut, shared_gateway), await tenant_elsewhere(cut, shared_gateway)
    unknown = "gsk_" + "0" * 48
    await cut.has_heard_everything(known)
    assert await cut.status(known.key) == (200, None)
    await cut.pool.cut()
    await cut.listener.cut()
    got = await exchange(cut.gateway.replica, request(other.key))
    assert got.error == (503, "database_unavailable")
    assert int(got.one("retry-after")) >= 1
    assert await cut.status(unknown) == (503, "database_unavailable")
    assert await cut.status("gsk_short") == (401, "malformed_api_key")
    assert await cut.status(known.key) == (200, None)

    await cut.pool.open()
    await cut.listener.open()
    for key in (known.key, other.key):

        async def back(key: str = key) -> bool:
            status = await cut.status(key)
            assert status[0] in (200, 503)
            return status[0] == 200

        await until(back, 30, "200 once the database is back")
    assert await cut.status(unknown) == (401, "invalid_api_key")


@believing_for(SHORT)
async def test_without_a_database_known_keys_have_their_time_and_no_longer(cut: Cut, shared_gateway: Gateway) -> None:
    known = await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(known.key) == (200, None)
    await cut.pool.cut()
    await cut.listener.cut()
    await cut.until_its_time_is_over(known.key, (503, "database_unavailable"))
    await cut.pool.open()  # the replica's end would wait for it


@believing_for(LONG)
async def test_connections_that_died_in_the_pool_are_nobodys_503(cut: Cut, shared_gateway: Gateway) -> None:
    """A restart of the server, or a firewall: the pool's connections are dead, and new ones can be had at once."""
    tenants = [await tenant_elsewhere(cut, shared_gateway) for _ in range(4)]
    await asyncio.gather(*(cut.status(tenant.key) for tenant in tenants[:3]))
    await cut.pool.cut()
    await cut.pool.open()
    assert await cut.status(tenants[3].key) == (200, None)


@believing_for(LONG)
async def test_a_database_that_says_nothing_is_503_within_seconds(cut: Cut, shared_gateway: Gateway) -> None:
    """Connected, and no answer: a disk that hangs, a network that swallows packets."""
    known, other = await tenant_elsewhere(cut, shared_gateway), await tenant_elsewhere(cut, shared_gateway)
    await cut.has_heard_everything(known)
    assert await cut.status(known.key) == (200, None)
    cut.pool.hold()
    asking = asyncio.create_task(cut.status(other.key))
    await until(lambda: cut.pool.held(KEYS) == 1, 30, "the look-up of the other key")
    assert await cut.status(known.key) == (200, None)
    assert await asyncio.wait_for(asking, 25) == (503, "database_unavailable")
    cut.pool.release()
