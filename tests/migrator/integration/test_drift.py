"""How the live schema differs from the models, in words that need no knowledge of Alembic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import alembic.command
import asyncpg
import pytest
import sqlalchemy as sa
from alembic.config import Config
from sqlalchemy import MetaData

from gasket.migrator.catalog.drift import Drift, find_drift
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.scratch.adopt import compare_with_revision, record_adopted
from tests.migrator.project import Project


def _models() -> MetaData:
    metadata = MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, server_default=sa.text("1")),
        sa.Column("parent", sa.Integer, sa.ForeignKey("parents.id", name="fk_parent")),
        sa.Column("missing", sa.Text),
        sa.UniqueConstraint("name", name="uq_name"),
        sa.Index("ix_size", "size"),
    )
    sa.Table("unbuilt", metadata, sa.Column("id", sa.Integer, primary_key=True))
    return metadata


async def test_every_difference_is_a_sentence_of_its_own(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE parents (id int PRIMARY KEY);"
        "CREATE TABLE children (id int PRIMARY KEY, name text, size int, parent int, by_hand int);"
        "CREATE INDEX ix_by_hand ON children (by_hand);"
        "CREATE TABLE others (id int)"
    )
    config = MigratorConfig(database_url=database_url, release="1.0", ini=Path("alembic.ini"), load_metadata=_models)
    found = (await find_drift(connection, config)).differences
    await connection.close()
    assert sorted(found) == [
        "column children.by_hand is not in the models",
        "column children.missing is missing",
        "column children.name: nullable is True, in the models False",
        "column children.size: default is none, in the models 1",
        "column children.size: type is INTEGER, in the models BIGINT",
        "constraint uq_name of children is missing",
        "foreign key fk_parent of children is missing",
        "index ix_by_hand of children is not in the models",
        "index ix_size of children is missing",
        "table others is not in the models",
        "table unbuilt is missing",
    ]


MADE = [
    "CREATE TABLE item (id int PRIMARY KEY, name text, CONSTRAINT named CHECK (name <> ''))",
    "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER stamped BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION stamp()",
    "CREATE VIEW names AS SELECT name FROM item",
    "CREATE SEQUENCE numbers",
    "CREATE POLICY all_rows ON item USING (true)",
    "ALTER TABLE item ENABLE ROW LEVEL SECURITY",
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE INDEX item_name ON item (name) WHERE id > 5",
    "GRANT SELECT ON names TO PUBLIC",
    "CREATE SCHEMA app CREATE TABLE log (id int)",
]
_TRIGGER = "CREATE TRIGGER stamped BEFORE INSERT ON public.item FOR EACH ROW EXECUTE FUNCTION public.stamp()"
_POLICY = "PERMISSIVE FOR ALL TO PUBLIC USING"
_SEQUENCE = "AS bigint START 1 INCREMENT 1 MINVALUE 1 MAXVALUE"
_FUNCTION = "CREATE OR REPLACE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
DRIFTED = {
    "DROP TRIGGER stamped ON item": "trigger item.stamped is missing",
    "ALTER TABLE item DISABLE TRIGGER stamped": f"trigger item.stamped: is '{_TRIGGER} DISABLED', it was '{_TRIGGER}'",
    "CREATE TRIGGER more AFTER UPDATE ON item EXECUTE FUNCTION stamp()": "trigger item.more is not from a revision",
    _FUNCTION: "function stamp(): line 4 is 'AS $function$BEGIN RETURN NULL; END$function$', "
    "it was 'AS $function$BEGIN RETURN NEW; END$function$'",
    "DROP VIEW names": "view names is missing",
    "ALTER SEQUENCE numbers MAXVALUE 9": f"sequence numbers: is '{_SEQUENCE} 9 CACHE 1', "
    f"it was '{_SEQUENCE} 9223372036854775807 CACHE 1'",
    "ALTER POLICY all_rows ON item USING (false)": f"policy item.all_rows: is '{_POLICY} (false)', "
    f"it was '{_POLICY} (true)'",
    "ALTER TABLE item DISABLE ROW LEVEL SECURITY": "table item: is '', it was 'ENABLE ROW LEVEL SECURITY'",
    "ALTER TYPE mood ADD VALUE 'so so' BEFORE 'bad'": """type mood: is "ENUM ('good', 'so so', 'bad')", """
    """it was "ENUM ('good', 'bad')\"""",
    "ALTER TABLE item DROP CONSTRAINT named": "constraint item.named is missing",
    "CREATE RULE quiet AS ON DELETE TO item DO INSTEAD NOTHING": "rule item.quiet is not from a revision",
    "REVOKE SELECT ON names FROM PUBLIC": "privileges names to PUBLIC: SELECT is missing",
    "GRANT DELETE ON item TO PUBLIC": "privileges item to PUBLIC: DELETE is not from a revision",
    "CREATE UNIQUE INDEX once ON item (name)": "index once of item is not in the models",
    "DROP TABLE app.log": "table app.log is missing",
    "ALTER TABLE item ADD by_hand int": "column item.by_hand is not in the models",
}
TUNED = {
    "ALTER TABLE item SET (autovacuum_enabled = false)": "tuning item is not from a revision",
    "ALTER TABLE item ALTER name SET STATISTICS 500": "tuning item.name is not from a revision",
    "CREATE INDEX ON item (name, id)": "index item_name_id_idx is not from a revision",
    "CREATE STATISTICS pair ON id, name FROM item": "statistics pair is not from a revision",
    "COMMENT ON COLUMN item.name IS 'ours'": "comment item.name is not from a revision",
    "GRANT SELECT ON item TO pg_monitor": "privileges item to pg_monitor: SELECT is not from a revision",
    "CREATE VIEW by_hand AS SELECT 1 AS one": "view by_hand is not from a revision",
    "ALTER INDEX item_name SET (fillfactor = 70)": "tuning item_name is not from a revision",
}
AT_RUN_TIME = [
    "CREATE TABLE ev (id int, day date) PARTITION BY RANGE (day)",
    "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
]


def _items() -> MetaData:
    metadata = MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text),
        sa.Index("item_name", "name", postgresql_where=sa.text("id > 5")),
    )
    return metadata


@pytest.fixture
def config(tmp_path: Path, database_url: str) -> MigratorConfig:
    project = Project(tmp_path)
    for statement in MADE:
        project.add(f"op.execute({statement!r})", "pass")
    return project.config(database_url, load_metadata=_items)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def test_what_the_revisions_leave_is_no_drift(config: MigratorConfig, observer: asyncpg.Connection) -> None:
    await bring_to_head(config)
    assert await find_drift(observer, config) == Drift([], [], None)


async def test_a_change_by_hand_is_drift_and_named(config: MigratorConfig, observer: asyncpg.Connection) -> None:
    await bring_to_head(config)
    for statement, line in DRIFTED.items():
        async with taken_back(observer):
            await observer.execute(statement)
            found = await find_drift(observer, config)
            assert (statement, found.differences, found.tuned) == (statement, [line], [])


async def test_the_sql_that_mends_it_does(config: MigratorConfig, observer: asyncpg.Connection) -> None:
    await bring_to_head(config)
    by_hand = [
        *DRIFTED,
        "ALTER TABLE item ALTER name SET NOT NULL, ALTER name SET DEFAULT 'x'",
        "ALTER TABLE item ALTER id TYPE bigint",
        "ALTER TABLE item DROP CONSTRAINT named, ADD CONSTRAINT named CHECK (name > '')",
        "DROP TRIGGER stamped ON item; CREATE TRIGGER stamped AFTER INSERT ON item EXECUTE FUNCTION stamp()",
    ]
    not_known = []
    for statement in by_hand:
        async with taken_back(observer):
            await observer.execute(statement)
            mends = (await find_drift(observer, config, models=False)).mends
            if mends:
                await observer.execute(" ".join(mends))
                assert (statement, await find_drift(observer, config)) == (statement, Drift([], [], None))
            else:
                not_known.append(statement)
    assert not_known == [
        "DROP VIEW names",
        "ALTER SEQUENCE numbers MAXVALUE 9",
        "ALTER TABLE item DISABLE ROW LEVEL SECURITY",
        "ALTER TYPE mood ADD VALUE 'so so' BEFORE 'bad'",
        "CREATE RULE quiet AS ON DELETE TO item DO INSTEAD NOTHING",
        "DROP TABLE app.log",
        "ALTER TABLE item ADD by_hand int",
        "ALTER TABLE item ALTER id TYPE bigint",
    ]


async def test_without_the_models_the_same_objects_are_drift(
    config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await bring_to_head(config)
    by_hand = DRIFTED | {
        "CREATE TABLE others (id serial PRIMARY KEY)": "table others is not from a revision",
        "ALTER TABLE item ALTER name SET NOT NULL": "column item.name: nullable is False, in the models True",
        "ALTER TABLE item ALTER id TYPE bigint": "column item.id: type is BIGINT, in the models INTEGER",
        "ALTER TABLE item ALTER name SET DEFAULT 'x'": "column item.name: default is 'x'::text, in the models none",
        "ALTER TABLE item DROP name CASCADE": "column item.name is missing",
    }
    for statement, line in by_hand.items():
        async with taken_back(observer):
            await observer.execute(statement)
            found = await find_drift(observer, config, models=False)
            assert any(difference.startswith(_subject(line)) for difference in found.differences), statement
            assert found.not_compared is None


def _subject(line: str) -> str:
    """The kind and the name of the object that a line is about; an index is told with its table against the models."""
    return " ".join(line.partition(" of ")[0].split(" ")[:2]).rstrip(":")


async def test_what_an_administrator_tunes_is_another_kind(
    config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await bring_to_head(config)
    for statement, line in TUNED.items():
        async with taken_back(observer):
            await observer.execute(statement)
            assert (statement, await find_drift(observer, config)) == (statement, Drift([], [line], None))


async def test_the_next_revision_does_not_hide_a_change_by_hand(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    for statement in MADE[:3]:
        project.add(f"op.execute({statement!r})", "pass")
    config = project.config(database_url, load_metadata=_items)
    await bring_to_head(config)
    await observer.execute("DROP TRIGGER stamped ON item; CREATE FUNCTION by_hand() RETURNS int RETURN 1")
    project.add("op.execute('ALTER FUNCTION stamp() STABLE'); op.execute('CREATE INDEX item_name ON item (name)')")
    await bring_to_head(config)
    found = await find_drift(observer, config)
    assert "trigger item.stamped is missing" in found.differences
    assert found.tuned == ["function by_hand() is not from a revision"]
    project.add("op.execute('CREATE TRIGGER stamped BEFORE INSERT ON item EXECUTE FUNCTION stamp()')")
    await bring_to_head(config)
    assert "stamped" not in str(await find_drift(observer, config))


async def test_a_run_that_fails_half_way_records_what_it_has_done(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add(f"op.execute({MADE[0]!r})")
    project.add(f"op.execute({MADE[1]!r})", "op.execute('DROP FUNCTION stamp()')")
    bad = project.add("op.execute('SELECT 1/0')", "pass")
    config = project.config(database_url, load_metadata=_items)
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)
    await observer.execute("DROP FUNCTION stamp()")
    bad.write_text(bad.read_text().replace("SELECT 1/0", "SELECT 1"))
    await bring_to_head(config)
    assert "function stamp() is missing" in (await find_drift(observer, config)).differences


async def test_a_downgrade_is_recorded_too(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    project.add(f"op.execute({MADE[0]!r})")
    last = project.add(f"op.execute({MADE[1]!r})", "op.execute('DROP FUNCTION stamp()')")
    config = project.config(database_url, load_metadata=_items)
    await bring_to_head(config)
    await asyncio.to_thread(
        alembic.command.downgrade, Config(str(config.ini), attributes={"read_config": lambda: config}), "-1"
    )
    last.unlink()
    found = await find_drift(observer, config)
    assert (found.differences, found.not_compared) == (["index item_name of item is missing"], None)


async def test_partitions_are_no_drift_whether_made_or_dropped_by_hand(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    for statement in AT_RUN_TIME:
        project.add(f"op.execute({statement!r})", "pass")
    metadata = MetaData()
    sa.Table("ev", metadata, sa.Column("id", sa.Integer), sa.Column("day", sa.Date))
    config = project.config(database_url, load_metadata=lambda: metadata)
    await bring_to_head(config)
    await observer.execute("CREATE TABLE ev_2 PARTITION OF ev FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')")
    await observer.execute("CREATE INDEX ON ev_2 (id); COMMENT ON TABLE ev_2 IS 'of February'; DROP TABLE ev_1")
    assert await find_drift(observer, config) == Drift([], [], None)


async def test_without_a_record_it_is_said_that_not_everything_is_compared(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    config = project.config(database_url)
    await bring_to_head(config)
    await observer.execute("INSERT INTO migration_ledger (revision, direction) VALUES ('r1', 'stamp')")
    assert (
        await find_drift(observer, config)
    ).not_compared == "a release that records nothing has changed the schema last"
    await observer.execute("DROP TABLE migration_catalog")
    found = await find_drift(observer, config)
    assert found.not_compared == "nothing was recorded when the newest revision was applied"
    assert found.differences == ["table t1 is not in the models"]


async def test_an_adopted_database_is_compared_with_what_the_revisions_build(
    config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    for statement in MADE:
        await observer.execute(statement)
    await observer.execute("CREATE FUNCTION theirs() RETURNS int RETURN 1")
    revisions = configured_revisions(config.ini)
    difference, expected = await compare_with_revision(config, revisions, "head")
    assert difference.fits
    await record_adopted(config, revisions, expected)
    assert await find_drift(observer, config) == Drift([], ["function theirs() is not from a revision"], None)
    await observer.execute("DROP FUNCTION theirs(); DROP TRIGGER stamped ON item")
    assert (await find_drift(observer, config)).differences == ["trigger item.stamped is missing"]


async def test_a_start_at_head_writes_nothing_and_takes_no_lock(
    config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await bring_to_head(config)
    recorded = await observer.fetch("SELECT * FROM migration_catalog")
    written = (
        "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE relname = 'migration_catalog'"
    )
    before = await observer.fetchval(written)
    await bring_to_head(config)
    assert await observer.fetch("SELECT * FROM migration_catalog") == recorded
    assert await observer.fetchval(written) == before


@asynccontextmanager
async def taken_back(observer: asyncpg.Connection) -> AsyncIterator[None]:
    transaction = observer.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()
