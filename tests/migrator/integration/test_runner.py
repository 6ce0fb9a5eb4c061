"""The runner against a real PostgreSQL, in one process: what is applied, recorded, refused."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.accept import accept
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import (
    DatabaseRefusedError,
    DatabasesDifferError,
    DatabaseUnavailableError,
    EditedRevisionError,
    HeldRevisionError,
    InvalidIndexError,
    LedgerSequenceError,
    LockGivenAwayError,
    LockLostError,
    LocksNotGrantedError,
    LockTimeoutError,
    MigrationFailedError,
    MissingPrivilegeError,
    NotMigratedError,
    NotReplayableError,
    ReadOnlyServerError,
    RevisionFileError,
    SchemaAheadError,
)
from gasket.migrator.gate.schema_state import Plan, SchemaState
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.digest import digest
from tests.migrator.project import BOOKS, CONCURRENTLY, Project, is_true, ledger, tables
from tests.servers import OwnServer


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def role_url(
    database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> AsyncIterator[tuple[str, str]]:
    """A plain role and the URL by which it logs in to the test's database."""
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    yield role, url_with(database_url, user=role, password="secret-word")
    await observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_everything_pending_is_applied_and_written_down(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    first, second = project.add(), project.add(compatible=False)
    plan = await bring_to_head(project.config(database_url))
    assert plan.head == "r2"
    assert await tables(observer) == [*BOOKS, "t1", "t2"]
    rows = await observer.fetch("SELECT * FROM migration_ledger ORDER BY id")
    assert [(r["revision"], r["down_revision"], r["direction"]) for r in rows] == [
        ("r1", None, "upgrade"),
        ("r2", "r1", "upgrade"),
    ]
    assert [r["file_sha256"] for r in rows] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)
    ]
    assert [r["digest"] for r in rows] == [digest(ast.parse(path.read_bytes())) for path in (first, second)]
    assert [r["backward_compatible"] for r in rows] == [True, False]
    assert {r["release"] for r in rows} == {"1.0"}
    assert {r["role"] for r in rows} == {await observer.fetchval("SELECT current_user")}
    assert all(r["host"] and r["duration_ms"] >= 0 and r["started_at"] for r in rows)


async def test_only_the_first_look_at_an_empty_database_is_an_error_to_the_server(
    project: Project, restartable: OwnServer
) -> None:
    """A replica that waits looks twice a second."""
    project.add()
    follower = project.config(restartable.url, migrate_on_startup=False, lock_wait=1)
    with pytest.raises(NotMigratedError):
        await bring_to_head(follower)
    await bring_to_head(project.config(restartable.url))
    assert [error.partition(" at ")[0] for error in restartable.errors()] == 2 * [
        'relation "public.alembic_version" does not exist'
    ]


async def test_at_head_the_lock_is_not_asked_for(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute(f"SELECT pg_advisory_lock({lock_arguments('public')})")
    assert (await bring_to_head(project.config(database_url))).state is SchemaState.AT_HEAD
    project.add()
    with pytest.raises(LockTimeoutError) as refusal:
        await bring_to_head(project.config(database_url))
    assert f"pid {observer.get_server_pid()}" in str(refusal.value)
    assert await tables(observer) == [*BOOKS, "t1"]


@pytest.mark.parametrize(
    "statement",
    [
        "RESET ALL",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "SET statement_timeout = 1000",
        "SET ROLE {}",
    ],
)
async def test_what_a_step_sets_ends_with_it(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str], statement: str
) -> None:
    """pg_dump's output begins with such statements, and ends up in migrations."""
    role, _ = role_url
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(f"CREATE SCHEMA hostile; ALTER DATABASE {database} SET search_path = hostile")
    project.add()
    project.add(
        f'op.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"); op.execute("{statement.format(role)}")',
        "pass",
    )
    project.add('op.execute("SELECT pg_sleep(1.1)"); op.execute("CREATE TABLE t3 AS SELECT current_user AS role")')
    await bring_to_head(project.config(database_url))
    assert await tables(observer) == [*BOOKS, "t1", "t3"]
    assert await observer.fetchval("SELECT role = current_user FROM t3")


async def test_a_failure_keeps_what_came_before_and_the_mended_file_goes_on(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    project.add()
    broken = project.add('op.execute("CREATE TABLE half (id int)"); op.execute("SELECT 1/0")')
    project.add()
    with pytest.raises(MigrationFailedError) as refusal:
        await bring_to_head(project.config(database_url))
    message = str(refusal.value)
    assert "The upgrade of revision r3 failed: division by zero [SQLSTATE 22012]" in message
    assert "rolled back whole" in message
    assert "r1, r2) stay" in message
    assert await tables(observer) == [*BOOKS, "t1", "t2"]
    broken.write_text(broken.read_text().replace("SELECT 1/0", "SELECT 1"))
    await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [(f"r{n}", "upgrade") for n in (1, 2, 3, 4)]


async def test_an_error_of_pythons_names_the_file_and_the_line(project: Project, database_url: str) -> None:
    project.add("raise KeyError('colour')")
    with pytest.raises(MigrationFailedError, match=r"KeyError: 'colour' \(2026_0001\.py, line 11\)"):
        await bring_to_head(project.config(database_url))


async def test_an_error_of_alembics_is_the_revisions_own(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add("from alembic.util import CommandError; raise CommandError('no such colour')")
    with pytest.raises(
        MigrationFailedError, match=r"r1 failed: CommandError: no such colour \(2026_0001\.py, line 11\)"
    ):
        await bring_to_head(project.config(database_url))
    assert "no such colour" in await observer.fetchval("SELECT error FROM migration_failures WHERE revision = 'r1'")


async def test_a_failure_at_commit_is_the_revisions_own(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('op.execute("CREATE TABLE p (id int PRIMARY KEY)")')
    project.add(
        'op.execute("CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)"); '
        'op.execute("INSERT INTO c VALUES (1)")'
    )
    with pytest.raises(MigrationFailedError, match="revision r2 failed: .*violates foreign key"):
        await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [("r1", "upgrade")]


async def test_a_failure_behind_an_autocommit_block_says_what_is_committed(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add(
        'op.execute("CREATE TABLE kept (id int)")\n'
        "    with op.get_context().autocommit_block():\n"
        '        op.execute("CREATE INDEX CONCURRENTLY kept_id ON kept (id)")\n'
        '    op.execute("SELECT 1/0")'
    )
    with pytest.raises(MigrationFailedError, match="before its autocommit block and in it is committed"):
        await bring_to_head(project.config(database_url))
    assert "kept" in await tables(observer)
    assert await ledger(observer) == []


async def test_an_autocommit_block_may_drop_prepared_statements(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """Ours as well, which writes the ledger."""
    project.add()
    project.add('with op.get_context().autocommit_block():\n        op.execute("DEALLOCATE ALL")')
    project.add()
    await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade"), ("r3", "upgrade")]


async def test_two_applications_of_one_process_migrate_their_own_schemas(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    projects = [Project(tmp_path / schema) for schema in ("one", "two")]
    for project in projects:
        for number in (1, 2):
            project.add(f'op.execute("SELECT pg_sleep(0.05)"); op.execute("CREATE TABLE t{number} (id int)")')
    configs = [p.config(database_url, schema=p.ini.parent.name, lock_wait=10) for p in projects]
    await asyncio.gather(*map(bring_to_head, configs))
    for schema in ("one", "two"):
        assert await tables(observer, schema) == [*BOOKS, "t1", "t2"]


async def test_a_step_that_gives_the_lock_away_is_rolled_back(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    project.add('op.execute("SELECT pg_advisory_unlock_all()"); op.execute("CREATE TABLE t2 (id int)")')
    with pytest.raises(LockGivenAwayError, match="r2 gave the migration lock away.* r1 before it stays.* must not"):
        await bring_to_head(project.config(database_url))
    assert await tables(observer) == [*BOOKS, "t1"]


async def test_nothing_is_done_without_a_lock_that_another_session_has_taken_meanwhile(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add(
        "with op.get_context().autocommit_block():\n"
        '        op.execute("CREATE TABLE t1 (id int)")\n'
        '        op.execute("SELECT pg_advisory_unlock_all()")\n'
        "        op.execute(\"DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'\"\n"
        '        " AND granted AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database"\n'
        '        " WHERE datname = current_database())) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$")\n'
        '    op.execute("CREATE TABLE never (id int)")'
    )

    async def take_it() -> None:
        await is_true(observer, "SELECT to_regclass('t1') IS NOT NULL")
        await observer.execute(f"SELECT pg_advisory_lock({lock_arguments('public')})")

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(take_it())
        with pytest.raises(LockGivenAwayError, match="r1 gave the migration lock away.* committed with an autocommit"):
            await bring_to_head(project.config(database_url))
    assert await tables(observer) == [*BOOKS, "t1"]


@pytest.mark.parametrize(
    ("direction", "change"),
    [
        ("upgrade", "DELETE FROM alembic_version"),
        ("upgrade", "UPDATE alembic_version SET version_num = 'r1'"),
        ("downgrade", "TRUNCATE alembic_version"),
    ],
)
async def test_a_revision_that_changes_alembics_table_fails_and_says_so(
    project: Project, database_url: str, observer: asyncpg.Connection, direction: str, change: str
) -> None:
    project.add()
    project.add(downgrade=f'op.execute("{change}"); op.execute("DROP TABLE t2")')
    await bring_to_head(project.config(database_url))
    project.add(f'op.execute("{change}"); op.execute("CREATE TABLE t3 (id int)")')
    config = project.config(database_url)
    command = Config(config.ini, attributes={"read_config": lambda: config})
    run, target = (alembic.command.upgrade, "r3") if direction == "upgrade" else (alembic.command.downgrade, "r1")
    with pytest.raises(MigrationFailedError, match="failed: alembic_version does not hold r2 any more: leave that"):
        await asyncio.to_thread(run, command, target)
    assert await observer.fetchval("SELECT array_agg(version_num) FROM alembic_version") == ["r2"]
    assert await tables(observer) == [*BOOKS, "t1", "t2"]


async def test_a_sequence_behind_the_ledgers_rows_is_named_with_what_mends_it(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute("ALTER TABLE migration_ledger ALTER COLUMN id RESTART WITH 1")
    project.add()
    with pytest.raises(
        LedgerSequenceError, match="r2 could not be recorded.* sequence of .*it was rolled back"
    ) as told:
        await bring_to_head(project.config(database_url))
    assert await tables(observer) == [*BOOKS, "t1"]
    await observer.execute("ALTER TABLE migration_ledger ALTER COLUMN id RESTART WITH 1")
    await observer.execute(str(told.value).partition("start again: ")[2])
    await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_a_terminated_holder_starts_afresh_from_the_lock(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """The step ends its own connection the first time it is run."""
    await observer.execute("CREATE TABLE runs (n int)")
    project.add()
    project.add(
        "import asyncpg, asyncio; from sqlalchemy.util import await_only\n"
        "    async def count() -> int:\n"
        f"        c = await asyncpg.connect({database_url!r})\n"
        '        await c.execute("INSERT INTO runs VALUES (1)")\n'
        '        n = await c.fetchval("SELECT count(*) FROM runs"); await c.close(); return n\n'
        "    if await_only(count()) == 1:\n"
        '        op.execute("SELECT pg_terminate_backend(pg_backend_pid())")\n'
        '    op.execute("CREATE TABLE t2 (id int)")'
    )
    await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT count(*) FROM runs") == 2
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_a_connection_that_is_lost_every_time_ends_the_fresh_tries(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    await observer.execute("CREATE SEQUENCE tries")
    project.add()
    project.add("op.execute(\"SELECT nextval('public.tries'), pg_terminate_backend(pg_backend_pid())\")")
    with pytest.raises(LockLostError) as refusal:
        await bring_to_head(project.config(database_url))
    for part in ("migration lock was lost", "the revision under way was rolled back", "Start again"):
        assert part in str(refusal.value)
    assert await observer.fetchval("SELECT last_value FROM tries") == 3
    recorded = await observer.fetch("SELECT revision, error FROM migration_failures")
    assert [row["revision"] for row in recorded] == ["r2"] * 3
    assert all("migration lock was lost" in row["error"] for row in recorded)
    assert await ledger(observer) == [("r1", "upgrade")]


@pytest.mark.parametrize(("target", "left"), [("-2", "r3"), ("r2", "r2")])
async def test_after_a_lost_connection_only_a_named_target_is_tried_afresh(
    project: Project, database_url: str, observer: asyncpg.Connection, target: str, left: str
) -> None:
    """`-2`, done again after one of its steps, would take back three. The second step loses the connection once."""
    await observer.execute("CREATE SEQUENCE tries")
    for _ in range(2):
        project.add()
    once = "SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('public.tries') = 1"
    project.add(downgrade=f'op.execute("{once}"); op.execute("DROP TABLE t3")')
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    with contextlib.nullcontext() if target == "r2" else pytest.raises(LockLostError, match="r4"):
        await asyncio.to_thread(alembic.command.downgrade, command, target)
    assert [row[0] for row in await observer.fetch("SELECT version_num FROM alembic_version")] == [left]


@pytest.mark.parametrize(("own_url", "sessions"), [(False, 1), (True, 4)], ids=["one URL", "two URLs"])
async def test_a_start_goes_on_over_the_connection_of_its_look(
    project: Project,
    database_url: str,
    observer: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    *,
    own_url: bool,
    sessions: int,
) -> None:
    """With two URLs: the look, whom DATABASE_URL leads to, the migration, the last look."""
    opened: list[str] = []
    connect = asyncpg.connect

    async def counted(**options: Any) -> asyncpg.Connection:
        opened.append(options["server_settings"]["application_name"].split()[0])
        connection: asyncpg.Connection = await connect(**options)
        return connection

    project.add("op.execute('CREATE TABLE ran AS SELECT * FROM pg_stat_activity WHERE pid = pg_backend_pid()')")
    monkeypatch.setattr(asyncpg, "connect", counted)
    plan = await bring_to_head(project.config(database_url, migration_database_url=database_url if own_url else None))
    assert plan.state is SchemaState.AT_HEAD
    assert len(opened) == sessions, opened
    assert opened[0] == opened[-1] == "gasket-status"
    assert (await observer.fetchval("SELECT application_name FROM ran")).startswith("gasket-migrate 1.0 ")


async def test_a_newer_schema_is_refused_or_served_on_as_recorded(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    newer = project.add(compatible=False)
    await bring_to_head(project.config(database_url, release="2.0"))
    text = newer.read_text()
    newer.unlink()
    with pytest.raises(SchemaAheadError, match="r2, applied by release 2.0; this release 1.0 does not have it"):
        await bring_to_head(project.config(database_url))
    await observer.execute("UPDATE migration_ledger SET backward_compatible = true WHERE revision = 'r2'")
    assert (await bring_to_head(project.config(database_url))).state is SchemaState.AHEAD
    newer.write_text(text)
    assert (await bring_to_head(project.config(database_url))).state is SchemaState.AT_HEAD


async def test_a_migration_url_that_leads_elsewhere_is_refused_before_anything_is_changed(
    project: Project, database_url: str, observer: asyncpg.Connection, make_database: Callable[[], Awaitable[str]]
) -> None:
    project.add()
    config = project.config(await make_database(), migration_database_url=database_url)
    refused = "GASKET_MIGRATION_DATABASE_URL and DATABASE_URL do not lead to the same database; nothing was changed"
    with pytest.raises(DatabasesDifferError, match=refused):
        await bring_to_head(config)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    with pytest.raises(DatabasesDifferError):
        await asyncio.to_thread(alembic.command.upgrade, command, "head")
    assert await tables(observer) == []


async def test_a_role_that_may_not_know_the_server_is_not_taken_to_be_elsewhere(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    role, url = role_url
    await observer.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    await observer.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    project.add()
    plan = await bring_to_head(project.config(database_url, migration_database_url=url))
    assert plan.state is SchemaState.AT_HEAD


async def test_a_head_that_is_taken_back_while_it_is_looked_for_is_not_served_on(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    """The trigger does what a downgrade would do between the migration and the look at its result."""
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute(
        "CREATE FUNCTION take_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE alembic_version SET version_num = 'r1'; INSERT INTO migration_ledger (revision, direction, release) "
        "VALUES ('r2', 'downgrade', '0.9'); RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER take_back AFTER INSERT ON migration_ledger DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW WHEN (NEW.direction = 'upgrade') EXECUTE FUNCTION take_back()"
    )
    project.add()
    with pytest.raises(HeldRevisionError, match="r2"):
        await bring_to_head(project.config(database_url))


async def test_a_replica_that_does_not_migrate_waits_for_one_that_does(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    waiting_config = project.config(database_url, migrate_on_startup=False)
    with pytest.raises(NotMigratedError, match="at no revision and not at r1 .* gasket database upgrade"):
        await bring_to_head(waiting_config)
    assert await tables(observer) == []
    waiter = asyncio.create_task(bring_to_head(project.config(database_url, migrate_on_startup=False, lock_wait=20)))
    await bring_to_head(project.config(database_url))
    assert (await waiter).head == "r1"


async def test_another_schema_is_made_and_holds_everything(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url, schema="second"))
    assert await tables(observer) == []
    assert await tables(observer, "second") == [*BOOKS, "t1"]


async def test_a_role_without_rights_is_told_the_grant(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    role, url = role_url
    project.add()
    await observer.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(MissingPrivilegeError, match=f'GRANT USAGE, CREATE ON SCHEMA "public" TO "{role}"'):
        await bring_to_head(project.config(url))
    with pytest.raises(MissingPrivilegeError, match=f'CREATE SCHEMA "second" AUTHORIZATION "{role}"'):
        await bring_to_head(project.config(url, schema="second"))
    assert await tables(observer) == []


async def test_a_role_that_may_not_read_the_books_is_told_the_grant(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    role, url = role_url
    project.add()
    await bring_to_head(project.config(database_url))
    grant = f'GRANT USAGE ON SCHEMA "public" TO "{role}"; GRANT SELECT ON ALL TABLES IN SCHEMA "public" TO "{role}"'
    with pytest.raises(MissingPrivilegeError, match=grant):
        await bring_to_head(project.config(url))
    await observer.execute(grant)
    assert (await bring_to_head(project.config(url))).serves


async def test_an_upgrade_by_command_gives_the_application_role_what_it_lacks(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    """Also where nothing is pending, and the role cannot read the books yet."""
    role, url = role_url
    project.add()
    await bring_to_head(project.config(database_url))
    config = project.config(url, migration_database_url=database_url)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    await asyncio.to_thread(alembic.command.upgrade, command, "head")
    assert await observer.fetchval("SELECT has_table_privilege($1, 't1', 'INSERT')", role)
    assert (await bring_to_head(config)).serves


@pytest.mark.parametrize("parameter", ["statement_timeout=soon", "options=-c%20statement_timeout"])
async def test_a_parameter_that_the_server_refuses_is_named(
    project: Project, database_url: str, parameter: str
) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}{parameter}"
    with pytest.raises(DatabaseRefusedError, match="statement_timeout.*Correct DATABASE_URL"):
        await bring_to_head(project.config(url))


async def test_the_application_role_gets_dml_and_the_books_are_read_only_to_it(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    role, url = role_url
    project.add('op.execute("CREATE TABLE t1 (id serial PRIMARY KEY)")')
    await bring_to_head(project.config(url, migration_database_url=database_url))
    rights = {
        table: [
            right
            for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
            if await observer.fetchval("SELECT has_table_privilege($1, $2, $3)", role, table, right)
        ]
        for table in ("t1", "alembic_version", "migration_ledger")
    }
    assert rights == {
        "t1": ["SELECT", "INSERT", "UPDATE", "DELETE"],
        "alembic_version": ["SELECT"],
        "migration_ledger": ["SELECT"],
    }
    application = await asyncpg.connect(url)
    await application.execute("INSERT INTO t1 DEFAULT VALUES")
    await application.close()
    assert (await bring_to_head(project.config(url, migration_database_url=database_url))).serves


async def test_a_server_that_takes_no_writes_is_refused(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    name = await observer.fetchval("SELECT current_database()")
    await observer.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with pytest.raises(ReadOnlyServerError, match="takes no writes"):
        await bring_to_head(project.config(database_url))


async def test_a_database_that_is_missing_is_waited_for_and_then_named(
    project: Project, database_url: str, url_with: Callable[..., str]
) -> None:
    project.add()
    missing = url_with(database_url, database="nowhere_to_be_found")
    with pytest.raises(DatabaseUnavailableError, match=r"\(DATABASE_URL\) could not be reached .*nowhere_to_be_found"):
        await bring_to_head(project.config(missing, database_wait=0.5))


async def test_a_ledger_of_an_older_release_is_extended_and_kept(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute("ALTER TABLE migration_ledger DROP COLUMN host, ADD COLUMN of_a_newer_release text")
    project.add()
    await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]
    assert await observer.fetchval("SELECT count(host) FROM migration_ledger") == 1


async def test_a_ledger_without_digests_says_nothing_of_edits(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    path, above = project.add(), project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute("ALTER TABLE migration_ledger DROP digest, DROP script, DROP downgrade_sql")
    path.write_text(path.read_text() + "\n# a comment\n")
    assert (await bring_to_head(project.config(database_url))).state is SchemaState.AT_HEAD
    project.add()
    await bring_to_head(project.config(database_url))
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade"), ("r3", "upgrade")]
    above.unlink()
    (project.versions / "2026_0003.py").unlink()
    with pytest.raises(NotReplayableError, match="r2"):
        await rollback(project.config(database_url), "base", StepOptions())


@pytest.mark.parametrize(
    "change",
    [
        'op.execute("ALTER TABLE t1 ADD COLUMN c int")',
        'with op.get_context().autocommit_block():\n        op.execute("VACUUM FULL t1")',
        'with op.get_context().autocommit_block():\n        op.execute("CLUSTER t1 USING t1_pkey")',
    ],
)
async def test_a_step_whose_locks_are_taken_waits_without_queueing_readers(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    project.add(f'op.execute("CREATE TABLE once (id int)")\n    {change}')
    reader = await asyncpg.connect(database_url)
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("SELECT * FROM t1")
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    async with asyncio.timeout(60):
        while "locks are taken (try 1" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await _assert_readers_go_on(observer, "SELECT * FROM t1")
    await transaction.rollback()
    await migrating
    assert await tables(observer) == [*BOOKS, "once", "t1"]
    assert await observer.fetchval("SELECT count(*) FROM migration_failures") == 0, "a try is no failure"
    await reader.close()


async def test_a_step_that_never_gets_its_locks_is_one_failure(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN c int")')
    reader = await asyncpg.connect(database_url)
    await reader.execute("BEGIN; SELECT * FROM t1")
    with pytest.raises(LocksNotGrantedError) as refusal:
        await bring_to_head(project.config(database_url, ddl_wait=3))
    tries = re.search(r"did not get its locks in (\d+) tries", str(refusal.value))
    assert tries is not None
    assert int(tries[1]) > 2
    [failure] = await observer.fetch("SELECT revision, error FROM migration_failures")
    assert failure["revision"] == "r2"
    assert failure["error"] == str(refusal.value)
    await reader.close()


async def _assert_readers_go_on(observer: asyncpg.Connection, query: str) -> None:
    """They wait behind an ALTER in the queue for as long as one try, a tenth of a second; here for five at most.

    What is in the ALTER's way stays, so one that waited for it would hold them up until then.
    """
    await observer.execute("SET lock_timeout = '5s'")
    for _ in range(20):
        await observer.execute(query, timeout=30)
        await asyncio.sleep(0.01)
    await observer.execute("RESET lock_timeout")


async def test_giving_up_on_locks_names_who_blocks_and_leaves_nothing(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    project.add()
    await bring_to_head(project.config(database_url))
    project.add('op.execute("CREATE TABLE once (id int)"); op.execute("ALTER TABLE t1 ADD COLUMN c int")')
    blocker = await asyncpg.connect(database_url, server_settings={"application_name": "long report"})
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT * FROM t1")
    who = f"pid {blocker.get_server_pid()} (application 'long report', role "
    message = ""
    for _ in range(3):  # a try lasts a tenth of a second, in which a slow server may not tell who is in the way
        caplog.clear()
        with pytest.raises(LocksNotGrantedError) as refusal:
            await bring_to_head(project.config(database_url, ddl_wait=5))
        message = str(refusal.value)
        if who in message and any("(try 2, " in line and who in line for line in caplog.messages):
            break
    for part in ("Revision r2", who, "SELECT * FROM t1", "pg_terminate_backend", "GASKET_MIGRATION_DDL_WAIT"):
        assert part in message, part
    [second, *_] = [line for line in caplog.messages if "(try 2, " in line]
    for part in ("revision r2", "locks are taken", "of at most 5 s", who, "trying again in"):
        assert part in second, part
    pauses = [float(words[0]) for message in caplog.messages if (words := re.findall(r"again in ([\d.]+) s", message))]
    assert pauses[-1] >= 2 * pauses[0] > 0, "the pause between two tries grows"
    assert "applying revision r2 (1 of 1)" in caplog.text
    assert await tables(observer) == [*BOOKS, "t1"]
    await transaction.rollback()
    await blocker.close()
    await bring_to_head(project.config(database_url))


LOCKS = [
    "LOCK TABLE migration_ledger",
    "LOCK TABLE alembic_version",
    "LOCK TABLE migration_ledger IN SHARE MODE",
    "LOCK TABLE alembic_version IN SHARE MODE",
    "SELECT * FROM alembic_version FOR UPDATE",
]


@asynccontextmanager
async def _locked(database_url: str, statement: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody has run the statement in a transaction that stays open until the end, or until it is rolled back."""
    somebody = await asyncpg.connect(database_url, server_settings={"application_name": "somebody"})
    try:
        await somebody.execute(f"BEGIN; {statement}")
        yield somebody
    finally:
        await somebody.close()


async def _until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _until_it_names_somebody(migrating: asyncio.Task[Plan], caplog: pytest.LogCaptureFixture) -> None:
    async def named() -> bool:
        return migrating.done() or "application 'somebody'" in caplog.text

    await _until(named)
    assert not migrating.done(), migrating


@pytest.mark.parametrize("statement", LOCKS)
async def test_books_that_others_hold_are_waited_for_and_their_holder_is_named(
    project: Project,
    database_url: str,
    observer: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    statement: str,
) -> None:
    """From the first look on, and between two steps."""
    project.add()
    await bring_to_head(project.config(database_url))
    project.add()
    async with _locked(database_url, statement) as somebody:
        said = ""
        for _ in range(5):  # a try lasts a tenth of a second, in which a slow server may not tell who is in the way
            with pytest.raises(LocksNotGrantedError) as refusal:
                await bring_to_head(project.config(database_url, ddl_wait=1, database_wait=3))
            said = str(refusal.value)
            if "Blocked by: " in said:
                break
        assert re.search(f"pid {somebody.get_server_pid()} .*'somebody'", said)
        assert await tables(observer) == [*BOOKS, "t1"]
        caplog.clear()
        migrating = asyncio.create_task(bring_to_head(project.config(database_url, database_wait=20)))
        await _until_it_names_somebody(migrating, caplog)
        await somebody.execute("ROLLBACK")
        await migrating
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_books_that_are_taken_between_two_steps_are_waited_for(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await observer.execute("CREATE SCHEMA gate; CREATE TABLE gate.t ()")
    await observer.execute("BEGIN; LOCK TABLE gate.t IN ROW SHARE MODE")
    # The step waits in its own statement, which has no lock_timeout, until the test has locked the books for the next.
    waiting = 'op.execute("SET LOCAL lock_timeout = 0"); op.execute("LOCK TABLE gate.t")'
    project.add(waiting, "pass")
    project.add()
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'gate.t'::regclass"
    await _until(lambda: observer.fetchval(blocked))
    somebody = await asyncpg.connect(database_url, server_settings={"application_name": "somebody"})
    locking = asyncio.create_task(somebody.execute("BEGIN; LOCK TABLE migration_ledger IN SHARE MODE"))
    # It queues behind the step, and is first when that has committed.
    await _until(lambda: observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareLock'"))
    await observer.execute("COMMIT")
    await locking
    await _until_it_names_somebody(migrating, caplog)
    assert "revision r2 (2 of 2): locks are taken" in caplog.text
    await somebody.execute("ROLLBACK")
    await somebody.close()
    await migrating
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_books_that_are_taken_while_an_index_is_built_do_not_undo_it(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """What an autocommit block has committed cannot be tried again: its ledger row waits for its place."""
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    project.add(CONCURRENTLY.format(unique=""), 'op.execute("DROP INDEX by_v")')
    writer = await asyncpg.connect(database_url)
    await writer.execute("BEGIN; INSERT INTO t1 VALUES (7)")  # the build waits for it to end
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    building = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE  INDEX %' AND wait_event_type = 'Lock'"
    await _until(lambda: observer.fetchval(building))
    async with _locked(database_url, "LOCK TABLE migration_ledger IN SHARE MODE"):
        await writer.execute("COMMIT")
        await writer.close()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'migration_ledger'::regclass"
        await _until(lambda: observer.fetchval(waiting))
        await asyncio.wait({migrating}, timeout=0.5)  # five times as long as a try waits
        assert not migrating.done(), migrating
    await migrating
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_the_ledgers_new_columns_wait_as_any_other_change_does(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    project.add()
    await observer.execute("ALTER TABLE migration_ledger DROP digest")
    async with _locked(database_url, "SELECT FROM migration_ledger") as somebody:
        with pytest.raises(LocksNotGrantedError, match="The migrator's own tables .*'somebody'"):
            await bring_to_head(project.config(database_url, ddl_wait=1))
        migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
        await _until_it_names_somebody(migrating, caplog)
        await _assert_readers_go_on(observer, "SELECT FROM migration_ledger")
        await somebody.execute("ROLLBACK")
        await migrating
    assert await ledger(observer) == [("r1", "upgrade"), ("r2", "upgrade")]


async def test_a_head_that_was_taken_back_is_not_applied_again_by_a_start(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    project.add()
    await bring_to_head(project.config(database_url, release="2.0"))
    await observer.execute("DROP TABLE t2; UPDATE alembic_version SET version_num = 'r1'")
    await observer.execute(
        "INSERT INTO migration_ledger (revision, down_revision, direction, release, role) "
        "VALUES ('r2', 'r1', 'downgrade', '1.0', 'ann')"
    )
    with pytest.raises(HeldRevisionError, match=r"r2, .* taken back .* by ann \(release 2.0 had applied it\)"):
        await bring_to_head(project.config(database_url, release="2.0"))
    project.add()
    await bring_to_head(project.config(database_url, release="3.0"))
    assert await tables(observer) == [*BOOKS, "t1", "t2", "t3"]


async def test_an_edited_file_is_served_on_with_a_warning_and_never_built_upon(
    project: Project, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = project.add()
    project.add()
    await bring_to_head(project.config(database_url))
    source = first.read_text()
    first.write_text(source.replace('"""r1"""', '"""r1, in other words"""  # and a comment'))
    await bring_to_head(project.config(database_url))
    assert "was edited" not in caplog.text
    first.write_text(source.replace("id int PRIMARY KEY", "id bigint PRIMARY KEY"))
    assert (await bring_to_head(project.config(database_url))).serves
    assert "the file of revision r1 was edited since release 1.0 applied it" in caplog.text
    project.add()
    with pytest.raises(EditedRevisionError, match=r"revision r1 was edited .* r3 would be applied .* accept r1"):
        await bring_to_head(project.config(database_url))


async def test_an_accepted_edit_leaves_the_chain_and_who_applied_it_as_they_were(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A release without the file goes by what the ledger says of it."""
    project.add()
    newer = project.add(compatible=False)
    await bring_to_head(project.config(database_url, release="2.0"))
    edited = newer.read_text().replace("backward_compatible: bool = False", "backward_compatible: bool = True")
    newer.write_text(edited + "\nmore = 1\n")
    await accept(project.config(database_url, release="2.1"), "r2")
    caplog.clear()
    await bring_to_head(project.config(database_url, release="2.1"))
    assert "was edited" not in caplog.text
    newer.write_text(edited + "\nmore = 2\n")
    await bring_to_head(project.config(database_url, release="2.1"))
    assert "r2 was edited since release 2.0 applied it" in caplog.text
    newer.unlink()
    plan = await bring_to_head(project.config(database_url, release="1.0"))
    [unknown] = plan.unknown
    assert (plan.state, unknown.revision, unknown.release) == (SchemaState.AHEAD, "r2", "2.0")
    assert unknown.backward_compatible
    [row] = await observer.fetch("SELECT release, down_revision FROM migration_ledger WHERE direction = 'accept'")
    assert tuple(row) == ("2.1", "r1")


async def test_a_file_gone_from_the_middle_is_served_on_and_never_built_upon(
    project: Project, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    project.add()
    middle = project.add()
    project.add()
    await bring_to_head(project.config(database_url))
    middle.unlink()
    assert (await bring_to_head(project.config(database_url))).serves
    assert "the file of revision r2 is gone" in caplog.text
    project.add()
    with pytest.raises(EditedRevisionError, match="revision r2 is gone"):
        await bring_to_head(project.config(database_url))


async def test_an_invalid_index_that_an_earlier_try_left_behind_is_built_anew(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)"); op.execute("INSERT INTO t1 VALUES (7), (7)")')
    project.add(CONCURRENTLY.format(unique="UNIQUE"), 'op.execute("DROP INDEX by_v")')
    for _ in range(2):
        with pytest.raises(MigrationFailedError, match=r"r2 failed: could not create unique .* \(table t1\) \[SQL"):
            await bring_to_head(project.config(database_url))
    assert not await observer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_v'::regclass")
    await observer.execute("DELETE FROM t1")
    await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_v'::regclass")


async def test_an_invalid_index_is_dropped_under_traffic(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """Longer than a step waits for a lock otherwise: nobody queues behind DROP INDEX CONCURRENTLY."""
    project.add('op.execute("CREATE TABLE t1 (v int)"); op.execute("INSERT INTO t1 VALUES (7), (7)")')
    project.add(CONCURRENTLY.format(unique="UNIQUE"), 'op.execute("DROP INDEX by_v")')
    with pytest.raises(MigrationFailedError):
        await bring_to_head(project.config(database_url))
    await observer.execute("DELETE FROM t1")
    writer = await asyncpg.connect(database_url)
    await writer.execute("BEGIN; INSERT INTO t1 VALUES (7)")
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP INDEX%' AND now() - query_start > '0.5 s'"
    async with asyncio.timeout(60):
        while not (migrating.done() or await observer.fetchval(waiting)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await writer.execute("COMMIT")
    await writer.close()
    await migrating
    assert await observer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_v'::regclass")


async def test_who_is_asked_to_stop_in_an_autocommit_block_does_not_start_afresh(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('with op.get_context().autocommit_block():\n        op.execute("SELECT pg_sleep(90)")', "pass")
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(90)'"
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    async with asyncio.timeout(60):
        while not await observer.fetchval(sleeping):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    migrating.cancel()
    await asyncio.wait({migrating}, timeout=30)
    assert migrating.cancelled()


async def test_an_invalid_index_that_may_be_somebody_elses_is_refused_by_name(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    await observer.execute("CREATE TABLE other (v int); INSERT INTO other VALUES (1), (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await observer.execute("CREATE UNIQUE INDEX CONCURRENTLY by_v ON other (v)")
    project.add(CONCURRENTLY.format(unique=""), 'op.execute("DROP INDEX by_v")')
    with pytest.raises(InvalidIndexError, match="index by_v, .* on table other, not on t1"):
        await bring_to_head(project.config(database_url))
    assert "index by_v" in await observer.fetchval("SELECT error FROM migration_failures WHERE revision = 'r2'")
    assert await observer.fetchval("SELECT to_regclass('by_v') IS NOT NULL")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("def downgrade", "def takeback", "does not define downgrade"),
        ("backward_compatible: bool = True", "backward_compatible: bool", "is not decided"),
        ('op.execute("DROP TABLE t2")', "pass", "downgrade\\(\\) does nothing"),
    ],
)
async def test_a_pending_file_that_breaks_a_rule_keeps_everything_from_being_applied(
    project: Project, database_url: str, observer: asyncpg.Connection, old: str, new: str, problem: str
) -> None:
    project.add()
    path = project.add()
    path.write_text(path.read_text().replace("downgrade_is_empty", "nothing").replace(old, new))
    with pytest.raises(RevisionFileError, match=f"2026_0002.py is not applied.*{problem}"):
        await bring_to_head(project.config(database_url))
    assert await tables(observer) == []


async def test_a_migrating_role_that_may_not_read_the_books_is_told_what_to_run(
    project: Project, database_url: str, observer: asyncpg.Connection, role_url: tuple[str, str]
) -> None:
    role, url = role_url
    project.add()
    await bring_to_head(project.config(database_url))
    project.add()
    owner = f'OWNER TO "{role}"'
    with pytest.raises(MissingPrivilegeError, match=f'ALTER TABLE "public".alembic_version {owner}'):
        await bring_to_head(project.config(database_url, migration_database_url=url))
    await observer.execute("DROP TABLE migration_background, migration_failures, migration_progress")
    with pytest.raises(MissingPrivilegeError) as refusal:
        await bring_to_head(project.config(database_url, migration_database_url=url))
    statement = f'ALTER TABLE "public".alembic_version {owner}; ALTER TABLE "public".migration_ledger {owner}'
    assert str(refusal.value).endswith(f"run: {statement};")
    await observer.execute(f"{statement}; GRANT CREATE ON SCHEMA public TO {role}")
    await bring_to_head(project.config(database_url, migration_database_url=url))


async def test_what_is_returned_is_the_schema_after_the_migration(project: Project, database_url: str) -> None:
    project.add()
    assert (await bring_to_head(project.config(database_url))).state is SchemaState.AT_HEAD


async def test_a_rollback_and_an_accepted_edit_go_on_after_a_lost_connection(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    await observer.execute("CREATE SEQUENCE tries")
    first = project.add()
    once = "SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('public.tries') = 1"
    project.add(downgrade=f'op.execute("{once}"); op.execute("DROP TABLE t2")')
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    for path in (project.versions / "2026_0002.py", project.versions / "2026_0003.py"):
        path.unlink()
    assert await rollback(config, None, StepOptions()) == ["r3", "r2"]
    assert await tables(observer) == [*BOOKS, "t1"]

    await observer.execute(
        "CREATE SEQUENCE inserts; CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('public.inserts') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NEW; END $$; CREATE TRIGGER lose BEFORE INSERT ON migration_ledger "
        "FOR EACH ROW EXECUTE FUNCTION lose()"
    )
    first.write_text(first.read_text().replace("id int", "id bigint"))
    await accept(config, "r1")
    assert await observer.fetchval("SELECT last_value FROM inserts") == 2
    assert (await ledger(observer))[-1] == ("r1", "accept")
