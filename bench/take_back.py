"""What it costs to take revisions back from the ledger, as an older release does: against applying them."""

from __future__ import annotations

from pathlib import Path

from bench.harness import Row, database, markdown, open_folder, server, timed
from bench.project import Project
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.head import bring_to_head

TITLE = "`rollback` of many revisions, each of one empty table, against applying them"
REPEATS = 1
COUNTS = (100, 2000)
GOAL = 2.0


async def measure(repeats: int) -> str:
    """A row for each number of revisions; the older release has the first of them only."""
    with open_folder() as folder, server(folder) as server_url:
        rows = [await _rolled_back(folder / str(count), server_url, count, repeats) for count in COUNTS]
        return markdown([*rows[:-1], rows[-1].with_ratio_goal(GOAL)])


async def _rolled_back(folder: Path, server_url: str, count: int, repeats: int) -> Row:
    newer, older = Project(folder / "newer", count), Project(folder / "older", 1)
    seconds: dict[str, list[float]] = {"apply": [], "rollback": []}
    for _ in range(repeats):
        async with database(server_url) as url:
            seconds["apply"].append(await timed(bring_to_head(newer.config(url))))
            seconds["rollback"].append(await timed(rollback(older.config(url), None, StepOptions())))
    return Row(f"{count:,} revisions", seconds)
