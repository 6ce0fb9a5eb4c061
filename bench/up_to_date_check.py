"""What the check at start costs when there is nothing to do: against a bare connection and one SELECT."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from bench.harness import Row, alternate, database, open_folder, server, timed
from bench.project import Project
from gasket.migrator.runner import bring_to_head

TITLE = "The check at head, against a bare asyncpg connect, SELECT version_num, close"
REPEATS = 40
GOAL = 1.5
FILES = (10, 100, 1000)


async def measure(repeats: int) -> list[Row]:
    """One row for each number of migration files."""
    with open_folder() as folder, server(folder) as server_url:
        return [await _with_files(folder / str(count), server_url, count, repeats) for count in FILES]


async def _with_files(folder: Path, server_url: str, count: int, repeats: int) -> Row:
    project = Project(folder, count)
    async with database(server_url) as url:
        config = project.config(url)
        await bring_to_head(config)
        seconds = await alternate(
            repeats,
            {"bare SELECT": lambda: timed(_bare(url)), "check": lambda: timed(bring_to_head(config))},
        )
    return Row(f"{count:,} files", seconds, GOAL)


async def _bare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.fetch("SELECT version_num FROM alembic_version")
    await connection.close()
