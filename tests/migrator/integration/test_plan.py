"""The plan: what is pending, tried out where it can be, else estimated; never a change to the live database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from gasket.migrator.catalog.read import read_catalog
from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.config import MigratorConfig
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.migrator.scratch.effects import Statement
from tests.migrator.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def live(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection: asyncpg.Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def plain_url(live: asyncpg.Connection, database_url: str, url_with: Callable[..., str]) -> AsyncIterator[str]:
    """The test's database, for a role that may make tables there and no databases."""
    role = f"role_{uuid4().hex[:12]}"
    await live.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
    )
    yield url_with(database_url, user=role, password="secret-word")
    await live.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def add_pending(project: Project) -> None:
    project.add(
        'op.execute("ALTER TABLE t1 ADD COLUMN n int NOT NULL DEFAULT random()")\n'
        '    op.execute("CREATE TABLE fresh (id int REFERENCES t2)")'
    )
    project.add(
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("t1_n", "t1", ["n"], postgresql_concurrently=True)',
        compatible=False,
    )


async def test_nothing_pending_is_said_and_nothing_is_tried(project: Project, database_url: str) -> None:
    project.add()
    config = project.config(database_url, scratch_url="postgresql://nobody@127.0.0.1:1/nowhere")
    await bring_to_head(config)
    found = await forecast_pending(config)
    assert found.estimated is None
    assert format_plan(found) == "Nothing is pending: the schema is at r1."


async def test_the_plan_of_a_live_database(project: Project, database_url: str, live: asyncpg.Connection) -> None:
    project.add()
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    await live.execute("ALTER TABLE t1 SET (autovacuum_enabled = false)")  # it would add maps to the table's size
    await live.execute("INSERT INTO t1 SELECT generate_series(1, 3000); ANALYZE t1")
    kilobytes = round(await live.fetchval("SELECT pg_total_relation_size('t1') / 1000.0"))
    before = await read_catalog(live, "public")
    add_pending(project)
    found = await forecast_pending(config)
    rule = SQL_RULES["rewrites-table"]
    assert format_plan(found).splitlines() == [
        "2 revisions are pending after r2.",
        "",
        "r3 (1 of 2): r3",
        "  2026_0003.py; older releases can run on it",
        f"  locks t1 ACCESS EXCLUSIVE, blocks reads and writes; about 3,000 rows, {kilobytes} kB",
        "  locks t2 SHARE ROW EXCLUSIVE, blocks writes; rows not counted yet, 8 kB",
        "  rewrites t1, with all its indexes",
        "  finding: rewrites-table: It adds t1.n with a value that may differ from row to row. "
        f"{rule.why} {rule.instead}",
        "",
        "r4 (2 of 2): r4",
        "  2026_0004.py; older releases cannot run on it",
        f"  locks t1 SHARE UPDATE EXCLUSIVE (estimated), reads and writes go on; about 3,000 rows, {kilobytes} kB",
        "  leaves its transaction: it waits for every older transaction, and can stop half done",
        "  reads all of t1",
        "  builds index t1_n on t1",
    ]
    assert (found.estimated, found.failure, found.notes) == (None, None, ())
    assert [revision.estimated for revision in found.revisions] == [False, False]
    assert "  statement 1 (outside of the transaction)\n    CREATE INDEX CONCURRENTLY" in format_plan(found, sql=True)
    assert await read_catalog(live, "public") == before
    assert await live.fetchval("SELECT count(*) FROM migration_ledger") == 2
    assert not await live.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database()))"
    )


async def test_as_json(project: Project, database_url: str) -> None:
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN n int")')
    written = json.loads(msgspec.json.encode(await forecast_pending(config)))
    [revision] = written["revisions"]
    size = revision["locks"][0].pop("bytes")
    assert size > 0
    assert revision["locks"] == [
        {
            "table": "t1",
            "mode": "ACCESS EXCLUSIVE",
            "blocks": "blocks reads and writes",
            "statement": 1,
            "estimated": False,
            "rows": None,
        }
    ]
    assert revision["statements"] == [{"sql": "ALTER TABLE t1 ADD COLUMN n int", "autocommit": False}]
    assert (revision["concurrently"], revision["backward_compatible"], revision["description"]) == (False, True, "r2")


async def test_without_a_scratch_database_it_is_estimated_and_says_so(
    project: Project, plain_url: str, live: asyncpg.Connection
) -> None:
    project.add()
    project.add()
    config = project.config(plain_url)
    await bring_to_head(config)
    add_pending(project)
    project.add('if not op.get_bind().exec_driver_sql("SELECT 1").scalar():\n        op.execute("DROP TABLE t1")')
    found = await forecast_pending(config)
    text = format_plan(found)
    assert text.splitlines()[1].startswith("Locks are estimated from the SQL. There is no scratch database")
    assert "CREATEDB" in text
    assert "  locks t1 ACCESS EXCLUSIVE (estimated), blocks reads and writes; rows not counted yet, " in text
    assert "  rewrites t1, with all its indexes" in text
    assert "  It uses the result of a statement: what it does after the statements shown cannot be told" in text
    assert [revision.estimated for revision in found.revisions] == [True] * 3
    assert found.revisions[1].concurrently
    assert await live.fetchval("SELECT to_regclass('fresh')") is None


async def test_a_revision_that_fails_is_said_and_the_rest_estimated(project: Project, database_url: str) -> None:
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN n int")')
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN m int"); op.execute("ALTER TABLE t1 ADD COLUMN n int")')
    project.add('op.execute("ALTER TABLE t1 DROP COLUMN n")')
    found = await forecast_pending(config)
    assert [revision.estimated for revision in found.revisions] == [False, True, True]
    assert 'r3 failed: column "n" of relation "t1" already exists' in str(found.failure)
    assert str(found.failure) in format_plan(found)
    assert found.revisions[1].statements == (
        Statement("ALTER TABLE t1 ADD COLUMN m int"),
        Statement("ALTER TABLE t1 ADD COLUMN n int"),
    )


async def test_applied_revisions_that_cannot_be_built_again(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    await live.execute("CREATE TABLE was_there ()")
    project.add('op.execute("ALTER TABLE was_there ADD COLUMN id int")')
    config = project.config(database_url)
    await bring_to_head(config)
    project.add('op.execute("ALTER TABLE was_there ADD COLUMN n int")')
    found = await forecast_pending(config)
    assert str(found.estimated).startswith("The revisions that are applied cannot be built on a scratch database")
    assert 'r1 failed: relation "was_there" does not exist' in str(found.estimated)
    assert str(found.estimated).endswith("the live database was not changed")
    assert "start again" not in str(found.estimated)
    assert found.revisions[0].locks[0].estimated


async def test_a_lock_that_is_not_granted_on_the_scratch_database_is_not_told_of_the_live_one(
    project: Project, database_url: str
) -> None:
    project.add(
        "import asyncpg; from sqlalchemy.util import await_only\n"
        '    name = op.get_bind().exec_driver_sql("SELECT current_database()").scalar()\n'
        f"    other = await_only(asyncpg.connect({database_url!r}, database=name))\n"
        "    try:\n"
        '        await_only(other.execute("SELECT pg_advisory_lock(77)"))\n'
        '        op.execute("SELECT pg_advisory_xact_lock(77)")\n'
        "    finally:\n"
        "        await_only(other.close())"
    )
    await assert_told_of_scratch(project.config(database_url, ddl_wait=0.1), "revision r1 did not get its locks in")


async def test_a_migration_lock_given_away_on_the_scratch_database_is_not_told_of_the_live_one(
    project: Project, database_url: str
) -> None:
    project.add('op.execute("SELECT pg_advisory_unlock_all()")')
    await assert_told_of_scratch(project.config(database_url), "revision r1 gave the migration lock away")


async def assert_told_of_scratch(config: MigratorConfig, said: str) -> None:
    found = await forecast_pending(config)
    assert str(found.estimated).startswith("The revisions cannot be tried out on the scratch database: ")
    assert said in str(found.estimated)
    assert "the live one was not changed" in str(found.estimated)
    assert "rolled back" not in str(found.estimated)


async def test_a_revision_without_a_statement(project: Project, database_url: str) -> None:
    project.add("pass", "pass")
    found = await forecast_pending(project.config(database_url))
    assert [(r.estimated, r.statements, r.locks) for r in found.revisions] == [(False, (), ())]


async def test_a_locked_table_does_not_stop_the_plan(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN n int")')
    async with live.transaction():
        await live.execute("LOCK TABLE t1")
        found = await forecast_pending(config)
    assert found.notes == ("The sizes of the tables are not shown: one is locked, or the server is slow to tell them.",)
    assert found.revisions[0].locks[0].bytes is None


async def test_a_plan_imports_the_files_for_the_gate_and_once_more(project: Project, database_url: str) -> None:
    imports = project.ini.with_name("imports")
    pending = project.add()
    pending.write_text(f"{pending.read_text()}\nwith open({str(imports)!r}, 'a') as file:\n    file.write('i')\n")
    found = await forecast_pending(project.config(database_url))
    assert (found.failure, found.revisions[0].estimated) == (None, False)
    assert imports.read_text() == "ii"
