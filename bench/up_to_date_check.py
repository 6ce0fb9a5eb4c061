"""What the check at start costs when there is nothing to do: against a bare connection and one SELECT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import asyncpg

from bench.harness import Row, alternate, database, markdown, open_folder, server, timed, verdict
from bench.project import Project
from gasket.migrator.head import bring_to_head

TITLE = "The check at head, against a bare asyncpg connect, SELECT version_num, close"
REPEATS = 40
FILES = (10, 100, 1000)
GOAL = 1.3
GOAL_OF_GROWTH = 30.0
"""Milliseconds that the check may take longer with the most files than with the fewest."""


async def measure(repeats: int) -> str:
    """One row for each number of migration files."""
    with open_folder() as folder, server(folder) as server_url:
        rows = [await _with_files(folder / str(count), server_url, count, repeats) for count in FILES]
    growth = rows[-1].median_ms("check") - rows[0].median_ms("check")
    goal = verdict(f"at most {GOAL_OF_GROWTH:.0f} ms above the first row", growth <= GOAL_OF_GROWTH)
    return markdown([rows[0].with_ratio_goal(GOAL), *rows[1:-1], replace(rows[-1], goal=goal)])


async def _with_files(folder: Path, server_url: str, count: int, repeats: int) -> Row:
    project = Project(folder, count)
    async with database(server_url) as url:
        config = project.config(url)
        await bring_to_head(config)
        seconds = await alternate(
            repeats,
            {"bare SELECT": lambda: timed(_bare(url)), "check": lambda: timed(bring_to_head(config))},
        )
    return Row(f"{count:,} files", seconds)


async def _bare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.fetch("SELECT version_num FROM alembic_version")
    await connection.close()
