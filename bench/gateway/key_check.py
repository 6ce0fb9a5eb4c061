"""The key check: what it costs when the key is not in the replica's memory, and the database has to be asked."""

from __future__ import annotations

from functools import partial

from bench.gateway.load import Load, run_wrk
from bench.gateway.report import GASKET, Loads, loads_table
from bench.gateway.stage import KEYS, set_stage
from bench.harness import alternate

TITLE = f"The gateway's key check, among {KEYS:,} keys: a key that is in memory against one that is not"
REPEATS = 5
CLIENTS = (1, 64)
SECONDS = 5.0
HIT, MISS = "hit", "miss"


async def measure(repeats: int) -> str:
    """A table of all, and what a miss adds."""
    async with set_stage() as stage:
        gasket, next_key = stage.targets[GASKET], 1

        async def miss(clients: int) -> Load:
            """Each request with the key that was asked about the longest ago: what is in memory has long expired."""
            nonlocal next_key
            load = await run_wrk(gasket, stage.any_key, clients=clients, seconds=SECONDS, first_key=next_key)
            next_key += load.requests + clients
            return load

        async def with_clients(clients: int) -> Loads:
            hit = partial(run_wrk, gasket, stage.few_keys, clients=clients, seconds=SECONDS)
            return Loads(await alternate(repeats, {HIT: hit, MISS: partial(miss, clients)}))

        cases = {clients: await with_clients(clients) for clients in CLIENTS}
    return f"{loads_table(cases, 'request')}\n\n" + "\n".join(_added(*case) for case in cases.items())


def _added(clients: int, loads: Loads) -> str:
    latency = (loads.p50_ms(MISS) - loads.p50_ms(HIT)) * 1000
    cpu = loads.cpu_us(MISS) - loads.cpu_us(HIT)
    return f"- {clients} clients: a miss adds {latency:,.0f} us to p50, and {cpu:,.0f} us of the gateway's CPU."
