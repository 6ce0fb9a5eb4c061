"""Plain requests: what a gateway adds to an answer of 384 bytes of JSON, and what that costs."""

from __future__ import annotations

from functools import partial

from bench.gateway.load import Target, run_wrk
from bench.gateway.report import DIRECT, GASKET, Goal, Loads, against_ceiling, goals_table, loads_table
from bench.gateway.stage import set_stage

TITLE = "The gateway, plain requests: against going directly to the upstream, and against the bare ceiling"
REPEATS = 5
CLIENTS = (1, 8, 64)
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
        goals = _goals(cases[1], cases[64], stage.targets[GASKET])
        return f"{loads_table(cases, 'request')}\n\n{goals_table(goals)}"


def _goals(one: Loads, many: Loads, gasket: Target) -> list[Goal]:
    return [
        Goal("added to p50, 1 client", one.p50_ms(GASKET) - one.p50_ms(DIRECT), 1, " ms"),
        against_ceiling("CPU a request, 1 client", one.cpu_us, 1.4),
        against_ceiling("CPU a request, 64 clients", many.cpu_us, 1.4),
        against_ceiling("p99, 64 clients", many.p99_ms, 1.5),
        Goal("memory (RSS) afterwards", gasket.rss_mb(), 120, " MB"),
    ]
