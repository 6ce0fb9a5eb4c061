"""Rows that the server refuses, or that something takes on the way to their table: what comes back is counted there."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import asyncpg
import pytest

from tests.migrator.archive_project import (
    CHANGED_SINCE,
    MISFIT,
    ORPHANED,
    ArchiveProject,
    kept,
    manifest,
    rows,
    there_and_back,
)

CLOSED = "CREATE RULE closed AS ON INSERT TO audit DO INSTEAD"
AUDIT = "CREATE TABLE audit (id int PRIMARY KEY, what text)"
THREE_ROWS = (
    "ALTER TABLE audit DISABLE RULE closed; INSERT INTO audit VALUES (1, 'a'), (2, 'b'), (3, 'c');"
    "ALTER TABLE audit ENABLE {}RULE closed"
)
RULE_STATE = "SELECT ev_enabled::text FROM pg_rewrite WHERE rulename = 'closed'"


@pytest.mark.parametrize(
    ("state", "instead"),
    [("O", "NOTHING"), ("A", "INSERT INTO other VALUES (NEW.id)"), ("R", "UPDATE other SET id = 1")],
)
async def test_rules_are_off_and_then_as_they_were(
    project: ArchiveProject, observer: asyncpg.Connection, state: str, instead: str
) -> None:
    """Of an INSERT that a rule replaces the server reports how many rows were written elsewhere."""
    enable = {"O": "", "A": "ALWAYS ", "R": "REPLICA "}[state]
    project.step("CREATE TABLE other (id int)", "DROP TABLE other")
    project.step(f"{AUDIT};\n{CLOSED} {instead};\nALTER TABLE audit ENABLE {enable}RULE closed", "DROP TABLE audit")
    if state == "R":
        database = await observer.fetchval("SELECT quote_ident(current_database())")
        await observer.execute(f"ALTER DATABASE {database} SET session_replication_role = replica")
    report = await there_and_back(project, observer, THREE_ROWS.format(enable))
    assert not report.incomplete
    assert await rows(observer, "SELECT id FROM audit ORDER BY id") == [(1,), (2,), (3,)]
    assert await rows(observer, "SELECT * FROM other") == []
    assert await rows(observer, RULE_STATE) == [(state,)]


async def test_rules_for_updates_are_off_when_columns_come_back(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(f"{AUDIT};\nCREATE RULE closed AS ON UPDATE TO audit DO INSTEAD NOTHING", "DROP TABLE audit")
    project.step("ALTER TABLE audit ADD who text", "ALTER TABLE audit DROP who")
    report = await there_and_back(project, observer, "INSERT INTO audit VALUES (1, 'a', 'ada'), (2, 'b', 'bob')")
    assert not report.incomplete
    assert await rows(observer, "SELECT who FROM audit ORDER BY id") == [("ada",), ("bob",)]
    assert await rows(observer, RULE_STATE) == [("O",)]


@pytest.mark.parametrize(
    ("kind", "guard"),
    [
        ("RULE", "CREATE RULE guard AS ON INSERT TO audit DO INSTEAD NOTHING"),
        ("RULE", "CREATE RULE guard AS ON INSERT TO audit WHERE NEW.id = 2 DO INSTEAD NOTHING"),
        ("TRIGGER", "CREATE TRIGGER guard BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION swallow()"),
    ],
)
async def test_rows_that_do_not_arrive_stay_in_the_archive(
    project: ArchiveProject, observer: asyncpg.Connection, kind: str, guard: str
) -> None:
    """A policy of the server's puts the guard back at once, whoever takes it away."""
    project.step(
        f"CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';\n{AUDIT};\n{guard}",
        "DROP TABLE audit;\nDROP FUNCTION swallow",
    )
    await project.up()
    await observer.execute(f"ALTER TABLE audit DISABLE {kind} guard; INSERT INTO audit VALUES (1, 'a'), (2, 'b')")
    await project.down()
    state = (
        "tgenabled FROM pg_trigger WHERE tgname" if kind == "TRIGGER" else "ev_enabled FROM pg_rewrite WHERE rulename"
    )
    await observer.execute(
        "CREATE FUNCTION put_back() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN "
        f"IF EXISTS (SELECT {state} = 'guard' AND {state.split()[0]} = 'D') THEN "
        f"ALTER TABLE audit ENABLE {kind} guard; END IF; END$$;"
        "CREATE EVENT TRIGGER put_back ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION put_back()"
    )
    [result] = (await project.up()).put_back
    assert result.rows == 0
    assert "rows arrived: a rule or a trigger of public.audit takes the others" in str(result.error)
    assert await rows(observer, "SELECT * FROM audit") == []
    assert await kept(observer, "audit") == [(1, "a"), (2, "b")]
    [entry] = await manifest(observer)
    assert (entry["restored_at"], entry["restored_rows"], entry["restore_error"]) == (None, 0, result.error)


async def test_forced_row_security_keeps_no_row_of_the_owners_back(
    project: ArchiveProject, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    """A superuser took the revision back, and the tables' owner applies it again."""
    role = f"role_{uuid4().hex[:12]}"
    superuser = project.url
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT CREATE ON DATABASE {database} TO {role};"
        f"GRANT ALL ON SCHEMA public TO {role}"
    )
    project.url = url_with(superuser, user=role, password="secret-word")
    project.step("CREATE TABLE kept (id int PRIMARY KEY)", "DROP TABLE kept")
    project.step(
        "CREATE TABLE audit (id int PRIMARY KEY);\nALTER TABLE audit ENABLE ROW LEVEL SECURITY;\n"
        "ALTER TABLE audit FORCE ROW LEVEL SECURITY;\nALTER TABLE kept ADD v int;\n"
        "ALTER TABLE kept ENABLE ROW LEVEL SECURITY;\nALTER TABLE kept FORCE ROW LEVEL SECURITY",
        "DROP TABLE audit;\nALTER TABLE kept DROP v;\nALTER TABLE kept NO FORCE ROW LEVEL SECURITY",
    )
    await project.up()
    await observer.execute("INSERT INTO audit VALUES (1), (2); INSERT INTO kept VALUES (1, 10)")
    await project.down(url=superuser)
    tables = await rows(
        observer, "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'gasket_archive'"
    )
    await observer.execute(f"ALTER SCHEMA gasket_archive OWNER TO {role}")
    for (table,) in tables:
        await observer.execute(f"ALTER TABLE {table} OWNER TO {role}")
    report = await project.up()
    assert not report.incomplete, str(report)
    assert await rows(observer, "SELECT * FROM audit") == [(1,), (2,)]
    assert await rows(observer, "SELECT * FROM kept") == [(1, 10)]
    forced = "SELECT relname FROM pg_class WHERE relforcerowsecurity ORDER BY 1"
    assert await rows(observer, forced) == [("audit",), ("kept",)]
    await observer.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_a_change_that_a_policy_hides_from_the_owner_is_not_overwritten(
    project: ArchiveProject, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    role = f"role_{uuid4().hex[:12]}"
    superuser = project.url
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT CREATE ON DATABASE {database} TO {role};"
        f"GRANT ALL ON SCHEMA public TO {role}"
    )
    project.url = url_with(superuser, user=role, password="secret-word")
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(3));\nALTER TABLE t ENABLE ROW LEVEL SECURITY", "DROP TABLE t"
    )
    project.step("ALTER TABLE t ALTER v TYPE text", "ALTER TABLE t ALTER v TYPE varchar(3) USING left(v, 3)")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1, 'abcdef'), (2, 'abcdef')")
    await project.down()
    await observer.execute("UPDATE t SET v = 'xyz' WHERE id = 1; ALTER TABLE t FORCE ROW LEVEL SECURITY")
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (0, {CHANGED_SINCE: 2})
    assert await rows(observer, "SELECT v FROM t ORDER BY id") == [("xyz",), ("abc",)]
    await observer.execute("ALTER TABLE t NO FORCE ROW LEVEL SECURITY")
    await observer.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("table", "fill", "reason"),
    [
        ("during int4range, EXCLUDE USING gist (during WITH &&)", "int4range({n}, {n} + 2)", "audit_during_excl"),
        (
            "during int4range, EXCLUDE USING gist (during WITH &&) DEFERRABLE INITIALLY DEFERRED",
            "int4range({n}, {n} + 2)",
            "audit_during_excl",
        ),
        ("v int, w int GENERATED ALWAYS AS (v / 2) STORED UNIQUE", "{n}", "audit_w_key"),
    ],
)
async def test_only_the_row_that_conflicts_stays(
    project: ArchiveProject, observer: asyncpg.Connection, table: str, fill: str, reason: str
) -> None:
    """And what refers to it; the others come back, though they are thousands."""
    project.step("CREATE TABLE seeds (n int)", "DROP TABLE seeds")
    project.step(
        f"CREATE TABLE audit (id int PRIMARY KEY, up int REFERENCES audit, {table});\n"
        f"INSERT INTO audit SELECT 0, NULL, {fill.format(n='n')} FROM seeds",
        "DROP TABLE audit",
    )
    report = await there_and_back(
        project,
        observer,
        # The parent comes after its child: no row can be tried in the order in which they are stored.
        f"INSERT INTO audit SELECT n, nullif(n + 1, 3001), {fill.format(n='n * 10')} "
        "FROM generate_series(1, 3000) AS n",
        meanwhile="INSERT INTO seeds VALUES (100)",
    )
    [result] = report.put_back
    assert dict(result.left) == {f"constraint {reason} refuses it": 1, ORPHANED: 9}
    assert result.rows == 2990
    assert await observer.fetchval("SELECT count(*) FROM audit WHERE id > 0") == 2990
    assert sorted(row[0] for row in await kept(observer, "audit")) == list(range(1, 11))


async def test_a_circle_of_tables_loses_only_the_rows_at_fault(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE seeds (n int)", "DROP TABLE seeds")
    project.step(
        "CREATE TABLE teams (id int PRIMARY KEY, boss int NOT NULL, room int4range);\n"
        "CREATE TABLE people (id int PRIMARY KEY, team int REFERENCES teams, EXCLUDE USING gist "
        "(int4range(id, id + 1) WITH &&) DEFERRABLE INITIALLY DEFERRED);\n"
        "ALTER TABLE teams ADD CONSTRAINT boss FOREIGN KEY (boss) REFERENCES people;\n"
        "ALTER TABLE teams ADD CONSTRAINT rooms EXCLUDE USING gist (room WITH &&);\n"
        "INSERT INTO people SELECT n, NULL FROM seeds;\nINSERT INTO teams SELECT n, n, int4range(1, 2) FROM seeds",
        "ALTER TABLE teams DROP CONSTRAINT boss;\nDROP TABLE people;\nDROP TABLE teams",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO people VALUES (1), (2), (3); INSERT INTO teams VALUES (1, 1, '[1,2)'), (2, 2, '[2,3)');"
        "UPDATE people SET team = id WHERE id < 3; UPDATE people SET team = 2 WHERE id = 3",
        meanwhile="INSERT INTO seeds VALUES (9)",
    )
    assert {p.name: (p.rows, dict(p.left)) for p in report.put_back} == {
        "public.teams": (1, {"constraint rooms refuses it": 1}),
        "public.people": (2, {ORPHANED: 1}),
    }
    assert await rows(observer, "SELECT id, team FROM people ORDER BY id") == [(2, 2), (3, 2), (9, None)]


async def test_values_that_their_type_does_not_know_any_more_stay_alone(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """A domain that others have narrowed, an enum that has lost a value; in a key, in a value, in a whole row."""
    project.step(
        "CREATE DOMAIN small AS int CHECK (VALUE < 100);\nCREATE TYPE mood AS ENUM ('sad', 'ok');\n"
        "CREATE TABLE moods (id small PRIMARY KEY)",
        "DROP TABLE moods;\nDROP DOMAIN small;\nDROP TYPE mood",
    )
    project.step(
        "ALTER TABLE moods ADD v mood;\nCREATE TABLE t (id small PRIMARY KEY, v mood UNIQUE)",
        "ALTER TABLE moods DROP v;\nDROP TABLE t",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO moods VALUES (1, 'sad'), (2, 'ok'); INSERT INTO t VALUES (1, 'sad'), (2, 'ok'), (50, NULL)",
        meanwhile="DROP TYPE mood; CREATE TYPE mood AS ENUM ('ok');ALTER DOMAIN small ADD CHECK (VALUE < 50) NOT VALID",
    )
    assert {p.name: (p.rows, dict(p.left)) for p in report.put_back} == {
        "public.moods (v)": (1, {MISFIT: 1}),
        "public.t": (1, {MISFIT: 1, "constraint small_check1 refuses it": 1}),
    }
    assert await rows(observer, "SELECT id, v::text FROM moods ORDER BY id") == [(1, None), (2, "ok")]
    assert await rows(observer, "SELECT id, v::text FROM t") == [(2, "ok")]


async def test_no_value_of_a_row_is_in_the_reason_why_it_stays(
    project: ArchiveProject, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project.step("CREATE TYPE mood AS ENUM ('secret-mood')", "DROP TYPE mood")
    project.step("CREATE TABLE t (v mood, w text CHECK (w IS NOT NULL))", "DROP TABLE t")
    await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES ('secret-mood', 'secret-word')",
        meanwhile="DROP TYPE mood; CREATE TYPE mood AS ENUM ('ok')",
    )
    [entry] = await manifest(observer)
    assert MISFIT in entry["left_behind"]
    assert "secret" not in caplog.text + entry["left_behind"] + str(entry["restore_error"])
