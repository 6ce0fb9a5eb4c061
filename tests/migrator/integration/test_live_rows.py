"""The plan looks at the rows of the live database: on which of them a step would fail, and how many it writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.commands.plan_forecast import RevisionForecast, forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigrationFailedError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

TABLES = [
    "CREATE TABLE t (id int, c text, n int, p int, during int4range, word varchar(20))",
    "CREATE TABLE parent (id int PRIMARY KEY)",
    "CREATE DOMAIN small AS int",
    "CREATE TABLE of_domain (v small)",
    "CREATE TABLE whole (id int, day date) PARTITION BY RANGE (day)",
    "CREATE TABLE piece (id int, day date)",
    "CREATE TABLE checked (n int)",
]
NOT_VALID = "ALTER TABLE checked ADD CONSTRAINT low CHECK (n < 4) NOT VALID"
ROWS = [
    "INSERT INTO parent VALUES (1), (2)",
    "INSERT INTO t VALUES (1, 'one', 1, 1, '[1,5)', 'short'), (1, 'two', 2, 2, '[4,8)', 'middle'), "
    "(2, NULL, 3, 9, '[9,9]', 'much longer'), (3, NULL, 4, NULL, NULL, 'x'), (4, 'secret-word', 5, 9, NULL, NULL)",
    "INSERT INTO of_domain VALUES (5), (50)",
    "INSERT INTO checked VALUES (3), (4), (5)",
    "INSERT INTO piece VALUES (1, '2026-01-05'), (2, '2026-09-05')",
]
BOUNDS = "FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')"
FAILS = {
    "ALTER TABLE t ADD COLUMN m int NOT NULL": "5 rows of t: the new column is NOT NULL and has no default",
    "ALTER TABLE t ALTER c SET NOT NULL": "2 rows of t: c is NULL",
    "ALTER TABLE t ADD PRIMARY KEY (id)": "t: values of id occur more than once (1)",
    "ALTER TABLE t ADD UNIQUE (id, n), ADD UNIQUE (p)": "t: values of p occur more than once (1)",
    "CREATE UNIQUE INDEX ON t ((length(word))) WHERE id < 4": None,
    "CREATE UNIQUE INDEX ON t ((id / 3)) WHERE id < 4": "t: values of ((id / 3)) occur more than once (1)",
    "CREATE UNIQUE INDEX ON t ((n IS NULL OR '{}' = word))": "t: values of "
    "(((n IS NULL) OR ('{}'::text = (word)::text))) occur more than once (1)",
    "CREATE INDEX ON t ((word::int)) WHERE id > 0": "rows of t: an expression fails on at least one of them "
    "(SQLSTATE 22P02)",
    "CREATE INDEX ON t ((9 / (n - 1))) WHERE n > 1": None,
    "ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (9 / (id - 1)) STORED": "rows of t: an expression fails on at "
    "least one of them (SQLSTATE 22012)",
    "ALTER TABLE t ADD CONSTRAINT small CHECK (n < 3)": "3 rows of t: a CHECK constraint does not hold",
    "ALTER TABLE t ADD CHECK (c IS NOT NULL)": "2 rows of t: a CHECK constraint does not hold",
    "ALTER TABLE checked VALIDATE CONSTRAINT low": "2 rows of checked: a CHECK constraint does not hold",
    "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES parent": "2 rows of t: they refer to rows that parent does not have",
    "ALTER TABLE t ADD EXCLUDE USING gist (during WITH &&)": "t: pairs of rows exclude each other (1)",
    "ALTER TABLE t ALTER c TYPE int USING c::int": "rows of t: c cannot be cast to integer in at least one of them "
    "(SQLSTATE 22P02)",
    "ALTER TABLE t ALTER word TYPE varchar(5)": "2 rows of t: word is longer than character varying(5)",
    "ALTER TABLE t ALTER n TYPE numeric(2, 2)": "rows of t: n cannot be cast to numeric(2,2) in at least one of them "
    "(SQLSTATE 22003)",
    "ALTER DOMAIN small ADD CHECK (VALUE < 9)": "1 row of of_domain: v breaks a constraint of its domain",
    f"ALTER TABLE whole ATTACH PARTITION piece {BOUNDS}": "1 row of piece: they do not belong into the partition",
}
PASSES = [
    "ALTER TABLE t ADD COLUMN m1 int",
    "ALTER TABLE t ADD COLUMN m2 int NOT NULL DEFAULT 1",
    "ALTER TABLE t ADD COLUMN m3 int GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE t ALTER n SET NOT NULL",
    "ALTER TABLE t ADD UNIQUE (n)",
    "ALTER TABLE t ADD UNIQUE (during)",
    "ALTER TABLE t ADD CHECK (n > 5) NOT VALID",
    "ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES parent NOT VALID",
    "ALTER TABLE t ALTER n TYPE bigint",
    "ALTER TABLE of_domain ALTER v SET DEFAULT 1",
    "ALTER TABLE t ALTER word TYPE varchar(11)",
    "CREATE TABLE fresh (id int PRIMARY KEY, p int NOT NULL REFERENCES parent)",
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    for statement in TABLES:
        project.add(f"op.execute({statement!r})", "pass")
    return project


@pytest.fixture
async def config(project: Project, database_url: str, observer: asyncpg.Connection) -> MigratorConfig:
    """A live database at r8, with rows."""
    config = project.config(database_url)
    await bring_to_head(config)
    for statement in ROWS:
        await observer.execute(statement)
    project.add(f"op.execute({NOT_VALID!r})", "pass")
    await bring_to_head(config)
    return config


async def planned(config: MigratorConfig) -> list[RevisionForecast]:
    """The plan of everything that is pending; it must not change the rows."""
    found = await forecast_pending(config)
    assert "secret-word" not in format_plan(found)
    assert found.failure is None
    return list(found.revisions)


async def test_what_would_fail_is_a_finding_and_really_fails(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    for statement in FAILS:
        project.add(f"op.execute({statement!r})", "pass")
    for revision, (statement, expected) in zip(await planned(config), FAILS.items(), strict=True):
        sentences = [found.sentence for found in revision.row_findings]
        assert (statement, sentences) == (statement, [f"statement 1 would fail on {expected}"] if expected else [])
        if expected:
            with pytest.raises(asyncpg.PostgresError):
                await observer.execute(statement)


async def test_what_passes_is_no_finding(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    for statement in PASSES:
        project.add(f"op.execute({statement!r})", "pass")
    for revision, statement in zip(await planned(config), PASSES, strict=True):
        assert (statement, revision.row_findings) == (statement, ())
        await observer.execute(statement)


async def test_an_enum_must_have_the_values(project: Project, config: MigratorConfig) -> None:
    project.add(
        "op.execute(\"CREATE TYPE kind AS ENUM ('one', 'two')\")\n"
        "    op.execute('ALTER TABLE t ALTER c TYPE kind USING c::kind')",
        "pass",
    )
    [revision] = await planned(config)
    # The type is made by the same revision, so the labels are compared, and not the cast tried.
    assert [found.sentence for found in revision.row_findings] == [
        "statement 2 would fail on 1 row of t: c has values that kind does not have"
    ]


async def test_rows_that_the_revision_mends_are_not_certain_to_fail(project: Project, config: MigratorConfig) -> None:
    project.add("op.execute(\"UPDATE t SET c = '' WHERE c IS NULL\"); op.execute('ALTER TABLE t ALTER c SET NOT NULL')")
    [revision] = await planned(config)
    [found] = revision.row_findings
    assert (found.certain, found.rows) == (False, 2)
    assert found.sentence == (
        "statement 2 may fail on 2 rows of t: c is NULL; what runs before it writes to t, so it may be mended by then"
    )
    await bring_to_head(config)


async def test_a_renamed_table_and_column_are_found_under_their_live_names(
    project: Project, config: MigratorConfig
) -> None:
    project.add("op.execute('ALTER TABLE t RENAME TO thing'); op.execute('ALTER TABLE thing RENAME c TO title')")
    project.add("op.execute('ALTER TABLE thing ALTER title SET NOT NULL')")
    _renames, revision = await planned(config)
    assert [found.sentence for found in revision.row_findings] == ["statement 1 would fail on 2 rows of t: c is NULL"]


async def test_a_column_that_is_not_live_yet_is_not_known(project: Project, config: MigratorConfig) -> None:
    project.add(
        "op.execute('ALTER TABLE t ADD m int'); op.execute('ALTER TABLE t ALTER m SET NOT NULL'); "
        "op.execute('ALTER TABLE t ADD CHECK (m > 0)')"
    )
    [revision] = await planned(config)
    assert [found.sentence for found in revision.row_findings] == [
        f"statement {number}: whether it fails on rows of t ({kind}) is not known: a column in it is not there yet"
        for number, kind in ((2, "not null"), (3, "check"))
    ]
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)


async def test_whether_a_generated_column_is_null_is_not_known(project: Project, config: MigratorConfig) -> None:
    project.add("op.execute('ALTER TABLE t ADD m text GENERATED ALWAYS AS (c) STORED NOT NULL')", "pass")
    [revision] = await planned(config)
    assert [found.sentence for found in revision.row_findings] == [
        "statement 1: whether it fails on rows of t (not null) is not known: a column in it is not there yet"
    ]
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)


async def test_what_takes_too_long_or_is_locked_is_not_known(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(
        "op.execute('CREATE FUNCTION slow(n int) RETURNS bool IMMUTABLE LANGUAGE plpgsql "
        "AS $$ BEGIN PERFORM pg_sleep(2); RETURN true; END $$')\n"
        "    op.execute('ALTER TABLE t ADD CHECK (slow(n))')",
        "pass",
    )
    project.add("op.execute('ALTER TABLE t ALTER c SET NOT NULL')", "pass")
    async with observer.transaction():
        await observer.execute("LOCK TABLE t")
        revisions = await planned(config)
    for revision in revisions:
        assert revision.row_findings[0].sentence.endswith("is not known: it cannot be looked at (SQLSTATE 55P03)")
    revision, _second = await planned(config)
    assert revision.row_findings[0].sentence == (
        "statement 2: whether it fails on rows of t (check) is not known: it cannot be looked at (SQLSTATE 42883)"
    )
    await observer.execute(
        "CREATE FUNCTION slow(n int) RETURNS bool IMMUTABLE LANGUAGE plpgsql "
        "AS $$ BEGIN PERFORM pg_sleep(2); RETURN true; END $$"
    )
    monkeypatch.setattr("gasket.migrator.scratch.live_rows._EACH", 0.5)
    revision, _second = await planned(config)
    assert revision.row_findings[0].sentence == (
        "statement 2: whether it fails on rows of t (check) is not known: looking takes longer than 0.5 s"
    )


async def test_without_a_scratch_database_the_text_tells_the_simple_cases(
    project: Project,
    config: MigratorConfig,
    database_url: str,
    observer: asyncpg.Connection,
    plain_role: str,
    url_with: Callable[..., str],
) -> None:
    project.add(
        "op.execute('ALTER TABLE t ADD COLUMN m int NOT NULL'); op.execute('ALTER TABLE t ALTER c SET NOT NULL')\n"
        "    op.execute('ALTER TABLE t ADD UNIQUE (id)'); op.execute('CREATE TABLE fresh (id int)')\n"
        "    op.execute('ALTER TABLE fresh ADD k int NOT NULL'); op.execute('ALTER TABLE fresh ADD UNIQUE (k)')",
        "pass",
    )
    plain = replace(config, database_url=url_with(database_url, user=plain_role, password="secret-word"))
    [revision] = await planned(plain)
    assert revision.estimated
    assert [found.sentence for found in revision.row_findings] == [
        "statement 1 would fail on 5 rows of t: the new column is NOT NULL and has no default",
        "statement 2 would fail on 2 rows of t: c is NULL",
    ]
    assert "Statement 3: whether it fails on rows of t is not known." in revision.unknown
    assert not any("fresh is not known" in sentence for sentence in revision.unknown)


@pytest.fixture
async def plain_role(observer: asyncpg.Connection, config: MigratorConfig) -> AsyncIterator[str]:
    """A role that may make no databases, and may read."""
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; "
        f"GRANT CREATE, USAGE ON SCHEMA public TO {role}"
    )
    yield role
    await observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_an_update_of_many_rows_is_estimated(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    await observer.execute("CREATE TABLE IF NOT EXISTS t (id int)")
    await observer.execute("INSERT INTO t (id, n) SELECT i, i FROM generate_series(100, 100099) AS i; ANALYZE t")
    project.add("op.execute('UPDATE t SET n = n + 1')", "pass")
    project.add("op.execute('DELETE FROM t WHERE id < 20000'); op.execute('DELETE FROM parent')", "pass")
    project.add("op.execute('INSERT INTO parent SELECT id + 10 FROM t')", "pass")
    project.add(
        "op.get_bind().execute(__import__('sqlalchemy').text('UPDATE t SET n = :n'), {'n': 1})\n"
        "    op.execute('CREATE TABLE fresh (id int)'); op.execute('INSERT INTO fresh SELECT id FROM t')",
        "pass",
    )
    count = "SELECT count(*), sum(n) FROM t"
    before = await observer.fetchrow(count)
    update, delete, insert, parameter = await planned(config)
    [write] = update.writes
    assert (write.table, write.operation) == ("t", "UPDATE")
    assert write.rows is not None
    assert abs(write.rows - 100_005) < 5000
    assert write.bytes is not None
    assert 2_000_000 < write.bytes < 10_000_000
    assert 10_000 < (delete.writes[0].rows or 0) < 30_000
    assert (delete.writes[1].table, delete.writes[1].rows) == ("parent", 2)
    assert (insert.writes[0].operation, insert.writes[0].table) == ("INSERT", "parent")
    assert (insert.writes[0].rows or 0) > 90_000
    assert [write.table for write in parameter.writes] == ["t"]
    assert await observer.fetchrow(count) == before
    text = format_plan(await forecast_pending(config))
    assert f"  writes about {write.rows:,} rows of t, " in text
    assert "; each is locked to the end of the revision" in text
    assert "  locks t ROW EXCLUSIVE, blocks schema changes, and writes to the same rows; about " in text
    assert "rows of parent; each" not in text  # two rows are not worth a line


HIDDEN_WRITES = {
    "DO $$ BEGIN UPDATE t SET n = 1; END $$": ["t"],
    "DO $$ BEGIN EXECUTE 'UPDATE ' || 't SET n = 1'; END $$": ["t"],
    "SELECT fill()": ["t"],
    "DO $$ BEGIN DELETE FROM split; END $$": ["split"],
    "DO $$ BEGIN DELETE FROM split_one; END $$": ["split_one"],
    "INSERT INTO watched VALUES (1)": ["t"],
    "SELECT nextval('numbers')": [],
    "DELETE FROM split": [],
    "LOCK TABLE t IN SHARE MODE": [],
}


async def test_of_what_no_plan_tells_the_number_of_rows_is_not_known(
    project: Project, config: MigratorConfig, observer: asyncpg.Connection
) -> None:
    project.add(
        "op.execute('CREATE FUNCTION fill() RETURNS void LANGUAGE plpgsql AS $$ BEGIN UPDATE t SET n = 1; END $$')\n"
        "    op.execute('CREATE TABLE split (id int) PARTITION BY LIST (id)')\n"
        "    op.execute('CREATE TABLE split_one PARTITION OF split FOR VALUES IN (1)')\n"
        "    op.execute('CREATE SEQUENCE numbers'); op.execute('CREATE TABLE watched (id int)')\n"
        "    op.execute('CREATE FUNCTION fill_too() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE t SET n = 1; RETURN NULL; END $$')\n"
        "    op.execute('CREATE TRIGGER filling AFTER INSERT ON watched EXECUTE FUNCTION fill_too()')",
        "pass",
    )
    await bring_to_head(config)
    for statement in HIDDEN_WRITES:
        project.add(f"op.execute({statement!r})", "pass")
    for revision, (statement, tables) in zip(await planned(config), HIDDEN_WRITES.items(), strict=True):
        not_known = [write.table for write in revision.writes if write.rows is None]
        assert (statement, not_known) == (statement, tables)


async def test_a_merge_is_estimated(project: Project, config: MigratorConfig, observer: asyncpg.Connection) -> None:
    await observer.execute("INSERT INTO t (id, n) SELECT i, i FROM generate_series(100, 10099) AS i; ANALYZE t")
    merge = "MERGE INTO t USING t AS s ON t.n = s.n WHEN MATCHED THEN UPDATE SET c = 'x'"
    project.add(f"op.execute({merge!r})", "pass")
    [revision] = await planned(config)
    [write] = revision.writes
    assert (write.table, write.operation) == ("t", "MERGE")
    assert (write.rows or 0) > 9_000
