"""No value of a row gets into the description of an error, whatever the server says; names and SQLSTATE stay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from gasket.postgres.errors import describe
from gasket.postgres.messages import collecting_values
from tests.conftest import databases

WORD = "alice-secret"
ODD = 'x" 4711-secret "people'
"""Quotes inside, and the name of the table in them."""
NUMBER = 947_110_815

SCHEMA = f"""
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN short AS text CHECK (length(VALUE) < 3);
CREATE TABLE people (
    id int PRIMARY KEY, email text, odd text, number bigint, stamp text, bytes bytea, doc jsonb, amount numeric
);
INSERT INTO people VALUES (1, '{WORD}', '{ODD}', {NUMBER}, '2026-13-{NUMBER}', '\\xc3a9', '{{"a": "{WORD}"}}', 1.5);
CREATE TABLE parents (email text PRIMARY KEY);
CREATE TABLE strict (
    email text CONSTRAINT one_of_each UNIQUE,
    number bigint CONSTRAINT only_small CHECK (number < 10),
    needed text NOT NULL DEFAULT '',
    parent text CONSTRAINT of_parent REFERENCES parents,
    span int4range,
    five varchar(5),
    code char(2),
    small numeric(4, 2),
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&)
);
INSERT INTO strict (email, span) VALUES ('{WORD}', '[947110815,947110816)');
CREATE TABLE doubled AS SELECT email FROM people, generate_series(1, 2);
CREATE TABLE parts (number bigint) PARTITION BY RANGE (number);
CREATE VIEW few AS SELECT email, number FROM strict WHERE number < 5 WITH CHECK OPTION;
CREATE TABLE guarded (email text);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
CREATE POLICY of_nobody ON guarded WITH CHECK (email = 'nobody');
CREATE TABLE watched (email text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'no % here', NEW.email
            USING ERRCODE = coalesce(nullif(current_setting('gasket.code', true), ''), 'P0001');
    END $$;
CREATE TRIGGER watch BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch();
CREATE FUNCTION named() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'there are too few'; END $$;
"""
RUN = "DO $body$ DECLARE p people; r record; BEGIN SELECT * INTO p FROM people; {0}; END $body$"

CASES = [
    # What the statement is, the SQLSTATE, and what the description says.
    ("SELECT email::int FROM people", "22P02", "invalid input syntax for type integer"),
    ("SELECT odd::int FROM people", "22P02", "invalid input syntax for type integer"),
    ("SELECT email::numeric FROM people", "22P02", "invalid input syntax for type numeric"),
    ("SELECT email::float8 FROM people", "22P02", "type double precision"),
    ("SELECT email::boolean FROM people", "22P02", "type boolean"),
    ("SELECT email::uuid FROM people", "22P02", "type uuid"),
    ("SELECT email::mood FROM people", "22P02", "invalid input value for enum mood"),
    ("SELECT odd::mood FROM people", "22P02", "invalid input value for enum mood"),
    ("SELECT email::int[] FROM people", "22P02", "malformed array literal"),
    ("SELECT email::int4range FROM people", "22P02", "malformed range literal"),
    ("SELECT email::people FROM people", "22P02", "malformed record literal"),
    ("SELECT email::json FROM people", "22P02", "invalid input syntax for type json"),
    ("SELECT email::jsonb FROM people", "22P02", "invalid input syntax for type json"),
    ("SELECT email::inet FROM people", "22P02", "type inet"),
    ("SELECT email::macaddr FROM people", "22P02", "type macaddr"),
    ("SELECT email::point FROM people", "22P02", "type point"),
    ("SELECT email::bit(3) FROM people", "22P02", ""),
    ("SELECT email::oid FROM people", "22P02", "type oid"),
    ("SELECT email::pg_lsn FROM people", "22P02", "type pg_lsn"),
    ("SELECT email::tsquery FROM (SELECT email || ' ' || odd AS email FROM people) AS p", "42601", "syntax error"),
    ("SELECT email::regclass FROM people", "42P01", "relation"),
    ("SELECT odd::regclass FROM people", "42602", "invalid name syntax"),
    ("SELECT email::regrole FROM people", None, ""),
    ("SELECT (number * 10)::int FROM people", "22003", "integer out of range"),
    ("SELECT (number || '0000000000000')::bigint FROM people", "22003", "is out of range for type bigint"),
    ("SELECT number::smallint FROM people", "22003", "smallint out of range"),
    ("SELECT (number || 'e999')::float8 FROM people", "22003", "is out of range for type double precision"),
    ("SELECT email::date FROM people", "22007", "invalid input syntax for type date"),
    ("SELECT stamp::date FROM people", "22008", "date/time field value out of range"),
    ("SELECT email::timestamptz FROM people", "22007", "type timestamp with time zone"),
    ("SELECT email::interval FROM people", "22007", "type interval"),
    ("SELECT make_date(2026, number::int, 1) FROM people", "22008", "date field value out of range"),
    ("SELECT make_time(number::int % 1000, 1, 1) FROM people", "22008", "time field value out of range"),
    ("SELECT now() AT TIME ZONE email FROM people", "22023", "not recognized"),
    ("SELECT date_trunc(email, now()) FROM people", "22023", "not recognized"),
    ("SELECT to_date(email, 'YYYY') FROM people", "22007", "invalid value"),
    ("SELECT decode(email, 'hex') FROM people", "22023", "invalid hexadecimal"),
    ("SELECT decode(email || '!', 'base64') FROM people", "22023", "base64"),
    ("SELECT convert_from(bytes, 'UTF8')::int FROM people", "22P02", "type integer"),
    ("SELECT convert_from(substr(bytes, 1, 1), 'UTF8') FROM people", "22021", "invalid byte sequence for encoding"),
    ("SELECT convert(bytes, 'UTF8', 'KOI8R') FROM people", "22P05", "character with byte sequence"),
    ("SELECT chr(number::int) FROM people", "54000", "requested character too large"),
    ("SELECT regexp_matches('', email || '(') FROM people", "2201B", "invalid regular expression"),
    ("SELECT jsonb_path_query(doc, 'strict $.b') FROM people", "2203A", "JSON object does not contain key"),
    ("SELECT (doc->'a')::int FROM people", "22023", "cannot cast jsonb string"),
    ("SELECT set_config('work_mem', email, true) FROM people", "22023", "invalid value for parameter"),
    ("SELECT set_config('timezone', email, true) FROM people", "22023", "invalid value for parameter"),
    ("SELECT set_config(email, '', true) FROM people", None, ""),
    ("SELECT has_table_privilege('people', email) FROM people", "22023", "unrecognized privilege type"),
    ("SELECT has_table_privilege(email, 'people', 'SELECT') FROM people", "42704", "does not exist"),
    ("SELECT pg_read_file('/' || email) FROM people", "58P01", "could not open file"),
    ("SELECT nextval(email) FROM people", None, ""),
    ("SELECT email::short FROM people", "23514", "value for domain short violates check constraint"),
    ("SELECT number / (id - 1) FROM people", "22012", "division by zero"),
    ("INSERT INTO strict (five) SELECT email FROM people", "22001", "value too long for type character varying(5)"),
    ("INSERT INTO strict (code) SELECT email FROM people", "22001", "value too long for type character(2)"),
    ("INSERT INTO strict (small) SELECT number FROM people", "22003", "numeric field overflow"),
    ("INSERT INTO strict (email) SELECT email FROM people", "23505", 'unique constraint "one_of_each" (table strict)'),
    (
        "INSERT INTO strict (number) SELECT number FROM people",
        "23514",
        'violates check constraint "only_small"',
    ),
    (
        "INSERT INTO strict (email, needed) SELECT odd, NULL FROM people",
        "23502",
        '"needed" of relation "strict"',
    ),
    ("INSERT INTO strict (parent) SELECT email FROM people", "23503", 'foreign key constraint "of_parent"'),
    ("INSERT INTO strict (span) SELECT int4range(number::int, NULL) FROM people", "23P01", '"apart" (table strict)'),
    ("INSERT INTO parts SELECT number FROM people", "23514", 'no partition of relation "parts" found for row'),
    ("INSERT INTO few SELECT odd, number / 100 FROM people", None, ""),
    ("INSERT INTO watched SELECT email FROM people", "P0001", "function watch raised an error"),
    ("CREATE UNIQUE INDEX once ON doubled (email)", "23505", 'could not create unique index "once"'),
    ("ALTER TABLE people ALTER email TYPE int USING email::int", "22P02", "invalid input syntax for type integer"),
    ("ALTER TABLE people ADD CONSTRAINT tiny CHECK (number < 3)", "23514", '"tiny" of relation "people"'),
    ("ALTER TABLE people ADD FOREIGN KEY (email) REFERENCES parents", "23503", "people_email_fkey"),
    (RUN.format("EXECUTE 'SELECT ' || p.email"), "42703", 'column "..." does not exist'),
    (RUN.format("EXECUTE format('SELECT 1 FROM %I', p.email)"), "42P01", 'relation "..." does not exist'),
    (RUN.format("EXECUTE 'SELECT ' || quote_literal(p.email) || ' people'' people'"), "42601", ""),
    (RUN.format("EXECUTE 'SELECT ''' || p.odd"), "42601", ""),
    (RUN.format("PERFORM p.email::int"), "22P02", "invalid input syntax for type integer"),
    (RUN.format("SELECT p.email INTO STRICT r FROM people WHERE id = 2"), "P0002", "query returned no rows"),
    (RUN.format("EXECUTE 'RAISE ' || p.email"), "42601", "syntax error at or near"),
    (RUN.format("r := p; PERFORM r.email::date"), "22007", "type date"),
    # What was written in the SQL itself stays, and so do names.
    ("SELECT missing FROM people", "42703", 'column "missing" does not exist'),
    ("SELECT * FROM app.nowhere", "42P01", 'relation "app.nowhere" does not exist'),
    ("CREATE TABLE people (id int)", "42P07", 'relation "people" already exists'),
    ("DROP TABLE parents", "2BP01", "cannot drop table parents because other objects depend on it"),
    ("SELEC 1", "42601", 'syntax error at or near "SELEC"'),
    ("SELECT lower(1)", "42883", "function lower(integer) does not exist"),
    (RUN.format("RAISE EXCEPTION 'orders without \"customer\": %', 3"), "P0001", 'orders without "customer": 3'),
    (RUN.format("RAISE unique_violation USING MESSAGE = 'in my words'"), "23505", "in my words"),
    (RUN.format("PERFORM named()"), "P0001", "there are too few"),
    ("SELECT named()", "P0001", "there are too few"),
    (RUN.format("ASSERT false, 'not what I expected'"), "P0004", "not what I expected"),
]
VALUES = ("alice", "secret", "4711", "947110815", "94711", "c3", "a9", "é")

Fail = Callable[[str], Coroutine[Any, Any, asyncpg.PostgresError]]


@pytest.fixture(scope="module")
async def fail(server_url: str) -> AsyncIterator[Fail]:
    """Runs a statement that has to fail, and rolls back what it did."""
    async with databases(server_url) as make:
        connection = await asyncpg.connect(await make(), timeout=30)
        await connection.execute(SCHEMA)

        async def fails(statement: str) -> asyncpg.PostgresError:
            with pytest.raises(asyncpg.PostgresError) as caught:
                async with connection.transaction():
                    await connection.fetch(statement)
            return caught.value

        yield fails
        await connection.close(timeout=10)


@pytest.mark.parametrize(("statement", "sqlstate", "said"), CASES)
async def test_no_value_is_in_the_description(fail: Fail, statement: str, sqlstate: str | None, said: str) -> None:
    error = await fail(statement)
    described = describe(error)
    assert not [value for value in VALUES if value in described]
    assert said in described
    assert described.endswith(f" [SQLSTATE {error.sqlstate}]")
    assert sqlstate in (None, error.sqlstate)
    assert "\n" not in described


async def test_a_person_who_asks_sees_all_of_it(fail: Fail) -> None:
    error = await fail("INSERT INTO strict (email) SELECT email FROM people")
    with collecting_values() as withheld:
        describe(error)
        describe(error)
    assert len(withheld) == 1
    assert f"DETAIL: Key (email)=({WORD}) already exists." in withheld[0]


async def test_a_trigger_cannot_hide_a_value_behind_another_sqlstate(fail: Fail) -> None:
    for state in ("08006", "23505", "42703", "53100", "XX000"):
        error = await fail(
            f"WITH s AS MATERIALIZED (SELECT set_config('gasket.code', '{state}', true)) "
            "INSERT INTO watched SELECT email FROM people, s"
        )
        assert error.sqlstate == state
        assert WORD in str(error)
        assert WORD not in describe(error)


async def test_an_argument_that_the_driver_refuses_is_left_out(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, timeout=30)
    with pytest.raises(asyncpg.DataError) as caught:
        await connection.fetch("SELECT $1::int", WORD)
    await connection.close(timeout=10)
    assert WORD in str(caught.value)
    assert describe(caught.value) == "invalid input for query argument $1 [SQLSTATE 22000]"


async def test_no_value_is_in_the_description_of_a_script(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, timeout=30)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.execute(f"{SCHEMA}; SELECT email::int FROM people")
    await connection.close(timeout=10)
    assert WORD in str(caught.value)
    assert describe(caught.value) == "invalid input syntax for type integer [SQLSTATE 22P02]"


async def test_a_parameter_of_the_url_is_told_whole(database_url: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await asyncpg.connect(database_url, timeout=30, server_settings={"statement_timeout": "soon"})
    assert '"statement_timeout": "soon"' in describe(caught.value)
