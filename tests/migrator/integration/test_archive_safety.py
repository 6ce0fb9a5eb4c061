"""Nothing is lost between copy and drop, nothing is changed by a try that fails, and nobody else reads the archive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from gasket.migrator.archive.schema import check_archive_rights
from gasket.migrator.archive.trial import Known
from gasket.migrator.errors import MissingPrivilegeError, NotArchivedError
from tests.migrator.archive_project import ArchiveProject, kept, manifest, rows
from tests.migrator.project import GATE, is_true

DEADLINE = 60.0
LOCKED = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = to_regclass('t') AND mode = 'AccessExclusiveLock')"
"""Whether a step, or its trial, has taken table `t` away, and may yet give it back."""


@pytest.fixture
async def another(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection: asyncpg.Connection = await asyncpg.connect(database_url, statement_cache_size=0)
    yield connection
    await connection.close()


@pytest.fixture
async def role(observer: asyncpg.Connection) -> AsyncIterator[str]:
    """A plain role that may log in."""
    name = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret-word'")
    yield name
    await observer.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def state(observer: asyncpg.Connection) -> tuple[object, ...]:
    """What must be as it was after a downgrade that failed."""
    return (
        await observer.fetchval("SELECT string_agg(version_num, ',') FROM alembic_version"),
        await observer.fetchval("SELECT to_regnamespace('gasket_archive') IS NOT NULL"),
        await observer.fetchval(
            "SELECT array_agg(oid::regclass || ' ' || relnatts ORDER BY oid) FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace"
        ),
    )


async def is_refused(
    project: ArchiveProject, observer: asyncpg.Connection, error: type[Exception], match: str, **options: Any
) -> None:
    before = await state(observer)
    with pytest.raises(error, match=match):
        await project.down(**options)
    assert await state(observer) == before


async def test_a_writer_loses_no_row(
    project: ArchiveProject, observer: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)", "SELECT 1")
    project.step("ALTER TABLE t ADD w int", "ALTER TABLE t DROP w")
    await project.up()
    await observer.execute("INSERT INTO t (v, w) SELECT n, n FROM generate_series(1, 20000) AS n")
    written = 0
    under_way = asyncio.Event()

    async def write_until_the_column_is_gone() -> None:
        nonlocal written
        with contextlib.suppress(asyncpg.UndefinedColumnError):
            while True:
                await another.execute("INSERT INTO t (v, w) VALUES (1, 1)")
                written += 1
                under_way.set()

    writer = asyncio.create_task(write_until_the_column_is_gone())
    await asyncio.wait_for(under_way.wait(), DEADLINE)
    await project.down()
    await asyncio.wait_for(writer, DEADLINE)
    [entry] = await manifest(observer)
    assert entry["row_count"] == 20000 + written == await observer.fetchval("SELECT count(*) FROM t")


async def test_during_the_copy_of_a_large_table_readers_go_on_and_writers_wait(
    project: ArchiveProject, observer: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t SELECT generate_series(1, 300000); SET statement_timeout = '2s'")

    async def look() -> None:
        assert await observer.fetchval("SELECT id FROM t LIMIT 1") == 1
        with pytest.raises(asyncpg.QueryCanceledError):
            await observer.execute("INSERT INTO t VALUES (2)", timeout=10)

    await project.down(before_real=lambda _connection: await_only(look()))
    assert [row["row_count"] for row in await manifest(observer)] == [300_000]


async def test_a_small_table_is_copied_under_the_lock_of_the_step_itself(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """A request between its SELECT and its UPDATE would deadlock with a step that takes one lock after the other."""
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1); SET statement_timeout = '300ms'")

    async def look() -> None:
        with pytest.raises(asyncpg.QueryCanceledError):
            await observer.execute("SELECT * FROM t")

    await project.down(before_real=lambda _connection: await_only(look()))
    assert [row["row_count"] for row in await manifest(observer)] == [1]


async def test_a_strong_lock_keeps_readers_off_too(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    """Also of the tables that only the real step locks: a parent whose foreign key goes."""
    project.step("CREATE TABLE p (id int PRIMARY KEY);\nCREATE TABLE t (id int REFERENCES p)", "DROP TABLE t")
    await project.up()
    await observer.execute("SET statement_timeout = '300ms'")

    async def look() -> None:
        for table in ("t", "p"):
            with pytest.raises(asyncpg.QueryCanceledError):
                await observer.fetchval(f"SELECT count(*) FROM {table}")

    await project.down(strong=True, before_real=lambda _connection: await_only(look()))


async def test_a_lock_that_is_not_free_in_time_is_an_error_that_a_new_try_mends(
    project: ArchiveProject, observer: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await another.execute("BEGIN; INSERT INTO t VALUES (1)")
    with pytest.raises(DBAPIError) as refusal:
        await project.down(lock_timeout="50ms")
    assert getattr(refusal.value.orig, "sqlstate", None) == "55P03"
    await another.execute("COMMIT")
    await project.down(lock_timeout="50ms")
    assert await kept(observer, "t") == [(1,)]


async def test_a_writer_between_trial_and_copy_is_waited_for_no_longer_than_the_limit(
    project: ArchiveProject, observer: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    """It queues behind the trial, and is let in when the trial's locks are given back."""
    await observer.execute(GATE)
    project.step("CREATE TABLE t (id int)", "DROP TABLE t;\nSELECT gate.wait()")
    await project.up()
    downgrade = asyncio.create_task(project.down(lock_timeout="100ms"))
    async with asyncio.timeout(DEADLINE):
        await is_true(observer, LOCKED)
        writing = asyncio.create_task(another.execute("BEGIN; INSERT INTO t VALUES (1)"))
        await is_true(observer, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock')")
        await observer.execute("DELETE FROM gate.closed")
        await writing
        with pytest.raises(DBAPIError) as refusal:
            await downgrade
    assert getattr(refusal.value.orig, "sqlstate", None) == "55P03"
    assert await observer.fetchval("SELECT to_regnamespace('gasket_archive')") is None
    await another.execute("COMMIT")
    await project.down()
    assert await kept(observer, "t") == [(1,)]


async def test_what_others_drop_meanwhile_is_none_of_the_steps(
    project: ArchiveProject, observer: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    await observer.execute(GATE)
    project.step("CREATE TABLE t (id int);\nCREATE TABLE of_others (id int)", "DROP TABLE t;\nSELECT gate.wait()")
    await project.up()
    downgrade = asyncio.create_task(project.down())
    async with asyncio.timeout(DEADLINE):
        await is_true(observer, LOCKED)
        await another.execute("DROP TABLE of_others")
        await observer.execute("DELETE FROM gate.closed")
        await downgrade
    assert [row["object_name"] for row in await manifest(observer)] == ["t"]


async def test_an_old_snapshot_is_refused(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'")
    await is_refused(project, observer, NotArchivedError, "its transaction is repeatable read")


async def test_an_index_step_is_not_tried_out(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    block = 'python: with op.get_context().autocommit_block():\n    op.execute("{}")'
    project.step(
        "CREATE TABLE t (id int);\nCREATE INDEX i ON t (id)",
        block.format("DROP INDEX /* really */ CONCURRENTLY i"),
    )
    await project.up()
    known = Known()
    report = await project.down(known=known)
    assert (report.kept, known.counted) == ((), None)
    assert await observer.fetchval("SELECT to_regclass('i')") is None


async def test_what_goes_in_a_step_of_several_commits_is_refused(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE t (id int);\nCREATE TABLE u (id int);\nCREATE INDEX i ON u (id)",
        'python: with op.get_context().autocommit_block():\n    op.execute("DROP INDEX CONCURRENTLY i")\n'
        '    op.execute("VACUUM u")\nop.execute("DROP TABLE t")',
    )
    await project.up()
    await is_refused(project, observer, NotArchivedError, "public.t away and has an autocommit block.*accept r\\d")
    await project.down(discard=True)
    assert await observer.fetchval("SELECT to_regclass('t')") is None


PYTHON = """python: from sqlalchemy import text
bind = op.get_bind()
for name, in bind.execute(text("SELECT 't' WHERE true")).all():
    op.drop_table(name)
"""


async def test_python_that_cannot_be_rendered_is_tried_out_itself(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", PYTHON)
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await project.down()
    assert await kept(observer, "t") == [(1,)]


@pytest.mark.parametrize(
    "commit",
    [
        "getattr(bind, 'commit')()",
        "getattr(bind, 'rollback')()",
        'op.execute("".join(["COM", "MIT"]))',
        'op.execute("/* all */ ROLLBACK".upper())',
        'op.execute("end".upper())',
    ],
)
async def test_python_that_commits_by_itself_is_refused(
    project: ArchiveProject, observer: asyncpg.Connection, commit: str
) -> None:
    """In a form that the rules cannot see in the file; what they see is refused before it is applied."""
    project.step("CREATE TABLE t (id int)", PYTHON + commit)
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await is_refused(project, observer, NotArchivedError, "commits or rolls back by itself")


async def test_an_autocommit_block_is_never_entered_to_try_out(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """It would end the transaction of the trial, whose drop would stay."""
    project.step(
        "CREATE TABLE t (id int);\nCREATE TABLE u (id int);\nCREATE INDEX i ON u (id)",
        PYTHON + 'with op.get_context().autocommit_block():\n    op.execute("DROP INDEX CONCURRENTLY i")\n'
        '    op.execute("VACUUM u")',
    )
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await is_refused(project, observer, NotArchivedError, "has an autocommit block")


async def test_a_downgrade_that_does_something_else_the_second_time_is_rolled_back(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE t (id int);\nCREATE TABLE u (id int)",
        'python: import sys\nsys.modules["sys"].flags_seen = getattr(sys, "flags_seen", 0) + 1\n'
        'op.execute("DROP TABLE t" if sys.flags_seen < 2 else "DROP TABLE u")',
    )
    await project.up()
    oid = await observer.fetchval("SELECT 'u'::regclass::oid")
    await is_refused(project, observer, NotArchivedError, f"it has changed {oid}::regclass, and had not done so")


@pytest.mark.parametrize(
    ("downgrade", "more"),
    [
        ("DROP TABLE t", "DROP TABLE u"),
        ("DROP TABLE t", "ALTER TABLE u ADD n int"),
        ("DROP TABLE t", "TRUNCATE u"),
        ("ALTER TABLE t ALTER id TYPE bigint", "DROP TABLE u"),  # a rewrite makes a table and drops it
        ("ALTER TABLE t ALTER id TYPE bigint", "CREATE TABLE v (id int);\nDROP TABLE v, u"),
        ("SELECT 1", "ALTER TYPE c ADD ATTRIBUTE b int"),
    ],
)
async def test_what_only_the_real_step_does_is_refused(
    project: ArchiveProject, observer: asyncpg.Connection, downgrade: str, more: str
) -> None:
    project.step("CREATE TABLE t (id int);\nCREATE TABLE u (id int);\nCREATE TYPE c AS (a int)", downgrade)
    await project.up()

    def do_more(connection: Connection) -> None:
        for statement in more.split(";\n"):
            connection.exec_driver_sql(statement)

    await is_refused(project, observer, NotArchivedError, "had not done so when it was tried out", before_real=do_more)


async def test_what_a_step_makes_anew_each_time_is_no_surprise(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """Tables, sequences, indexes and types of this step have other oids than those of its trial."""
    project.step(
        "CREATE TABLE t (id int);\nCREATE TABLE u (id int, big int)",
        "ALTER TABLE t ALTER id TYPE bigint;\nCREATE TABLE v (id serial PRIMARY KEY);\nCREATE TYPE c AS (a int);\n"
        "CREATE TABLE w (id int);\nINSERT INTO w VALUES (1);\nDROP TABLE w;\nCREATE TEMPORARY TABLE x (id int);\n"
        "ALTER TYPE c ADD ATTRIBUTE b int;\nALTER TABLE u DROP COLUMN big",
    )
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1, 2)")
    report = await project.down()
    assert [(kept.name, kept.rows) for kept in report.kept] == [("public.t (id)", 1), ("public.u (big)", 1)]


FUNCTION = "CREATE FUNCTION set_all() RETURNS void LANGUAGE sql AS 'UPDATE t SET id = 2'"


async def test_of_rows_that_a_step_changes_only_its_own_are_counted(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """The server goes on counting what the steps and trials before have changed."""
    project.step("CREATE TABLE t (id int);\nCREATE TABLE u (id int)", "DROP TABLE t, u")
    project.step(FUNCTION, "SELECT set_all()")  # names no table
    project.step("SELECT 1", "DELETE FROM u WHERE id = 2;\nCREATE INDEX i ON u (id);\nUPDATE t SET id = 1 WHERE id = 2")
    project.step("SELECT 1", "CREATE VIEW a AS SELECT 1")
    project.step("SELECT 1", "UPDATE u SET id = id;\nUPDATE t SET id = id + 1 WHERE id = 1")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1), (5), (6); INSERT INTO u VALUES (1), (2)")
    reports = await project.down_to(project.chain[0])
    assert [sorted(report.not_archived) for report in reports] == [
        [
            "downgrade() updates 1 row of public.t: not archived",
            "downgrade() updates 2 rows of public.u: not archived",
        ],
        [],
        [
            "downgrade() deletes 1 row of public.u: not archived",
            "downgrade() updates 1 row of public.t: not archived",
        ],
        ["downgrade() updates 3 rows of public.t: not archived"],
    ]


async def test_a_table_that_a_function_empties_is_kept(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    """No statement names it, so nothing of it was looked at before the step."""
    project.step("CREATE TABLE t (id int);\nCREATE TABLE u (id int)", "SELECT 1")
    project.step(
        "CREATE FUNCTION empty() RETURNS void LANGUAGE plpgsql AS $$ BEGIN TRUNCATE t; DROP TABLE u; END $$",
        "SELECT empty()",
    )
    project.step("CREATE TABLE v (id int)", "DROP TABLE v")  # before it, all relations are read
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (2)")
    await project.down_to(project.chain[0])
    assert await kept(observer, "t") == [(1,)]
    assert await kept(observer, "u") == [(2,)]


async def test_a_copy_that_fails_changes_nothing(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    """Forced row security hides rows from the owner: an error, never a copy with rows missing."""
    project.url = await as_owner(observer, role, project, url_with)
    project.step("CREATE TABLE t (id int);\nALTER TABLE t ENABLE ROW LEVEL SECURITY", "DROP TABLE t")
    project.step("ALTER TABLE t FORCE ROW LEVEL SECURITY", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    match = (
        "copying public.t failed: query would be affected by row-level security.* first run: "
        'ALTER TABLE "public"."t" NO FORCE ROW LEVEL SECURITY.*--no-archive'
    )
    await is_refused(project, observer, NotArchivedError, match)


async def test_row_security_hides_nothing_from_the_owner_and_stays_as_it_was(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    project.url = await as_owner(observer, role, project, url_with)
    project.step("CREATE TABLE t (id int);\nALTER TABLE t ENABLE ROW LEVEL SECURITY", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    seen: list[str] = []

    def look(connection: Connection) -> None:
        seen.extend(connection.exec_driver_sql("SHOW row_security").scalars())

    await project.down(before_real=look)
    assert await kept(observer, "t") == [(1,)]
    assert seen == ["on"]


async def as_owner(
    observer: asyncpg.Connection, role: str, project: ArchiveProject, url_with: Callable[..., str]
) -> str:
    """The role may do in the database what a migration role may; the URL by which it logs in."""
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"GRANT CREATE ON DATABASE {database} TO {role}; GRANT ALL ON SCHEMA public TO {role}")
    return url_with(project.url, user=role, password="secret-word")


async def test_a_table_of_another_application_is_not_locked_for_the_copy(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    """PostgreSQL lets the owner drop a table CASCADE whatever schema a foreign key to it stands in."""
    project.url = await as_owner(observer, role, project, url_with)
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t CASCADE")
    await project.up()
    await observer.execute(
        "INSERT INTO t VALUES (1); CREATE SCHEMA other; CREATE TABLE other.child (id int REFERENCES t)"
    )
    report = await project.down()
    assert await kept(observer, "t") == [(1,)]
    assert any("other.child" in words for words in report.not_archived)
    assert await observer.fetchval("SELECT count(*) FROM pg_constraint WHERE conrelid = 'other.child'::regclass") == 0


async def test_the_archive_is_the_migration_roles_alone(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    """Also where default privileges open every new schema and table to the application's role."""
    await observer.execute(
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO {role}, PUBLIC; "
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role}"
    )
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await project.down()
    assert not await observer.fetchval("SELECT has_schema_privilege($1, 'gasket_archive', 'USAGE, CREATE')", role)
    await observer.execute("GRANT USAGE ON SCHEMA gasket_archive TO PUBLIC")
    await project.up()
    await project.down()
    application = await asyncpg.connect(url_with(project.url, user=role, password="secret-word"))
    for table in ("manifest", "a1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await application.fetch(f"SELECT * FROM gasket_archive.{table}")
    await application.close()
    await observer.execute(
        f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM {role}, PUBLIC; "
        f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM {role}"
    )


async def test_without_the_right_to_keep_rows_it_is_refused_before_it_starts(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    """And each statement that it names mends it, up to the next one."""
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute(f"GRANT ALL ON SCHEMA public TO {role}; ALTER TABLE t OWNER TO {role}")
    await observer.execute(f"ALTER TABLE alembic_version OWNER TO {role}; INSERT INTO t VALUES (1)")
    limited = await asyncpg.connect(url_with(project.url, user=role, password="secret-word"))
    expected = f'CREATE SCHEMA "gasket_archive" AUTHORIZATION "{role}"'
    with pytest.raises(MissingPrivilegeError, match=expected):
        await check_archive_rights(limited, "public")
    await observer.execute(expected)
    await check_archive_rights(limited, "public")
    await limited.execute("CREATE TABLE gasket_archive.manifest ()")
    await observer.execute("ALTER SCHEMA gasket_archive OWNER TO CURRENT_USER")
    await observer.execute("ALTER TABLE gasket_archive.manifest OWNER TO CURRENT_USER")
    for expected in (
        f'GRANT USAGE, CREATE ON SCHEMA "gasket_archive" TO "{role}"',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "gasket_archive" TO "{role}"',
    ):
        with pytest.raises(MissingPrivilegeError, match=expected):
            await check_archive_rights(limited, "public")
        await observer.execute(expected)
    await check_archive_rights(limited, "public")
    await limited.close()


POLICY = (
    "CREATE FUNCTION demand_key() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE made record; BEGIN "
    "FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP "
    "IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = made.objid AND contype = 'p') THEN "
    "RAISE 'every table needs a primary key'; END IF; END LOOP; END $$;"
    "CREATE EVENT TRIGGER demand_key ON ddl_command_end {} EXECUTE FUNCTION demand_key()"
)


@pytest.mark.parametrize("tags", ["", "WHEN TAG IN ('CREATE TABLE AS')", "WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE')"])
async def test_a_policy_that_demands_primary_keys_stands_in_nobodys_way(
    project: ArchiveProject, observer: asyncpg.Connection, tags: str
) -> None:
    """With it archive tables have one; also of users' types, of names that need quotes, of columns alone."""
    project.step("CREATE TYPE mood AS ENUM ('ok');\nCREATE TABLE kept (id int PRIMARY KEY)", "DROP TABLE kept")
    project.step(
        'ALTER TABLE kept ADD v numeric(6, 2), ADD "W w" mood;\n'
        'CREATE TABLE t (id int PRIMARY KEY, v varchar(5)[], "W w" mood, c text COLLATE "C")',
        'DROP TABLE t;\nALTER TABLE kept DROP v, DROP "W w"',
    )
    await project.up()
    await observer.execute(POLICY.format(tags))
    await observer.execute("INSERT INTO kept VALUES (1, 2.50, 'ok'); INSERT INTO t VALUES (1, '{a,b}', 'ok', 'c')")
    await project.down()
    keys = (
        "SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND conrelid::regclass::text LIKE 'gasket_archive.a%'"
    )
    assert await observer.fetchval(keys) == 2
    assert not (await project.up()).incomplete
    assert await rows(observer, 'SELECT id, v::text, "W w"::text FROM kept') == [(1, "2.50", "ok")]
    assert await rows(observer, 'SELECT id, v, "W w"::text, c FROM t') == [(1, ["a", "b"], "ok", "c")]


async def test_no_table_is_made_for_the_copy_of_an_empty_one(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """Taking many empty tables back would take three times as long as making them."""
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t")
    await project.up()
    await observer.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'a table'; END$$; "
        "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TABLE AS') EXECUTE FUNCTION refuse()"
    )
    await project.down()
    [entry] = await manifest(observer)
    assert (entry["object_name"], entry["stored_in"]) == ("t", None)


async def test_a_policy_that_no_table_meets_is_told_as_the_reason(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await observer.execute(
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN "
        "IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%.a_') THEN "
        "RAISE 'no tables today'; END IF; END$$;"
        "CREATE EVENT TRIGGER no ON ddl_command_end EXECUTE FUNCTION no()"
    )
    with pytest.raises(NotArchivedError, match="function no raised an error"):
        await project.down()
