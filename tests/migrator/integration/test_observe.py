"""What revisions do to tables, seen on a scratch database; and that what is told from the SQL alone agrees with it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.scripts import script_directory
from gasket.migrator.scratch.database import scratch_database
from gasket.migrator.scratch.effects import Effects, IndexBuild, Statement, TableLock
from gasket.migrator.scratch.observe import Observation, observe
from gasket.migrator.scratch.told_effects import estimate
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.render import Rendering
from gasket.migrator.sql.render import Statement as RenderedStatement
from tests.migrator.project import Project

TABLES = [
    "CREATE TABLE item (id bigint PRIMARY KEY, name text, amount int, at timestamp, note varchar(10))",
    "CREATE TABLE owner (id int PRIMARY KEY)",
    "CREATE TABLE part (id serial PRIMARY KEY, item_id bigint)",
    "CREATE TABLE place (id int, kind int) PARTITION BY LIST (kind)",
    "CREATE TABLE place_1 PARTITION OF place FOR VALUES IN (1)",
    "CREATE TABLE place_2 (id int, kind int)",
    "CREATE VIEW names AS SELECT name FROM item",
    "CREATE MATERIALIZED VIEW amounts AS SELECT id FROM owner",
    "CREATE UNIQUE INDEX amounts_id ON amounts (id)",
    "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
]
PARTS = {
    "item_name": "item",
    "item_name_2": "item",
    "item_at_key": "item",
    "part_id_seq": "part",
}
# Each statement is a revision; below it is what it does, locks first (ACCESS SHARE left out).
STATEMENTS = """
ALTER TABLE item ADD COLUMN plain int
    item ACCESS EXCLUSIVE
ALTER TABLE item ADD COLUMN constant int NOT NULL DEFAULT 5
    item ACCESS EXCLUSIVE
ALTER TABLE item ADD COLUMN moment timestamptz DEFAULT now()
    item ACCESS EXCLUSIVE
ALTER TABLE item ADD COLUMN random uuid DEFAULT gen_random_uuid()
    item ACCESS EXCLUSIVE, rewrites item
ALTER TABLE item ADD COLUMN twice int GENERATED ALWAYS AS (amount * 2) STORED
    item ACCESS EXCLUSIVE, rewrites item
ALTER TABLE item ADD COLUMN number int GENERATED ALWAYS AS IDENTITY
    item ACCESS EXCLUSIVE, rewrites item
ALTER TABLE item ADD COLUMN sign int CHECK (sign > 0)
    item ACCESS EXCLUSIVE, scans item
ALTER TABLE item ADD COLUMN code text UNIQUE
    item ACCESS EXCLUSIVE, scans item, builds item_code_key
ALTER TABLE item ADD COLUMN owner_id int REFERENCES owner
    item ACCESS EXCLUSIVE, owner SHARE ROW EXCLUSIVE
ALTER TABLE item ADD COLUMN owner2_id int DEFAULT 3 REFERENCES owner
    item ACCESS EXCLUSIVE, owner SHARE ROW EXCLUSIVE, scans item
ALTER TABLE public.item DROP COLUMN plain
    item ACCESS EXCLUSIVE
ALTER TABLE item ALTER COLUMN constant TYPE bigint
    item ACCESS EXCLUSIVE, rewrites item
ALTER TABLE item ALTER COLUMN note TYPE varchar(20)
    item ACCESS EXCLUSIVE
ALTER TABLE item ALTER COLUMN note SET NOT NULL
    item ACCESS EXCLUSIVE, scans item
ALTER TABLE item ALTER note DROP NOT NULL, ALTER note SET DEFAULT 'x, y'
    item ACCESS EXCLUSIVE
ALTER TABLE item ALTER COLUMN note SET STATISTICS 500
    item SHARE UPDATE EXCLUSIVE
ALTER TABLE item ALTER COLUMN note SET (n_distinct = 5)
    item SHARE UPDATE EXCLUSIVE
ALTER TABLE item ALTER COLUMN note SET STORAGE external
    item ACCESS EXCLUSIVE
ALTER TABLE item SET (fillfactor = 70)
    item SHARE UPDATE EXCLUSIVE
ALTER TABLE item RESET (fillfactor)
    item SHARE UPDATE EXCLUSIVE
ALTER TABLE item ADD CONSTRAINT positive CHECK (amount > 0)
    item ACCESS EXCLUSIVE, scans item
ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 9) NOT VALID
    item ACCESS EXCLUSIVE
ALTER TABLE item VALIDATE CONSTRAINT small
    item SHARE UPDATE EXCLUSIVE, scans item
ALTER TABLE item RENAME CONSTRAINT small TO little
    item ACCESS EXCLUSIVE
ALTER TABLE item DROP CONSTRAINT positive
    item ACCESS EXCLUSIVE
CREATE INDEX item_name ON item (name)
    item SHARE, scans item, builds item_name
CREATE UNIQUE INDEX item_at ON ONLY public.item USING btree (at)
    item SHARE, scans item, builds item_at
ALTER TABLE item ADD CONSTRAINT item_at_key UNIQUE USING INDEX item_at
    item ACCESS EXCLUSIVE
ALTER TABLE item ADD CONSTRAINT item_two UNIQUE (id, name)
    item ACCESS EXCLUSIVE, scans item, builds item_two
ALTER TABLE item CLUSTER ON item_name
    item SHARE UPDATE EXCLUSIVE
CLUSTER item USING item_name
    item ACCESS EXCLUSIVE, rewrites item
ALTER TABLE item SET WITHOUT CLUSTER
    item SHARE UPDATE EXCLUSIVE
ALTER INDEX item_name RENAME TO item_name_2
    item SHARE UPDATE EXCLUSIVE
ALTER INDEX item_name_2 SET (fillfactor = 70)
    item SHARE UPDATE EXCLUSIVE
REINDEX INDEX item_name_2
    item ACCESS EXCLUSIVE, scans item, builds item_name_2
REINDEX TABLE part
    part ACCESS EXCLUSIVE, scans part, builds part_pkey
DROP INDEX item_name_2
    item ACCESS EXCLUSIVE
COMMENT ON TABLE item IS 'of a -- part'
    item SHARE UPDATE EXCLUSIVE
COMMENT ON COLUMN public.item.name IS 'words'
    item SHARE UPDATE EXCLUSIVE
COMMENT ON INDEX item_at_key IS 'words'
    item SHARE UPDATE EXCLUSIVE
COMMENT ON CONSTRAINT little ON item IS 'words'
    nothing
CREATE STATISTICS item_statistics ON id, name FROM item
    item SHARE UPDATE EXCLUSIVE
ALTER TABLE part ADD CONSTRAINT part_item FOREIGN KEY (item_id) REFERENCES item
    item SHARE ROW EXCLUSIVE, part SHARE ROW EXCLUSIVE, scans part
ALTER TABLE part ADD CONSTRAINT part_item_2 FOREIGN KEY (item_id) REFERENCES item NOT VALID
    item SHARE ROW EXCLUSIVE, part SHARE ROW EXCLUSIVE
ALTER TABLE part VALIDATE CONSTRAINT part_item_2
    item ROW SHARE, part SHARE UPDATE EXCLUSIVE, scans part
ALTER TABLE part ALTER CONSTRAINT part_item DEFERRABLE
    part ACCESS EXCLUSIVE
ALTER TABLE part DROP CONSTRAINT part_item
    item ACCESS EXCLUSIVE, part ACCESS EXCLUSIVE
CREATE TRIGGER part_nothing AFTER INSERT ON part FOR EACH ROW EXECUTE FUNCTION nothing()
    part SHARE ROW EXCLUSIVE
ALTER TABLE part DISABLE TRIGGER part_nothing
    part SHARE ROW EXCLUSIVE
ALTER TRIGGER part_nothing ON part RENAME TO part_nothing_2
    part ACCESS EXCLUSIVE
DROP TRIGGER part_nothing_2 ON part
    part ACCESS EXCLUSIVE
CREATE RULE part_rule AS ON DELETE TO part DO INSTEAD NOTHING
    part ACCESS EXCLUSIVE
DROP RULE part_rule ON part
    part ACCESS EXCLUSIVE
ALTER TABLE part ENABLE ROW LEVEL SECURITY
    part ACCESS EXCLUSIVE
CREATE POLICY part_policy ON part USING (true)
    part ACCESS EXCLUSIVE
ALTER POLICY part_policy ON part USING (false)
    part ACCESS EXCLUSIVE
DROP POLICY part_policy ON part
    part ACCESS EXCLUSIVE
ALTER SEQUENCE part_id_seq INCREMENT BY 2
    part SHARE ROW EXCLUSIVE
ALTER TABLE part SET UNLOGGED
    part ACCESS EXCLUSIVE, rewrites part
ALTER TABLE part SET LOGGED
    part ACCESS EXCLUSIVE, rewrites part
ALTER TABLE part OWNER TO CURRENT_USER
    part ACCESS EXCLUSIVE
GRANT SELECT ON part TO CURRENT_USER
    nothing
INSERT INTO part (item_id) VALUES (NULL)
    part ROW EXCLUSIVE
UPDATE part SET item_id = NULL WHERE item_id = 3
    part ROW EXCLUSIVE, scans part
DELETE FROM public.part
    part ROW EXCLUSIVE, scans part
TRUNCATE TABLE part
    part ACCESS EXCLUSIVE
LOCK TABLE part IN SHARE MODE
    part SHARE
LOCK part, owner
    owner ACCESS EXCLUSIVE, part ACCESS EXCLUSIVE
CREATE TABLE leaf (part_id int REFERENCES part ON DELETE CASCADE, o int REFERENCES owner (id))
    owner SHARE ROW EXCLUSIVE, part SHARE ROW EXCLUSIVE
CREATE TABLE heir () INHERITS (owner)
    owner SHARE UPDATE EXCLUSIVE
CREATE TABLE place_3 PARTITION OF place FOR VALUES IN (3)
    place ACCESS EXCLUSIVE
ALTER TABLE place ATTACH PARTITION place_2 FOR VALUES IN (2)
    place SHARE UPDATE EXCLUSIVE, place_2 ACCESS EXCLUSIVE, scans place_2
ALTER TABLE place DETACH PARTITION place_2
    place ACCESS EXCLUSIVE, place_2 ACCESS EXCLUSIVE
CREATE OR REPLACE VIEW names AS SELECT name, 1 AS one FROM item
    names ACCESS EXCLUSIVE
ALTER VIEW names RENAME TO names_2
    names ACCESS EXCLUSIVE
DROP VIEW names_2
    names_2 ACCESS EXCLUSIVE
REFRESH MATERIALIZED VIEW amounts
    amounts ACCESS EXCLUSIVE, rewrites amounts, scans heir, scans owner
REFRESH MATERIALIZED VIEW CONCURRENTLY amounts
    amounts EXCLUSIVE, scans amounts, scans heir, scans owner
DROP MATERIALIZED VIEW amounts
    amounts ACCESS EXCLUSIVE
CREATE TYPE mood AS ENUM ('ALTER TABLE item')
    nothing
ALTER TABLE leaf RENAME COLUMN o TO owner_id
    leaf ACCESS EXCLUSIVE
ALTER TABLE leaf RENAME TO leaves
    leaf ACCESS EXCLUSIVE
DROP TABLE leaves, heir
    heir ACCESS EXCLUSIVE, leaves ACCESS EXCLUSIVE, owner ACCESS EXCLUSIVE, part ACCESS EXCLUSIVE
DROP TABLE IF EXISTS place CASCADE
    place ACCESS EXCLUSIVE, place_1 ACCESS EXCLUSIVE, place_3 ACCESS EXCLUSIVE
"""
# What the text alone does not tell: whether a new type fits, what hangs on a foreign key or on CASCADE.
ESTIMATED = {
    "ALTER TABLE item ADD COLUMN code text UNIQUE": "item ACCESS EXCLUSIVE, scans item, builds an index",
    "ALTER TABLE item ALTER COLUMN constant TYPE bigint": "item ACCESS EXCLUSIVE",
    "ALTER TABLE item ALTER COLUMN note TYPE varchar(20)": "item ACCESS EXCLUSIVE",
    "ALTER TABLE item ALTER COLUMN note SET NOT NULL": "item ACCESS EXCLUSIVE",
    "ALTER TABLE part SET UNLOGGED": "part ACCESS EXCLUSIVE",
    "ALTER TABLE part SET LOGGED": "part ACCESS EXCLUSIVE",
    "UPDATE part SET item_id = NULL WHERE item_id = 3": "part ROW EXCLUSIVE",
    "ALTER TABLE place ATTACH PARTITION place_2 FOR VALUES IN (2)": (
        "place SHARE UPDATE EXCLUSIVE, place_2 ACCESS EXCLUSIVE"
    ),
    "REINDEX TABLE part": "part ACCESS EXCLUSIVE, scans part, builds an index",
    "ALTER TABLE part VALIDATE CONSTRAINT part_item_2": "part SHARE UPDATE EXCLUSIVE, scans part",
    "ALTER TABLE part DROP CONSTRAINT part_item": "part ACCESS EXCLUSIVE",
    "REFRESH MATERIALIZED VIEW amounts": "amounts ACCESS EXCLUSIVE, rewrites amounts",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY amounts": "amounts EXCLUSIVE",
    "DROP TABLE leaves, heir": "heir ACCESS EXCLUSIVE, leaves ACCESS EXCLUSIVE",
    "DROP TABLE IF EXISTS place CASCADE": "place ACCESS EXCLUSIVE",
}


def cases() -> dict[str, str]:
    lines = STATEMENTS.strip().splitlines()
    return dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))


def in_words(effects: Effects) -> str:
    return (
        ", ".join(
            [
                *sorted(
                    f"{lock.table} {lock.mode}" for lock in effects.locks if lock.mode is not LockMode.ACCESS_SHARE
                ),
                *(f"rewrites {table}" for table in effects.rewrites),
                *(f"scans {table}" for table in sorted(effects.scans) if table not in effects.rewrites),
                *(f"builds {b.index or 'an index'}" for b in effects.index_builds if b.table not in effects.rewrites),
            ]
        )
        or "nothing"
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def observed(project: Project, database_url: str, statements: Iterable[str], *, built: int) -> Observation:
    """Each statement one revision (one that begins with a space is Python); the first `built` are applied."""
    for statement in statements:
        project.add(statement.strip() if statement.startswith(" ") else f"op.execute({statement!r})")
    config = project.config(database_url, database_wait=5)
    revisions = configured_revisions(config.ini)
    async with scratch_database(config, revisions) as scratch:
        return await observe(scratch, script_directory(config.ini), [f"r{built}"] if built else [], "head")


async def test_each_statement_does_what_the_manual_says(project: Project, database_url: str) -> None:
    expected = cases()
    observation = await observed(project, database_url, [*TABLES, *expected], built=len(TABLES))
    assert observation.failure is None
    seen = dict(zip(expected, map(in_words, observation.effects.values()), strict=True))
    assert seen == expected
    for statement, effects in zip(expected, observation.effects.values(), strict=True):
        assert effects.statements == [Statement(statement)]
        assert {(lock.statement, lock.estimated) for lock in effects.locks} <= {(1, False)}


def estimated(statement: RenderedStatement, part_of: dict[str, str]) -> Effects:
    return estimate({"r1": Rendering((statement,))}, "public", part_of)["r1"]


def test_the_estimate_from_the_text_agrees_or_is_known_not_to() -> None:
    for statement, seen in cases().items():
        effects = estimated(RenderedStatement(statement), PARTS)
        assert (statement, in_words(effects)) == (statement, ESTIMATED.get(statement, seen))
        if statement in ESTIMATED and "builds an index" not in ESTIMATED[statement]:
            assert effects.unknown
        assert all(lock.estimated for lock in effects.locks)


def test_the_estimate_follows_the_revisions_in_their_order() -> None:
    first = ["CREATE TABLE fresh (id int)", "UPDATE item SET note = ''"]
    second = ["ALTER TABLE fresh ADD UNIQUE (id)", "ALTER TABLE item ALTER note SET NOT NULL"]
    renderings = {
        "r1": Rendering(tuple(map(RenderedStatement, first))),
        "r2": Rendering(tuple(map(RenderedStatement, second)), reason="reads a clock"),
    }
    effects = estimate(renderings, "public", {})["r2"]
    assert [(one.statement, one.kind, one.after_writes) for one in effects.requirements] == [(2, "not null", True)]
    assert not any("on rows of fresh" in sentence for sentence in effects.unknown)
    assert effects.unknown[-1].startswith("It reads a clock: what it does after the statements shown cannot be told")


async def test_concurrently(project: Project, database_url: str) -> None:
    block = " with op.get_context().autocommit_block():\n        "
    observation = await observed(
        project,
        database_url,
        [
            TABLES[0],
            f"{block}op.create_index('item_name', 'item', ['name'], postgresql_concurrently=True)",
            f"{block}op.execute('REINDEX INDEX CONCURRENTLY item_name')",
            f"{block}op.execute('DROP INDEX CONCURRENTLY item_name')",
            f"{block}op.execute('VACUUM (FULL, ANALYZE) item')",
            f"{block}op.execute('ALTER TABLE item ALTER COLUMN amount TYPE bigint')",
        ],
        built=1,
    )
    create, reindex, drop, vacuum, alter = observation.effects.values()
    assert [effects.concurrently for effects in observation.effects.values()] == [True] * 5
    weak = TableLock(table="item", mode=LockMode.SHARE_UPDATE_EXCLUSIVE, statement=1, estimated=True)
    assert create.statements == [Statement("CREATE INDEX CONCURRENTLY item_name ON item (name)", autocommit=True)]
    assert (create.locks, create.index_builds) == ([weak], [IndexBuild("item_name", "item")])
    assert reindex.locks == drop.locks == [weak]
    for effects in (vacuum, alter):
        assert in_words(effects) == "item ACCESS EXCLUSIVE, rewrites item"


async def test_scans_outside_a_transaction_are_told_by_messages(project: Project, database_url: str) -> None:
    """The server may have given its counters away by the end of the statement: it does so once a second."""
    outside = (
        " import time\n"
        "    with op.get_context().autocommit_block():\n"
        "        for change in ('part VALIDATE CONSTRAINT fk', 'item ALTER name SET NOT NULL'):\n"
        "            time.sleep(1.1)\n"
        "            op.execute(f'ALTER TABLE {change}')"
    )
    foreign_key = "ALTER TABLE part ADD CONSTRAINT fk FOREIGN KEY (item_id) REFERENCES item NOT VALID"
    observation = await observed(project, database_url, [TABLES[0], TABLES[2], foreign_key, outside], built=3)
    assert observation.effects["r4"].scans == ["part", "item"]


async def test_several_statements_share_the_strongest_lock_and_new_tables_are_left_out(
    project: Project, database_url: str
) -> None:
    observation = await observed(
        project,
        database_url,
        [
            *TABLES[:2],
            " op.execute('CREATE TABLE fresh (id int PRIMARY KEY REFERENCES owner)')\n"
            "    op.execute('CREATE INDEX ON fresh (id)')\n"
            "    op.execute('UPDATE item SET amount = 1')\n"
            "    op.execute('ALTER TABLE item RENAME TO thing')\n"
            "    op.execute('ALTER TABLE thing ALTER amount SET NOT NULL')\n"
            "    op.execute('SELECT count(*) FROM thing')",
        ],
        built=2,
    )
    [effects] = observation.effects.values()
    assert effects.locks == [
        TableLock(table="owner", mode=LockMode.SHARE_ROW_EXCLUSIVE, statement=1, estimated=False),
        TableLock(table="item", mode=LockMode.ACCESS_EXCLUSIVE, statement=4, estimated=False),
    ]
    assert (effects.rewrites, effects.scans, effects.index_builds) == ([], ["item"], [])
    assert len(effects.statements) == 6


async def test_the_operations_own_queries_are_not_shown_and_parameters_are(project: Project, database_url: str) -> None:
    observation = await observed(
        project,
        database_url,
        [
            " import sqlalchemy as sa\n"
            "    t = op.create_table('t', sa.Column('mood', sa.Enum('good', 'bad', name='mood')))\n"
            "    op.bulk_insert(t, [{'mood': 'good'}])"
        ],
        built=0,
    )
    [effects] = observation.effects.values()
    assert [s.sql.split("(")[0].strip() for s in effects.statements] == [
        "CREATE TYPE mood AS ENUM",
        "CREATE TABLE t",
        "INSERT INTO t",
    ]
    assert effects.statements[-1].sql.endswith("-- with ('good',)")


async def test_a_revision_that_fails_is_named_and_those_before_it_are_kept(project: Project, database_url: str) -> None:
    observation = await observed(project, database_url, [*TABLES[:2], "DROP TABLE owner", "SELECT 1/0"], built=2)
    assert list(observation.effects) == ["r3"]
    assert "revision r4 failed: division by zero" in str(observation.failure)
    with pytest.raises(MigrationFailedError, match="revision r4 failed"):
        await observed(project, database_url, ["CREATE TABLE never ()"], built=4)


async def test_a_try_that_was_rolled_back_does_not_count(project: Project, database_url: str) -> None:
    taken = "DO $$ BEGIN RAISE EXCEPTION 'taken' USING ERRCODE = 'lock_not_available'; END $$"
    again = (
        " tries = globals().setdefault('tries', [])\n"
        "    tries.append(1)\n"
        "    op.execute('ALTER TABLE item ADD COLUMN x int')\n"
        f"    if len(tries) == 1: op.execute({taken!r})\n"
    )
    observation = await observed(project, database_url, [TABLES[0], again], built=1)
    assert observation.effects["r2"].statements == [Statement("ALTER TABLE item ADD COLUMN x int")]
    assert in_words(observation.effects["r2"]) == "item ACCESS EXCLUSIVE"


async def test_another_schema_and_a_table_elsewhere(project: Project, database_url: str) -> None:
    project.add('op.execute("CREATE SCHEMA other; ")\n    op.execute("CREATE TABLE other.t (id int)")')
    project.add('op.execute("CREATE TABLE t (id int)")')
    project.add('op.execute("ALTER TABLE t ADD x int")\n    op.execute("ALTER TABLE other.t ADD x int")')
    config = project.config(database_url, database_wait=5, schema="mine")
    revisions = configured_revisions(config.ini)
    async with scratch_database(config, revisions) as scratch:
        observation = await observe(scratch, script_directory(config.ini), ["r2"], "head")
    assert in_words(observation.effects["r3"]) == "other.t ACCESS EXCLUSIVE, t ACCESS EXCLUSIVE"


async def test_twenty_revisions_take_about_a_second(project: Project, database_url: str) -> None:
    started = time.monotonic()
    observation = await observed(
        project, database_url, [TABLES[0], *(f"ALTER TABLE item ADD COLUMN c{n} int" for n in range(20))], built=1
    )
    assert len(observation.effects) == 20
    assert time.monotonic() - started < 60  # on a machine that does nothing else it is 1 to 2
    assert b'"mode":"ACCESS EXCLUSIVE"' in msgspec.json.encode(observation)


@pytest.mark.parametrize(
    ("was", "now", "rewrites", "unknown"),
    [
        ("VARCHAR(20)", "text", [], []),
        ("integer", "bigint", ["item"], []),
        (None, "text", [], ["Statement 1 may rewrite item."]),
    ],
)
def test_the_type_that_a_revision_names_decides_about_a_rewrite(
    was: str | None, now: str, rewrites: list[str], unknown: list[str]
) -> None:
    effects = estimated(RenderedStatement(f"ALTER TABLE item ALTER c TYPE {now}", was=was), {})
    assert effects.rewrites == rewrites
    assert [sentence for sentence in effects.unknown if "rewrite" in sentence] == unknown
