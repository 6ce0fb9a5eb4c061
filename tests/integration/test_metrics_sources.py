"""Where `/metrics` gets its numbers: the pools, and a registry for each application."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gasket.db import PoolUse, create_engine, pool_use
from gasket.proxy.errors import UnknownKeyError
from gasket.proxy.lookup import CONNECTIONS, KeyLookup
from tests.acceptance.processes import until

from .conftest import ApiAt


async def test_who_waits_for_a_connection_is_counted(database_url: str) -> None:
    engine = create_engine(database_url, schema="public", release="r1", pool_size=1)
    assert pool_use(engine) == PoolUse(1, 0, 0)
    async with engine.connect():
        assert pool_use(engine) == PoolUse(1, 1, 0)
        waiting = [asyncio.ensure_future(engine.connect().start()) for _ in range(2)]
        await until(lambda: pool_use(engine) == PoolUse(1, 1, 2), 5, "two that wait")
    for connecting in waiting:
        await (await asyncio.wait_for(connecting, 30)).close()
    assert pool_use(engine) == PoolUse(1, 0, 0)
    await engine.dispose()
    assert pool_use(engine) == PoolUse(1, 0, 0)


async def test_who_waits_for_a_look_up_is_counted(api_database_url: str) -> None:
    lookup = KeyLookup(api_database_url, schema="public", application_name="test", decrypt=lambda token: token)
    engine = create_engine(api_database_url, schema="public", release="r1", pool_size=1)
    async with engine.begin() as holder:
        await holder.exec_driver_sql("LOCK TABLE api_keys")
        asked = asyncio.gather(*(lookup.find(f"{n:064x}") for n in range(5)), return_exceptions=True)
        await until(lambda: lookup.use == PoolUse(CONNECTIONS, 2, 3), 4, "three that wait")
    assert [type(answer) for answer in await asyncio.wait_for(asked, 30)] == [UnknownKeyError] * 5
    assert lookup.use == PoolUse(CONNECTIONS, 0, 0)
    await lookup.close()
    await engine.dispose()


async def test_two_applications_of_one_process_count_apart(api_database_url: str, api_at: ApiAt) -> None:
    async def listings(client: httpx.AsyncClient) -> float:
        text = (await client.get("/metrics")).raise_for_status().text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(
            s.value for s in samples if s.labels.get("route") == "/api/keys" and s.name.endswith("requests_total")
        )

    async with api_at(api_database_url) as one, api_at(api_database_url) as other:
        for _ in range(3):
            assert (await one.get("/api/keys")).status_code == 200
        assert await listings(one) == 3
        assert await listings(other) == 0
