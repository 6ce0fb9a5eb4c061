"""What a replica does of the schema on request, where one request is in the way of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError
from gasket.migrator.head import bring_to_head
from gasket.migrator.monitor import SchemaMonitor
from gasket.migrator.operations import SchemaOperations
from tests.acceptance.processes import until
from tests.migrator.project import Project

SLOW = """
    import time
    from pathlib import Path
    folder = Path({folder!r})
    (folder / "called").touch()
    ends = time.monotonic() + 120
    while not (folder / "go_on").exists() and time.monotonic() < ends:
        time.sleep(0.01)
"""


@pytest.fixture
async def config(tmp_path: Path, database_url: str) -> MigratorConfig:
    """A revision that is applied, and one that is pending and lasts, wherever it is called, until `go_on` is there."""
    project = Project(tmp_path)
    project.add()
    await bring_to_head(project.config(database_url))
    project.add(SLOW.format(folder=str(tmp_path)).strip())
    return project.config(database_url)


@pytest.fixture
async def operations(config: MigratorConfig) -> AsyncIterator[SchemaOperations]:
    monitor = SchemaMonitor(config)
    yield SchemaOperations(config, monitor, turn_wait=0.1)
    await monitor.close()


async def test_who_waits_for_a_plan_is_refused_in_time_and_also_when_its_request_was_cancelled(
    operations: SchemaOperations, tmp_path: Path
) -> None:
    try:
        planning = asyncio.create_task(operations.plan())
        await until((tmp_path / "called").exists, 60, "a plan that calls the revision")
        planning.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(MigratorError, match="is making a plan already"):
                await operations.plan()
            with pytest.raises(MigratorError, match="is making a plan already"):
                await operations.step("r2")
    finally:
        (tmp_path / "go_on").touch()

    async def planned() -> bool:
        try:
            return bool((await operations.plan()).revisions)
        except MigratorError:
            return False

    await until(planned, 60, "the end of the cancelled request's plan, and one more")
