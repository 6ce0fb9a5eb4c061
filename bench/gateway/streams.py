"""Streams of 50 events: as fast as they go, and at the pace of a language model, 10 ms apart."""

from __future__ import annotations

from functools import partial

from bench.gateway.load import Target, run_paced, run_wrk
from bench.gateway.report import GASKET, Goal, Loads, against_ceiling, goals_table, loads_table
from bench.gateway.stage import set_stage

TITLE = "The gateway, streams of 50 events: against going directly to the upstream, and against the bare ceiling"
REPEATS = 5
CLIENTS = (1, 64)
SECONDS = 5.0
PACED_EACH = 10
"""Paced streams that each client reads in a round; each takes half a second."""


async def measure(repeats: int) -> str:
    """A table for each speed, and one of the goals."""
    async with set_stage() as stage:
        fast = {
            clients: await stage.take_turns(
                repeats, partial(run_wrk, post=stage.fast_stream, clients=clients, seconds=SECONDS)
            )
            for clients in CLIENTS
        }
        paced = {
            clients: await stage.take_turns(
                repeats, partial(run_paced, post=stage.paced_stream, clients=clients, each=PACED_EACH)
            )
            for clients in CLIENTS
        }
        goals = _goals(fast[64], paced[64], stage.targets[GASKET])
    return (
        f"As fast as they go:\n\n{loads_table(fast, 'stream')}\n\n"
        f"10 ms between two events:\n\n{loads_table(paced, 'stream')}\n\n{goals_table(goals)}"
    )


def _goals(fast: Loads, paced: Loads, gasket: Target) -> list[Goal]:
    return [
        against_ceiling("CPU a paced stream, 64 clients", paced.cpu_us, 1.3),
        against_ceiling("CPU a fast stream, 64 clients", fast.cpu_us, 1.3),
        against_ceiling("p99 of fast streams, 64 clients", fast.p99_ms, 1.3),
        Goal("memory (RSS) afterwards", gasket.rss_mb(), 110, " MB"),
    ]
