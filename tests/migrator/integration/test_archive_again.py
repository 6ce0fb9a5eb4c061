"""Faults that pass fail the whole step; what stays behind for a reason of its own comes back with a later try."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from gasket.migrator.commands.archive import archive_commands
from gasket.migrator.commands.status import read_report
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import LocksNotGrantedError, MigrationFailedError, NotRestoredError, TargetError
from gasket.migrator.head import bring_to_head
from tests.migrator.archive_project import (
    CHANGED_SINCE,
    EXISTS,
    NO_PARTITION,
    ORPHANED,
    ArchiveProject,
    kept,
    manifest,
    rows,
    there_and_back,
)
from tests.migrator.integration.test_archive_chains import alembic
from tests.migrator.project import Project

EVENTS = (
    "CREATE TABLE ev (id int, day date NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
    "DROP TABLE ev",
)
YEARS = (
    "CREATE TABLE ev_2024 PARTITION OF ev FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');"
    "CREATE TABLE ev_later PARTITION OF ev FOR VALUES FROM ('2025-01-01') TO (MAXVALUE) PARTITION BY LIST (id);"
    'CREATE TABLE "ev Later 1" PARTITION OF ev_later FOR VALUES IN (1);'
    "CREATE TABLE ev_rest PARTITION OF ev_later DEFAULT;"
    "INSERT INTO ev VALUES (1, '2024-05-05'), (1, '2026-05-05'), (2, '2030-01-01')"
)
EVENT_ROWS = "SELECT id, day::text, tableoid::regclass::text FROM ev ORDER BY day"
SALES = (
    "CREATE TABLE sales (id int PRIMARY KEY, amount int);\n"
    "CREATE VIEW big_sales AS SELECT * FROM sales WHERE amount > 0;\n"
    "CREATE MATERIALIZED VIEW sales_sum AS SELECT count(*) n, coalesce(sum(amount), 0) s FROM big_sales;\n"
    "CREATE MATERIALIZED VIEW again AS SELECT n FROM sales_sum;\n"
    "CREATE MATERIALIZED VIEW never AS SELECT n FROM sales_sum WITH NO DATA;\n"
    "CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT sum(amount) FROM public.sales';\n"
    "CREATE MATERIALIZED VIEW by_function AS SELECT total() AS s",
    "DROP MATERIALIZED VIEW by_function;\nDROP FUNCTION total();\n"
    "DROP MATERIALIZED VIEW never;\nDROP MATERIALIZED VIEW again;\nDROP MATERIALIZED VIEW sales_sum;\n"
    "DROP VIEW big_sales;\nDROP TABLE sales",
)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a file system of 8 MB, its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="gasket-small-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "small", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


@pytest.fixture
async def small_tablespace(observer: asyncpg.Connection, small_disk: Path) -> AsyncIterator[str]:
    """A tablespace there, which goes with its tables."""
    data = await observer.fetchval("SHOW data_directory")
    if not os.path.exists(data):  # noqa: ASYNC240
        pytest.skip("the server is on another machine")
    server = os.stat(data)
    os.chown(small_disk, server.st_uid, server.st_gid)
    name = f"small_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE TABLESPACE {name} LOCATION '{small_disk}'")
    yield name
    await observer.execute("DROP TABLE IF EXISTS t")
    await observer.execute("CHECKPOINT")  # until then the files of dropped tables are there
    await observer.execute(f"DROP TABLESPACE {name}")


async def test_a_full_disk_fails_the_upgrade_as_a_whole(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, small_disk: Path, small_tablespace: str
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    project.add(
        f'op.execute("CREATE TABLE t (id int PRIMARY KEY, v text) TABLESPACE {small_tablespace}")',
        'op.execute("DROP TABLE t")',
    )
    await bring_to_head(config)
    await observer.execute("INSERT INTO t SELECT n, repeat('x', 20) FROM generate_series(1, 30000) AS n")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("CHECKPOINT")
    filling = small_disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    with pytest.raises(MigrationFailedError, match="53100"):
        await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    assert await observer.fetchval("SELECT to_regclass('t') IS NULL")
    assert await rows(observer, "SELECT version_num FROM alembic_version") == [("r1",)]
    [entry] = await manifest(observer)
    assert (entry["restored_at"], entry["restore_error"], len(await kept(observer, "t"))) == (None, None, 30000)
    assert "53100" in await observer.fetchval("SELECT error FROM migration_failures ORDER BY id DESC LIMIT 1")
    filling.unlink()
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    assert await observer.fetchval("SELECT count(*) FROM t") == 30000


FAULTY = (
    "CREATE TABLE fault (state text)",
    "CREATE FUNCTION fails(id int) RETURNS bool LANGUAGE plpgsql AS $$ DECLARE what text; BEGIN\n"
    "  SELECT state INTO what FROM fault WHERE id = 2;\n"
    "  IF what IS NOT NULL THEN RAISE 'a fault' USING ERRCODE = what; END IF; RETURN true; END $$",
)


@pytest.mark.parametrize("refused", ["id < 100", "id <> 1"])
@pytest.mark.parametrize("state", ["53100", "58030", "XX001", "57014"])
async def test_a_fault_that_is_not_about_the_rows_fails_the_step(
    project: ArchiveProject, observer: asyncpg.Connection, state: str, refused: str
) -> None:
    """Also where a row is refused first, and each is tried alone."""
    await observer.execute("; ".join(FAULTY))
    project.step("CREATE TABLE other (id int)", "DROP TABLE other")
    project.step(f"CREATE TABLE t (id int CHECK ({refused}), CHECK (fails(id)))", "DROP TABLE t")
    await project.up()
    await observer.execute("ALTER TABLE t DROP CONSTRAINT t_id_check; INSERT INTO t VALUES (1), (2), (3)")
    await project.down()
    await observer.execute(f"INSERT INTO fault VALUES ('{state}')")
    with pytest.raises(DBAPIError) as failure:
        await project.up()
    assert getattr(failure.value.orig, "sqlstate", None) == state
    assert await observer.fetchval("SELECT to_regclass('t') IS NULL")
    [entry] = [entry for entry in await manifest(observer) if entry["object_name"] == "t"]
    assert (entry["restored_at"], entry["restore_error"]) == (None, None)
    await observer.execute("DELETE FROM fault")
    [result] = (await project.up()).put_back
    assert result.rows == (3 if refused == "id < 100" else 2)


@pytest.mark.parametrize("state", ["P0001", "42704", "54000", "ZZ123"])
async def test_a_fault_of_a_row_keeps_that_row_alone(
    project: ArchiveProject, observer: asyncpg.Connection, state: str
) -> None:
    await observer.execute("; ".join(FAULTY))
    project.step("CREATE TABLE t (id int CHECK (fails(id)))", "DROP TABLE t")
    report = await there_and_back(
        project, observer, "INSERT INTO t VALUES (1), (2), (3)", meanwhile=f"INSERT INTO fault VALUES ('{state}')"
    )
    assert [(p.rows, sum(p.left.values())) for p in report.put_back] == [(2, 1)]
    assert await kept(observer, "t") == [(2,)]
    assert report.remedies == ("gasket database archive restore 1",)
    await observer.execute("DELETE FROM fault")
    again = await project.restore(1)
    assert (again.incomplete, again.put_back[0].rows) == (False, 1)
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1,), (2,), (3,)]
    assert (await project.restore(1)).put_back == ()


async def test_what_stays_is_told_and_comes_back_with_the_command(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add('op.execute("CREATE TABLE seeds (id int)")', 'op.execute("DROP TABLE seeds")')
    project.add(
        'op.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")\n'
        '    op.execute("CREATE TABLE c (t int REFERENCES t)")\n'
        "    op.execute(\"INSERT INTO t SELECT id, 'seed' FROM seeds\")",
        'op.execute("DROP TABLE c")\n    op.execute("DROP TABLE t")',
    )
    await bring_to_head(config)
    await observer.execute("INSERT INTO t VALUES (1, 'mine'), (2, 'too'); INSERT INTO c VALUES (1), (2)")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("INSERT INTO seeds VALUES (1)")
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    remedy = "gasket database archive restore 1"
    assert f"1 stay in archive 1 ({EXISTS})" in caplog.text
    assert f"then run: {remedy}" in caplog.text
    [failure] = await observer.fetch("SELECT revision, direction, error FROM migration_failures")
    assert (failure["revision"], failure["direction"]) == ("r2", "restore")
    assert remedy in failure["error"]
    report = await read_report(config)
    assert [failure.over for failure in report.failures] == [False]
    assert report.left_in_archive == [
        f"1 of 2 rows of public.t stay in archive 1 ({EXISTS}: 1); to try again run: {remedy}"
    ]

    # As long as the cause is there nothing changes, however often it is run.
    for _ in range(2):
        assert await restore(config, 1) == f"0 rows of public.t, 1 stay in archive 1 ({EXISTS})"
    await observer.execute("DELETE FROM c WHERE t = 1; DELETE FROM t WHERE id = 1")
    assert await restore(config, 1) == "1 row of public.t"
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, "mine"), (2, "too")]
    await observer.execute("UPDATE migration_failures SET failed_at = failed_at + interval '2 s'")  # after the step
    report = await read_report(config)
    assert report.left_in_archive == []
    assert [failure.over for failure in report.failures] == [True]
    assert "nothing that could come back" in await restore(config, 1)
    [entry] = [entry for entry in await manifest(observer) if entry["object_name"] == "t"]
    assert (entry["row_count"], entry["restored_rows"], entry["stored_in"]) == (2, 2, None)
    with pytest.raises(TargetError):
        await restore(config, 99)


async def restore(config: MigratorConfig, number: int) -> str:
    """What the command says after its first line, which names the database."""
    arguments = ["restore", str(number)]
    done = await asyncio.to_thread(CliRunner().invoke, archive_commands(config), arguments, catch_exceptions=False)
    return done.output.partition("\n")[2].rstrip()


async def test_a_passing_fault_of_the_command_changes_nothing(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock is waited for; of anything else it says that the rows are in the archive."""
    project = Project(tmp_path)
    config = project.config(database_url, ddl_wait=0.3)
    await observer.execute("; ".join(FAULTY))
    project.add()
    project.add('op.execute("CREATE TABLE t (id int CHECK (fails(id)))")', 'op.execute("DROP TABLE t")')
    await bring_to_head(config)
    await observer.execute("INSERT INTO t VALUES (2)")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("INSERT INTO fault VALUES ('P0001')")
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    await observer.execute("UPDATE fault SET state = '53100'")
    with pytest.raises(NotRestoredError, match="53100.*nothing was changed.*archive restore 1"):
        await restore(config, 1)
    await observer.execute("DELETE FROM fault; BEGIN; LOCK TABLE t IN SHARE MODE")
    with pytest.raises(LocksNotGrantedError, match="Archive 1 could not be put back.*nothing was changed"):
        await restore(config, 1)
    assert "\narchive 1: locks are taken (try 1" in "\n".join(record.getMessage() for record in caplog.records)
    await observer.execute("COMMIT")
    assert await restore(config, 1) == "1 row of public.t"


@pytest.mark.parametrize("shape", ["row", "column", "array"])
async def test_an_enums_new_values_come_back_after_the_commit(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, shape: str
) -> None:
    """And with their rows those that refer to them."""
    project = Project(tmp_path)
    config = project.config(database_url)
    kind = "mood[]" if shape == "array" else "mood"
    make = (
        f"ALTER TABLE diary ADD v {kind}" if shape == "column" else f"CREATE TABLE pages (id int PRIMARY KEY, v {kind})"
    )
    drop = "ALTER TABLE diary DROP v" if shape == "column" else "DROP TABLE pages"
    table = "diary" if shape == "column" else "pages"
    project.add(
        'op.execute("CREATE TYPE mood AS ENUM (\'sad\')")\n    op.execute("CREATE TABLE diary (id int PRIMARY KEY)")'
    )
    project.add(
        f'op.execute("ALTER TYPE mood ADD VALUE \'glad\'")\n    op.execute("{make}")\n'
        f'    op.execute("CREATE TABLE notes (page int REFERENCES {table})")',
        f'op.execute("DROP TABLE notes")\n    op.execute("{drop}")\n    op.execute("DROP TYPE mood")\n'
        "    op.execute(\"CREATE TYPE mood AS ENUM ('sad')\")",
    )
    await bring_to_head(config)
    glad, sad = ("'{glad}'", "'{sad}'") if shape == "array" else ("'glad'", "'sad'")
    await observer.execute(f"INSERT INTO {table} VALUES (1, {glad}), (2, {sad}); INSERT INTO notes VALUES (1), (2)")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    assert await rows(observer, f"SELECT id FROM {table} WHERE v::text LIKE '%glad%'") == [(1,)]
    assert await observer.fetchval("SELECT count(*) FROM notes") == 2
    assert await observer.fetchval("SELECT count(*) FROM migration_failures") == 0
    assert (await read_report(config)).left_in_archive == []


async def test_an_enums_new_value_comes_back_where_the_downgrade_wrote_another(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    """As it has to, to take the value out of the type. What people wrote since stays."""
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add(
        "op.execute(\"CREATE TYPE mood AS ENUM ('sad')\")\n"
        '    op.execute("CREATE TABLE diary (id int PRIMARY KEY, v mood)")'
    )
    project.add(
        "op.execute(\"ALTER TYPE mood ADD VALUE 'glad'\")",
        "op.execute(\"ALTER TYPE mood RENAME TO old; CREATE TYPE mood AS ENUM ('sad'); "
        "ALTER TABLE diary ALTER v TYPE mood USING 'sad'; DROP TYPE old\")",
    )
    await bring_to_head(config)
    await observer.execute("INSERT INTO diary VALUES (1, 'glad'), (2, 'glad'), (3, 'sad')")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("UPDATE diary SET v = 'sad' WHERE id = 2")
    await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
    assert await rows(observer, "SELECT id, v::text FROM diary ORDER BY id") == [(1, "glad"), (2, "sad"), (3, "sad")]
    [entry] = await manifest(observer)
    assert entry["left_behind"] == f'{{"{CHANGED_SINCE}": 1}}'


async def test_a_later_try_brings_values_into_rows_that_nobody_changed_since(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """What upgrade() computed for such a row gives way, as it does in the upgrade's own try."""
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD v int UNIQUE;\nUPDATE t SET v = -id", "ALTER TABLE t DROP v")
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1, 10), (2, -3), (4, -5)",
        meanwhile="INSERT INTO t VALUES (3), (5)",
    )
    assert [dict(put_back.left) for put_back in report.put_back] == [{EXISTS: 2}]
    await observer.execute("DELETE FROM t WHERE id IN (3, 5); UPDATE t SET v = 7 WHERE id = 4")
    [result] = (await project.restore(1)).put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, 10), (2, -3), (4, 7)]


async def test_rows_that_only_a_person_can_put_back_are_told_once_their_revision_is_applied_again(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add('op.execute("CREATE TABLE t (v int)")')
    project.add('op.execute("ALTER TABLE t ADD w int")', 'op.execute("ALTER TABLE t DROP w")')
    await bring_to_head(config)
    await observer.execute("INSERT INTO t VALUES (1, 2)")
    for number in (1, 2):
        await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
        assert len((await read_report(config)).left_in_archive) == number - 1
        caplog.clear()
        await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
        [warning] = [record.getMessage() for record in caplog.records if "put back:" in record.getMessage()]
        assert "public.t (w): nothing, public.t has no key that stays" in warning
        assert "archive restore" not in warning
    report = await read_report(config)
    assert [failure.direction for failure in report.failures] == ["restore", "restore"]
    assert [line.partition(" (public.t has no key")[0] for line in report.left_in_archive] == [
        "1 of 1 rows of public.t (w) stay in archive 2",
        "1 of 1 rows of public.t (w) stay in archive 1",
    ]
    assert "gasket database archive drop 2" in report.left_in_archive[0]


async def test_partitions_made_at_run_time_are_made_again(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(*EVENTS)
    report = await there_and_back(project, observer, YEARS)
    assert not report.incomplete
    assert "partitions made again: public.ev_2024, public.ev_later" in str(report)
    assert await rows(observer, EVENT_ROWS) == [
        (1, "2024-05-05", "ev_2024"),
        (1, "2026-05-05", '"ev Later 1"'),
        (2, "2030-01-01", "ev_rest"),
    ]


async def test_rows_without_a_partition_come_back_once_it_is_there(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """Another table has the partition's name, or its bounds are taken: it cannot be made again."""
    project.step(*EVENTS)
    report = await there_and_back(project, observer, YEARS, meanwhile="CREATE TABLE ev_2024 (n int)")
    assert [(p.rows, dict(p.left)) for p in report.put_back] == [(2, {NO_PARTITION: 1})]
    await observer.execute("CREATE TABLE ev_past PARTITION OF ev FOR VALUES FROM (MINVALUE) TO ('2025-01-01')")
    await observer.execute("ALTER TABLE ev DETACH PARTITION ev_later; DROP TABLE ev_later")
    assert not (await project.restore(1)).incomplete
    assert await rows(observer, EVENT_ROWS) == [(1, "2024-05-05", "ev_past")]  # what was dropped since stays dropped


async def test_an_archive_of_an_older_release_knows_no_partitions(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(*EVENTS)
    report = await there_and_back(
        project, observer, YEARS, meanwhile="ALTER TABLE gasket_archive.manifest DROP COLUMN partitions"
    )
    assert [(p.rows, dict(p.left)) for p in report.put_back] == [(0, {NO_PARTITION: 3})]
    await observer.execute("CREATE TABLE ev_all PARTITION OF ev DEFAULT")
    assert not (await project.restore(1)).incomplete
    await project.down()
    assert [entry["partitions"] != "[]" for entry in await manifest(observer)] == [False, True]


async def test_materialized_views_that_come_with_the_table_are_refreshed(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """Through views and functions, one after the other; one that was never filled stays so."""
    project.step(*SALES)
    report = await there_and_back(
        project, observer, "INSERT INTO sales VALUES (1, 10), (2, 20); REFRESH MATERIALIZED VIEW sales_sum"
    )
    assert not report.incomplete
    assert await rows(observer, "SELECT * FROM sales_sum") == [(2, 30)]
    assert await rows(observer, "SELECT * FROM again") == [(2,)]
    assert await rows(observer, "SELECT * FROM by_function") == [(30,)]
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await observer.fetch("SELECT * FROM never")


@pytest.mark.parametrize("cause", ["in use", "it fails"])
async def test_a_materialized_view_that_stays_stale_is_named(
    project: ArchiveProject, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """Of one that was there before, a refresh would keep the readers off."""
    if cause == "in use":
        project.step(*SALES)
        project.step("SELECT 1", "TRUNCATE sales")
    else:
        project.step(
            "CREATE TABLE sales (id int PRIMARY KEY, amount int);\nCREATE MATERIALIZED VIEW sales_sum AS "
            "SELECT DISTINCT amount AS s FROM sales;\nCREATE UNIQUE INDEX ON sales_sum ((s / 100))",
            "DROP TABLE sales CASCADE",
        )
    report = await there_and_back(project, observer, "INSERT INTO sales VALUES (1, 10), (2, 20)")
    assert await observer.fetchval("SELECT count(*) FROM sales") == 2
    stale = ("public.sales_sum", "public.again") if cause == "in use" else ("public.sales_sum",)
    assert report.stale == stale
    assert "then run: REFRESH MATERIALIZED VIEW public.sales_sum" in caplog.text


async def test_sequences_and_unfit_tables_are_tried_again_too(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE here (id int)", "DROP TABLE here")
    project.step(
        "CREATE TABLE t (id serial, p int);\nCREATE TABLE loose (a int, b int)",
        "DROP TABLE IF EXISTS t;\nALTER TABLE loose DROP b;\nDROP TABLE loose",
    )
    await project.up()
    await observer.execute("INSERT INTO t (p) VALUES (1), (2); INSERT INTO loose VALUES (1, 2)")
    await project.down()
    await project.up()
    await observer.execute("UPDATE gasket_archive.manifest SET restored_at = NULL WHERE kind = 'sequence'")
    await observer.execute("ALTER SEQUENCE t_id_seq RESTART")
    await project.restore(1)
    assert await observer.fetchval("SELECT nextval('t_id_seq')") == 3


async def test_of_columns_only_places_that_are_vacant_are_filled(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """By then nobody knows which rows were changed."""
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD v text UNIQUE", "ALTER TABLE t DROP v")
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        meanwhile="DELETE FROM t WHERE id < 3",
    )
    assert [(p.rows, sum(p.left.values())) for p in report.put_back] == [(1, 2)]
    await observer.execute("INSERT INTO t VALUES (1, NULL), (2, 'other')")
    [result] = (await project.restore(1)).put_back
    assert (result.rows, sum(result.left.values())) == (1, 1)
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "other"), (3, "c")]


async def test_children_of_rows_that_come_back_come_back_with_them(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE seeds (id int)", "DROP TABLE seeds")
    project.step(
        "CREATE TABLE p (id int PRIMARY KEY, v int UNIQUE);\nCREATE TABLE c (p int REFERENCES p);\n"
        "INSERT INTO p SELECT 100, id FROM seeds",
        "DROP TABLE c;\nDROP TABLE p",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO p VALUES (1, 1), (2, 2); INSERT INTO c VALUES (1), (2)",
        meanwhile="INSERT INTO seeds VALUES (1)",
    )
    assert {p.name: dict(p.left) for p in report.put_back} == {"public.p": {EXISTS: 1}, "public.c": {ORPHANED: 1}}
    await observer.execute("DELETE FROM p WHERE id = 100")
    assert not (await project.restore(1)).incomplete
    assert await rows(observer, "SELECT * FROM c ORDER BY p") == [(1,), (2,)]
