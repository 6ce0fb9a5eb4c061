"""What reaches beyond the scratch database is not tried out by `plan` and `adopt`, and said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.scratch.adopt import compare_with_revision
from gasket.migrator.scratch.rehearsal import _read_cluster
from gasket.migrator.sql.locks import LockMode
from tests.migrator.project import Project

OUTSIDE = "its effect is outside of the scratch database"
# Statements that change the cluster, run one alone; `{role}` is a role's name that is not taken, `{own}` one that is.
FOREVER = [
    "CREATE ROLE {role} NOLOGIN",
    "CREATE USER {role} PASSWORD 'secret-word'",
    "ALTER ROLE {own} CONNECTION LIMIT 7",
    "ALTER ROLE {own} SET work_mem = '5MB'",
    "GRANT pg_monitor TO {own}",
    "COMMENT ON ROLE {own} IS 'ours'",
    "ALTER DATABASE {database} SET work_mem = '5MB'",
    "COMMENT ON DATABASE {database} IS 'ours'",
    "GRANT CONNECT ON DATABASE {database} TO {own}",
    "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role}; END IF; END $$",
    "DO $$ BEGIN EXECUTE 'CREATE ROLE ' || '{role}'; END $$",
    "SELECT makes_a_role('{role}')",
    "INSERT INTO with_trigger VALUES ('{role}')",
    "REASSIGN OWNED BY {own} TO CURRENT_USER",
    "DROP ROLE {own}",
    "COPY (SELECT 1) TO '/tmp/gasket-{role}'",
    "COPY (SELECT 1) TO PROGRAM 'touch /tmp/gasket-{role}'",
    "SELECT lo_export(lo_from_bytea(0, 'x'), '/tmp/gasket-{role}')",
    "SELECT pg_reload_conf()",
    "SELECT pg_create_restore_point('{role}')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
]
ALONE = [
    "CREATE DATABASE {role}",
    "CREATE TABLESPACE {role} LOCATION '/tmp/gasket-{role}'",
    "ALTER SYSTEM SET work_mem = '5MB'",
    "DO $$ BEGIN EXECUTE 'CREATE ROLE ' || '{role}'; END $$",
]
TRIGGER = "CREATE TRIGGER touches BEFORE INSERT ON t0 FOR EACH ROW EXECUTE FUNCTION on_insert()"
FILL = "CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS 'INSERT INTO t0 VALUES (1)'"
CODE = [
    "CREATE FUNCTION makes_a_role(name text) RETURNS void LANGUAGE plpgsql "
    "AS $$ BEGIN EXECUTE concat_ws(' ', 'CREATE', 'ROLE', name); END $$",
    "CREATE FUNCTION on_insert() RETURNS trigger LANGUAGE plpgsql "
    "AS $$ BEGIN PERFORM makes_a_role(NEW.name); RETURN NEW; END $$",
    "CREATE TABLE with_trigger (name text)",
    "CREATE TRIGGER makes_a_role BEFORE INSERT ON with_trigger FOR EACH ROW EXECUTE FUNCTION on_insert()",
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def own(observer: asyncpg.Connection) -> AsyncIterator[str]:
    """A role that is there."""
    name = f"own_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {name}")
    yield name
    await observer.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
async def role(observer: asyncpg.Connection) -> AsyncIterator[str]:
    """The name of a role that is not there; the test may make it."""
    name = f"new_{uuid4().hex[:12]}"
    yield name
    if await observer.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", name):
        await observer.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def alone(statement: str) -> str:
    return f"with op.get_context().autocommit_block():\n        op.execute({statement!r})"


async def test_the_cluster_is_as_it_was_and_each_statement_is_shown(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, own: str
) -> None:
    database = await observer.fetchval("SELECT current_database()")
    for statement in CODE:
        project.add(f"op.execute({statement!r})")
    filled = [text.format(role=role, own=own, database=database) for text in [*FOREVER, *ALONE]]
    for statement in filled[: len(FOREVER)]:
        project.add(f"op.execute({statement!r})")
    for statement in filled[len(FOREVER) :]:
        project.add(alone(statement))
    project.add("op.execute('CREATE TABLE last (id int)')")
    config = project.config(database_url)
    before = await _read_cluster(config)
    found = await forecast_pending(config)
    assert await _read_cluster(config) == before
    assert (found.failure, found.estimated, found.notes) == (None, None, ())
    told = [held for revision in found.revisions for held in revision.not_tried]
    assert [held.statement for held in told] == [1] * len(filled)
    assert all(held.reason.endswith(OUTSIDE) for held in told)
    assert found.revisions[-1].statements
    text = format_plan(found)
    assert f"  statement 1 (CREATE ROLE) was not tried out: {OUTSIDE}" in text
    [by_a_trigger] = [line for line in text.splitlines() if "statement 1 (INSERT)" in line]
    assert by_a_trigger.startswith("  statement 1 (INSERT) was not tried out: it writes to ")
    assert "pg_authid" in by_a_trigger
    assert "secret-word" not in text


async def test_a_role_that_is_pending_is_made_by_the_upgrade_alone(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str
) -> None:
    project.add('op.execute("CREATE TABLE t0 (id int)")')
    config = project.config(database_url)
    await bring_to_head(config)
    project.add(f'op.execute("CREATE ROLE {role} NOLOGIN"); op.execute("GRANT SELECT ON t0 TO {role}")')
    [revision] = (await forecast_pending(config)).revisions
    assert [held.reason for held in revision.not_tried] == [
        OUTSIDE,
        f"it needs {role}, which is not made in the scratch database",
    ]
    assert not await observer.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", role)
    await bring_to_head(config)
    assert await observer.fetchval("SELECT has_table_privilege($1, 't0', 'SELECT')", role)

    project.add(f'op.execute("GRANT INSERT ON t0 TO {role}")')
    [following] = (await forecast_pending(config)).revisions
    assert (following.not_tried, following.estimated) == ((), False)
    difference, _expected = await compare_with_revision(config, configured_revisions(config.ini), "r2")
    assert difference.fits


@pytest.mark.parametrize(
    ("uses", "reason"),
    [
        (["SELECT touch('a')"], "it uses touch"),
        (["DO $$ BEGIN PERFORM touch('a'); END $$"], "it uses touch"),
        (
            ["CREATE FUNCTION calls() RETURNS void LANGUAGE sql AS $$ SELECT touch('a') $$", "SELECT calls()"],
            "it uses calls",
        ),
        (["CREATE VIEW touching AS SELECT 1 FROM touch('a')", "SELECT * FROM touching"], "it uses touching"),
        ([TRIGGER, "INSERT INTO t0 VALUES (1)"], "it may fire a trigger of t0"),
        ([TRIGGER, "DO $$ BEGIN INSERT INTO t0 VALUES (1); END $$"], "it may fire a trigger of t0"),
        ([TRIGGER, "ALTER TABLE t0 RENAME TO kid", "INSERT INTO kid VALUES (1)"], "it may fire a trigger of kid"),
        ([FILL, TRIGGER, "SELECT fill()"], "it uses fill"),
        (["ALTER FUNCTION touch RENAME TO reach", "SELECT reach('a')"], "it uses reach"),
        (["CREATE RULE touches AS ON INSERT TO t0 DO ALSO SELECT touch('a')"], "it uses touch"),
    ],
    ids=[
        *("call", "block", "call of a call", "view", "trigger", "trigger in a block"),
        *("table renamed", "filled by an older function", "function renamed", "rule"),
    ],
)
async def test_a_function_that_acts_outside_is_made_and_not_called(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, uses: list[str], reason: str
) -> None:
    program = f"COPY (SELECT 1) TO PROGRAM ''touch /tmp/gasket-{role}''"
    project.add(
        'op.execute("CREATE TABLE t0 (id int)"); op.execute("CREATE FUNCTION touch(name text) RETURNS void '
        f"LANGUAGE plpgsql AS 'BEGIN {program}; END'\"); op.execute(\"CREATE FUNCTION on_insert() RETURNS trigger "
        "LANGUAGE plpgsql AS 'BEGIN PERFORM touch(NEW.id::text); RETURN NEW; END'\")"
    )
    project.add("; ".join(f"op.execute({use!r})" for use in uses))
    found = await forecast_pending(project.config(database_url))
    assert await observer.fetchval("SELECT pg_stat_file($1, true) IS NULL", f"/tmp/gasket-{role}")
    assert found.failure is None
    told = [(held.statement, held.reason) for revision in found.revisions for held in revision.not_tried]
    assert told == [(len(uses), f"{reason}, and {OUTSIDE}")]


@pytest.mark.parametrize(
    ("makes", "fires"),
    [
        (
            [
                "ALTER TABLE t0 ADD PRIMARY KEY (id)",
                "CREATE TABLE t1 (id int REFERENCES t0 ON DELETE CASCADE)",
                "INSERT INTO t0 VALUES (1)",
                "INSERT INTO t1 VALUES (1)",
                "CREATE TRIGGER touches BEFORE DELETE ON t1 FOR EACH ROW EXECUTE FUNCTION on_insert()",
            ],
            "DELETE FROM t0",
        ),
        (
            [
                "CREATE TABLE parent (id int) PARTITION BY LIST (id)",
                TRIGGER,
                "ALTER TABLE parent ATTACH PARTITION t0 FOR VALUES IN (1)",
            ],
            "INSERT INTO parent VALUES (1)",
        ),
        (
            [
                "CREATE TABLE parent (id int) PARTITION BY LIST (id)",
                TRIGGER.replace("ON t0", "ON parent"),
                "CREATE TABLE part PARTITION OF parent DEFAULT",
            ],
            "INSERT INTO part VALUES (1)",
        ),
        ([TRIGGER, "ALTER TABLE t0 ENABLE ALWAYS TRIGGER touches", "ALTER TABLE t0 RENAME TO kid"], "SELECT write()"),
        (
            ["CREATE VIEW v AS SELECT 1 AS id", TRIGGER.replace("BEFORE INSERT ON t0", "INSTEAD OF INSERT ON v")],
            "INSERT INTO v VALUES (1)",
        ),
    ],
    ids=["cascade", "partition", "partition made later", "always, by a text that is put together", "view"],
)
async def test_a_trigger_that_acts_outside_is_not_fired(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, makes: list[str], fires: str
) -> None:
    """By what does not name it."""
    for statement in [
        "CREATE TABLE t0 (id int)",
        "CREATE FUNCTION write() RETURNS void LANGUAGE plpgsql "
        "AS $$ BEGIN EXECUTE 'INSERT INTO k' || 'id VALUES (1)'; END $$",
        "CREATE FUNCTION on_insert() RETURNS trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN COPY (SELECT 1) TO PROGRAM 'touch /tmp/gasket-{role}'; RETURN NULL; END $$",
        *makes,
    ]:
        project.add(f"op.execute({statement!r})")
    project.add(f"op.execute({fires!r})")
    found = await forecast_pending(project.config(database_url))
    assert await observer.fetchval("SELECT pg_stat_file($1, true) IS NULL", f"/tmp/gasket-{role}")
    assert found.failure is None


async def test_rows_given_together_are_held_back_too(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str
) -> None:
    for statement in CODE:
        project.add(f"op.execute({statement!r})")
    project.add(
        "import sqlalchemy as sa\n"
        "    op.bulk_insert(sa.table('with_trigger', sa.column('name', sa.String)), "
        f"[{{'name': '{role}'}}, {{'name': '{role}_2'}}])"
    )
    found = await forecast_pending(project.config(database_url))
    assert (found.failure, found.notes) == (None, ())
    assert [held.kind for held in found.revisions[-1].not_tried] == ["insert"]


@pytest.mark.parametrize(
    "states",
    [
        [],
        ["ALTER TABLE t0 DISABLE TRIGGER touches"],
        ["ALTER TABLE t0 ENABLE ALWAYS TRIGGER touches", "ALTER TABLE t0 ADD COLUMN n int"],
        ["ALTER TABLE t0 DISABLE TRIGGER ALL", "ALTER TABLE t0 ENABLE REPLICA TRIGGER touches"],
    ],
    ids=["as usual", "disabled", "always", "replica"],
)
async def test_a_trigger_that_acts_outside_is_compared(
    project: Project, database_url: str, observer: asyncpg.Connection, states: list[str]
) -> None:
    statements = [
        "CREATE TABLE t0 (id int)",
        "CREATE FUNCTION on_insert() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN PERFORM pg_reload_conf(); RETURN NEW; END'",
        TRIGGER,
        *states,
    ]
    project.add("; ".join(f"op.execute({statement!r})" for statement in statements))
    for statement in statements:
        await observer.execute(statement)
    config = project.config(database_url)
    found, _expected = await compare_with_revision(config, configured_revisions(config.ini), "r1")
    assert found.lines() == []
    await observer.execute("DROP TRIGGER touches ON t0")
    found, _expected = await compare_with_revision(config, configured_revisions(config.ini), "r1")
    [line] = found.lines()
    assert line.startswith("missing    trigger public.t0.touches")


async def test_what_is_not_tried_out_has_the_locks_that_its_text_tells(
    project: Project, database_url: str, role: str
) -> None:
    project.add('op.execute("CREATE TABLE t0 (id int)")')
    project.add(
        f'op.execute("CREATE ROLE {role}"); op.execute("ALTER TABLE t0 OWNER TO {role}"); '
        f'op.execute("CREATE POLICY p ON t0 TO {role} USING (true)")'
    )
    found = await forecast_pending(project.config(database_url))
    [lock] = found.revisions[1].locks
    assert (lock.table, lock.mode, lock.estimated) == ("t0", LockMode.ACCESS_EXCLUSIVE, True)


async def test_what_needs_another_server_that_is_away_is_left_out(project: Project, database_url: str) -> None:
    """As dblink and postgres_fdw say it."""
    project.add("op.execute(\"DO $$ BEGIN RAISE 'no connection' USING ERRCODE = '08001'; END $$\")")
    project.add()
    found = await forecast_pending(project.config(database_url))
    assert (found.failure, found.estimated) == (None, None)
    [held] = found.revisions[0].not_tried
    assert held.reason == "it needs another server, which does not answer"
    with pytest.raises(MigrationFailedError, match=r"no connection \[SQLSTATE 08001\].*Mend the fault of the server"):
        await bring_to_head(project.config(database_url))


async def test_rows_of_another_server_are_left_alone(
    project: Project, database_url: str, observer: asyncpg.Connection, make_database: Callable[[], Awaitable[str]]
) -> None:
    if not await observer.fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("the server has no postgres_fdw")
    server = await asyncpg.connect(await make_database())
    try:
        await server.execute("CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)")
        port = await server.fetchval("SELECT current_setting('port')")
        database = await server.fetchval("SELECT current_database()")
        login = urlsplit(database_url)
        for statement in [
            "CREATE EXTENSION postgres_fdw",
            f"CREATE SERVER there FOREIGN DATA WRAPPER postgres_fdw OPTIONS (port '{port}', dbname '{database}', "
            "host '127.0.0.1')",
            f"CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS "
            f"(user '{login.username}', password '{login.password}')",
            "CREATE FOREIGN TABLE rows (id int) SERVER there",
            "CREATE TABLE t0 (id int)",
            "CREATE FUNCTION copies() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN INSERT INTO rows VALUES (NEW.id); RETURN NEW; END'",
            "CREATE TRIGGER copies BEFORE INSERT ON t0 FOR EACH ROW EXECUTE FUNCTION copies()",
        ]:
            project.add(f"op.execute({statement!r})")
        writes = ["INSERT INTO rows VALUES (2)", "DELETE FROM rows", "TRUNCATE rows", "INSERT INTO t0 VALUES (3)"]
        writes.append("DO $$ BEGIN TRUNCATE rows; END $$")
        for statement in writes:
            project.add(f"op.execute({statement!r})")
        found = await forecast_pending(project.config(database_url))
        assert [row[0] for row in await server.fetch("SELECT id FROM rows")] == [1]
    finally:
        await server.close()
    assert found.failure is None
    told = [held.reason for revision in found.revisions for held in revision.not_tried]
    assert told == [f"it writes to rows, and {OUTSIDE}"] * len(writes)


async def test_a_truncate_beside_a_foreign_table_that_is_altered(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """PostgreSQL's lock of the one is that of the other."""
    for statement in [
        "CREATE TABLE t0 (id int)",
        "CREATE FOREIGN DATA WRAPPER nobodys",
        "CREATE SERVER there FOREIGN DATA WRAPPER nobodys",
    ]:
        project.add(f"op.execute({statement!r})")
    together = [
        "CREATE FOREIGN TABLE rows (id int) SERVER there",
        "TRUNCATE t0",
        "DO $$ BEGIN TRUNCATE t0; END $$",
        "DO $$ BEGIN IF false THEN TRUNCATE rows; END IF; END $$",
    ]
    project.add("; ".join(f"op.execute({statement!r})" for statement in together))
    found = await forecast_pending(project.config(database_url))
    told = [(held.statement, held.reason) for held in found.revisions[-1].not_tried]
    assert told == [(4, f"it writes to rows, and {OUTSIDE}")]


@pytest.mark.parametrize(
    "needs", ["SET LOCAL ROLE {role}", "CREATE SCHEMA AUTHORIZATION {role}", "ALTER TABLE t0 OWNER TO {role}"]
)
async def test_what_needs_the_role_is_left_out_and_the_rest_goes_on(
    project: Project, database_url: str, role: str, needs: str
) -> None:
    project.add('op.execute("CREATE TABLE t0 (id int)")')
    project.add(
        f'op.execute("CREATE ROLE {role}"); op.execute("{needs.format(role=role)}"); '
        'op.execute("ALTER TABLE t0 ADD COLUMN n int")'
    )
    found = await forecast_pending(project.config(database_url))
    assert found.failure is None
    assert [held.statement for held in found.revisions[1].not_tried] == [1, 2]
    assert [lock.table for lock in found.revisions[1].locks] == ["t0"]


async def test_a_name_that_is_nowhere_is_still_a_failure(project: Project, database_url: str, role: str) -> None:
    project.add(f'op.execute("CREATE ROLE {role}"); op.execute("CREATE TABLE t0 (id int)")')
    project.add('op.execute("GRANT SELECT ON t0 TO nobody_at_all")')
    found = await forecast_pending(project.config(database_url))
    assert 'role "nobody_at_all" does not exist' in str(found.failure)


async def test_a_revisions_own_savepoints_are_left_alone(project: Project, database_url: str) -> None:
    project.add('op.execute("CREATE TABLE t0 (id int PRIMARY KEY)")')
    project.add(
        "bind = op.get_bind()\n"
        "    for number in (1, 1, 2):\n"
        "        try:\n"
        "            with bind.begin_nested():\n"
        "                bind.exec_driver_sql(f'INSERT INTO t0 VALUES ({number})')\n"
        "        except Exception as error:\n"
        "            assert 'duplicate' in str(error)\n"
        "    assert bind.exec_driver_sql('SELECT count(*) FROM t0').scalar() == 2"
    )
    found = await forecast_pending(project.config(database_url))
    assert found.failure is None


async def test_whoever_asks_for_the_result_of_such_a_statement_gets_none(project: Project, database_url: str) -> None:
    project.add(
        "assert op.get_bind().exec_driver_sql('SELECT pg_reload_conf()').scalar() is None\n"
        "    op.execute('CREATE TABLE t0 (id int)')"
    )
    [revision] = (await forecast_pending(project.config(database_url))).revisions
    assert [(held.statement, held.kind) for held in revision.not_tried] == [(1, "select")]


async def test_a_procedure_that_commits_by_itself_is_tried_out(project: Project, database_url: str) -> None:
    project.add(
        "op.execute('CREATE TABLE t0 (id int)')\n"
        "    op.execute('CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ "
        "BEGIN INSERT INTO t0 VALUES (1); COMMIT; INSERT INTO t0 VALUES (2); END $$')"
    )
    project.add(alone("CALL p()"))
    found = await forecast_pending(project.config(database_url))
    assert (found.failure, found.revisions[1].not_tried) == (None, ())


async def test_adopt_says_what_it_could_not_compare(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str
) -> None:
    project.add('op.execute("CREATE TABLE t0 (id int)")')
    project.add(f'op.execute("CREATE ROLE {role}"); op.execute("GRANT SELECT ON t0 TO {role}")')
    config = project.config(database_url)
    await observer.execute("CREATE TABLE t0 (id int)")
    found, _expected = await compare_with_revision(config, configured_revisions(config.ini), "r2")
    assert not found.fits
    assert found.lines() == [
        f"missing    role {role}",
        f"note       CREATE ROLE in revision r2 is not compared: {OUTSIDE}.",
        f"note       GRANT in revision r2 is not compared: it needs {role}, which is not made in the scratch database.",
    ]
    await observer.execute(f"CREATE ROLE {role}; GRANT SELECT ON t0 TO {role}")
    found, _expected = await compare_with_revision(config, configured_revisions(config.ini), "r2")
    assert found.fits


async def test_a_role_without_rights_to_the_cluster_sees_the_same(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, own: str, url_with: Callable[..., str]
) -> None:
    """It may make databases and roles, and read neither pg_authid nor others' settings."""
    await observer.execute(f"ALTER ROLE {own} LOGIN CREATEDB CREATEROLE PASSWORD 'secret-word'")
    await observer.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {own}")
    for statement in [CODE[0], f"SELECT makes_a_role('{role}')", f"CREATE ROLE {role}"]:
        project.add(f"op.execute({statement!r})")
    config = project.config(url_with(database_url, user=own, password="secret-word"))
    found = await forecast_pending(config)
    assert (found.failure, found.estimated, found.notes) == (None, None, ())
    assert [len(revision.not_tried) for revision in found.revisions] == [0, 1, 1]
    assert not await observer.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", role)
