"""Databases at head, which installations copy instead of migrating one of their own: that takes ten times as long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.acceptance.installation import Installation, Project
from tests.acceptance.processes import Programs
from tests.servers import create_database

_OWN = {"DATABASE_URL", "ALEMBIC_CONFIG"}
"""The settings in which every installation differs."""


class Templates:
    """One database for each set of files and settings with which something has been migrated."""

    def __init__(
        self, server_url: str, make_database: Callable[[], Awaitable[str]], programs: Programs, folder: Path
    ) -> None:
        self._server_url = server_url
        self._make_database = make_database
        self._programs = programs
        self._home = folder
        self._databases: dict[object, str] = {}

    async def copy_into(self, installation: Installation) -> bool:
        """Make the installation's database, which must be untouched, a copy of one at head.

        Returns whether it did: not when the programs use another URL than the test.
        """
        if installation.settings.get("DATABASE_URL") != installation.database_url:
            return False
        settings = {name: value for name, value in installation.settings.items() if name not in _OWN}
        key = frozenset(_files(installation.project).items()), frozenset(settings.items())
        if key not in self._databases:
            self._databases[key] = await self._migrate(installation.project, settings)
        name = _name(installation.database_url)
        server = await asyncpg.connect(self._server_url, timeout=30)
        try:
            await server.execute(f"DROP DATABASE {name}", timeout=60)
            await create_database(server, name, self._databases[key])
        finally:
            await server.close(timeout=10)
        return True

    async def _migrate(self, project: Project, settings: dict[str, str]) -> str:
        url = await self._make_database()
        template = Installation(project, url, self._programs, self._home)
        template.settings |= settings
        await template.migrate()
        return _name(url)


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _files(project: Project) -> dict[Path, bytes]:
    """What Alembic reads: path below the project's folder, and content."""
    files = [project.ini, *project.versions.parent.rglob("*.py")]
    return {path.relative_to(project.folder): path.read_bytes() for path in files}
