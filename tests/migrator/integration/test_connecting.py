"""A connection that is opened while a start reads its files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from gasket.migrator.connecting import opening
from tests.migrator.project import Project, is_true

NO_OTHER_SESSION = (
    "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend')"
)


async def test_a_connection_that_nobody_asked_for_is_closed(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    async with asyncio.timeout(60):
        async with opening(Project(tmp_path).config(database_url)) as opened:
            await asyncio.wait({opened})
        assert opened.result().is_closed()
        await is_true(observer, NO_OTHER_SESSION)
