"""Background work of replicas that serve: killed workers, writers beside it, commands, the next release."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from gasket.postgres.errors import AWAY, LOST
from tests.acceptance.installation import Installation
from tests.acceptance.processes import until
from tests.acceptance.terminal import run_at_terminal
from tests.servers import OwnServer

ROWS = 60_000
TABLE = (
    'op.execute("CREATE TABLE items (id int PRIMARY KEY, tier text, changes int NOT NULL DEFAULT 0, '
    'writes int NOT NULL DEFAULT 0)")\n'
    'op.execute("INSERT INTO items SELECT generate_series(1, {rows})")'
)
DECLARED = """\
from gasket.migrator.background import Backfill

background = [
    Backfill(table="items", set="tier = 'standard', changes = changes + 1", where="tier IS NULL"),
]
"""
STATE = "SELECT state FROM migration_background"


def declare(installation: Installation, rows: int) -> None:
    """A release with a table of so many rows, and a backfill of them."""
    installation.settings["GASKET_BACKGROUND_SHARE"] = "0.1"
    installation.project.add_revision("items", TABLE.format(rows=rows), 'op.drop_table("items")')
    installation.project.add_revision("fill", downgrade='op.execute("SELECT 1")', declares=DECLARED)


class Writer:
    """Changes rows, and makes new ones without a tier, as an older release does, over whatever the server does."""

    def __init__(self, installation: Installation, first: int) -> None:
        self.made = 0
        self.changed = 0
        self.tried = 0
        self._installation = installation
        self._first = first
        self._over = False
        self._task = asyncio.create_task(self._write())

    async def stop(self) -> None:
        self._over = True
        await self._task

    async def _write(self) -> None:
        while not self._over:
            try:
                connection = await self._installation.connect()
            except AWAY:
                await asyncio.sleep(0.1)
                continue
            try:
                await self._write_over(connection)
            except (*LOST, asyncpg.InterfaceError):
                connection.terminate()
            else:
                await connection.close()

    async def _write_over(self, connection: asyncpg.Connection) -> None:
        while not self._over:
            self.tried += 1
            await connection.execute("UPDATE items SET writes = writes + 1 WHERE id = $1", random.randint(1, ROWS))
            self.changed += 1
            if self.changed % 10 == 0:
                # It may be there already: committed, but not confirmed.
                row = "INSERT INTO items (id) VALUES ($1) ON CONFLICT DO NOTHING"
                await connection.execute(row, -self._first - self.made)
                self.made += 1
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("rows", "kills", "restarts"),
    [
        (200_000, 4, {2: "immediate"}),  # so many that they last for all kills, on a slow machine too
        pytest.param(1_000_000, 20, {7: "fast", 14: "immediate"}, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
async def test_three_replicas_fill_each_row_once_whoever_is_killed(
    install: Callable[..., Awaitable[Installation]],
    restartable: OwnServer,
    rows: int,
    kills: int,
    restarts: dict[int, str],
) -> None:
    """`restarts`: before which kills the server is restarted, and how."""
    installation = await install(restartable.url)
    declare(installation, rows)
    replicas = [installation.replica() for _ in range(3)]
    for replica in replicas:
        await replica.ready()
    writers = [Writer(installation, first) for first in (1, 1_000_001)]

    async def work_goes_on() -> None:
        database = await installation.look()
        before = await database.fetchval("SELECT rows_done FROM migration_background")
        query = "SELECT state = 'running' AND rows_done > $1 FROM migration_background"

        async def goes_on() -> bool:
            return bool(await database.fetchval(query, before))

        await until(goes_on, 30, "the backfill to go on")

    for kill in range(kills):
        if kill in restarts:
            await work_goes_on()
            await asyncio.to_thread(restartable.restart, restarts[kill])
            await installation.close()
        await work_goes_on()
        await asyncio.sleep(random.random())  # in a batch, or between two
        worker = await (await installation.look()).fetchval("SELECT worker FROM migration_background")
        replica = next(one for one in replicas if worker.endswith(f":{one.pid}"))
        replica.signal(signal.SIGKILL)
        replicas.remove(replica)
        replicas.append(installation.replica())
        await replicas[-1].ready()
    for writer in writers:
        await writer.stop()
    done = await installation.run("gasket", "database", "background", "run", within=600)
    assert done.exit_code == 0, done.output
    database = await installation.look()

    async def complete() -> bool:
        return bool(await database.fetchval(STATE) == "complete")

    await until(complete, 30, "the backfill to be complete")
    once = "SELECT count(*) FROM items WHERE tier = 'standard' AND changes = 1"
    there = await database.fetchval("SELECT count(*) FROM items")
    assert await database.fetchval(once) == there
    rows += sum(writer.made for writer in writers)
    assert rows <= there <= rows + len(writers)  # each may have made one row that was not confirmed
    writes = await database.fetchval("SELECT sum(writes) FROM items")
    assert sum(writer.changed for writer in writers) <= writes <= sum(writer.tried for writer in writers)
    for replica in replicas:
        assert "Traceback" not in replica.output, str(replica)


async def test_a_downgrade_in_the_middle_ends_the_work_and_an_upgrade_takes_it_up(installation: Installation) -> None:
    declare(installation, ROWS)
    replica = installation.replica()
    await replica.ready()
    database = await installation.look()

    async def under_way() -> bool:
        return bool(await database.fetchval("SELECT rows_done > 0 FROM migration_background"))

    await until(under_way, 30, "the first batch")
    assert (await installation.run("gasket", "database", "downgrade", "--no-prompt", "--", "-1")).exit_code == 0
    assert await database.fetchval(STATE) == "void"
    filled = "SELECT count(*) FROM items WHERE tier IS NOT NULL"
    at_the_downgrade = await database.fetchval(filled)
    assert 0 < at_the_downgrade < ROWS
    done = await installation.run("gasket", "database", "background", "run")
    assert "There is no background work to do." in done.output
    assert await database.fetchval(filled) == at_the_downgrade
    assert (await installation.run("gasket", "database", "upgrade", "--no-prompt")).exit_code == 0
    assert (await installation.run("gasket", "database", "background", "run")).exit_code == 0
    assert await database.fetchval("SELECT count(*) FROM items WHERE tier = 'standard' AND changes = 1") == ROWS


async def test_the_commands(installation: Installation) -> None:
    declare(installation, ROWS)
    command = ("gasket", "database", "background")
    assert "There is no background work." in (await installation.run(*command, "list")).output
    await installation.migrate()
    assert "pending   backfill of items, declared by revision fill" in (await installation.run(*command, "list")).output
    assert "    1  paused " in (await installation.run(*command, "pause", "1")).output
    assert "There is no background work to do." in (await installation.run(*command, "run")).output
    refused = await installation.run(*command, "pause", "1")
    assert (refused.exit_code, "is paused, so there is nothing to pause" in refused.line) == (1, True)
    assert "There is no background work 2" in (await installation.run(*command, "cancel", "2")).line
    assert "    1  void " in (await installation.run(*command, "cancel", "1")).output
    assert "    1  pending " in (await installation.run(*command, "resume", "1")).output
    assert "background" in (await installation.run("gasket", "database", "status")).output
    done = await run_at_terminal(installation, *command, "run", "1")
    assert f"{ROWS:,} of about {ROWS:,} rows changed" in done.output
    assert "Nothing to do" not in done.output
