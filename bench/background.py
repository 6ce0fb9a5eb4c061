"""A backfill against a single UPDATE and a hand-written loop: rows a second, and what readers and writers wait."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median, quantiles

import asyncpg
import msgspec

from bench.harness import alternate, database, open_folder, server, verdict
from gasket.migrator.background import BACKFILL
from gasket.migrator.background.worker import prepare_worker
from gasket.migrator.background.working import work_on
from gasket.migrator.config import MigratorConfig
from gasket.migrator.ledger.background import read_works
from gasket.migrator.ledger.tables import missing_tables

TITLE = "A backfill of 200,000 rows while 4 readers and 4 writers go on"
REPEATS = 3
P99_GOAL = 2.0
STOP_GOAL = 150.0
"""Milliseconds that a writer may wait."""

_ROWS = 200_000
_CLIENTS = 4
_QUIET = 3.0
_PAUSE = 0.002
_TABLE = "CREATE TABLE items (id int PRIMARY KEY, tier text, note text, writes int NOT NULL DEFAULT 0)"
_FILL = "INSERT INTO items SELECT i, NULL, repeat('x', 80) FROM generate_series(1, $1::int) AS i"
_UPDATE = "UPDATE items SET tier = 'standard' WHERE tier IS NULL"
_LOOP = "UPDATE items SET tier = 'standard' WHERE id > $1 AND id <= $1 + 1000 AND tier IS NULL"


class Result(msgspec.Struct, frozen=True):
    """`seconds` of the backfill; `reads` and `writes` are what each took meanwhile."""

    seconds: float
    reads: list[float]
    writes: list[float]


async def measure(repeats: int) -> str:
    """One row a way of filling the table; the first is no filling at all, for the same kind of readers and writers."""
    logging.getLogger("gasket.migrator").setLevel(logging.ERROR)
    with open_folder() as folder, server(folder) as server_url:

        def subject(fill: Callable[[asyncpg.Connection], Awaitable[object]]) -> Callable[[], Awaitable[Result]]:
            async def once() -> Result:
                async with database(server_url) as url:
                    return await _measure_one(url, fill)

            return once

        results = await alternate(
            repeats,
            {
                "nothing": subject(lambda _: asyncio.sleep(_QUIET)),
                "one UPDATE": subject(lambda connection: connection.execute(_UPDATE)),
                "a loop of 1,000 rows": subject(_loop),
                "Gasket, share 1": subject(lambda connection: _backfill(connection, 1.0)),
                "Gasket, share 0.5": subject(lambda connection: _backfill(connection, 0.5)),
            },
            warm_up=False,
        )
    quiet = median(_p99(result.reads) for result in results["nothing"])
    lines = [
        "| | rows a second | p99 of reads, ms | ratio | longest write, ms | goal |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, found in results.items():
        reads = median(_p99(result.reads) for result in found)
        longest = max(max(result.writes) for result in found) * 1000
        speed = "" if name == "nothing" else f"{_ROWS / median(result.seconds for result in found):,.0f}"
        goal = ""
        if name.startswith("Gasket"):
            goal = verdict("reads 2x, writes 150 ms", reads / quiet <= P99_GOAL and longest <= STOP_GOAL)
        lines.append(f"| {name} | {speed} | {reads * 1000:.1f} | {reads / quiet:.2f} | {longest:.0f} | {goal} |")
    return "\n".join(lines)


async def _measure_one(url: str, fill: Callable[[asyncpg.Connection], Awaitable[object]]) -> Result:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    clients = [await asyncpg.connect(url) for _ in range(2 * _CLIENTS)]
    try:
        await connection.execute(_TABLE)
        await connection.execute(_FILL, _ROWS)
        await connection.execute("VACUUM ANALYZE items")
        await connection.execute("CHECKPOINT")
        reads: list[float] = []
        writes: list[float] = []
        read, write = "SELECT note FROM items WHERE id = $1", "UPDATE items SET writes = writes + 1 WHERE id = $1"
        done = asyncio.Event()
        tasks = [asyncio.create_task(_ask(client, read, reads, done)) for client in clients[:_CLIENTS]]
        tasks += [asyncio.create_task(_ask(client, write, writes, done)) for client in clients[_CLIENTS:]]
        started = time.perf_counter()
        await fill(connection)
        seconds = time.perf_counter() - started
        done.set()
        await asyncio.wait(tasks)
        return Result(seconds, reads, writes)
    finally:
        for one in (connection, *clients):
            one.terminate()


async def _ask(client: asyncpg.Connection, query: str, took: list[float], done: asyncio.Event) -> None:
    """Until it is done. The last question counts, too: it may have waited for all of the backfill."""
    while not done.is_set():
        started = time.perf_counter()
        await client.execute(query, random.randint(1, _ROWS))
        took.append(time.perf_counter() - started)
        await asyncio.sleep(_PAUSE)


async def _loop(connection: asyncpg.Connection) -> None:
    for first in range(0, _ROWS, 1000):
        await connection.execute(_LOOP, first)


async def _backfill(connection: asyncpg.Connection, share: float) -> None:
    await connection.execute(await missing_tables(connection, "public"))
    await connection.execute(
        "INSERT INTO migration_background (revision, number, kind, table_name, statement, condition) "
        "VALUES ('r', 1, $1, 'items', 'tier = ''standard''', 'tier IS NULL')",
        BACKFILL,
    )
    await prepare_worker(connection, "public")
    [work] = await read_works(connection, "public")
    config = MigratorConfig(database_url="", release="bench", ini=Path())
    done = await work_on(connection, config, work, share=share, yields=True)
    assert done.rows_done == _ROWS, done


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]
