"""What `status` says of failures and runs, and the exit code of `status --check`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import MetaData

from gasket.migrator.commands.status import StatusReport, read_report, status_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

BROKEN = 'op.execute("SELECT 1 / 0")'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def run_status(config: MigratorConfig, *options: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, status_command(config), options)


async def exit_code(config: MigratorConfig) -> int:
    return (await run_status(config, "--check")).exit_code


async def test_the_exit_code_says_nothing_to_do_pending_or_refused(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    config = project.config(database_url)
    project.add()
    assert await exit_code(config) == 3
    await bring_to_head(config)
    assert await exit_code(config) == 0
    project.add()
    assert await exit_code(config) == 3
    await observer.execute("UPDATE alembic_version SET version_num = 'unknown'")
    assert await exit_code(config) == 1


async def test_an_edit_below_what_is_pending_is_refused_and_an_edit_at_head_is_not(
    project: Project, database_url: str
) -> None:
    config = project.config(database_url)
    first = project.add()
    await bring_to_head(config)
    first.write_text(first.read_text().replace("CREATE TABLE t1", "CREATE TABLE IF NOT EXISTS t1"))
    assert await exit_code(config) == 0
    project.add()
    assert await exit_code(config) == 1


async def fail(config: MigratorConfig) -> None:
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)


@pytest.fixture
async def failed(project: Project, database_url: str) -> tuple[MigratorConfig, Path]:
    """A release whose second revision has failed."""
    config = project.config(database_url)
    project.add()
    broken = project.add(BROKEN)
    await fail(config)
    return config, broken


async def test_a_failure_is_shown_until_its_revision_is_applied(failed: tuple[MigratorConfig, Path]) -> None:
    config, broken = failed
    [failure] = (await read_report(config)).failures
    assert (failure.revision, failure.over) == ("r2", False)
    broken.write_text(broken.read_text().replace(BROKEN, 'op.execute("CREATE TABLE t2 (id int)")'))
    await bring_to_head(config)
    report = await read_report(config)
    [failure] = report.failures
    assert failure.over
    assert "over since: " in (await run_status(config)).output


async def test_failures_of_a_revision_that_is_gone_are_left_out(failed: tuple[MigratorConfig, Path]) -> None:
    config, broken = failed
    broken.unlink()
    assert (await read_report(config)).failures == []


async def test_an_older_release_shows_what_a_newer_one_has_failed_at(failed: tuple[MigratorConfig, Path]) -> None:
    config, broken = failed
    broken.unlink()
    older = replace(config, release="the release before")
    [failure] = (await read_report(older)).failures
    assert (failure.revision, failure.release, failure.over) == ("r2", config.release, False)


async def test_a_run_is_shown_with_its_description(project: Project, database_url: str) -> None:
    config = project.config(database_url)
    file = project.add()
    file.write_text(file.read_text().replace('"""r1"""', '"""Keys are counted\n\nA second paragraph.\n"""'))
    await bring_to_head(config)
    report = await read_report(config)
    assert [(run.description, run.command) for run in report.history] == [("Keys are counted", "start")]
    assert "upgrade r1 (Keys are counted) by release 1.0" in (await run_status(config)).output


@pytest.mark.parametrize(
    ("revisions_before", "said"),
    [
        (0, "nothing was changed; the schema is still at no revision. Mend"),
        (1, "nothing was changed; the schema is still at r1, and the release before runs on it. Mend"),
    ],
)
async def test_a_failed_upgrade_says_where_the_schema_stands(
    project: Project, database_url: str, revisions_before: int, said: str
) -> None:
    config = project.config(database_url)
    for _ in range(revisions_before):
        project.add()
        await bring_to_head(config)
    project.add(BROKEN)
    with pytest.raises(MigrationFailedError) as refusal:
        await bring_to_head(config)
    assert said in str(refusal.value)
    assert str(refusal.value).endswith("Mend the rows or the migration, then start again.")


@pytest.mark.parametrize("state", ["53100", "58030", "XX001"])
async def test_a_fault_of_the_server_is_not_blamed_on_the_rows(project: Project, database_url: str, state: str) -> None:
    project.add(f"""op.execute("DO $$ BEGIN RAISE 'full' USING ERRCODE = '{state}'; END $$")""")
    with pytest.raises(MigrationFailedError, match="Mend the fault of the server, then start again"):
        await bring_to_head(project.config(database_url))


async def test_a_failed_upgrade_after_others_says_what_stays(project: Project, database_url: str) -> None:
    project.add()
    project.add(BROKEN)
    with pytest.raises(MigrationFailedError, match="rolled back whole, r1 before it stays; the schema is at r1. Mend"):
        await bring_to_head(project.config(database_url))


async def test_the_models_are_loaded_where_status_compares_with_them_and_nowhere_else(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    loaded: list[MetaData] = []

    def load() -> MetaData:
        loaded.append(MetaData())
        return loaded[-1]

    project.add()
    await bring_to_head(project.config(database_url))
    report = await read_report(project.config(database_url, load_metadata=load))
    assert (report.state, report.drift, loaded) == ("at_head", [], [])
    for report in (
        await read_report(project.config(database_url, load_metadata=load), models=True),
        await _without_record(project.config(database_url, load_metadata=load), observer),
    ):
        assert (report.state, report.drift) == ("drifted", ["table t1 is not in the models"])
    assert len(loaded) == 2


async def _without_record(config: MigratorConfig, observer: asyncpg.Connection) -> StatusReport:
    await observer.execute("DROP TABLE migration_catalog")
    return await read_report(config)
