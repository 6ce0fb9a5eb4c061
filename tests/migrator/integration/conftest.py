"""An empty database for each test, a connection that looks at it, and migrations of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import databases
from tests.migrator.archive_project import ArchiveProject


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database. It caches no statement, because the schema changes under it."""
    connection: asyncpg.Connection = await asyncpg.connect(database_url, statement_cache_size=0)
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def connection(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that the tests of one file share. It caches no statement either."""
    async with databases(server_url) as make:
        connection: asyncpg.Connection = await asyncpg.connect(await make(), statement_cache_size=0, timeout=10)
        yield connection
        await connection.close(timeout=10)


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> ArchiveProject:
    """Migrations that run through the archive. Some test files have a `project` of their own."""
    return ArchiveProject(tmp_path, database_url)
