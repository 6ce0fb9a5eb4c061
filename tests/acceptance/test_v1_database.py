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

TTL = 3.0


@dataclass
class Cut:
    """A replica that reaches the database over two taps: the pool's, and the listener's."""

    gateway: Gateway
    pool: Tap
    listener: Tap

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

        await until(listens, 10, "a new LISTEN")

    async def has_heard_everything(self, tenant: Tenant) -> None:
        """Wait until the replica listens, and knows all that has changed so far: notifications come in order."""
        issued = await self.gateway.issue(tenant.profile)
        assert await self.status(issued["key"]) == (200, None)
        await created(await tenant.api.post(f"/keys/{issued['id']}/revoke"), 200)
        await self.until_status(issued["key"], (401, "revoked_api_key"), within=TTL - 1)

    async def until_status(self, key: str, expected: tuple[int, str | None], within: float) -> None:
        """Wait for an answer; nothing but 200 may come before it."""

        async def arrived() -> bool:
            got = await self.status(key)
            assert got in (expected, (200, None))
            return got == expected

        await until(arrived, within, f"{expected}")


@pytest.fixture
async def cut(shared_gateway: Gateway) -> AsyncIterator[Cut]:
    """A replica of its own on the shared database; keys live for `TTL` seconds in it."""
    installation = shared_gateway.installation
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(tapped(installation.database_url))
        listener = await stack.enter_async_context(tapped(installation.database_url))
        settings = {
            "DATABASE_URL": pool.url,
            "GASKET_MIGRATION_DATABASE_URL": listener.url,
            "GASKET_KEY_CACHE_TTL": str(int(TTL)),
        }
        replica = installation.replica(settings)
        gateway = await stack.enter_async_context(gateway_on(installation, replica))
        cut = Cut(gateway, pool, listener)
        await cut.has_heard_everything(await gateway.tenant())
        yield cut
        await replica.stop()
        assert "Traceback" not in replica.output, str(replica)


async def tenant_elsewhere(cut: Cut, shared: Gateway) -> Tenant:
    """One whose changes are made over the other replica, which has the database."""
    tenant = await cut.gateway.tenant()
    tenant.api = shared.api
    return tenant


async def revoke(tenant: Tenant) -> float:
    """Revoke the key; returns when, on the loop's clock."""
    await created(await tenant.api.post(f"/keys/{tenant.key_id}/revoke"), 200)
    return asyncio.get_running_loop().time()


async def test_without_its_listener_a_replica_believes_a_key_for_its_time_and_no_longer(
    cut: Cut, shared_gateway: Gateway
) -> None:
    loop = asyncio.get_running_loop()
    tenant = await tenant_elsewhere(cut, shared_gateway)
    await cut.listener.cut()
    assert await cut.status(tenant.key) == (200, None)
    revoked_at = await revoke(tenant)
    await cut.until_status(tenant.key, (401, "revoked_api_key"), within=TTL + 1)
    assert loop.time() - revoked_at <= TTL + 0.5


async def test_what_changed_while_nobody_listened_is_known_once_somebody_does(
    cut: Cut, shared_gateway: Gateway
) -> None:
    tenant = await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(tenant.key) == (200, None)
    await cut.listener.cut()
    revoked_at = await revoke(tenant)
    await cut.listen_again()
    await cut.until_status(tenant.key, (401, "revoked_api_key"), within=1)
    assert asyncio.get_running_loop().time() - revoked_at < TTL, "it had ended by itself"


async def test_a_listener_whose_connection_was_killed_is_back_at_once(cut: Cut, shared_gateway: Gateway) -> None:
    tenant = await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(tenant.key) == (200, None)
    await cut.listener.cut()
    await cut.listen_again()
    await revoke(tenant)
    await cut.until_status(tenant.key, (401, "revoked_api_key"), within=2)


async def test_a_lookup_that_a_revocation_overtakes_is_not_kept(cut: Cut, shared_gateway: Gateway) -> None:
    """The database's answer "valid" is on its way while the key is revoked and the notification arrives."""
    tenant, warm = await tenant_elsewhere(cut, shared_gateway), await tenant_elsewhere(cut, shared_gateway)
    assert await cut.status(warm.key) == (200, None)
    cut.pool.hold()
    asking = asyncio.create_task(cut.status(tenant.key))
    await until(lambda: cut.pool.held == 1, 5, "the look-up of a key, answered and kept back")
    await revoke(tenant)
    await asyncio.sleep(0.3)  # the notification is not held back; nothing shows when it has been heard
    cut.pool.release()
    assert await asking in ((200, None), (401, "revoked_api_key"))
    for _ in range(3):
        assert await cut.status(tenant.key) == (401, "revoked_api_key")


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
    await cut.until_status(known.key, (503, "database_unavailable"), within=TTL + 1)

    await cut.pool.open()
    await cut.listener.open()
    for key in (known.key, other.key):

        async def back(key: str = key) -> bool:
            status = await cut.status(key)
            assert status[0] in (200, 503)
            return status[0] == 200

        await until(back, 5, "200 once the database is back")
    assert await cut.status(unknown) == (401, "invalid_api_key")


async def test_connections_that_died_in_the_pool_are_nobodys_503(cut: Cut, shared_gateway: Gateway) -> None:
    """A restart of the server, or a firewall: the pool's connections are dead, and new ones can be had at once."""
    tenants = [await tenant_elsewhere(cut, shared_gateway) for _ in range(4)]
    await asyncio.gather(*(cut.status(tenant.key) for tenant in tenants[:3]))
    await cut.pool.cut()
    await cut.pool.open()
    assert await cut.status(tenants[3].key) == (200, None)


async def test_a_database_that_says_nothing_is_503_within_seconds(cut: Cut, shared_gateway: Gateway) -> None:
    """Connected, and no answer: a disk that hangs, a network that swallows packets."""
    known, other = await tenant_elsewhere(cut, shared_gateway), await tenant_elsewhere(cut, shared_gateway)
    await cut.has_heard_everything(known)
    assert await cut.status(known.key) == (200, None)
    cut.pool.hold()
    asking = asyncio.create_task(cut.status(other.key))
    assert await cut.status(known.key) == (200, None)
    assert await asyncio.wait_for(asking, 15) == (503, "database_unavailable")
    assert cut.pool.held >= 1
    cut.pool.release()
