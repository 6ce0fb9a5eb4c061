"""What a replica that serves says when its schema is changed under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator import monitor as monitor_module
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.config import MigratorConfig
from gasket.migrator.head import bring_to_head
from gasket.migrator.monitor import SchemaMonitor
from gasket.migrator.runner import command_config
from gasket.postgres.sessions import serving_replicas
from tests.migrator.project import Project, is_true


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.add()
    made.add()
    made.add(compatible=False)
    return made


@pytest.fixture
async def config(project: Project, database_url: str) -> MigratorConfig:
    made = project.config(database_url, release="1.0+g1a2b3c4")
    await bring_to_head(made)
    return made


@pytest.fixture
async def monitor(config: MigratorConfig) -> AsyncIterator[SchemaMonitor]:
    """Of a replica that was ready once."""
    made = SchemaMonitor(config)
    assert (await made.readiness()).ready
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def unshared_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_SHARED_FOR", 0.0)


async def downgrade(config: MigratorConfig, target: str, typed: str) -> None:
    command = command_config(config, StepOptions(command=typed))
    command.attributes["read_config"] = lambda: config
    await asyncio.to_thread(alembic.command.downgrade, command, target)


async def test_a_schema_that_is_taken_back_is_told_once_with_who_did_it(
    config: MigratorConfig, monitor: SchemaMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    await downgrade(config, "-2", "litestar database downgrade -2")
    caplog.clear()
    for _ in range(3):
        answer = await monitor.readiness()
    assert (answer.ready, answer.state) == (False, "behind")
    assert answer.detail == "The schema is at r1; this release needs r3, which was taken back."
    [record] = [record for record in caplog.records if record.name == "gasket.migrator"]
    assert "`litestar database downgrade -2` of release 1.0+g1a2b3c4, run as role" in record.getMessage()
    assert "took back r2, r3." in record.getMessage()
    caplog.clear()
    caplog.set_level("INFO", "gasket.migrator")
    await bring_to_head_again(config)
    assert (await monitor.readiness()).detail is None
    assert "this replica is ready" in caplog.text


async def bring_to_head_again(config: MigratorConfig) -> None:
    command = Config(str(config.ini), attributes={"read_config": lambda: config})
    await asyncio.to_thread(alembic.command.upgrade, command, "head")


async def test_a_newer_release_that_this_one_cannot_run_beside_is_told(
    project: Project, config: MigratorConfig, monitor: SchemaMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    assert monitor._revisions, "the replica has read its own files"
    project.add(compatible=False)
    await bring_to_head(project.config(config.database_url, release="2.0"))
    answer = await monitor.readiness()
    assert (answer.ready, answer.state) == (False, "incompatible")
    assert answer.detail == "The schema is at r4, on which this release cannot run; it needs r3."
    assert "`start` of release 2.0, run as role" in caplog.text
    assert "applied r4." in caplog.text


async def test_a_schema_that_is_dropped_with_its_ledger_is_told(
    monitor: SchemaMonitor, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await observer.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    answer = await monitor.readiness()
    assert (answer.ready, answer.state, answer.revision) == (False, "behind", None)
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "it is no longer ready. The ledger does not say who changed it." in said


async def test_a_database_that_refuses_is_not_said_to_be_silent(
    monitor: SchemaMonitor, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """For everybody it says no more than that; the log says why, once."""
    caplog.set_level("INFO", "gasket.migrator")
    await observer.execute("ALTER TABLE alembic_version RENAME version_num TO number")
    for _ in range(3):
        answer = await monitor.readiness()
    assert (answer.ready, answer.state) == (True, "database_away")
    assert answer.detail == "The database does not let this replica read the state of the schema."
    await observer.execute("ALTER TABLE alembic_version RENAME number TO version_num")
    assert (await monitor.readiness()).state == "at_head"
    first, second = [record.getMessage() for record in caplog.records if "of the schema can" in record.getMessage()]
    assert 'column "version_num" does not exist' in first
    assert "not ready" in first
    assert second == "the state of the schema can be read again"


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ("UPDATE alembic_version SET version_num = 'r2'", "The ledger does not say who changed it."),
        (
            "UPDATE alembic_version SET version_num = 'r2'; INSERT INTO migration_ledger "
            "(revision, direction, release, role, host) VALUES ('r3', 'downgrade', '0.9', 'ann', 'node1')",
            "A command that the ledger does not name of release 0.9, run as role ann on host node1, took back r3.",
        ),
    ],
    ids=["by hand", "by a release that records no command"],
)
async def test_what_the_ledger_does_not_know_is_not_guessed(
    monitor: SchemaMonitor, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, done: str, said: str
) -> None:
    await observer.execute(done)
    answer = await monitor.readiness()
    assert answer.detail is not None
    assert "The schema is at r2; this release needs r3" in answer.detail
    assert said in caplog.text


async def test_a_replica_looks_by_itself_and_can_be_seen_to_serve(
    config: MigratorConfig,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(monitor_module, "_FIRST_WATCH_AFTER", 0.0)
    monkeypatch.setattr(monitor_module, "_WATCH_EVERY", 0.01)
    assert await serving_replicas(observer, "public") == []
    monitor = SchemaMonitor(config)
    monitor.start()
    try:
        # Other databases of this server may have replicas of other tests.
        seen = (
            "SELECT count(*) = 1 FROM pg_stat_activity "
            "WHERE application_name LIKE 'gasket-ready %' AND datname = current_database()"
        )
        await asyncio.wait_for(is_true(observer, seen), 10)
        [replica] = await serving_replicas(observer, "public")
        assert replica.release == "1.0+g1a2b3c4"
        assert await serving_replicas(observer, "another") == []
        await downgrade(config, "-1", "alembic downgrade -1")
        async with asyncio.timeout(10):
            while "no longer ready" not in caplog.text:  # noqa: ASYNC110  # a log cannot be waited for
                await asyncio.sleep(0.01)
    finally:
        await monitor.close()
    assert "`alembic downgrade -1`" in caplog.text


async def test_a_connection_that_came_too_late_for_its_probe_is_closed_too(
    config: MigratorConfig, observer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "_PROBE_TIMEOUT", 0.0)
    monitor = SchemaMonitor(config)
    assert not (await monitor.readiness()).ready
    assert monitor._opening is not None
    connection = await monitor._opening
    await monitor.close()
    assert connection.is_closed()


async def test_a_database_that_is_away_and_a_replica_that_leaves_say_so(project: Project) -> None:
    away = SchemaMonitor(project.config("postgresql://app@127.0.0.1:1/gasket"))
    answer = await away.readiness()
    assert (answer.ready, answer.detail) == (False, "The database does not answer.")
    away.leave()
    assert (await away.readiness()).detail == "This replica is being stopped."
    await away.close()
