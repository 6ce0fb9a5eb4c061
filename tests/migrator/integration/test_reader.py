"""PostgreSQL is the judge of the reader: what a statement does on a server is compared with what is read.

Seen are the locks (`pg_locks`), the files of tables that were written anew, what PostgreSQL says at
`client_min_messages = debug1`, its counters of scans and of rows, and the catalogs of the cluster that it writes to.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from gasket.migrator.revisions.rules.sql_rules import find_problems
from gasket.migrator.sql.expressions import OUTSIDE, STABLE, VOLATILE
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import Reading, Touch, names_made
from gasket.migrator.sql.render import Rendering, Statement
from gasket.migrator.sql.widening import rewrites
from tests.conftest import databases, rewrite_url

SCHEMA = """
CREATE SCHEMA other;
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN anything AS int;
CREATE TABLE owner (id int PRIMARY KEY);
CREATE TABLE item (
    id bigint PRIMARY KEY, name text, amount int, at timestamp, note varchar(10), code varchar(20), price numeric(10,2),
    feeling mood, checked int, size int, owner_id int REFERENCES owner,
    twice int GENERATED ALWAYS AS (amount * 2) STORED,
    CONSTRAINT little CHECK (amount < 900), CONSTRAINT is_checked CHECK (checked IS NOT NULL)
);
ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 1000) NOT VALID;
CREATE INDEX item_name ON item (name);
CREATE INDEX item_code ON item (code);
CREATE UNIQUE INDEX item_at ON item (at);
CREATE TABLE part (id serial PRIMARY KEY, item_id bigint, label text UNIQUE);
ALTER TABLE part ADD CONSTRAINT part_item FOREIGN KEY (item_id) REFERENCES item NOT VALID;
CREATE TABLE key_later (id int NOT NULL, nullable int, day daterange, hours tsrange);
CREATE UNIQUE INDEX key_later_id ON key_later (id);
CREATE UNIQUE INDEX key_later_nullable ON key_later (nullable);
CREATE TABLE place (id int, kind int) PARTITION BY LIST (kind);
CREATE TABLE place_1 PARTITION OF place FOR VALUES IN (1);
CREATE TABLE place_2 (id int, kind int);
CREATE TABLE place_3 (id int, kind int NOT NULL CHECK (kind = 3));
CREATE TABLE area (id int, kind int) PARTITION BY LIST (kind);
CREATE TABLE area_rest PARTITION OF area DEFAULT;
CREATE TABLE heir () INHERITS (owner);
CREATE TABLE orphan (id int NOT NULL);
CREATE TABLE measured (at timestamptz, value positive);
CREATE TABLE other."Odd, Name" ("A b" int, "select" text);
CREATE VIEW names AS SELECT name FROM item;
CREATE MATERIALIZED VIEW amounts AS SELECT id FROM owner;
CREATE UNIQUE INDEX amounts_id ON amounts (id);
CREATE SEQUENCE lone;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION one() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE PROCEDURE fill() LANGUAGE sql AS 'DELETE FROM part';
CREATE TRIGGER part_nothing AFTER INSERT ON part FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE RULE part_rule AS ON DELETE TO part WHERE false DO INSTEAD NOTHING;
CREATE POLICY part_policy ON part USING (true);
CREATE STATISTICS item_statistics ON id, name FROM item;
CREATE PUBLICATION changes FOR TABLE part;
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE remote (id int) SERVER elsewhere;
INSERT INTO owner VALUES (1), (2);
INSERT INTO item (id, name, amount, at, note, checked, owner_id) VALUES (1, 'a', 5, '2026-01-01', 'n', 1, 1);
INSERT INTO part (item_id) VALUES (1);
INSERT INTO key_later (id, nullable) VALUES (1, 1);
"""


@dataclass(frozen=True)
class Case:
    """`may`: what the reader calls not known. `also`: what PostgreSQL does and the text does not tell.

    `since` is the first major version of PostgreSQL that has this form, 0 when every supported version has it.
    """

    sql: str
    may: str = ""
    also: str = ""
    since: int = 0

    def __str__(self) -> str:
        return self.sql


CASES = [
    # Columns
    Case("ALTER TABLE item ADD COLUMN plain int"),
    Case('ALTER TABLE item ADD plain text COLLATE "C"'),
    Case("ALTER TABLE IF EXISTS ONLY public . item ADD COLUMN IF NOT EXISTS plain varchar(5)[]"),
    Case("ALTER TABLE item ADD COLUMN constant int NOT NULL DEFAULT 5"),
    Case("ALTER TABLE item ADD COLUMN moment timestamptz NOT NULL DEFAULT now()"),
    Case("ALTER TABLE item ADD COLUMN word text DEFAULT lower('X') || current_setting('work_mem')"),
    Case("ALTER TABLE item ADD COLUMN data jsonb NOT NULL DEFAULT '{}'::jsonb"),
    Case("ALTER TABLE item ADD COLUMN random uuid DEFAULT gen_random_uuid()"),
    Case("ALTER TABLE item ADD COLUMN moment timestamptz DEFAULT (clock_timestamp() /* , not now() */)"),
    Case("ALTER TABLE item ADD COLUMN own int DEFAULT one()", may="rewrites item"),
    Case("ALTER TABLE item ADD COLUMN number serial"),
    Case("ALTER TABLE item ADD COLUMN number bigint GENERATED BY DEFAULT AS IDENTITY (START 5)"),
    Case("ALTER TABLE item ADD COLUMN thrice int GENERATED ALWAYS AS (amount * 3) STORED"),
    Case("ALTER TABLE item ADD COLUMN thrice int GENERATED ALWAYS AS (amount * 3) VIRTUAL", since=18),
    Case("ALTER TABLE item ADD COLUMN thrice int GENERATED ALWAYS AS (amount * 3)", since=18),
    Case("ALTER TABLE item ADD COLUMN thrice int GENERATED ALWAYS AS (amount * 3) VIRTUAL NOT NULL", since=18),
    Case("ALTER TABLE item ADD COLUMN thrice int GENERATED ALWAYS AS (amount * 3) CHECK (thrice > 0)", since=18),
    Case("ALTER TABLE owner ADD COLUMN more int NOT NULL DEFAULT 3, ADD COLUMN less int"),
    Case("ALTER TABLE orphan ADD COLUMN must int NOT NULL"),
    Case("ALTER TABLE item ADD COLUMN sign int CHECK (sign > 0)"),
    Case("ALTER TABLE item ADD COLUMN sign int CHECK (sign > 0) NOT ENFORCED", since=18),
    Case("ALTER TABLE item ADD COLUMN tag text UNIQUE"),
    Case("ALTER TABLE orphan ADD COLUMN tag int PRIMARY KEY"),
    Case("ALTER TABLE item ADD COLUMN other_owner int REFERENCES owner"),
    Case(
        "ALTER TABLE item ADD COLUMN other_owner int DEFAULT 1 REFERENCES owner (id) ON DELETE CASCADE",
        also="scans owner",
    ),
    Case("ALTER TABLE item ADD COLUMN state mood", may="rewrites item"),
    Case("ALTER TABLE item ADD COLUMN state positive", may="rewrites item"),
    Case("ALTER TABLE item ADD COLUMN state anything DEFAULT 3", may="rewrites item"),
    Case('ALTER TABLE other."Odd, Name" ADD COLUMN "DROP" int'),
    Case("ALTER TABLE place ADD COLUMN plain int"),
    Case("ALTER TABLE public.item DROP COLUMN note"),
    Case("ALTER TABLE item DROP COLUMN IF EXISTS owner_id CASCADE", also="owner ACCESS EXCLUSIVE"),
    Case("ALTER TABLE item ADD COLUMN x int, DROP COLUMN note, ALTER amount SET DEFAULT 5"),
    Case("ALTER TABLE item RENAME COLUMN note TO remark"),
    Case("ALTER TABLE item RENAME name TO title"),
    Case("ALTER TABLE item ALTER COLUMN note SET DEFAULT 'x, y'"),
    Case("ALTER TABLE item ALTER note DROP DEFAULT"),
    Case("ALTER TABLE item ALTER COLUMN name SET NOT NULL", may="scans item"),
    Case("ALTER TABLE item ALTER COLUMN checked SET NOT NULL", may="scans item"),
    Case("ALTER TABLE orphan ALTER id DROP NOT NULL"),
    Case("ALTER TABLE item ALTER COLUMN note SET STATISTICS 500"),
    Case("ALTER TABLE item ALTER COLUMN note SET (n_distinct = 5)"),
    Case("ALTER TABLE item ALTER note RESET (n_distinct)"),
    Case("ALTER TABLE item ALTER COLUMN note SET STORAGE external"),
    Case("ALTER TABLE item ALTER COLUMN note SET COMPRESSION pglz"),
    Case("ALTER TABLE item ALTER COLUMN twice DROP EXPRESSION"),
    Case("ALTER TABLE item ALTER COLUMN twice SET EXPRESSION AS (amount * 4)", may="rewrites item", since=17),
    Case("ALTER TABLE orphan ALTER id ADD GENERATED ALWAYS AS IDENTITY"),
    # Types of columns
    Case("ALTER TABLE item ALTER COLUMN size TYPE bigint", may="rewrites item, scans item"),
    Case("ALTER TABLE item ALTER code TYPE text", may="rewrites item, scans item"),
    Case("ALTER TABLE item ALTER COLUMN code SET DATA TYPE varchar(40)", may="rewrites item, scans item"),
    Case("ALTER TABLE item ALTER price TYPE numeric(12, 2)", may="rewrites item, scans item"),
    Case(
        'ALTER TABLE item ALTER code TYPE varchar(20) COLLATE "C"', may="rewrites item, scans item", also="indexes item"
    ),
    Case("ALTER TABLE item ALTER code TYPE text USING code || 'x'"),
    Case("ALTER TABLE item ALTER code TYPE text USING (code::text)", may="rewrites item, scans item"),
    Case("ALTER TABLE item ALTER code TYPE int USING length(code)"),
    Case("ALTER TABLE item ALTER id TYPE numeric", may="rewrites item, scans item", also="part ACCESS EXCLUSIVE"),
    Case("ALTER TABLE measured ALTER at TYPE timestamp", may="rewrites measured, scans measured"),
    # Constraints
    Case("ALTER TABLE item ADD CONSTRAINT positive CHECK (amount > 0)"),
    Case("ALTER TABLE item ADD CHECK (amount > 0) NO INHERIT"),
    Case("ALTER TABLE item ADD CONSTRAINT positive CHECK (amount > 0) NOT VALID"),
    Case("ALTER TABLE item ADD CONSTRAINT positive CHECK (amount > 0) NOT ENFORCED", since=18),
    Case("ALTER TABLE item ADD CONSTRAINT named NOT NULL name", may="scans item", since=18),
    Case("ALTER TABLE item ADD CONSTRAINT named NOT NULL name NOT VALID", since=18),
    Case("ALTER TABLE item ADD NOT NULL checked", may="scans item", since=18),
    Case("ALTER TABLE item ADD CONSTRAINT item_two UNIQUE (id, name)"),
    Case("ALTER TABLE item ADD CONSTRAINT item_two UNIQUE NULLS NOT DISTINCT (name) INCLUDE (id)"),
    Case("ALTER TABLE item ADD UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED"),
    Case("ALTER TABLE item ADD CONSTRAINT item_at_key UNIQUE USING INDEX item_at"),
    Case("ALTER TABLE key_later ADD PRIMARY KEY (id)"),
    Case("ALTER TABLE key_later ADD CONSTRAINT k PRIMARY KEY USING INDEX key_later_id", may="scans key_later"),
    Case("ALTER TABLE key_later ADD PRIMARY KEY USING INDEX key_later_nullable", may="scans key_later"),
    Case("ALTER TABLE key_later ADD CONSTRAINT days EXCLUDE USING gist (day WITH &&)"),
    Case("ALTER TABLE key_later ADD CONSTRAINT days UNIQUE (day, hours WITHOUT OVERLAPS)", since=18),
    Case("ALTER TABLE part ADD CONSTRAINT part_item_2 FOREIGN KEY (item_id) REFERENCES item", also="scans item"),
    Case("ALTER TABLE part ADD FOREIGN KEY (item_id) REFERENCES public.item (id) NOT VALID"),
    Case("ALTER TABLE part ADD FOREIGN KEY (item_id) REFERENCES item NOT ENFORCED", since=18),
    Case("ALTER TABLE part VALIDATE CONSTRAINT part_item", also="item ROW SHARE, scans item"),
    Case("ALTER TABLE item VALIDATE CONSTRAINT small"),
    Case("ALTER TABLE item RENAME CONSTRAINT small TO little_one"),
    Case("ALTER TABLE item DROP CONSTRAINT little"),
    Case("ALTER TABLE part DROP CONSTRAINT part_item", also="item ACCESS EXCLUSIVE"),
    Case("ALTER TABLE item DROP CONSTRAINT item_pkey CASCADE", also="part ACCESS EXCLUSIVE"),
    Case("ALTER TABLE item ALTER CONSTRAINT item_owner_id_fkey DEFERRABLE"),
    # Tables
    Case("ALTER TABLE item SET (fillfactor = 70, autovacuum_enabled = false)"),
    Case("ALTER TABLE item RESET (fillfactor)"),
    Case("ALTER TABLE item SET (user_catalog_table = true)"),
    Case("ALTER TABLE item CLUSTER ON item_name"),
    Case("ALTER TABLE item SET WITHOUT CLUSTER"),
    Case("ALTER TABLE key_later SET UNLOGGED", may="rewrites key_later"),
    Case("ALTER TABLE item SET LOGGED", may="rewrites item"),
    Case("ALTER TABLE item SET ACCESS METHOD heap", may="rewrites item"),
    Case("ALTER TABLE item SET TABLESPACE pg_default", may="rewrites item"),
    Case("ALTER TABLE item SET SCHEMA other"),
    Case("ALTER TABLE item OWNER TO CURRENT_USER"),
    Case("ALTER TABLE item REPLICA IDENTITY FULL"),
    Case("ALTER TABLE item RENAME TO thing"),
    Case("ALTER TABLE part ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"),
    Case("ALTER TABLE part DISABLE TRIGGER part_nothing"),
    Case("ALTER TABLE part ENABLE ALWAYS TRIGGER part_nothing"),
    Case("ALTER TABLE part DISABLE RULE part_rule"),
    Case("ALTER TABLE orphan INHERIT owner"),
    Case("ALTER TABLE heir NO INHERIT owner"),
    Case("ALTER TABLE place ATTACH PARTITION place_2 FOR VALUES IN (2)", may="scans place_2"),
    Case("ALTER TABLE place ATTACH PARTITION place_3 FOR VALUES IN (3)", may="scans place_3"),
    Case(
        "ALTER TABLE area ATTACH PARTITION place_2 FOR VALUES IN (2)",
        may="scans place_2",
        also="area_rest ACCESS EXCLUSIVE, scans area_rest",
    ),
    Case("ALTER TABLE place DETACH PARTITION place_1"),
    Case("ALTER FOREIGN TABLE remote ADD COLUMN x int"),
    Case("CREATE TABLE fresh (id int PRIMARY KEY)"),
    Case("CREATE TABLE fresh (part_id int REFERENCES part ON DELETE CASCADE, o int REFERENCES owner (id))"),
    Case("CREATE TABLE fresh (id int, FOREIGN KEY (id) REFERENCES owner)"),
    Case("CREATE TABLE fresh (id int PRIMARY KEY, parent int REFERENCES fresh)"),
    Case("CREATE TABLE fresh () INHERITS (owner)"),
    Case("CREATE TABLE fresh (LIKE item INCLUDING ALL)"),
    Case("CREATE TABLE fresh AS SELECT 'REFERENCES part' AS text FROM owner", also="scans owner, scans heir"),
    Case("CREATE TEMPORARY TABLE fresh (id int)"),
    Case("CREATE TABLE fresh PARTITION OF place FOR VALUES IN (7)"),
    Case("CREATE TABLE fresh PARTITION OF area FOR VALUES IN (7)", also="scans area_rest"),
    Case("DROP TABLE key_later, place_2"),
    Case("DROP TABLE part", also="item ACCESS EXCLUSIVE"),
    Case("DROP TABLE IF EXISTS public.part, nosuch", also="item ACCESS EXCLUSIVE"),
    Case("DROP TABLE owner CASCADE", also="item ACCESS EXCLUSIVE, amounts ACCESS EXCLUSIVE"),
    Case("TRUNCATE TABLE part"),
    Case("TRUNCATE ONLY key_later, part RESTART IDENTITY"),
    Case("TRUNCATE item CASCADE", also="part ACCESS EXCLUSIVE, writes part"),
    Case("LOCK TABLE ONLY part IN SHARE MODE"),
    Case("LOCK part, orphan"),
    Case("LOCK TABLE part IN ROW EXCLUSIVE MODE NOWAIT"),
    # Indexes
    Case("CREATE INDEX item_amount ON item (amount)"),
    Case("CREATE INDEX IF NOT EXISTS item_amount ON ONLY public.item USING hash (amount) WHERE amount > 3"),
    Case('CREATE UNIQUE INDEX ON other."Odd, Name" ("A b") INCLUDE ("select")'),
    Case("CREATE INDEX ON place (id)"),
    Case("DROP INDEX item_name, public.item_at"),
    Case("ALTER INDEX item_name RENAME TO item_title"),
    Case("ALTER INDEX item_name SET (fillfactor = 70)"),
    Case("ALTER INDEX item_name SET TABLESPACE pg_default", may="rewrites item"),
    Case("REINDEX INDEX item_name"),
    Case("REINDEX TABLE part"),
    Case("CLUSTER item USING item_name"),
    Case("CLUSTER VERBOSE item USING item_name"),
    # Views and sequences
    Case("CREATE VIEW fresh AS SELECT 1 AS one"),
    Case("CREATE OR REPLACE VIEW names AS SELECT name, 1 AS one FROM item"),
    Case("ALTER VIEW names SET (security_barrier = true)"),
    Case("ALTER VIEW names RENAME TO names_2"),
    Case("ALTER VIEW names ALTER COLUMN name SET DEFAULT 'x'"),
    Case("DROP VIEW names"),
    Case("CREATE MATERIALIZED VIEW fresh AS SELECT 1 AS one"),
    Case("REFRESH MATERIALIZED VIEW amounts", also="scans owner, scans heir"),
    Case("REFRESH MATERIALIZED VIEW amounts WITH NO DATA"),
    Case(
        "REFRESH MATERIALIZED VIEW CONCURRENTLY amounts",
        may="scans amounts, writes amounts",
        also="scans owner, scans heir",
    ),
    Case("ALTER MATERIALIZED VIEW amounts SET (fillfactor = 70)"),
    Case("DROP MATERIALIZED VIEW amounts"),
    Case("CREATE SEQUENCE fresh"),
    Case("ALTER SEQUENCE lone INCREMENT BY 2"),
    Case("ALTER SEQUENCE lone OWNED BY item.id"),
    Case("ALTER SEQUENCE lone RENAME TO alone"),
    Case("ALTER SEQUENCE lone OWNER TO CURRENT_USER"),
    Case("DROP SEQUENCE lone"),
    # What belongs to a table
    Case("CREATE TRIGGER t AFTER INSERT OR UPDATE OF item_id ON part FOR EACH ROW EXECUTE FUNCTION nothing()"),
    Case("CREATE OR REPLACE TRIGGER part_nothing AFTER INSERT ON part EXECUTE FUNCTION nothing()"),
    Case("ALTER TRIGGER part_nothing ON part RENAME TO part_nothing_2"),
    Case("DROP TRIGGER IF EXISTS part_nothing ON part CASCADE"),
    Case("CREATE RULE r AS ON INSERT TO part DO ALSO (SELECT 1; SELECT 2)"),
    Case("ALTER RULE part_rule ON part RENAME TO r"),
    Case("DROP RULE part_rule ON part"),
    Case("CREATE POLICY p ON part FOR SELECT USING (true)"),
    Case("ALTER POLICY part_policy ON part USING (false)"),
    Case("DROP POLICY part_policy ON part"),
    Case("CREATE STATISTICS s ON id, amount FROM item"),
    Case("DROP STATISTICS item_statistics", also="item SHARE UPDATE EXCLUSIVE"),
    Case("CREATE PUBLICATION p FOR TABLE item (id), ONLY part"),
    Case("ALTER PUBLICATION changes ADD TABLE item"),
    Case("DROP PUBLICATION changes"),
    Case("ANALYZE item"),
    # Words about things
    Case("COMMENT ON TABLE item IS 'of a -- part'"),
    Case("COMMENT ON COLUMN public.item.name IS 'words'"),
    Case('COMMENT ON COLUMN other."Odd, Name"."A b" IS \'words\''),
    Case("COMMENT ON INDEX item_at IS $$ALTER TABLE item$$"),
    Case("COMMENT ON VIEW names IS NULL"),
    Case("COMMENT ON CONSTRAINT little ON item IS 'words'"),
    Case("COMMENT ON ROLE pg_monitor IS 'words'"),
    Case("COMMENT ON SCHEMA other IS 'words'"),
    Case("GRANT SELECT, UPDATE (name) ON item TO PUBLIC"),
    Case("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC"),
    Case("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC"),
    # Types, functions, schemas
    Case("CREATE TYPE fresh AS ENUM ('ALTER TABLE item')"),
    Case("ALTER TYPE mood ADD VALUE IF NOT EXISTS 'ugly' AFTER 'bad'"),
    Case("ALTER TYPE mood RENAME VALUE 'bad' TO 'worse'"),
    Case("ALTER TYPE mood RENAME TO moods"),
    Case("ALTER TYPE pair ADD ATTRIBUTE c int, DROP ATTRIBUTE a"),
    Case("DROP TYPE mood CASCADE", also="item ACCESS EXCLUSIVE"),
    Case("CREATE DOMAIN fresh AS text CHECK (VALUE <> '')"),
    Case("ALTER DOMAIN positive ADD CONSTRAINT small CHECK (VALUE < 9)", also="measured SHARE, scans measured"),
    Case("ALTER DOMAIN positive ADD CONSTRAINT small CHECK (VALUE < 9) NOT VALID"),
    Case("ALTER DOMAIN positive SET NOT NULL", also="measured SHARE, scans measured"),
    Case("ALTER DOMAIN positive RENAME TO plus"),
    Case("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END"),
    Case("CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM part; END $$"),
    Case("ALTER FUNCTION one() RENAME TO two"),
    Case("DROP FUNCTION one()"),
    Case("CREATE SCHEMA fresh"),
    Case("ALTER SCHEMA other RENAME TO others"),
    # Rows
    Case("INSERT INTO part (item_id) VALUES (1)", also="item ROW SHARE, scans item"),
    Case("INSERT INTO orphan AS o (id) SELECT id FROM owner", also="scans owner, scans heir"),
    Case(
        "UPDATE part SET item_id = NULL",
    ),
    Case("UPDATE ONLY key_later SET nullable = 2 WHERE id = 1", may="scans key_later"),
    Case("DELETE FROM public.part"),
    Case("DELETE FROM part USING owner WHERE part.id = owner.id", may="scans part", also="scans owner, scans heir"),
    Case(
        "MERGE INTO orphan USING owner ON orphan.id = owner.id WHEN NOT MATCHED THEN INSERT VALUES (owner.id)",
        may="scans orphan",
        also="scans owner, scans heir",
    ),
    Case("WITH gone AS (DELETE FROM key_later RETURNING id) INSERT INTO orphan SELECT id FROM gone"),
    Case("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT count(*) FROM n"),
    Case("SELECT count(*), max(id) FROM part WHERE label = 'DELETE FROM part'", also="scans part"),
    Case("SELECT id INTO fresh FROM owner", also="scans owner, scans heir"),
    Case("SELECT setval('lone', 5)", also="lone ROW EXCLUSIVE"),
    Case("CALL fill()", also="part ROW EXCLUSIVE, scans part, writes part"),
    Case("DO $$ BEGIN IF false THEN DROP TABLE orphan; END IF; END $$", may="orphan ACCESS EXCLUSIVE"),
    Case(
        "DO $$ BEGIN UPDATE part SET item_id = CASE WHEN true THEN 1 ELSE 2 END WHERE id = 1; END $$",
        may="part ROW EXCLUSIVE, scans part, writes part",
    ),
    Case("DO $$ BEGIN EXECUTE 'DELETE FROM ' || 'part'; END $$", also="part ROW EXCLUSIVE, scans part, writes part"),
    Case("EXPLAIN ANALYZE DELETE FROM part"),
    Case("CREATE TABLE one_more (id int); CREATE INDEX ON one_more (id)"),
    # The cluster
    Case("CREATE ROLE reader_of_things NOLOGIN"),
    Case("CREATE GROUP things_too"),
    Case("ALTER ROLE CURRENT_USER SET work_mem = '8MB'"),
    Case("GRANT pg_monitor TO pg_read_all_data"),
    Case("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC"),
    Case("GRANT SET ON PARAMETER work_mem TO PUBLIC"),
    Case("ALTER DATABASE postgres SET work_mem = '8MB'"),
    Case("COMMENT ON DATABASE postgres IS 'words'"),
    Case("COMMENT ON TABLESPACE pg_default IS 'words'"),
    Case("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x') THEN CREATE ROLE x; END IF; END $$"),
    Case("CREATE SUBSCRIPTION s CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false, create_slot = false)"),
]
ALONE = [
    "CREATE INDEX CONCURRENTLY ON item (amount)",
    "DROP INDEX CONCURRENTLY item_name",
    "REINDEX INDEX CONCURRENTLY item_name",
    "REINDEX (VERBOSE, CONCURRENTLY) TABLE item",
    "REINDEX SCHEMA public",
    "ALTER TABLE place DETACH PARTITION place_1 CONCURRENTLY",
    "VACUUM item",
    "VACUUM (FULL) item",
    "VACUUM FULL",
    "CLUSTER",
    "CREATE DATABASE never_made",
    "DROP DATABASE never_made",
    "CREATE TABLESPACE never LOCATION '/nowhere'",
    "ALTER SYSTEM SET work_mem = '8MB'",
    "ALTER DATABASE postgres SET TABLESPACE pg_default",
    "COMMIT PREPARED 'never'",
    "ROLLBACK PREPARED 'never'",
    "DISCARD ALL",
    "CREATE SUBSCRIPTION s CONNECTION 'dbname=x' PUBLICATION p",
]
"""Refused inside of a transaction."""

# What the rules say of work that is done while nobody can write.
RULES = {"rewrites": "rewrites-table", "indexes": "blocking-index", "scans": "blocking-constraint"}
BLOCKS_WRITES = (LockMode.SHARE, LockMode.SHARE_ROW_EXCLUSIVE, LockMode.EXCLUSIVE, LockMode.ACCESS_EXCLUSIVE)
# Fails at once where there is a row; is what its author wants.
WITHOUT_ADVICE = ("ALTER TABLE orphan ADD COLUMN must", "ALTER TABLE item ADD COLUMN thrice")

RELATIONS = """
SELECT c.oid::bigint, CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || c.relname AS name,
    pg_relation_filenode(c.oid)::bigint AS file, pg_stat_get_xact_numscans(c.oid) AS scans,
    pg_stat_get_xact_tuples_inserted(c.oid) + pg_stat_get_xact_tuples_updated(c.oid)
        + pg_stat_get_xact_tuples_deleted(c.oid) AS writes, c.relkind::text AS kind,
    coalesce(i.indrelid, (SELECT d.refobjid FROM pg_depend AS d
        WHERE c.relkind = 'S' AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
          AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')), c.oid)::bigint AS part_of
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
WHERE n.nspname IN ('public', 'other') AND c.relkind IN ('r', 'p', 'm', 'f', 'v', 'i', 'I', 'S')
"""
LOCKS = "SELECT relation::bigint, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted"
CHILDREN = "SELECT inhrelid::regclass::text AS child, inhparent::regclass::text AS parent FROM pg_inherits"
# Every statement about an object with an owner notes that in pg_shdepend. Some locks are given back at once.
OF_THE_CLUSTER = """
SELECT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND database = 0
        AND mode NOT IN ('AccessShareLock', 'RowShareLock') AND relation <> ALL ('{pg_shdepend,1232,1233}'::regclass[]))
    OR EXISTS (SELECT FROM pg_database WHERE xmin = pg_current_xact_id()::xid)
    OR EXISTS (SELECT FROM pg_subscription WHERE xmin = pg_current_xact_id()::xid)
"""


@pytest.fixture(scope="module")
async def server(server_url: str) -> AsyncIterator[Judge]:
    async with databases(server_url) as make:
        connection = await asyncpg.connect(await make(), statement_cache_size=0)
        await connection.execute(SCHEMA)
        await connection.execute("ANALYZE")  # else an index that another case builds decides what is scanned
        await connection.execute("SET client_min_messages = debug1")
        judge = Judge(connection)
        connection.add_log_listener(judge.listen)
        yield judge
        await connection.close()


@dataclass(frozen=True)
class Seen:
    """`facts` such as "item ACCESS EXCLUSIVE", "rewrites item", "scans item", "indexes item", "writes item"."""

    facts: set[str]
    outside_database: bool
    writes_rows: bool


class Judge:
    """Runs a statement in a transaction that is rolled back, and tells what PostgreSQL did."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.version = connection.get_server_version().major
        self.messages: list[str] = []

    def listen(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        self.messages.append(message.message)

    async def relations(self) -> dict[int, asyncpg.Record]:
        return {row["oid"]: row for row in await self.connection.fetch(RELATIONS)}

    async def parents(self) -> dict[str, str]:
        return {row["child"]: row["parent"] for row in await self.connection.fetch(CHILDREN)}

    async def see(self, sql: str) -> Seen:
        emptied = "truncate" in {reading.kind for reading in read(sql)}
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            known = await self.relations()  # in the transaction: outside of one PostgreSQL sets its counters back
            self.messages.clear()
            await self.connection.execute(sql)
            messages = list(self.messages)
            locks = await self.connection.fetch(LOCKS)
            outside = await self.connection.fetchval(OF_THE_CLUSTER)
            now = await self.relations()
        finally:
            await transaction.rollback()
        facts = {*_locked(known, locks), *_worked_on(known, now, emptied=emptied)}
        if not emptied:  # a table without rows has its indexes made anew
            facts |= set(_said(known, messages))
        return Seen(facts, outside, any(fact.startswith("writes ") for fact in facts))


def _locked(known: dict[int, asyncpg.Record], locks: list[asyncpg.Record]) -> Iterator[str]:
    strongest: dict[str, LockMode] = {}
    for row in locks:
        if row["relation"] in known:
            _strengthen(strongest, _table(known, row["relation"]), LockMode.of_pg_locks(row["mode"]))
    return (f"{table} {mode}" for table, mode in strongest.items())


def _worked_on(known: dict[int, asyncpg.Record], now: dict[int, asyncpg.Record], *, emptied: bool) -> Iterator[str]:
    for oid, before in known.items():
        after = now.get(oid)
        if after is None or before["kind"] not in "rmp":
            continue
        new_file = after["file"] != before["file"]
        if new_file and not emptied:
            yield f"rewrites {before['name']}"
        elif after["scans"] > before["scans"] and not emptied:
            yield f"scans {before['name']}"
        if after["writes"] > before["writes"] or (emptied and new_file):
            yield f"writes {before['name']}"


def _said(known: dict[int, asyncpg.Record], messages: list[str]) -> Iterator[str]:
    by_name = {row["name"].rpartition(".")[2]: row["name"] for row in known.values()}
    for message in messages:
        if (match := re.match(r'verifying table "(.+)"', message)) and match[1] in by_name:
            yield f"scans {by_name[match[1]]}"
        elif (match := re.match(r'building index ".+" on table "(.+?)"', message)) and match[1] in by_name:
            yield f"indexes {by_name[match[1]]}"
        elif match := re.match(r'validating foreign key constraint "(part|item)_', message):
            yield f"scans {match[1]}"


def _table(known: dict[int, asyncpg.Record], oid: int) -> str:
    name: str = known[known[oid]["part_of"]]["name"]
    return name


def _strengthen(strongest: dict[str, LockMode], table: str, mode: LockMode) -> None:
    if mode.strength > strongest.get(table, LockMode.ACCESS_SHARE).strength:
        strongest[table] = mode


def told(readings: Iterable[Reading], parts: dict[str, str]) -> tuple[set[str], set[str]]:
    """The facts that the text tells, and those of which it says that they may be."""
    strongest: dict[str, LockMode] = {}
    sure, may = set[str](), set[str]()
    for reading in readings:
        for touch in reading.touches:
            name = ".".join(touch.relation[1:] if touch.relation[0] == "public" else touch.relation)
            table = parts.get(name, name)
            _strengthen(strongest, table, touch.mode)
            for fact, answer in _answers(touch, table):
                sure |= {fact} if answer else set()
                may |= {fact} if answer is None else set()
    sure |= {f"{table} {mode}" for table, mode in strongest.items()}
    sure -= {fact.replace("rewrites", "scans") for fact in sure if fact.startswith("rewrites")}
    return sure, may - sure


def _answers(touch: Touch, table: str) -> Iterator[tuple[str, bool | None]]:
    yield f"rewrites {table}", touch.rewrites
    yield f"scans {table}", touch.scans
    yield f"writes {table}", touch.writes
    yield f"indexes {table}", touch.index is not None


def split_facts(text: str) -> set[str]:
    return set(filter(None, text.split(", ")))


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_what_is_read_is_what_postgresql_does(case: Case, server: Judge) -> None:
    readings = read(case.sql)
    if server.version < case.since:
        pytest.skip(f"PostgreSQL {case.since} has this form first")
    known = await server.relations()
    sure, may = told(readings, {row["name"]: _table(known, oid) for oid, row in known.items()})
    absent = {"nosuch", *names_made(readings, "public")} - {row["name"] for row in known.values()}
    sure = {fact for fact in sure if not absent & set(fact.split())}
    seen = await server.see(case.sql)
    facts = await without_children(seen.facts, sure | may, server)
    facts -= {fact.replace("rewrites", kind) for fact in facts for kind in ("scans", "indexes") if "rewrites" in fact}
    if readings[0].kind == "do":  # what is in a block may run
        sure, may = set(), sure | may
    assert may == split_facts(case.may)
    assert sure <= facts
    assert facts - sure - may == split_facts(case.also)
    if any("EXCLUSIVE" in fact and "ROW EXCLUSIVE" not in fact for fact in split_facts(case.also)):
        assert any(reading.not_told for reading in readings)
    for reading in readings:
        assert reading.outside_database in (seen.outside_database, None)
        assert reading.writes_rows in (seen.writes_rows, None) or reading.kind == "do"
        assert not reading.needs_autocommit
        assert not reading.transaction_control
    check_rules(case.sql, seen.facts, facts & sure, facts | may)


def check_rules(sql: str, seen: set[str], sure: set[str], possible: set[str]) -> None:
    """The rules advise against what keeps others waiting: all that is certain, and nothing that PostgreSQL does not."""
    problems = find_problems(Rendering((Statement(sql),)), compatible=False)
    advised = {rule for rule, _ in problems} & set(RULES.values())
    blocked = {table for mode in BLOCKS_WRITES for table in _subjects(seen, f" {mode}")}
    certain = {rule for verb, rule in RULES.items() for table in blocked if f"{verb} {table}" in sure}
    if "indexes" in {fact.split(" ")[0] for fact in sure}:
        certain.discard("blocking-constraint")  # the index is what it is read for
    if not sql.startswith(WITHOUT_ADVICE):
        assert advised >= certain
    assert advised <= {rule for verb, rule in RULES.items() for table in blocked if f"{verb} {table}" in possible}


def _subjects(facts: set[str], mode: str) -> set[str]:
    return {fact.removesuffix(mode) for fact in facts if fact.endswith(mode)}


async def without_children(facts: set[str], told: set[str], server: Judge) -> set[str]:
    """A table that is told stands for its partitions and its children."""
    parents = await server.parents()
    found = set()
    for fact in facts:
        words = fact.split(" ")
        as_parent = " ".join(parents.get(word, word) for word in words)
        found.add(as_parent if as_parent in told and fact not in told else fact)
    return found


@pytest.mark.parametrize("sql", ALONE)
async def test_what_postgresql_refuses_in_a_transaction(sql: str, server: Judge) -> None:
    assert [reading.needs_autocommit for reading in read(sql)] == [True]
    with pytest.raises(asyncpg.ActiveSQLTransactionError):
        await server.see(sql)


@pytest.mark.parametrize(
    ("sql", "table", "mode"),
    [
        ("CREATE INDEX CONCURRENTLY ON item (amount)", "item", LockMode.SHARE_UPDATE_EXCLUSIVE),
        ("DROP INDEX CONCURRENTLY item_name", "item", LockMode.SHARE_UPDATE_EXCLUSIVE),
        ("REINDEX TABLE CONCURRENTLY item", "item", LockMode.SHARE_UPDATE_EXCLUSIVE),
        ("ALTER TABLE place DETACH PARTITION place_1 CONCURRENTLY", "place", LockMode.SHARE_UPDATE_EXCLUSIVE),
        ("VACUUM (ANALYZE) item", "item", LockMode.SHARE_UPDATE_EXCLUSIVE),
        ("VACUUM (FULL, VERBOSE) item", "item", LockMode.ACCESS_EXCLUSIVE),
        ("VACUUM FULL FREEZE item", "item", LockMode.ACCESS_EXCLUSIVE),
    ],
)
async def test_the_lock_of_a_statement_that_runs_alone(
    sql: str, table: str, mode: LockMode, server: Judge, server_url: str
) -> None:
    """It has given its locks back when it is done: what it waits for is seen while another session holds the table."""
    [reading] = read(sql)
    assert {touch.mode for touch in reading.touches if touch.relation in ((table,), ("item_name",))} == {mode}
    url = rewrite_url(server_url, database=await server.connection.fetchval("SELECT current_database()"))
    other: asyncpg.Connection = await asyncpg.connect(url)
    try:
        await server.connection.execute("BEGIN")
        await server.connection.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        pid = other.get_server_pid()
        waiting = asyncio.create_task(other.execute(sql))
        awaited = None
        async with asyncio.timeout(20):
            while awaited is None:
                awaited = await server.connection.fetchval(
                    "SELECT mode FROM pg_locks WHERE pid = $1 AND NOT granted AND relation = $2::regclass", pid, table
                )
        assert LockMode.of_pg_locks(awaited) is mode
        await server.connection.fetchval("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(asyncpg.QueryCanceledError):
            await waiting
    finally:
        await server.connection.execute("ROLLBACK")
        await other.close()


async def test_postgresql_knows_the_functions_as_the_reader_does(server: Judge) -> None:
    names = [*STABLE, *VOLATILE, *OUTSIDE]
    rows = await server.connection.fetch(
        "SELECT proname AS name, array_agg(DISTINCT provolatile::text) AS volatile FROM pg_proc "
        "WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ($1::text[]) GROUP BY 1",
        names,
    )
    volatile = {row["name"]: "v" in row["volatile"] for row in rows}
    absent = set(names) - volatile.keys()
    assert absent <= (set() if server.version >= 18 else {"uuidv4", "uuidv7", "pg_log_standby_snapshot"})
    assert {name for name in STABLE if volatile.get(name)} == set()
    assert {name for name in VOLATILE if not volatile.get(name, True)} == set()


TYPES = """
integer,bigint,oid,real,numeric,numeric(8;2),numeric(10;2),numeric(12;2),numeric(12;4),text,varchar,varchar(10),
varchar(20),char(10),char(20),json,jsonb,xml,inet,cidr,bit(3),varbit,timestamp,timestamptz,timestamptz(3),integer[],
text[],varchar[],varchar(10)[],varchar(20)[],positive
"""
CHANGE_TYPES = """
CREATE FUNCTION change_type(was text, now text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE before oid; rewritten boolean;
BEGIN
    EXECUTE format('CREATE TEMP TABLE typed (a %s)', was);
    before := pg_relation_filenode('typed');
    EXECUTE format('ALTER TABLE typed ALTER a TYPE %s USING a::%s', now, now);
    rewritten := before <> pg_relation_filenode('typed');
    DROP TABLE typed;
    RETURN rewritten;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$
"""


async def test_a_change_of_type_is_known_to_rewrite_where_it_does(server: Judge) -> None:
    """Of every pair of types between which there is a cast."""
    types = [name.strip().replace(";", ",") for name in TYPES.split(",")]
    transaction = server.connection.transaction()
    await transaction.start()
    try:
        await server.connection.execute("SET LOCAL client_min_messages = warning")
        await server.connection.execute(CHANGE_TYPES)
        rows = await server.connection.fetch(
            "SELECT was, now, change_type(was, now) AS rewritten "
            "FROM unnest($1::text[]) AS was, unnest($1::text[]) AS now WHERE was <> now",
            types,
        )
    finally:
        await transaction.rollback()
    changes = [(row["was"], row["now"], row["rewritten"]) for row in rows if row["rewritten"] is not None]
    known = [(was, now, rewritten) for was, now, rewritten in changes if rewrites(was, now) is not None]
    assert [change for change in known if rewrites(*change[:2]) is not change[2]] == []
    assert len(known) > 200
