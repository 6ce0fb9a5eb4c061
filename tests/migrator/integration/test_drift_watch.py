"""Several replicas watch one database for drift: one looks, and another takes its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from litestar import Litestar

from gasket.migrator.config import MigratorConfig
from gasket.migrator.drift_watch import DriftWatch
from gasket.migrator.head import bring_to_head
from gasket.migrator.plugin import MigratorPlugin
from tests.acceptance.processes import until
from tests.migrator.project import Project

IS_WATCH = "application_name LIKE 'gasket-drift%' AND datname = current_database()"
END_THE_WATCH = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {IS_WATCH}"
LOOKING = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {IS_WATCH}"
WITHIN = 30.0


class Told(list[tuple[str, str]]):
    def __call__(self, kind: str, text: str, _data: Mapping[str, object]) -> None:
        if not kind.startswith("migration."):
            self.append((kind, text))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def config(tmp_path: Path, database_url: str, told: Told) -> MigratorConfig:
    project = Project(tmp_path)
    project.add('op.execute("CREATE TABLE t1 (id int PRIMARY KEY, v int); CREATE UNIQUE INDEX by_v ON t1 (v)")')
    config = project.config(database_url, notify=told)
    await bring_to_head(config)
    return config


@pytest.fixture
async def watch(config: MigratorConfig) -> AsyncIterator[Callable[..., DriftWatch]]:
    watches: list[DriftWatch] = []

    def start(*, take_over: float = 0.05) -> DriftWatch:
        watches.append(DriftWatch(config, first=(0, 0), every=0.05, take_over=take_over))
        watches[-1].start()
        return watches[-1]

    yield start
    for watch in watches:
        await watch.stop()


async def test_one_looks_and_tells_of_what_appears_and_goes(
    watch: Callable[[], DriftWatch], told: Told, observer: asyncpg.Connection
) -> None:
    watches = [watch(), watch()]
    await until(lambda: [w.count for w in watches if w.count is not None] == [0], WITHIN, "one of two that looks")
    one = next(w for w in watches if w.count == 0)
    await observer.execute("DROP INDEX by_v")
    await until(lambda: one.count == 1, WITHIN, "the drift")
    sentence = "The live database differs from what the revisions left, in 1 point: index by_v is missing."
    await asyncio.sleep(0.3)  # several looks
    assert told == [("drift.detected", sentence)]
    await observer.execute("CREATE UNIQUE INDEX by_v ON t1 (v)")
    await until(lambda: len(told) == 2, WITHIN, "the end of the drift")
    assert told[1] == ("drift.resolved", "The live database is again what the revisions left.")

    await one.stop()
    other = next(w for w in watches if w is not one)
    await until(lambda: other.count == 0, WITHIN, "that the other one looks")


async def test_who_lost_its_connection_knows_nothing_until_it_looks_again(
    watch: Callable[[], DriftWatch], observer: asyncpg.Connection
) -> None:
    one = watch()
    await until(lambda: one.count == 0, WITHIN, "a look")
    assert await observer.fetchval(END_THE_WATCH) == 1
    await observer.execute("DROP INDEX by_v")
    await until(lambda: one.count == 1, WITHIN, "a look over a new connection")


async def test_who_is_followed_by_another_knows_nothing_any_more(
    watch: Callable[..., DriftWatch], observer: asyncpg.Connection
) -> None:
    one = watch(take_over=1000)
    await until(lambda: one.count == 0, WITHIN, "a look")
    other = watch()
    assert await observer.fetchval(END_THE_WATCH) >= 1
    await until(lambda: (one.count, other.count) == (None, 0), WITHIN, "that the other one looks")


async def test_a_schema_that_changes_during_a_look_has_no_drift(
    watch: Callable[..., DriftWatch], told: Told, observer: asyncpg.Connection
) -> None:
    async with observer.transaction():
        await observer.execute("LOCK TABLE migration_catalog; DROP INDEX by_v")
        one = watch()
        await until(lambda: _true(observer, f"{LOOKING} AND wait_event_type = 'Lock'"), WITHIN, "a look that waits")
        await observer.execute("DELETE FROM alembic_version")
    await asyncio.sleep(0.5)  # several looks
    assert (one.count, told) == (None, [])


async def test_a_look_that_takes_too_long_is_given_up(
    watch: Callable[..., DriftWatch],
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gasket.migrator.drift_watch._LOOK_LIMIT", 0.2)
    caplog.set_level(logging.INFO)
    async with observer.transaction():
        await observer.execute("LOCK TABLE migration_catalog")
        one = watch()
        await until(lambda: "drift was not looked for" in caplog.text, WITHIN, "the end of the look")
    monkeypatch.undo()
    await until(lambda: one.count == 0, WITHIN, "a look")


async def test_a_file_that_cannot_be_read_ends_no_watch(
    watch: Callable[..., DriftWatch], config: MigratorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broken = config.ini.parent / "migrations" / "versions" / "2027_broken.py"
    broken.write_text("revision = \n")
    one = watch()
    await until(lambda: "drift was not looked for: Migration file 2027_broken.py" in caplog.text, WITHIN, "a complaint")
    broken.unlink()
    await until(lambda: one.count == 0, WITHIN, "a look")


async def test_of_many_points_the_first_are_told(config: MigratorConfig, told: Told) -> None:
    DriftWatch(config)._tell([f"table t{number} is missing" for number in range(7)])
    [(_, sentence)] = told
    assert "in 7 points: table t0 is missing; " in sentence
    assert sentence.endswith("; table t4 is missing; and more.")


async def test_it_begins_and_ends_with_the_replica(config: MigratorConfig) -> None:
    plugin = MigratorPlugin(config)
    async with Litestar(plugins=[plugin], openapi_config=None, logging_config=None).lifespan():
        watching = plugin.drift._task
        assert watching is not None
    assert watching.done()


async def test_a_schema_that_is_not_at_head_has_no_drift(
    watch: Callable[[], DriftWatch], told: Told, observer: asyncpg.Connection
) -> None:
    await observer.execute("DELETE FROM alembic_version; DROP INDEX by_v")
    one = watch()
    await until(lambda: _true(observer, LOOKING), WITHIN, "that it looks")
    await asyncio.sleep(0.3)  # several looks
    assert (one.count, told) == (None, [])


async def test_what_is_granted_to_the_application_is_no_drift(
    config: MigratorConfig,
    tmp_path: Path,
    database_url: str,
    observer: asyncpg.Connection,
    make_database: Callable[[], Awaitable[str]],
    url_with: Callable[..., str],
) -> None:
    """The watch looks with the migrating role, `status` with the application's."""
    role = f"role_{uuid4().hex[:12]}"
    url = await make_database()
    await observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    (tmp_path / "two").mkdir()
    project = Project(tmp_path / "two")
    project.add()
    two_roles = project.config(
        url_with(url, user=role, password="secret-word"), migration_database_url=url, notify=config.notify
    )
    await bring_to_head(two_roles)
    one = DriftWatch(two_roles, first=(0, 0), every=0.05, take_over=0.05)
    one.start()
    try:
        await until(lambda: one.count is not None, WITHIN, "a look")
        assert one.count == 0
    finally:
        await one.stop()
        connection = await asyncpg.connect(url)
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


async def _true(observer: asyncpg.Connection, query: str) -> bool:
    await observer.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees pg_stat_activity once
    return bool(await observer.fetchval(query))
