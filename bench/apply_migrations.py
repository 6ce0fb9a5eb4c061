"""What applying migrations costs with the lock, the rules and the ledger: against plain Alembic on the same files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.harness import Row, Subject, alternate, database, markdown, open_folder, program, script, server, timed
from bench.project import Project
from gasket.migrator.head import bring_to_head

TITLE = "Applying migrations, each of one table in a transaction of its own, against plain Alembic"
REPEATS = 5
GOAL = 1.15
COUNTS = (50, 1000)


async def measure(repeats: int) -> str:
    """In one process, then as whole commands."""
    with open_folder() as folder, server(folder) as server_url:
        projects = {count: Project(folder / str(count), count) for count in COUNTS}
        rows = [await _in_process(project, server_url, count, repeats) for count, project in projects.items()]
        project = projects[COUNTS[0]]
        rows += await _commands(project, server_url, f"{COUNTS[0]} migrations", repeats, prepare=_leave_empty)
        rows += await _commands(project, server_url, "nothing to do", repeats, prepare=_bring_to_head)
        return markdown(rows)


async def _in_process(project: Project, server_url: str, count: int, repeats: int) -> Row:
    def on_empty(apply: Callable[[Project, str], Awaitable[object]]) -> Subject[float]:
        async def subject() -> float:
            async with database(server_url) as url:
                return await timed(apply(project, url))

        return subject

    rounds = repeats if count == COUNTS[0] else max(2, repeats - 2)
    seconds = await alternate(rounds, {"plain Alembic": on_empty(_apply_plainly), "Gasket": on_empty(_bring_to_head)})
    return Row(f"in-process, {count:,} migrations", seconds).with_ratio_goal(GOAL)


async def _commands(
    project: Project, server_url: str, case: str, repeats: int, *, prepare: Callable[[Project, str], Awaitable[object]]
) -> list[Row]:
    def upgrade(ini: Path) -> Subject[float]:
        async def subject() -> float:
            async with database(server_url) as url:
                await prepare(project, url)
                command = program(script("alembic"), "upgrade", "head", DATABASE_URL=url, ALEMBIC_CONFIG=str(ini))
                return await timed(command)

        return subject

    seconds = await alternate(
        repeats,
        {
            "plain": upgrade(project.plain),
            "the runner alone": upgrade(project.runner),
            "Gasket's env.py": upgrade(project.gasket),
        },
    )
    return [
        Row(f"`alembic upgrade head`, {case}, {name}", {"plain Alembic": seconds["plain"], "Gasket": seconds[name]})
        for name in ("the runner alone", "Gasket's env.py")
    ]


async def _bring_to_head(project: Project, url: str) -> None:
    await bring_to_head(project.config(url))


async def _apply_plainly(project: Project, url: str) -> None:
    await project.upgrade_plainly(url)


async def _leave_empty(_project: Project, _url: str) -> None:
    pass
