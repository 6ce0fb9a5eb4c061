"""What a downgrade took away comes back with the revision; what does not fit any more stays, with the reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from gasket.migrator.catalog.read import read_catalog
from tests.migrator.archive_project import EXISTS, GONE, ORPHANED, ArchiveProject, kept, manifest, rows, there_and_back


async def test_tables_columns_and_positions_are_as_they_were(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE kept (id int PRIMARY KEY, name text)", "DROP TABLE kept")
    project.step(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');\n"
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood[], d numeric, "
        "  twice numeric GENERATED ALWAYS AS (d * 2) STORED);\n"
        "ALTER TABLE kept ADD m mood, ADD n int NOT NULL DEFAULT 5, ADD s serial",
        "DROP TABLE t;\nALTER TABLE kept DROP m, DROP n, DROP s;\nDROP TYPE mood",
    )
    await project.up("r1")
    await observer.execute("INSERT INTO kept VALUES (1, 'a'), (2, 'b')")
    await project.up()
    await observer.execute(
        "INSERT INTO t (m, d) VALUES ('{sad,glad}', 1.50), (NULL, NULL); DELETE FROM t WHERE id = 2;"
        "UPDATE kept SET m = 'glad', n = 7, s = 40 WHERE id = 2"
    )
    everything = [("SELECT * FROM t"), ("SELECT * FROM kept ORDER BY id")]
    before = [await rows(observer, query) for query in everything]
    catalog = await read_catalog(observer, "public")
    await project.down()
    report = await project.up()
    assert [await rows(observer, query) for query in everything] == before
    assert await read_catalog(observer, "public") == catalog
    assert {(p.name, p.rows) for p in report.put_back} == {("public.t", 1), ("public.kept (m, n, s)", 2)}
    assert not report.incomplete
    entries = await manifest(observer)
    assert all(row["restored_at"] and row["stored_in"] is None for row in entries)
    assert await rows(
        observer, "SELECT relname FROM pg_class WHERE relnamespace = 'gasket_archive'::regnamespace AND relkind = 'r'"
    ) == [("manifest",)]
    assert await observer.fetchval("INSERT INTO t (d) VALUES (0) RETURNING id") == 3
    assert await observer.fetchval("SELECT nextval(pg_get_serial_sequence('kept', 's'))") == 3


async def test_a_second_time_nothing_comes_twice(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (v int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1), (1), (2)")
    for _ in range(2):
        await project.down()
        await project.up()
        assert await rows(observer, "SELECT v FROM t ORDER BY v") == [(1,), (1,), (2,)]


@pytest.mark.parametrize(("down", "up"), [("one", "two"), (None, None), ("one", None)])
async def test_another_digest_brings_nothing_back(
    project: ArchiveProject, observer: asyncpg.Connection, down: str | None, up: str | None
) -> None:
    project.step("CREATE TABLE t (v int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await project.down(digest=down)
    [result] = (await project.up(digest=up)).put_back
    assert str(result) == "public.t: nothing, another version of the revision's file took it away"
    assert await rows(observer, "SELECT * FROM t") == []
    assert await kept(observer, "t") == [(1,)]


async def test_parents_come_before_children_and_rows_without_parent_stay(
    project: ArchiveProject, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project.step("CREATE TABLE owners (id int PRIMARY KEY)", "DROP TABLE owners")
    project.step(
        "CREATE TABLE z_parents (id int PRIMARY KEY, owner int NOT NULL REFERENCES owners);\n"
        "CREATE TABLE a_children (id int PRIMARY KEY, parent int REFERENCES z_parents);\n"
        "ALTER TABLE owners ADD favourite int REFERENCES a_children",
        "ALTER TABLE owners DROP favourite;\nDROP TABLE a_children;\nDROP TABLE z_parents",
    )
    await project.up()
    await observer.execute(
        "INSERT INTO owners VALUES (1), (2), (3); INSERT INTO z_parents VALUES (10, 1), (20, 2);"
        "INSERT INTO a_children VALUES (100, 10), (200, 20), (300, NULL);"
        "UPDATE owners SET favourite = 100 WHERE id = 1; UPDATE owners SET favourite = 200 WHERE id = 3"
    )
    await project.down()
    await observer.execute("DELETE FROM owners WHERE id = 2")
    with caplog.at_level(logging.WARNING):
        report = await project.up()
    assert {p.name: (p.rows, dict(p.left)) for p in report.put_back} == {
        "public.z_parents": (1, {ORPHANED: 1}),
        "public.a_children": (2, {ORPHANED: 1}),
        "public.owners (favourite)": (1, {GONE: 1, ORPHANED: 1}),
    }
    assert await rows(observer, "SELECT * FROM a_children ORDER BY id") == [(100, 10), (300, None)]
    assert await rows(observer, "SELECT * FROM owners ORDER BY id") == [(1, 100), (3, None)]
    assert await kept(observer, "a_children") == [(200, 20)]
    entries = {row["object_name"]: row for row in await manifest(observer)}
    assert json.loads(entries["a_children"]["left_behind"]) == {ORPHANED: 1}
    assert (entries["a_children"]["row_count"], entries["a_children"]["restored_rows"]) == (3, 2)
    assert f"2 rows of public.a_children, 1 stay in archive {entries['a_children']['archive']}" in caplog.text


async def test_chains_within_one_table_break_where_their_parent_is_gone(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE roots (id int PRIMARY KEY)", "DROP TABLE roots")
    project.step(
        "CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes, root int REFERENCES roots)",
        "DROP TABLE nodes",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO roots VALUES (1), (2);"
        "INSERT INTO nodes SELECT n, nullif(n - 1, 0), CASE n WHEN 1 THEN 1 END FROM generate_series(1, 20) AS n;"
        "INSERT INTO nodes SELECT n, nullif(n - 1, 100), CASE n WHEN 101 THEN 2 END "
        "FROM generate_series(101, 120) AS n;"
        "INSERT INTO nodes VALUES (200, 200, NULL)",
        meanwhile="DELETE FROM roots WHERE id = 2",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (21, {ORPHANED: 20})


async def test_tables_that_refer_to_each_other_come_back_together(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE outside (id int PRIMARY KEY)", "DROP TABLE outside")
    project.step(
        "CREATE TABLE teams (id int PRIMARY KEY, boss int NOT NULL, o int REFERENCES outside);\n"
        "CREATE TABLE people (id int PRIMARY KEY, team int REFERENCES teams);\n"
        "ALTER TABLE teams ADD CONSTRAINT boss FOREIGN KEY (boss) REFERENCES people",
        "ALTER TABLE teams DROP CONSTRAINT boss;\nDROP TABLE people;\nDROP TABLE teams",
    )
    await project.up()
    await observer.execute(
        "INSERT INTO outside VALUES (1), (2); INSERT INTO people VALUES (1), (2), (3);"
        "INSERT INTO teams VALUES (1, 1, 1), (2, 2, 2), (3, 3, 1);"
        "UPDATE people SET team = 1 WHERE id = 1; UPDATE people SET team = 2 WHERE id IN (2, 3)"
    )
    catalog = await read_catalog(observer, "public")
    await project.down()
    await observer.execute("DELETE FROM outside WHERE id = 2")
    report = await project.up()
    assert {p.name: (p.rows, dict(p.left)) for p in report.put_back} == {
        "public.teams": (1, {ORPHANED: 2}),
        "public.people": (1, {ORPHANED: 2}),
    }
    assert await read_catalog(observer, "public") == catalog


async def test_rows_that_are_there_already_stay_in_the_archive(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """By any unique index; but what upgrade() itself inserts, to the last column, is no loss."""
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, mail text, slot int, live bool DEFAULT true, UNIQUE (slot) DEFERRABLE);\n"
        "CREATE UNIQUE INDEX ON t (lower(mail)) WHERE live;\n"
        "INSERT INTO t VALUES (1, 'seed', 1), (2, 'Other@Mail', 2)",
        "DROP TABLE t",
    )
    project.step("CREATE TABLE s (v json);\nINSERT INTO s VALUES ('1'), ('1'), ('2')", "DROP TABLE s")
    await project.up()
    await observer.execute(
        "UPDATE t SET mail = 'changed', slot = 20 WHERE id = 2; INSERT INTO s VALUES ('1'), ('3');"
        "INSERT INTO t VALUES (3, 'new', 3, true), (4, 'other@mail', 4, true), (5, 'other@mail', 5, false), "
        "(6, 'six', 2, true)"
    )
    await project.down("base")
    report = await project.up("r1")
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (3, {EXISTS: 3})
    assert await rows(observer, "SELECT id, mail FROM t ORDER BY id") == [
        (1, "seed"),
        (2, "Other@Mail"),
        (3, "new"),
        (5, "other@mail"),
    ]
    assert [row[0] for row in await kept(observer, "t")] == [2, 4, 6]
    await project.up()
    assert await rows(observer, "SELECT v FROM s ORDER BY v::text") == [("1",), ("1",), ("1",), ("2",), ("3",)]


async def test_triggers_are_off_and_then_as_they_were(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE kept (id int PRIMARY KEY)", "DROP TABLE kept")
    triggers = "".join(
        f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse();\n"
        for table in ("t", "kept", "p1")
        for name in ("normal", "always", "disabled", '"Replica"')
    )
    states = "".join(
        f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER always;\nALTER TABLE {table} DISABLE TRIGGER disabled;\n"
        f'ALTER TABLE {table} ENABLE REPLICA TRIGGER "Replica";\n'
        for table in ("t", "kept", "p1")
    )
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY REFERENCES kept DEFERRABLE INITIALLY DEFERRED);\n"
        "CREATE TABLE p (id int) PARTITION BY LIST (id);\n"
        "CREATE TABLE p1 PARTITION OF p DEFAULT;\nALTER TABLE kept ADD v int;\n"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''a trigger fired''; END';\n"
        + triggers
        + states,
        "DROP TABLE t;\nDROP TABLE p;\nDROP FUNCTION refuse CASCADE;\nALTER TABLE kept DROP v",
    )
    report = await there_and_back(
        project,
        observer,
        "SET session_replication_role = local; ALTER TABLE t DISABLE TRIGGER USER; ALTER TABLE p1 DISABLE TRIGGER USER;"
        "ALTER TABLE kept DISABLE TRIGGER USER; INSERT INTO kept VALUES (1, 2); INSERT INTO t VALUES (1);"
        "INSERT INTO p VALUES (1)",
    )
    assert [p.error for p in report.put_back] == [None, None, None]
    assert await rows(observer, "SELECT * FROM t") == await rows(observer, "SELECT * FROM p") == [(1,)]
    assert await rows(observer, "SELECT * FROM kept") == [(1, 2)]
    state = "SELECT DISTINCT tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
    assert await rows(observer, state) == [("Replica", "R"), ("always", "A"), ("disabled", "D"), ("normal", "O")]


async def test_a_table_that_is_not_there_and_a_row_that_is_refused_are_written_down(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE here (id int)", "DROP TABLE here")
    project.step(
        "python: import sys\nfrom sqlalchemy import text\n"
        'if not op.get_bind().execute(text("SELECT count(*) FROM here")).scalar():\n'
        '    op.execute("CREATE TABLE t (id int)")\n'
        'op.execute("CREATE TABLE u (id int)")\nop.execute("CREATE TABLE w (id int)")\n'
        'if op.get_bind().execute(text("SELECT count(*) FROM here")).scalar():\n'
        '    op.execute("ALTER TABLE u ADD CHECK (id > 1)")',
        "DROP TABLE IF EXISTS t;\nDROP TABLE u;\nDROP TABLE w",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1); INSERT INTO u VALUES (1), (2); INSERT INTO w VALUES (1)",
        meanwhile="INSERT INTO here VALUES (1)",
    )
    found = {p.name: p for p in report.put_back}
    assert found["public.t"].error == "there is no table public.t"
    assert (found["public.u"].rows, dict(found["public.u"].left)) == (1, {"constraint u_id_check refuses it": 1})
    assert (found["public.w"].rows, found["public.w"].left, found["public.w"].error) == (1, {}, None)
    assert await kept(observer, "t") == await kept(observer, "u") == [(1,)]
    entries = {row["object_name"]: row for row in await manifest(observer)}
    assert entries["t"]["restore_error"] == "there is no table public.t"
    assert entries["t"]["restored_at"] is None
    assert await rows(observer, "SELECT * FROM w") == [(1,)]
    # Once the table is there, its rows come back with the next upgrade, after the newer archive.
    await observer.execute("INSERT INTO u VALUES (5)")
    await project.down()
    await observer.execute("DELETE FROM here")
    await project.up()
    assert await rows(observer, "SELECT id FROM u ORDER BY id") == [(2,), (5,)]
    assert await rows(observer, "SELECT id FROM t") == [(1,)]


async def test_odd_tables_come_back_too(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step(
        "CREATE TABLE nothing ();\nCREATE UNLOGGED TABLE quick (id int);\n"
        "CREATE TABLE computed (a int, b int GENERATED ALWAYS AS (a * 2) STORED UNIQUE);\n"
        'INSERT INTO computed VALUES (1);\nCREATE TABLE word (v json, t text COLLATE "C", UNIQUE (t))',
        "DROP TABLE nothing;\nDROP TABLE quick;\nDROP TABLE computed;\nDROP TABLE word",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES; INSERT INTO quick VALUES (1);"
        "INSERT INTO computed VALUES (2); INSERT INTO word VALUES ('{}', NULL), ('[]', 'x')",
    )
    assert not report.incomplete
    counts = {table: await observer.fetchval(f"SELECT count(*) FROM {table}") for table in ("nothing", "quick", "word")}
    assert counts == {"nothing": 2, "quick": 1, "word": 2}
    assert await rows(observer, "SELECT * FROM computed ORDER BY a") == [(1, 2), (2, 4)]


async def test_what_did_not_fit_once_is_not_tried_again(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    """Somebody may have deleted, on purpose, the row that stood in its way."""
    project.step("CREATE TABLE seeds (id int);\nINSERT INTO seeds VALUES (1)", "DROP TABLE seeds")
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, v text);\nINSERT INTO t SELECT id, 'seed' FROM seeds", "DROP TABLE t"
    )
    await project.up()
    await observer.execute("UPDATE t SET v = 'mine'")
    await project.down()
    assert dict((await project.up()).put_back[0].left) == {EXISTS: 1}
    await observer.execute("DELETE FROM t; DELETE FROM seeds")
    await project.down()
    await project.up()
    assert await rows(observer, "SELECT * FROM t") == []
    [old, new] = [row for row in await manifest(observer) if row["object_name"] == "t"]
    assert (old["archive"] != new["archive"], old["stored_in"], new["row_count"]) == (True, f"a{old['id']}", 0)


async def test_truncated_rows_come_back(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, v int)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD w int", "TRUNCATE t;\nALTER TABLE t DROP w")
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)",
        meanwhile="INSERT INTO t VALUES (2, 0), (3, 3)",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (1, {EXISTS: 1})
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, 1, 1), (2, 0, None), (3, 3, None)]


async def test_a_lock_that_is_not_free_in_time_is_no_reason_to_leave_rows_behind(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t")
    project.step("SELECT 1", "TRUNCATE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await project.down()
    await observer.execute("BEGIN; INSERT INTO t VALUES (2)")
    with pytest.raises(DBAPIError) as refusal:
        await project.up(lock_timeout="50ms")
    assert getattr(refusal.value.orig, "sqlstate", None) == "55P03"
    await observer.execute("COMMIT")
    assert not (await project.up(lock_timeout="50ms")).incomplete
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1,), (2,)]


async def test_a_migration_role_of_its_own_gets_everything_back(
    project: ArchiveProject, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    role = f"role_{uuid4().hex[:12]}"
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT CREATE ON DATABASE {database} TO {role};"
        f"GRANT ALL ON SCHEMA public TO {role}; REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"
    )
    project.url = url_with(project.url, user=role, password="secret-word")
    project.step("CREATE TABLE p (id serial PRIMARY KEY)", "DROP TABLE p")
    project.step(
        "CREATE TABLE t (id int PRIMARY KEY, p int REFERENCES p, up int REFERENCES t);\nALTER TABLE p ADD v int;\n"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "DROP TABLE t;\nALTER TABLE p DROP v",
    )
    report = await there_and_back(
        project, observer, "INSERT INTO p (v) VALUES (5); INSERT INTO t VALUES (1, 1, NULL), (2, 1, 1)"
    )
    assert not report.incomplete
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, 1, None), (2, 1, 1)]
    assert await rows(observer, "SELECT * FROM p") == [(1, 5)]
    await observer.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_a_role_that_may_not_read_the_archive_upgrades_all_the_same(
    project: ArchiveProject,
    observer: asyncpg.Connection,
    url_with: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    role = f"role_{uuid4().hex[:12]}"
    project.step("CREATE TABLE t (id int)", "DROP TABLE t")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1)")
    await project.down()
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT ALL ON SCHEMA public TO {role};"
        f"GRANT ALL ON alembic_version TO {role}; GRANT CREATE ON DATABASE {database} TO {role}"
    )
    limited = url_with(project.url, user=role, password="secret-word")
    assert (await project.up(url=limited, archives=False)).put_back == ()
    assert f"role {role} may not read the archive" in caplog.text
    assert await rows(observer, "SELECT * FROM t") == []
    assert await kept(observer, "t") == [(1,)]
    await observer.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_what_upgrade_deferred_fails_as_its_own_error(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE p (id int PRIMARY KEY);\nCREATE TABLE asked (n int)", "DROP TABLE p")
    project.step(
        "CREATE TABLE t (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\nINSERT INTO t SELECT n FROM asked",
        "DROP TABLE t",
    )
    await project.up()
    await observer.execute("INSERT INTO p VALUES (1); INSERT INTO t VALUES (1)")
    await project.down()
    await observer.execute("INSERT INTO asked VALUES (2)")
    with pytest.raises(DBAPIError, match="violates foreign key constraint"):
        await project.up()
    assert await kept(observer, "t") == [(1,)]


async def test_rows_come_back_where_a_publication_is_for_all_tables(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """PostgreSQL then refuses each UPDATE and DELETE of a table without a key, and the archive's copies are such."""
    await observer.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    project.step("CREATE TABLE kept (id int PRIMARY KEY)", "DROP TABLE kept")
    project.step(
        "CREATE TABLE words (v text);\nALTER TABLE kept ADD v int", "DROP TABLE words;\nALTER TABLE kept DROP v"
    )
    filling = "INSERT INTO words VALUES ('a'), ('a'); INSERT INTO kept VALUES (1, 10), (2, 20)"
    report = await there_and_back(project, observer, filling, meanwhile="DELETE FROM kept WHERE id = 2")
    assert {p.name: (p.rows, dict(p.left), p.error) for p in report.put_back} == {
        "public.words": (2, {}, None),
        "public.kept (v)": (1, {GONE: 1}, None),
    }
