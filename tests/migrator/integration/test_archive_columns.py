"""Columns that a downgrade took away come back into the rows that are still theirs."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from tests.migrator.archive_project import CHANGED_SINCE, EXISTS, GONE, ArchiveProject, rows, there_and_back


async def test_a_row_that_nobody_changed_gets_its_values_back_whatever_upgrade_computed(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, name text)", "DROP TABLE t")
    project.step(
        "ALTER TABLE t ADD first text, ADD last text, ADD n int DEFAULT 1, ADD g int GENERATED ALWAYS AS IDENTITY;\n"
        "UPDATE t SET first = split_part(name, ' ', 1), last = split_part(name, ' ', 2);\n"
        "ALTER TABLE t ALTER first SET NOT NULL, ALTER n DROP DEFAULT",
        "UPDATE t SET name = first || ' ' || last;\nALTER TABLE t DROP first, DROP last, DROP n, DROP g",
    )
    await project.up()
    await observer.execute(
        "INSERT INTO t SELECT id, NULL, 'Mary Ann', 'Shaw', 5 FROM generate_series(1, 6) AS id;"
        "DELETE FROM t WHERE id = 1"
    )
    report = await project.down()
    assert report.not_archived == ("downgrade() updates 5 rows of public.t: not archived",)
    await observer.execute(
        "UPDATE t SET name = 'Ann Lee' WHERE id = 3; DELETE FROM t WHERE id IN (4, 5);"
        "INSERT INTO t VALUES (5, 'Somebody Else'), (7, 'New Comer')"
    )
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (2, {CHANGED_SINCE: 2, GONE: 1})
    assert await rows(observer, "SELECT id, first, last, n FROM t ORDER BY id") == [
        (2, "Mary Ann", "Shaw", 5),
        (3, "Ann", "Lee", 1),
        (5, "Somebody", "Else", 1),
        (6, "Mary Ann", "Shaw", 5),
        (7, "New", "Comer", 1),
    ]
    assert await observer.fetchval("SELECT g FROM t WHERE id = 6") == 6
    assert (
        await observer.fetchval(
            "SELECT attidentity::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'g'"
        )
        == "a"
    )


@pytest.mark.parametrize(
    "column",
    [
        "text",
        "text DEFAULT 'x'",
        "text DEFAULT 'x;\nALTER TABLE t ALTER v DROP DEFAULT",
        "text;\nALTER TABLE t ALTER v SET DEFAULT 'x';\nUPDATE t SET v = 'x",
        "text[] DEFAULT '{a,b}'",
        "varchar(9) NOT NULL DEFAULT 'it''s'",
        "jsonb DEFAULT '{\"a\": [1]}'",
    ],
)
async def test_a_row_that_was_changed_gets_its_value_back_where_nothing_else_is(
    project: ArchiveProject, observer: asyncpg.Connection, column: str
) -> None:
    column = column.replace("'x;", "'x';") + ("'" if column.endswith("'x") else "")
    project.step("CREATE TABLE t (id int PRIMARY KEY, name text)", "DROP TABLE t")
    project.step(f"ALTER TABLE t ADD v {column}", "ALTER TABLE t DROP v")
    await project.up()
    value = "{c}" if "[]" in column else "5"
    await observer.execute(f"INSERT INTO t VALUES (1, 'a', '{value}')")
    before = await rows(observer, "SELECT v FROM t")
    await project.down()
    await observer.execute("UPDATE t SET name = 'b'")
    assert not (await project.up()).incomplete
    assert await rows(observer, "SELECT v FROM t") == before


async def test_a_column_of_another_type_comes_back_only_into_rows_that_nobody_changed(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, v varchar(3))", "DROP TABLE t")
    project.step(
        "ALTER TABLE t ALTER v TYPE text, ALTER v SET DEFAULT 'xyz'",
        "ALTER TABLE t ALTER v TYPE varchar(3) USING left(v, 3)",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t SELECT id, 'abcdef' FROM generate_series(1, 4) AS id",
        meanwhile="UPDATE t SET v = 'xyz' WHERE id = 2; UPDATE t SET v = NULL WHERE id = 3",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (2, {CHANGED_SINCE: 2})
    assert await rows(observer, "SELECT v FROM t ORDER BY id") == [("abcdef",), ("xyz",), (None,), ("abcdef",)]


async def test_a_unique_value_that_another_row_has_now_stays(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, name text)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD handle text UNIQUE;\nUPDATE t SET handle = name", "ALTER TABLE t DROP handle")
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1, 'a', 'free'), (2, 'b', 'taken'), (4, 'd', 'd')",
        meanwhile="INSERT INTO t VALUES (3, 'taken')",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (2, {EXISTS: 1})
    assert await rows(observer, "SELECT handle FROM t ORDER BY id") == [("free",), ("b",), ("taken",), ("d",)]


async def test_an_autocommit_block_in_between_makes_every_row_a_changed_one(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY, name text)", "DROP TABLE t")
    project.step(
        'python: op.execute("ALTER TABLE t ADD v text")\nwith op.get_context().autocommit_block():\n'
        "    op.execute(\"UPDATE t SET v = 'computed' WHERE id = 1\")",
        "ALTER TABLE t DROP v",
    )
    report = await there_and_back(project, observer, "INSERT INTO t VALUES (1, 'a', 'one'), (2, 'b', 'two')")
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT v FROM t ORDER BY id") == [("computed",), ("two",)]


async def test_partitions_and_inherited_tables_get_their_columns_back(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);\nCREATE TABLE p2 PARTITION OF p DEFAULT;\n"
        "CREATE TABLE base (id int PRIMARY KEY);\nCREATE TABLE child (PRIMARY KEY (id)) INHERITS (base)",
        "DROP TABLE p",
    )
    project.step(
        "ALTER TABLE p ADD v int UNIQUE, ADD CHECK (v > 0);\nALTER TABLE base ADD v int".replace(" UNIQUE", ""),
        "ALTER TABLE p DROP v;\nALTER TABLE base DROP v",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO p VALUES (1, 10), (20, 200); INSERT INTO base VALUES (1, 1); INSERT INTO child VALUES (1, 2)",
        meanwhile="UPDATE p SET id = 2 WHERE id = 1",
    )
    assert {p.name: (p.rows, dict(p.left), p.error) for p in report.put_back} == {
        "public.p (v)": (1, {GONE: 1}, None),
        "public.base (v)": (1, {}, None),
        "public.child (v)": (1, {}, None),
    }
    assert await rows(observer, "SELECT * FROM base ORDER BY v") == [(1, 1), (1, 2)]


async def test_a_lock_that_is_not_free_in_time_is_an_error_that_a_new_try_mends(
    project: ArchiveProject, observer: asyncpg.Connection, database_url: str
) -> None:
    project.step("CREATE TABLE t (id int PRIMARY KEY)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD v int", "ALTER TABLE t DROP v")
    await project.up()
    await observer.execute("INSERT INTO t VALUES (1, 1)")
    await project.down()
    await observer.execute("BEGIN; INSERT INTO t VALUES (2)")
    with pytest.raises(DBAPIError) as refusal:
        await project.up(lock_timeout="50ms")
    assert getattr(refusal.value.orig, "sqlstate", None) == "55P03"
    await observer.execute("COMMIT")
    assert not (await project.up(lock_timeout="50ms")).incomplete
    assert await rows(observer, "SELECT * FROM t ORDER BY id") == [(1, 1), (2, None)]


async def test_keys_are_followed_through_renames_and_types_of_the_user(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    project.step(
        "CREATE TYPE colour AS ENUM ('red', 'blue');\nCREATE TABLE old (k colour PRIMARY KEY, name text)",
        "DROP TABLE old",
    )
    project.step(
        "ALTER TABLE old RENAME TO t;\nALTER TABLE t RENAME k TO colour;\nALTER TABLE t ADD v text;\n"
        "UPDATE t SET v = upper(name)",
        "ALTER TABLE t DROP v;\nALTER TABLE t RENAME colour TO k;\nALTER TABLE t RENAME TO old",
    )
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES ('red', 'a', 'one'), ('blue', 'b', 'two')",
        meanwhile="UPDATE old SET name = 'c' WHERE k = 'blue'",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT v FROM t ORDER BY colour") == [("one",), ("C",)]


async def test_in_a_table_made_anew_every_row_counts_as_changed(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """As after a dump and restore: the versions of rows mean nothing any more."""
    project.step("CREATE TABLE t (id int PRIMARY KEY, name text)", "DROP TABLE t")
    project.step("ALTER TABLE t ADD v text;\nUPDATE t SET v = upper(name)", "ALTER TABLE t DROP v")
    report = await there_and_back(
        project,
        observer,
        "INSERT INTO t VALUES (1, 'a', 'one'), (2, NULL, 'two')",
        meanwhile="ALTER TABLE t RENAME TO before; CREATE TABLE t (LIKE before INCLUDING ALL);"
        "INSERT INTO t SELECT * FROM before; DROP TABLE before",
    )
    [result] = report.put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT v FROM t ORDER BY id") == [("A",), ("two",)]
