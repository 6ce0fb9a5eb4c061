"""What an operator took back stays back, until somebody says `upgrade` or a release comes that was never told no."""

from __future__ import annotations

import asyncio
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import HeldRevisionError, MigrationFailedError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

FAILS = 'op.execute("SELECT 1 / 0")'


class Fleet:
    """Releases with revisions in common: each has a folder of its own, and they share one database."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._url = database_url

    def release(self, name: str, *upgrades: str | None) -> Project:
        """A release with one revision for each of the upgrades, None for a table."""
        project = Project(self._folder / name)
        for upgrade in upgrades:
            project.add(upgrade)
        return project

    async def start(self, project: Project) -> None:
        await bring_to_head(project.config(self._url))

    async def run(self, project: Project, command: str, target: str) -> None:
        config = Config(str(project.ini), attributes={"read_config": lambda: project.config(self._url)})
        await asyncio.to_thread(getattr(alembic.command, command), config, target)

    async def roll_back(self, project: Project) -> None:
        await rollback(project.config(self._url), None, StepOptions())


async def versions(observer: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await observer.fetch("SELECT version_num FROM alembic_version ORDER BY 1")]


@pytest.fixture
def fleet(tmp_path: Path, database_url: str) -> Fleet:
    return Fleet(tmp_path, database_url)


async def test_a_release_that_got_half_way_does_not_apply_again_what_was_taken_back(
    fleet: Fleet, observer: asyncpg.Connection
) -> None:
    await fleet.start(fleet.release("before", None))
    half = fleet.release("half", None, None, FAILS)
    for _ in range(2):  # it crash-loops
        with pytest.raises(MigrationFailedError, match="r3"):
            await fleet.start(half)
    await fleet.run(half, "downgrade", "-1")
    for _ in range(2):
        with pytest.raises(HeldRevisionError, match=r"r2, which this release 1\.0 has, was taken back .*downgrade -1"):
            await fleet.start(half)
    assert await versions(observer) == ["r1"]


async def test_two_revisions_that_were_taken_back_stay_back(fleet: Fleet, observer: asyncpg.Connection) -> None:
    release = fleet.release("one", None, None, None, FAILS)
    with pytest.raises(MigrationFailedError):
        await fleet.start(release)
    await fleet.run(release, "downgrade", "-2")
    with pytest.raises(HeldRevisionError, match="r2"):
        await fleet.start(release)
    assert await versions(observer) == ["r1"]


async def test_what_an_older_release_rolled_back_stays_back_for_the_newer(
    fleet: Fleet, observer: asyncpg.Connection
) -> None:
    """Also where the newer release had only failed at what stands on top: an older one applied what was taken back."""
    older = fleet.release("older", None)
    between = fleet.release("between", None, None)
    newer = fleet.release("newer", None, None, FAILS)
    await fleet.start(between)
    with pytest.raises(MigrationFailedError):
        await fleet.start(newer)
    await fleet.roll_back(older)
    for release in (between, newer):
        with pytest.raises(HeldRevisionError, match="r2"):
            await fleet.start(release)
    assert await versions(observer) == ["r1"]
    await fleet.start(older)


async def test_an_upgrade_lifts_it_and_the_start_goes_on(fleet: Fleet, observer: asyncpg.Connection) -> None:
    release = fleet.release("one", None, None)
    await fleet.start(release)
    await fleet.run(release, "downgrade", "-1")
    with pytest.raises(HeldRevisionError, match="the head of this release"):
        await fleet.start(release)
    await fleet.run(release, "upgrade", "head")
    await fleet.start(release)
    assert await versions(observer) == ["r2"]


@pytest.mark.parametrize("upgrades", [(None, None, None), (None, None, None, None)], ids=["mended", "with one more"])
async def test_a_release_that_was_never_told_no_applies_it(
    fleet: Fleet, observer: asyncpg.Connection, upgrades: tuple[None, ...]
) -> None:
    """It mends the revision that failed, or has one more; what failed in it afterwards tells it no just then."""
    half = fleet.release("half", None, None, FAILS)
    with pytest.raises(MigrationFailedError):
        await fleet.start(half)
    await fleet.run(half, "downgrade", "-1")
    await fleet.start(fleet.release("next", *upgrades))
    assert await versions(observer) == [f"r{len(upgrades)}"]


async def test_a_new_release_that_fails_may_try_again(fleet: Fleet, observer: asyncpg.Connection) -> None:
    """Its own failures are younger than the no, which was not for it."""
    half = fleet.release("half", None, None, FAILS)
    with pytest.raises(MigrationFailedError):
        await fleet.start(half)
    await fleet.run(half, "downgrade", "-1")
    new = fleet.release("new", None, FAILS + "  # mended, they thought", None)
    for _ in range(2):
        with pytest.raises(MigrationFailedError):
            await fleet.start(new)
    assert await versions(observer) == ["r1"]


async def test_what_stands_beside_what_was_taken_back_is_applied(fleet: Fleet, observer: asyncpg.Connection) -> None:
    older, newer = fleet.release("older", None), fleet.release("newer", None, None)
    await fleet.start(newer)
    await fleet.roll_back(older)
    path = older.add()
    path.write_text(path.read_text().replace('"r2"', '"beside"').replace("t2", "beside"))
    await fleet.start(older)
    assert await versions(observer) == ["beside"]
