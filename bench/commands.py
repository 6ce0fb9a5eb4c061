"""What a command costs that has nothing to do: against plain Alembic, and Advanced Alchemy's in a plain application."""

from __future__ import annotations

import resource
from pathlib import Path

from bench.harness import Row, Subject, alternate, database, markdown, open_folder, program, script, server
from bench.project import Project
from gasket.commands import APPLICATION
from gasket.migrator.head import bring_to_head

TITLE = "Commands with nothing to do, CPU time of the whole process"
REPEATS = 12
FILES = 10
GOAL = 1.2

_ALEMBIC = "plain `alembic current`"
_LITESTAR = "plain `litestar database show-current-revision`"
_WITHOUT_DATABASE = "`litestar version`, for comparison"
_WHOLE_APPLICATION = "`litestar database status` with LITESTAR_APP, for comparison"
_COMPARED_WITH = {
    "`alembic current`": _ALEMBIC,
    "`alembic upgrade head`": _ALEMBIC,
    "`gasket database status`": _ALEMBIC,
    _WITHOUT_DATABASE: _ALEMBIC,
    "`litestar database status`": _LITESTAR,
    _WHOLE_APPLICATION: _LITESTAR,
}

# What a project has that follows Advanced Alchemy's documentation, with no table and no route.
_PLAIN_APPLICATION = """\
import os

from advanced_alchemy.extensions.litestar import AlembicAsyncConfig, SQLAlchemyAsyncConfig, SQLAlchemyPlugin
from litestar import Litestar

ini = os.environ["ALEMBIC_CONFIG"]
migrations = AlembicAsyncConfig(
    script_config=ini, script_location=ini.removesuffix(".ini"), version_table_name="alembic_version"
)
config = SQLAlchemyAsyncConfig(connection_string="postgresql+asyncpg://", alembic_config=migrations)
app = Litestar(plugins=[SQLAlchemyPlugin(config)])
"""


async def measure(repeats: int) -> str:
    """A row a command, against plain Alembic on asyncpg, or against Advanced Alchemy's command in a plain application.

    Litestar's command line imports Litestar, SQLAlchemy and Advanced Alchemy before it looks at the command, so that is
    the least that `litestar database ...` can take; `litestar version`, which reads no database, shows it.
    """
    with open_folder() as folder, server(folder) as server_url:
        project = Project(folder / "project", FILES)
        (folder / "plain_application.py").write_text(_PLAIN_APPLICATION)
        async with database(server_url) as url:
            await bring_to_head(project.config(url))
            seconds = await alternate(repeats, _subjects(project, folder, url))
    rows = [
        Row(f"{name}, against {reference}", {"plain": seconds[reference], "command": seconds[name]})
        for name, reference in _COMPARED_WITH.items()
    ]
    return markdown([row if "for comparison" in row.case else row.with_ratio_goal(GOAL) for row in rows])


def _subjects(project: Project, folder: Path, url: str) -> dict[str, Subject[float]]:
    def cpu_of(*command: str | Path, ini: Path = project.gasket, **settings: str) -> Subject[float]:
        async def subject() -> float:
            before = _cpu_of_children()
            await program(*command, folder=folder, DATABASE_URL=url, ALEMBIC_CONFIG=str(ini), **settings)
            return _cpu_of_children() - before

        return subject

    alembic, gasket, litestar = script("alembic"), script("gasket"), script("litestar")
    status = ("database", "status")
    plainly = ("--app", "plain_application:app", "database", "show-current-revision")
    return {
        _ALEMBIC: cpu_of(alembic, "current", ini=project.plain),
        _LITESTAR: cpu_of(litestar, *plainly, ini=project.plain),
        "`alembic current`": cpu_of(alembic, "current"),
        "`alembic upgrade head`": cpu_of(alembic, "upgrade", "head"),
        "`gasket database status`": cpu_of(gasket, *status),
        _WITHOUT_DATABASE: cpu_of(litestar, "version"),
        "`litestar database status`": cpu_of(litestar, *status),
        _WHOLE_APPLICATION: cpu_of(litestar, *status, LITESTAR_APP=APPLICATION),
    }


def _cpu_of_children() -> float:
    """Seconds of user and system time of the processes that have ended; one runs at a time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
