"""How long readers wait while an ALTER TABLE stands behind a long SELECT: Gasket's step against plain Alembic's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg

from bench.harness import Row, Subject, alternate, database, markdown, open_folder, server, verdict
from bench.project import Project
from gasket.migrator.head import bring_to_head

TITLE = "The longest wait of a reader while an ALTER TABLE stands behind a SELECT of 4 s"
REPEATS = 5
GOAL = 150.0
"""Milliseconds that a reader may wait."""

_READERS = 4
_PAUSE = 0.005
"""Seconds between two questions of a reader."""

_ALTER = '''\
"""Widen table1"""

from __future__ import annotations

from alembic import op

revision: str = "widen"
down_revision: str | None = "000000000001"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

backward_compatible: bool = True


def upgrade() -> None:
    op.execute("ALTER TABLE table1 ADD COLUMN note text")


def downgrade() -> None:
    op.execute("ALTER TABLE table1 DROP COLUMN note")
'''


async def measure(repeats: int) -> str:
    """One row: of each round the longest wait of any reader, in the process that also migrates."""
    logging.getLogger("gasket.migrator").setLevel(logging.ERROR)  # a line for each try
    with open_folder() as folder, server(folder) as server_url:
        project = Project(folder / "project", 1)
        file = project.folder / "versions" / "2026_01_02_widen.py"

        def stalled(migrate: Callable[[str], Awaitable[object]]) -> Subject[float]:
            async def subject() -> float:
                file.unlink(missing_ok=True)
                async with database(server_url) as url:
                    await migrate(url)
                    file.write_text(_ALTER)
                    return await _longest_wait(url, migrate(url))

            return subject

        seconds = await alternate(
            repeats,
            {
                "plain Alembic": stalled(project.upgrade_plainly),
                "Gasket": stalled(lambda url: bring_to_head(project.config(url))),
            },
            warm_up=False,
        )
    row = Row("longest wait of 4 readers", seconds)
    return markdown([replace(row, goal=verdict(f"at most {GOAL:.0f} ms", row.median_ms("Gasket") <= GOAL))])


async def _longest_wait(url: str, migration: Awaitable[object]) -> float:
    """The longest that a reader waits for a row of table1 from the start of the migration to its end."""
    async with asyncpg.create_pool(url, min_size=_READERS, max_size=_READERS) as pool:
        selecting = await _begin_long_select(url)
        migrating = asyncio.ensure_future(migration)
        longest = await asyncio.gather(*(_read(pool, migrating) for _ in range(_READERS)))
        await migrating
        await selecting
    return max(longest)


async def _read(pool: asyncpg.Pool, migrating: asyncio.Future[object]) -> float:
    longest = 0.0
    async with pool.acquire() as connection:
        while not migrating.done():
            started = time.perf_counter()
            await connection.fetch("SELECT id FROM table1")
            longest = max(longest, time.perf_counter() - started)
            await asyncio.sleep(_PAUSE)
    return longest


async def _begin_long_select(url: str) -> asyncio.Task[None]:
    """A statement of 4 s under way, whose lock on table1 is held already."""
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO table1 (name) VALUES ('a row')")
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetch("SELECT id FROM table1")

    async def select() -> None:
        await connection.execute("SELECT pg_sleep(4)")
        await transaction.commit()
        await connection.close()

    return asyncio.create_task(select())
