"""The archive as `litestar database archive` shows it, and what is shown before a downgrade."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import alembic.command
import asyncpg
import pytest
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import Connection

from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.loss_estimate import Estimate, estimate_downgrade
from gasket.migrator.archive.manifest import Manifest, drop_archive, list_archives, show_archive
from gasket.migrator.archive.trial import TrialStep
from gasket.migrator.commands.archive import archive_commands
from gasket.migrator.errors import ReadOnlyServerError, TargetError
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.scripts import alembic_config
from gasket.migrator.sql.render import Rendering, Statement
from tests.migrator.archive_project import ArchiveProject, Run
from tests.migrator.project import Project


async def estimated(project: ArchiveProject, *steps: str) -> Estimate:
    """The estimate of steps of one statement each, the last revision's first."""
    found: list[Estimate] = []

    def look(connection: Connection) -> None:
        context = MigrationContext.configure(connection)
        plan = [
            TrialStep(f"r{number}", Rendering((Statement(sql),)), lambda: None)
            for number, sql in enumerate(steps, start=1)
        ]
        found.append(estimate_downgrade(context, schema="public", steps=plan))
        connection.rollback()

    await project.connected(look, Run())
    return found[0]


async def test_archives_are_listed_newest_first_and_dropped_for_good(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    assert await list_archives(observer, "public") == []
    project.step("CREATE TABLE t (id int PRIMARY KEY, v text)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD w int, ADD x int", "ALTER TABLE t DROP w, DROP x;\nUPDATE t SET v = ''")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1, 'one', 5, 6), (2, 'two', 7, 8)")
    await project.down("base")
    newest, older = await list_archives(observer, "public")
    assert (newest.revision, newest.release, newest.rows, newest.rows_left) == ("r1", "1.0", 2, 2)
    assert (older.revision, [entry.name for entry in older.entries]) == ("r2", ["public.t (w, x)", "public.t"])
    assert older.entries[1].problem == "downgrade() updates 2 rows of public.t: not archived"
    assert newest.size == await observer.fetchval(
        f"SELECT pg_total_relation_size('gasket_archive.{newest.entries[0].stored_in}')"
    )
    await project.up("r1")
    assert (await show_archive(observer, "public", newest.number)).rows_left == 0
    still = await show_archive(observer, "public", older.number)  # which now refers to the table that is there
    assert (still.rows_left, still.entries[1]) == (older.rows_left, older.entries[1]) == (2, older.entries[1])
    dropped = await drop_archive(observer, "public", older.number)
    assert dropped == still
    assert [archive.number for archive in await list_archives(observer, "public")] == [newest.number]
    assert await observer.fetchval(f"SELECT to_regclass('gasket_archive.{older.entries[0].stored_in}')") is None
    with pytest.raises(TargetError, match=f"no archive {older.number}: there are {newest.number}"):
        await drop_archive(observer, "public", older.number)


async def test_rows_left_behind_are_counted(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, v int);\nINSERT INTO t VALUES (1, 0)", "DROP TABLE t")
    await project.up()
    await observer.execute("UPDATE t SET v = 1; INSERT INTO t VALUES (2, 2)")
    await project.down()
    await project.up()
    [archive] = await list_archives(observer, "public")
    assert (archive.rows, archive.rows_left, archive.size > 0) == (2, 1, True)


async def test_revisions_with_something_to_restore(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    project.step("CREATE TABLE u (id int)", "DROP TABLE u")
    found: list[Any] = []

    async def look() -> None:
        await project.connected(lambda connection: found.append(Manifest(connection, "public").revisions()), Run())

    await look()
    await project.up()
    await project.down("base")
    await look()
    await project.up("r1")
    await look()
    assert found == [frozenset(), {"r1", "r2"}, {"r2"}]


async def test_the_estimate_shows_what_goes_and_changes_nothing(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    await observer.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text, w text); CREATE TABLE big (v text);"
        "INSERT INTO t SELECT n, repeat('x', 100), 'y' FROM generate_series(1, 5000) AS n;"
        "INSERT INTO big SELECT string_agg(md5(n::text), '') FROM generate_series(1, 100000) AS n; ANALYZE t;"
        "CREATE TABLE keyless (a int, b int); INSERT INTO keyless VALUES (1, 2)"
    )
    found = await estimated(
        project,
        "ALTER TABLE t DROP v",
        "ALTER TABLE t RENAME TO renamed",
        "DROP TABLE big",
        "CREATE TABLE made (id int)",
        "DROP TABLE made",
        "ALTER TABLE keyless DROP b",
        "UPDATE renamed SET w = 'z' WHERE id < 4",
        "DROP TABLE renamed",
    )
    assert [(loss.revision, loss.kind, loss.table, loss.columns) for loss in found.losses] == [
        ("r1", LossKind.COLUMNS, "public.t", ("v",)),
        ("r3", LossKind.TABLE, "public.big", ()),
        ("r6", LossKind.COLUMNS, "public.keyless", ("b",)),
        ("r8", LossKind.TABLE, "public.t", ()),
    ]
    column, big, keyless, table = found.losses
    assert column.rows == table.rows == 5000
    assert 5000 * 100 < column.size < 5000 * 200
    assert big.size > 3_200_000
    assert "no key that stays" in str(keyless.problem)
    assert found.not_archived == ("downgrade() updates 3 rows of public.renamed: not archived",)
    assert found.seconds > 0
    assert found.size == sum(loss.size for loss in found.losses)
    assert await observer.fetchval("SELECT count(v) FROM t") == 5000
    assert await observer.fetchval("SELECT to_regnamespace('gasket_archive')") is None


async def test_an_index_step_costs_nothing_to_estimate(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    await observer.execute("CREATE TABLE t (id int)")
    found: list[Estimate] = []

    def look(connection: Connection) -> None:
        rendering = Rendering((Statement("DROP INDEX CONCURRENTLY is_not_there", autocommit=True),))
        steps = [TrialStep("r1", rendering, lambda: None)]
        found.append(estimate_downgrade(MigrationContext.configure(connection), schema="public", steps=steps))

    await project.connected(look, Run())
    assert found == [Estimate((), ())]


async def test_on_a_server_that_takes_no_writes_an_archive_stays(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    project = Project(tmp_path)
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    await observer.execute("INSERT INTO t1 VALUES (1)")
    arguments = alembic_config(config.ini, read_config=lambda: config)
    await asyncio.to_thread(alembic.command.downgrade, arguments, "base")
    [archive] = await list_archives(observer, "public")
    drop = ["drop", str(archive.number), "--no-prompt"]
    name = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        with pytest.raises(
            ReadOnlyServerError, match="is to be dropped, but the server of DATABASE_URL takes no writes"
        ):
            await asyncio.to_thread(CliRunner().invoke, archive_commands(config), drop, catch_exceptions=False)
    finally:
        await observer.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert await list_archives(observer, "public") == [archive]
