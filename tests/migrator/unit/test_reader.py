"""What the reader says of a statement."""

from __future__ import annotations

import pytest

from gasket.migrator.sql.lexer import statements
from gasket.migrator.sql.reader import read, without_concurrently
from gasket.migrator.sql.reading import Create, Setting, TouchIndex, names_made


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("CREATE TABLE t (id int)", ["t"]),
        ('create unlogged table if not exists public . "My ""T" (id int)', ['My "T']),
        ("CREATE TABLE elsewhere.t (id int)", []),
        ("CREATE TEMP TABLE t (id int)", []),
        ("CREATE TABLE t AS SELECT 'CREATE TABLE u'", ["t"]),
        ("/* CREATE TABLE u */ CREATE -- TYPE v\n TYPE Mood AS ENUM ('a')", ["mood"]),
        ("CREATE DOMAIN d AS int", ["d"]),
        ("CREATE SEQUENCE s", ["s"]),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", ["v"]),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1", ["m"]),
        (
            "DO $gasket$ BEGIN CREATE TYPE mood AS ENUM ('a'); EXCEPTION WHEN duplicate_object THEN NULL; END $gasket$",
            ["mood"],
        ),
        ("ALTER TABLE IF EXISTS ONLY t RENAME TO u", ["u"]),
        ("ALTER TABLE t RENAME COLUMN a TO b", []),
        ("CREATE INDEX i ON t (a)", []),
        ("INSERT INTO t VALUES ('CREATE TABLE u (id int)')", []),
        ("COMMENT ON TABLE t IS $$CREATE TABLE u$$", []),
    ],
)
def test_the_names_that_a_statement_makes(sql: str, names: list[str]) -> None:
    assert names_made(read(sql), "public") == names


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; -- ';'\n SELECT ';';;", ["SELECT 1", "SELECT ';'"]),
        ("  DROP TABLE t; -- gone", ["DROP TABLE t; -- gone"]),
        ("DO $x$ BEGIN PERFORM 1; END; $x$; SELECT E'\\';'", ["DO $x$ BEGIN PERFORM 1; END; $x$", "SELECT E'\\';'"]),
        ("-- nothing", []),
        ("CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; SELECT 1); SELECT 2", None),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3",
            [
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
                "SELECT 3",
            ],
        ),
        ('SELECT ";" /* ; /* ; */ ; */ ; SELECT 2', ['SELECT ";"', "SELECT 2"]),
    ],
)
def test_a_text_is_cut_into_its_statements(sql: str, found: list[str] | None) -> None:
    if found is None:
        found = [sql.removesuffix("; SELECT 2"), "SELECT 2"]
    assert statements(sql) == found


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE ROLE rdr NOLOGIN",
        "create /* x */ user u",
        "ALTER GROUP g ADD USER u",
        "DROP ROLE IF EXISTS a, b",
        "GRANT a TO b",
        "REVOKE ADMIN OPTION FOR a FROM b",
        "GRANT CONNECT ON DATABASE d TO a",
        "GRANT SET ON PARAMETER work_mem TO a",
        "ALTER DATABASE d SET work_mem = '1MB'",
        "CREATE TABLESPACE s LOCATION '/x'",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p",
        "REASSIGN OWNED BY a TO b",
        "DROP OWNED BY a",
        "COMMENT ON ROLE a IS 'x'",
        "SECURITY LABEL FOR p ON DATABASE d IS 'x'",
        "COPY t TO '/tmp/x'",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "COPY t FROM PROGRAM 'cat'",
        "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
        "SELECT pg_catalog.pg_reload_conf()",
        "SELECT dblink_exec('dbname=x', 'DROP TABLE t')",
        "INSERT INTO t SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'a') THEN CREATE ROLE a; END IF; END $$",
        "DO $$ BEGIN EXECUTE format('CREATE ROLE %I', 'a'); END $$",
        "DO 'BEGIN EXECUTE ''DROP DATABASE d''; END'",
    ],
)
def test_what_is_outside_of_the_database(sql: str) -> None:
    assert [reading.outside_database for reading in read(sql)] == [True]


@pytest.mark.parametrize(
    ("sql", "outside"),
    [
        ("CREATE USER MAPPING FOR u SERVER s", False),
        ("GRANT SELECT ON t TO a", False),
        ("GRANT ALL ON ALL TABLES IN SCHEMA s TO a", False),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO a", False),
        ("CREATE PUBLICATION p FOR TABLE t", False),
        ("COMMENT ON TABLE role IS 'CREATE ROLE x'", False),
        ("INSERT INTO role VALUES ('CREATE ROLE x')", False),
        ("COPY t FROM STDIN", False),
        ("COPY t TO STDOUT", False),
        ("SELECT count(*), now() FROM t", False),
        ("DO $$ BEGIN UPDATE t SET a = CASE WHEN b THEN 1 ELSE 2 END WHERE c; END $$", False),
        ("DO $$ DECLARE n int := 0; BEGIN FOR n IN SELECT a FROM t LOOP RAISE NOTICE 'x'; END LOOP; END $$", False),
        ("SELECT f()", None),
        ("CALL p()", None),
        ("EXECUTE x", None),
        ("DO $$ BEGIN PERFORM f(); END $$", None),
        ("DO $$ BEGIN EXECUTE 'DROP TABLE ' || n; END $$", None),
        ("DO LANGUAGE plpython3u $$ x() $$", None),
        ("FROBNICATE t", None),
    ],
)
def test_what_is_in_the_database_or_not_told(sql: str, outside: bool | None) -> None:
    assert [reading.outside_database for reading in read(sql)] == [outside]


@pytest.mark.parametrize(
    ("sql", "writes"),
    [
        ("INSERT INTO t VALUES (1)", True),
        ('UPDATE ONLY "T" SET a = 1', True),
        ("DELETE FROM t USING u", True),
        ("MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE", True),
        ("COPY t FROM STDIN", True),
        ("TRUNCATE t, u", True),
        ("WITH old AS (DELETE FROM t RETURNING *) SELECT * FROM old", True),
        ("WITH RECURSIVE a(n) AS NOT MATERIALIZED (SELECT 1), b AS (SELECT 2) UPDATE t SET x = 1", True),
        ("WITH a AS (SELECT 1) (WITH b AS (UPDATE t SET x = 1 RETURNING x) SELECT * FROM b)", True),
        ("DO $$ BEGIN DELETE FROM t; END $$", True),
        ("EXPLAIN ANALYZE DELETE FROM t", True),
        ("EXPLAIN DELETE FROM t", False),
        ("SELECT 'DELETE FROM t'", False),
        ("COPY t TO STDOUT", False),
        ("ALTER TABLE t ADD a int", False),
        ("SELECT f()", None),
        ("CALL p()", None),
    ],
)
def test_what_writes_rows(sql: str, writes: bool | None) -> None:
    assert [reading.writes_rows for reading in read(sql)] == [writes]


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        "commit and chain",
        "/* x */ Begin Work",
        "START TRANSACTION",
        "END",
        "ABORT",
        "ROLLBACK",
        "ROLLBACK TO SAVEPOINT a",
        "SAVEPOINT a",
        "RELEASE a",
        "PREPARE TRANSACTION 'x'",
        "COMMIT PREPARED 'x'",
        "ROLLBACK PREPARED 'x'",
        "SELECT 1; COMMIT; SELECT 2",
    ],
)
def test_what_controls_the_transaction(sql: str) -> None:
    assert any(reading.transaction_control for reading in read(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "PREPARE x AS SELECT 1",
        "SELECT 'COMMIT'",
        "DO $$ BEGIN NULL; END $$",
        "COMMENT ON TABLE t IS $$COMMIT$$",
        'CREATE TABLE "COMMIT" (id int)',
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
    ],
)
def test_what_leaves_the_transaction_alone(sql: str) -> None:
    assert not any(reading.transaction_control for reading in read(sql))


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        (
            'CREATE TABLE t (a numeric(10, 2) CHECK (a > 0), "B" int[], PRIMARY KEY (a)) PARTITION BY RANGE (a)',
            (("a", "numeric(10,2)"), ("B", "int[]")),
        ),
        ('CREATE TABLE t ("like" timestamp with time zone COLLATE "C")', (("like", "timestamp with time zone"),)),
        ("CREATE TABLE t (a int, LIKE u)", ()),
        ("CREATE TABLE t (a int) INHERITS (u)", ()),
        ("CREATE TABLE t (a, b) AS SELECT 1, 2", ()),
        ("CREATE TABLE t PARTITION OF u FOR VALUES IN (1)", ()),
    ],
)
def test_the_columns_of_a_table(sql: str, columns: tuple[tuple[str, str], ...]) -> None:
    assert [change.columns for change in read(sql)[0].changes if isinstance(change, Create)] == [columns]


@pytest.mark.parametrize(
    ("sql", "setting"),
    [
        ("SET ROLE a", Setting("role")),
        ("SET LOCAL role TO a", Setting("role", local=True)),
        ("SET SESSION ROLE NONE", Setting("role", resets=True)),
        ("RESET ROLE", Setting("role", resets=True)),
        ("SET SESSION AUTHORIZATION a", Setting("session authorization")),
        ("SET LOCAL SESSION AUTHORIZATION DEFAULT", Setting("session authorization", resets=True, local=True)),
        ("SET search_path = a, b", Setting("search_path")),
        ('SET "search_path" TO a', Setting("search_path")),
        ("SELECT pg_catalog.set_config('search_path', '', false)", Setting("search_path")),
        ("SELECT set_config('role', 'a', true)", Setting("role", local=True)),
        ("SET TIME ZONE 'UTC'", Setting("timezone")),
        ("SET my.own = 1", Setting("my.own")),
        ("RESET ALL", Setting("all", resets=True)),
        ("DISCARD ALL", Setting("all", resets=True)),
        ("DO $$ BEGIN SET ROLE a; END $$", Setting("role")),
        ("DO $$ BEGIN SET LOCAL work_mem = 1; SET ROLE a; END $$", Setting("role")),
        ("DO $$ BEGIN SET ROLE a; RESET ROLE; END $$", Setting("role", resets=True)),
        ("SET CONSTRAINTS ALL IMMEDIATE", None),
        ("SET TRANSACTION READ ONLY", None),
        ("ALTER ROLE a SET work_mem = '1MB'", None),
        ("SELECT 'SET ROLE a'", None),
    ],
)
def test_a_setting_of_the_session(sql: str, setting: Setting | None) -> None:
    assert [reading.setting for reading in read(sql)] == [setting]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
        "DROP INDEX CONCURRENTLY i",
        "REINDEX (CONCURRENTLY) TABLE t",
        "REINDEX TABLE CONCURRENTLY t",
        "REINDEX DATABASE d",
        "ALTER TABLE p DETACH PARTITION q CONCURRENTLY",
        "VACUUM",
        "VACUUM (FULL) t",
        "CLUSTER",
        "CREATE DATABASE d",
        "DROP TABLESPACE s",
        "ALTER SYSTEM RESET ALL",
        "DISCARD ALL",
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p",
    ],
)
def test_what_postgresql_refuses_in_a_transaction(sql: str) -> None:
    assert [reading.needs_autocommit for reading in read(sql)] == [True]


@pytest.mark.parametrize(
    "sql",
    [
        "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
        "ALTER TYPE mood ADD VALUE 'concurrently'",
        "CREATE INDEX concurrently_i ON t (a)",
        "CLUSTER t",
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (create_slot = false)",
        "ALTER TABLE p DETACH PARTITION q",
    ],
)
def test_what_postgresql_takes_in_a_transaction(sql: str) -> None:
    assert [reading.needs_autocommit for reading in read(sql)] == [False]


@pytest.mark.parametrize(
    ("sql", "without"),
    [
        ("CREATE INDEX /* x */ CONCURRENTLY i ON t (a)", "CREATE INDEX /* x */ i ON t (a)"),
        ("DROP INDEX CONCURRENTLY i", "DROP INDEX i"),
        ("ALTER TABLE p DETACH PARTITION q CONCURRENTLY", "ALTER TABLE p DETACH PARTITION q"),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY m", "REFRESH MATERIALIZED VIEW CONCURRENTLY m"),
        ("SELECT 'CONCURRENTLY'", "SELECT 'CONCURRENTLY'"),
        ("COMMENT ON TABLE t IS 'INDEX CONCURRENTLY'", "COMMENT ON TABLE t IS 'INDEX CONCURRENTLY'"),
    ],
)
def test_concurrently_is_left_out_for_a_transaction(sql: str, without: str) -> None:
    assert without_concurrently(sql) == without


def test_a_name_is_as_long_as_postgresql_keeps_it() -> None:
    [reading] = read(f'CREATE INDEX CONCURRENTLY "{"ü" * 40}" ON t (a)')
    [change] = reading.changes
    assert isinstance(change, TouchIndex)
    assert change.index == ("ü" * 31,)
    assert read(f"DROP TABLE {'A' * 70}")[0].touches[0].relation == ("a" * 63,)
