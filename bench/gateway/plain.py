"""Plain requests: what a gateway adds to an answer of 384 bytes of JSON, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bench.gateway.load import Target, run_wrk
from bench.gateway.report import DIRECT, GASKET, Goal, Loads, against_ceiling, goals_table, loads_table
from bench.gateway.stage import set_stage

TITLE = "The gateway, plain requests: against going directly to the upstream, and against the bare ceiling"
REPEATS = 5
CLIENTS = (1, 32, 64)
SECONDS = 5.0


async def measure(repeats: int) -> str:
    """A table of all targets, and one of the goals."""
    async with set_stage() as stage:
        cases = {
            clients: await stage.take_turns(
                repeats, partial(run_wrk, post=stage.plain, clients=clients, seconds=SECONDS)
            )
            for clients in CLIENTS
        }
        goals = _goals(cases, stage.targets[GASKET])
        return f"{loads_table(cases, 'request')}\n\n{goals_table(goals)}"


def _goals(cases: Mapping[int, Loads], gasket: Target) -> list[Goal]:
    one, many = cases[1], cases[64]
    return [
        Goal("added to p50, 1 client", one.p50_ms(GASKET) - one.p50_ms(DIRECT), 1, " ms"),
        against_ceiling("CPU a request, 1 client", one.cpu_us, 1.1),
        against_ceiling("CPU a request, 32 clients", cases[32].cpu_us, 1.25),
        against_ceiling("CPU a request, 64 clients", many.cpu_us, 1.25),
        against_ceiling("p99, 1 client", one.p99_ms, 2),
        against_ceiling("p99, 64 clients", many.p99_ms, 1.3),
        Goal("memory (RSS) afterwards", gasket.rss_mb(), 110, " MB"),
    ]
