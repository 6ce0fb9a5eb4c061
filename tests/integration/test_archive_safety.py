"""Nothing is lost between copy and drop, nothing is changed by a try that fails, and nobody else reads the archive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from gasket.migrator.archive.schema import check_archive_rights
from gasket.migrator.errors import MissingPrivilegeError, NotArchivedError
from tests.integration.archive_project import ArchiveProject, kept, manifest

DEADLINE = 60.0
GATE = """
CREATE SCHEMA gate;
CREATE TABLE gate.closed AS SELECT true;
CREATE FUNCTION gate.wait() RETURNS void LANGUAGE plpgsql AS
    'BEGIN WHILE EXISTS (SELECT FROM gate.closed) LOOP PERFORM pg_sleep(0.01); END LOOP; END'
"""
"""A step that calls the function stays where it is until the table is empty."""
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


async def is_true(observer: asyncpg.Connection, query: str) -> None:
    """Wait for that."""
    while not await observer.fetchval(query):  # noqa: ASYNC110  # it happens in the database
        await asyncio.sleep(0.01)


async def is_refused(project: ArchiveProject, observer: asyncpg.Connection, error: type[Exception], match: str) -> None:
    before = await state(observer)
    with pytest.raises(error, match=match):
        await project.down()
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
    report = await project.down()
    assert (report.tried, report.kept) == (None, ())
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
    await is_refused(
        project, observer, NotArchivedError, "public.t away and has an autocommit block.*revision of its own"
    )
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
        "bind.commit()",
        "bind.rollback()",
        'op.execute("COMMIT")',
        'op.execute("/* all */ ROLLBACK")',
        'op.execute("END")',
    ],
)
async def test_python_that_commits_by_itself_is_refused(
    project: ArchiveProject, observer: asyncpg.Connection, commit: str
) -> None:
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


async def test_a_copy_that_fails_changes_nothing(
    project: ArchiveProject, observer: asyncpg.Connection, role: str, url_with: Callable[..., str]
) -> None:
    """Forced row security hides rows from the owner: an error, never a copy with rows missing."""
    project.url = await as_owner(observer, role, project, url_with)
    project.step("CREATE TABLE t (id int);\nALTER TABLE t ENABLE ROW LEVEL SECURITY", "DROP TABLE t")
    project.step("ALTER TABLE t FORCE ROW LEVEL SECURITY", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    match = "copying public.t failed: query would be affected by row-level security.*--no-archive"
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
