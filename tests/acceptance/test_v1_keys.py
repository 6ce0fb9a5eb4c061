"""Who may ask: every way not to have a valid key, and how fast a change of a key is true everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant, created, exchange, request
from tests.acceptance.processes import Replica, until
from tests.acceptance.upstream import End, completion, delta, json_answer, stream

UNKNOWN = "gsk_" + "0123456789abcdef" * 3


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        ("Basic Z3NrOng=", "missing_api_key"),
        ("Bearer sk-proj-abc", "malformed_api_key"),
        ("Bearer gsk_123", "malformed_api_key"),
        (f"Bearer {UNKNOWN}0", "malformed_api_key"),
        (f"Bearer {UNKNOWN.upper()}", "malformed_api_key"),
        (f"Bearer gsk_{'g' * 48}", "malformed_api_key"),
        (f"Bearer {UNKNOWN} {UNKNOWN}", "malformed_api_key"),
        (f"Bearer {UNKNOWN}\xb2", "malformed_api_key"),
        (f"Bearer {UNKNOWN}", "invalid_api_key"),
    ],
)
async def test_without_a_valid_key(tenant: Tenant, header: str | None, code: str) -> None:
    got = await exchange(
        tenant.replica, request(None, headers=[("Authorization", header)] if header is not None else [])
    )
    assert got.error == (401, code)
    assert got.one("www-authenticate").startswith("Bearer")
    assert UNKNOWN[-8:] not in got.body.decode()
    assert tenant.upstream.requests == []


async def test_two_keys_are_none(tenant: Tenant) -> None:
    """Which one would count? The next server might take the other."""
    for first, second in ((tenant.key, UNKNOWN), (UNKNOWN, tenant.key)):
        authorization = [("Authorization", f"Bearer {second}")]
        got = await exchange(tenant.replica, request(first, headers=authorization))
        assert got.status in (400, 401)
    assert tenant.upstream.requests == []


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_is_not_case_sensitive(tenant: Tenant, scheme: str) -> None:
    """RFC 9110, 11.1."""
    authorization = [("Authorization", f"{scheme} {tenant.key}")]
    assert (await exchange(tenant.replica, request(None, headers=authorization))).status == 200


async def test_an_admin_token_is_no_key_and_a_key_no_admin_token(tenant: Tenant) -> None:
    token = tenant.api.headers["authorization"].removeprefix("Bearer ")
    assert (await exchange(tenant.replica, request(token))).error == (401, "malformed_api_key")
    assert (await exchange(tenant.replica, request(tenant.key, "/api/backends", None))).status == 401


async def test_it_expires_by_the_clock(gateway: Gateway, tenant: Tenant) -> None:
    """It is in the replica's memory as valid when its time comes, and nobody tells the replica."""
    soon = datetime.now(UTC) + timedelta(seconds=4)
    key = (await gateway.issue(tenant.profile, expires_at=soon.isoformat()))["key"]
    assert (await exchange(tenant.replica, request(key))).status == 200

    async def expired() -> bool:
        got = await exchange(tenant.replica, request(key))
        return got.status == 401 and got.error == (401, "expired_api_key")

    await until(expired, 10, "an expired key")
    assert datetime.now(UTC) >= soon


async def test_a_stream_that_runs_goes_on_when_its_key_is_revoked(tenant: Tenant) -> None:
    go_on = asyncio.Event()
    tenant.upstream.plays(stream(delta("a"), go_on, delta("b")))
    async with tenant.wire() as wire:
        await wire.send(tenant.request(body={**HELLO, "stream": True}))
        head = await wire.head()
        tenant.upstream.plays(json_answer(completion("still")))  # until the replica has heard of it
        await created(await tenant.api.post(f"/keys/{tenant.key_id}/revoke"), 200)
        await until_refused(tenant.replica, tenant.key, "revoked_api_key")
        go_on.set()
        assert (await wire.body(head)).body == delta("a") + delta("b")


async def until_refused(replica: Replica, key: str, code: str, within: float = 2.0) -> None:
    """Wait until this replica answers this key 401 with this code; up to then it may only be 200."""

    async def refused() -> bool:
        got = await exchange(replica, request(key))
        if got.status == 200:
            return False
        assert got.error == (401, code)
        return True

    await until(refused, within, f"{code} from {replica.base_url}")


@pytest.fixture
async def other(gateway: Gateway) -> AsyncIterator[Replica]:
    """A second replica on the same database."""
    replica = gateway.installation.replica()
    await replica.ready()
    yield replica
    await replica.stop()


async def test_changes_reach_the_other_replica_within_two_seconds(gateway: Gateway, other: Replica) -> None:
    """The other replica has each of these in its memory as valid, and its entries would live for 30 s."""
    tenant = await gateway.tenant()
    spare = await gateway.tenant(allowed_models=["model-z"])
    profile = await created(await gateway.api.get(f"/profiles/{tenant.profile}"), 200)
    names = ("revoked", "deleted", "rotated", "graced", "expired", "kept")
    keys = {name: await gateway.issue(tenant.profile) for name in names}
    for issued in keys.values():
        assert (await exchange(other, request(issued["key"]))).status == 200

    async def gone(name: str, code: str) -> None:
        await until_refused(other, keys[name]["key"], code)

    await gateway.api.post(f"/keys/{keys['revoked']['id']}/revoke")
    await gateway.api.delete(f"/keys/{keys['deleted']['id']}")
    rotated = await created(await gateway.api.post(f"/keys/{keys['rotated']['id']}/rotate"), 200)
    await gone("revoked", "revoked_api_key")
    await gone("deleted", "invalid_api_key")
    await gone("rotated", "invalid_api_key")
    path, grace = f"/keys/{keys['graced']['id']}", {"grace_seconds": 60}
    keys["second"] = await created(await gateway.api.post(f"{path}/rotate", json=grace), 200)
    for name in ("graced", "second"):
        assert (await exchange(other, request(keys[name]["key"]))).status == 200
    keys["third"] = await created(await gateway.api.post(f"{path}/rotate", json=grace), 200)
    await gone("graced", "invalid_api_key")
    for name in ("second", "third"):
        assert (await exchange(other, request(keys[name]["key"]))).status == 200
    await gateway.api.post(f"{path}/revoke")
    await gone("second", "invalid_api_key")
    await gone("third", "revoked_api_key")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    fields = {"expires_at": soon.isoformat()}
    await created(await gateway.api.patch(f"/keys/{keys['expired']['id']}", json=fields), 200)
    await asyncio.sleep((soon - datetime.now(UTC)).total_seconds())
    await gone("expired", "expired_api_key")
    assert (await exchange(other, request(rotated["key"]))).status == 200

    kept = keys["kept"]["key"]

    async def answers(status: int) -> None:
        async def answered() -> bool:
            return (await exchange(other, request(kept))).status == status

        await until(answered, 2, f"{status} from the other replica")

    url = f"/profiles/{tenant.profile}"
    await created(await gateway.api.patch(url, json={"allowed_models": ["model-b"]}), 200)
    await answers(403)
    await created(await gateway.api.patch(url, json={"allowed_models": []}), 200)
    await answers(200)
    await created(await gateway.api.patch(url, json={"backends": []}), 200)
    await answers(404)
    await created(await gateway.api.patch(url, json={"backends": spare.backends}), 200)
    await answers(200)
    assert spare.upstream.requests
    url = f"/backends/{spare.backends[0]}"
    await created(await gateway.api.patch(url, json={"base_url": tenant.upstream.origin, "api_key": "sk-new"}), 200)

    async def moved() -> bool:
        assert (await exchange(other, request(kept))).status == 200
        return tenant.upstream.requests[-1].message.all("authorization") == ["Bearer sk-new"]

    await until(moved, 2, "the backend's new address and credential")
    assert profile["backends"] == tenant.backends


async def test_a_restored_key_works_again(tenant: Tenant, other: Replica) -> None:
    await created(await tenant.api.post(f"/keys/{tenant.key_id}/revoke"), 200)
    await until_refused(other, tenant.key, "revoked_api_key")
    await created(await tenant.api.post(f"/keys/{tenant.key_id}/restore"), 200)

    async def works() -> bool:
        return (await exchange(other, request(tenant.key))).status == 200

    await until(works, 2, "200 from the other replica")


async def test_a_key_that_did_not_exist_when_first_asked_for_works_once_it_does(
    gateway: Gateway, tenant: Tenant
) -> None:
    """What is kept of an unknown key must not outlive the moment at which it is made."""
    look, key = await gateway.installation.look(), "gsk_" + "ab" * 24
    assert (await exchange(tenant.replica, request(key))).error == (401, "invalid_api_key")
    await look.execute(
        "UPDATE api_keys SET key_value = encode(sha256(convert_to($1, 'UTF8')), 'hex') WHERE id = $2",
        key,
        tenant.key_id,
    )

    async def works() -> bool:
        return (await exchange(tenant.replica, request(key))).status == 200

    await until(works, 2, "200 for a new key")
    await until_refused(tenant.replica, tenant.key, "invalid_api_key")


async def test_a_backend_that_hangs_does_not_hold_up_the_others(gateway: Gateway) -> None:
    """No connection of the database is held while an answer is waited for: more of them than the pool has."""
    stuck = await gateway.tenant({"answers": [(End.NEVER,)]})
    keys = [(await gateway.issue(stuck.profile))["key"] for _ in range(20)]
    waiting = [asyncio.create_task(exchange(stuck.replica, request(key))) for key in keys]
    await stuck.upstream.asked(20)
    fresh = await gateway.tenant()
    async with asyncio.timeout(20):
        assert (await fresh.ask()).status == 200
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
