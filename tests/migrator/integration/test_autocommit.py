"""Statements outside of the step's transaction: a step that was cut short, locks that are taken, and hidden commits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import HalfTakenBackError, InvalidIndexError, MigrationFailedError, PartlyDoneError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project, is_true, ledger

BLOCK = "with op.get_context().autocommit_block():\n        "


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def in_block(*statements: str) -> str:
    return BLOCK + "; ".join(f"op.execute({statement!r})" for statement in statements)


class Gap:
    """While it is open a step does all its work and is not recorded: what a holder leaves that dies just then."""

    def __init__(self, observer: asyncpg.Connection) -> None:
        self._observer = observer

    async def open(self) -> None:
        await self._observer.execute("ALTER TABLE migration_ledger ADD CONSTRAINT gap CHECK (false) NOT VALID")

    async def close(self) -> None:
        await self._observer.execute("ALTER TABLE migration_ledger DROP CONSTRAINT gap")


INDEX = "CREATE INDEX CONCURRENTLY by_v ON t1 (v)"
ORDINARY = [
    "CREATE TABLE t7 (id int PRIMARY KEY, t1_id int REFERENCES t1, note text DEFAULT 'x' CHECK (note <> ''))",
    "INSERT INTO t7 VALUES (1), (2)",
    "CREATE INDEX by_note ON t7 (note)",
    "CREATE TYPE size AS ENUM ('s', 'm')",
    "CREATE VIEW v7 AS SELECT id FROM t7",
    "ALTER TABLE t1 ADD COLUMN c int DEFAULT 0, ADD CONSTRAINT positive CHECK (c >= 0)",
    "UPDATE t1 SET c = c + 1",
    "ALTER TABLE t1 RENAME COLUMN w TO words",
    "ALTER TABLE t1 DROP CONSTRAINT positive",
    "DROP TABLE part",
    "DO $$ BEGIN ALTER TABLE t1 ADD COLUMN d int; END $$",
    "ALTER TABLE t7 RENAME TO t8",
]
VALUE = "ALTER TYPE mood ADD VALUE 'it''s fine'"


@pytest.mark.parametrize(
    "upgrade",
    [
        in_block(INDEX),
        in_block('CREATE UNIQUE INDEX CONCURRENTLY "by on v.w" ON ONLY public.t1 (lower(w) DESC, v) WHERE v > 3'),
        in_block(VALUE),
        in_block("ALTER TYPE public.mood ADD VALUE 'better' AFTER 'good'"),
        in_block(INDEX, VALUE, 'CREATE INDEX CONCURRENTLY "By W" ON t1 USING hash (w)'),
        f"{in_block(INDEX)}\n    op.execute('ALTER TABLE t1 ADD COLUMN late int')",
        in_block("ALTER TABLE parted DETACH PARTITION part CONCURRENTLY"),
        in_block("REINDEX INDEX CONCURRENTLY t1_pkey", INDEX),
        in_block("ALTER TABLE t1 ADD COLUMN c int DEFAULT 1", "UPDATE t1 SET c = c + 1", INDEX),
        in_block(*ORDINARY),
        f"[op.execute(s) for s in {ORDINARY!r}]\n    {in_block(INDEX, 'INSERT INTO t1 VALUES (7)')}",
        in_block("SET a.b = '1'", INDEX, "SELECT current_setting('a.b')"),
    ],
)
async def test_a_step_that_was_done_and_not_recorded_is_resumed(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, upgrade: str
) -> None:
    project.add(
        'op.execute("CREATE TABLE t1 (id int PRIMARY KEY, v int, w text)"); '
        "op.execute(\"CREATE TYPE mood AS ENUM ('good', 'bad')\"); "
        'op.execute("CREATE TABLE parted (v int) PARTITION BY LIST (v)"); '
        'op.execute("CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)")'
    )
    config = project.config(database_url)
    await bring_to_head(config)
    await observer.execute("INSERT INTO t1 VALUES (1, 1, 'w')")
    project.add(upgrade, "pass")
    gap = Gap(observer)
    await gap.open()
    with pytest.raises(MigrationFailedError, match="gap"):
        await bring_to_head(config)
    await gap.close()
    objects = "SELECT array_agg(oid::text ORDER BY oid) FROM pg_class WHERE relname ILIKE 'by%'"
    before = await observer.fetchval(objects)
    await bring_to_head(config)
    assert (await ledger(observer))[-1] == ("r2", "upgrade")
    assert await observer.fetchval(objects) == before, "what was built is not built again"
    assert await observer.fetchval("SELECT bool_and(indisvalid) FROM pg_index")
    assert "skipped a statement that an earlier try has finished" in caplog.text
    assert await observer.fetchval("SELECT coalesce(max(to_jsonb(t1) ->> 'c'), '2') IN ('1', '2') FROM t1")


COLUMN, COUNT = "ALTER TABLE t1 ADD COLUMN c int DEFAULT 0", "UPDATE t1 SET c = c + 1"
COUNTED = "SELECT array_agg(c) FROM t1"


async def with_three_rows(project: Project, observer: asyncpg.Connection, database_url: str) -> MigratorConfig:
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    config = project.config(database_url)
    await bring_to_head(config)
    await observer.execute("INSERT INTO t1 VALUES (1), (2), (3)")
    return config


async def cut_short(project: Project, config: MigratorConfig, *statements: str) -> Path:
    """A revision that fails after these statements of its block; the file is there to be mended."""
    path = project.add(in_block(*statements, "SELECT 1 / 0"), "pass")
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(config)
    return path


async def test_a_mended_file_goes_on_after_what_was_done(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    config = await with_three_rows(project, observer, database_url)
    path = await cut_short(project, config, COLUMN, COUNT, COUNT)
    for _ in range(2):
        with pytest.raises(MigrationFailedError, match="division by zero"):
            await bring_to_head(config)
    path.write_text(path.read_text().replace("SELECT 1 / 0", "UPDATE t1 SET c = c + 10"))
    await bring_to_head(config)
    assert await observer.fetchval(COUNTED) == [12, 12, 12]
    assert await observer.fetchval("SELECT count(*) FROM migration_progress") == 0


async def test_a_loop_of_batches_goes_on_where_it_was(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """It ends by how many rows the last batch had, which a statement that is left out still says."""
    config = await with_three_rows(project, observer, database_url)
    batch = "UPDATE t1 SET v = v + 10 WHERE ctid = (SELECT min(ctid) FROM t1 WHERE v < 10)"
    loop = f"while op.get_bind().exec_driver_sql({batch!r}).rowcount == 1: pass"
    path = project.add(f"{BLOCK}{loop}\n        op.execute('SELECT 1 / 0')", "pass")
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(config)
    await observer.execute("DELETE FROM migration_progress WHERE id > 2; UPDATE t1 SET v = 3 WHERE v = 13")
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval("SELECT array_agg(v ORDER BY v) FROM t1") == [11, 12, 13]


async def test_what_was_rolled_back_to_a_savepoint_is_not_taken_for_done(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    config = await with_three_rows(project, observer, database_url)
    tried = "tried = op.get_bind().begin_nested(); op.execute('CREATE TABLE t9 (v int)'); tried.rollback()"
    path = project.add(f"{tried}\n    {in_block(COLUMN, COUNT, 'SELECT 1 / 0')}", "pass")
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(config)
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval(COUNTED) == [1, 1, 1]


@pytest.mark.parametrize("by_hand", ["ALTER TABLE t1 DROP COLUMN c", "DROP TABLE t1; CREATE TABLE t1 (v int)"])
async def test_what_was_undone_by_hand_is_done_anew(
    project: Project, database_url: str, observer: asyncpg.Connection, by_hand: str
) -> None:
    config = await with_three_rows(project, observer, database_url)
    path = await cut_short(project, config, COLUMN, COUNT)
    await observer.execute(f"{by_hand}; DELETE FROM t1; INSERT INTO t1 VALUES (1)")
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval(COUNTED) == [1]


@pytest.mark.parametrize(
    ("statements", "by_hand", "reason"),
    [
        ([COLUMN, "CREATE TABLE t9 (v int)"], "DROP TABLE t9", "relation t9 is gone"),
        ([COLUMN, "CREATE TYPE size AS ENUM ()"], "ALTER TABLE t1 DROP COLUMN c", "column t1.c is gone"),
        (["ALTER TABLE t1 DROP COLUMN v", COLUMN], "ALTER TABLE t1 ADD COLUMN v int", "column t1.v is there again"),
        (
            ["CREATE TEMP TABLE seen AS SELECT v FROM t1", COLUMN],
            "SELECT 1",
            "temporary table seen are gone",
        ),
    ],
)
async def test_where_it_is_not_certain_what_is_left_that_is_said(
    project: Project, database_url: str, observer: asyncpg.Connection, statements: list[str], by_hand: str, reason: str
) -> None:
    config = await with_three_rows(project, observer, database_url)
    path = await cut_short(project, config, *statements)
    await observer.execute(by_hand)
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    with pytest.raises(PartlyDoneError, match=f"upgrade of revision r2 was cut short.*{reason}.*stamp REVISION"):
        await bring_to_head(config)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    await asyncio.to_thread(alembic.command.stamp, command, "r1")
    assert await observer.fetchval("SELECT count(*) FROM migration_progress") == 0


@pytest.mark.parametrize("statement", ["INSERT INTO t1 VALUES (9) RETURNING v", "SELECT nine()"])
async def test_an_answer_that_is_not_known_any_more_is_asked_for_in_vain(
    project: Project, database_url: str, observer: asyncpg.Connection, statement: str
) -> None:
    config = await with_three_rows(project, observer, database_url)
    await observer.execute("CREATE FUNCTION nine() RETURNS void LANGUAGE sql AS 'INSERT INTO t1 VALUES (9)'")
    path = await cut_short(project, config, statement)
    run = f"op.execute({statement!r})"
    path.write_text(path.read_text().replace(run, f"op.get_bind().exec_driver_sql({statement!r}).all()"))
    with pytest.raises(PartlyDoneError, match="it asks for what this statement returned to the try before"):
        await bring_to_head(config)
    path.write_text(path.read_text().replace(".all()", "").replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval("SELECT count(*) FROM t1 WHERE v = 9") == 1


async def test_what_only_postgresql_knows_to_commit_by_itself_runs_outside_of_a_transaction(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    config = await with_three_rows(project, observer, database_url)
    await observer.execute(
        "CREATE PROCEDURE more() LANGUAGE plpgsql AS "
        "'BEGIN UPDATE t1 SET v = v + 10; COMMIT; UPDATE t1 SET v = v + 1; END'"
    )
    path = await cut_short(project, config, "DO $$ BEGIN CALL more(); END $$")
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval("SELECT array_agg(v ORDER BY v) FROM t1") == [12, 13, 14]


async def test_an_index_without_a_name_is_recognised(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    config = await with_three_rows(project, observer, database_url)
    await observer.execute("CREATE INDEX mine ON t1 (v)")
    unnamed = "CREATE INDEX CONCURRENTLY ON t1 (v DESC)"
    indexes = "FROM pg_index WHERE indrelid = 't1'::regclass"
    names = f"SELECT array_agg(indexrelid::regclass::text || indisvalid ORDER BY 1) {indexes}"
    path = await cut_short(project, config, unnamed)
    await observer.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't1_v_idx'::regclass")
    with pytest.raises(MigrationFailedError, match="division by zero"):
        await bring_to_head(config)
    assert await observer.fetchval(names) == ["minetrue", "t1_v_idxtrue"], "built anew, once"
    path.write_text(path.read_text().replace("SELECT 1 / 0", "SELECT 1"))
    await bring_to_head(config)
    assert await observer.fetchval(names) == ["minetrue", "t1_v_idxtrue"]


async def test_a_partition_that_is_half_detached_is_detached(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add(
        'op.execute("CREATE TABLE parted (v int) PARTITION BY LIST (v)"); '
        'op.execute("CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)")'
    )
    config = project.config(database_url)
    await bring_to_head(config)
    reader = await asyncpg.connect(database_url)
    await reader.execute("BEGIN; SELECT FROM parted")
    detach = "ALTER TABLE parted DETACH PARTITION part CONCURRENTLY"
    detaching = asyncio.create_task(observer.execute(detach))
    await is_true(reader, "SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending")
    await reader.execute(f"SELECT pg_cancel_backend({observer.get_server_pid()})")
    with pytest.raises(asyncpg.QueryCanceledError):
        await detaching
    await reader.close()
    project.add(in_block(detach), "pass")
    await bring_to_head(config)
    assert await observer.fetchval("SELECT count(*) FROM pg_inherits WHERE inhrelid = 'part'::regclass") == 0


@pytest.mark.parametrize("broken", [False, True])
async def test_a_start_sees_a_revision_that_is_half_taken_back(
    project: Project, database_url: str, observer: asyncpg.Connection, broken: bool
) -> None:
    """The index is valid, or INVALID as a kill inside of DROP INDEX CONCURRENTLY leaves it."""
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    path = project.add(in_block(INDEX), in_block("ALTER TABLE t1 ADD COLUMN c int", "DROP INDEX CONCURRENTLY by_v"))
    config = project.config(database_url)
    await bring_to_head(config)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    gap = Gap(observer)
    await gap.open()
    with pytest.raises(MigrationFailedError, match="gap"):
        await asyncio.to_thread(alembic.command.downgrade, command, "r1")
    await gap.close()
    if broken:
        await observer.execute("CREATE INDEX by_v ON t1 (v)")
        await observer.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_v'::regclass")
    for _ in range(2):
        with pytest.raises(HalfTakenBackError, match=r"r2 was cut short .*alembic downgrade r1; it came to: DROP IND"):
            await bring_to_head(config)
    path.rename(path.with_suffix(".elsewhere"))
    with pytest.raises(HalfTakenBackError, match="r2 was cut short .* Finish it: gasket database rollback$"):
        await bring_to_head(config)
    path.with_suffix(".elsewhere").rename(path)
    await asyncio.to_thread(alembic.command.downgrade, command, "r1")
    assert await observer.fetchval("SELECT to_regclass('by_v') IS NULL")
    await observer.execute("ALTER TABLE t1 DROP COLUMN c")
    await asyncio.to_thread(alembic.command.upgrade, command, "head")
    await bring_to_head(config)


@pytest.mark.parametrize(
    ("statement", "why"),
    [("SELECT 1 / 0", "division by zero"), ("DROP INDEX CONCURRENTLY t1_pkey", "constraint t1_pkey .* requires it")],
)
async def test_a_way_back_that_fails_before_it_has_done_anything_leaves_the_revision_whole(
    project: Project, database_url: str, observer: asyncpg.Connection, statement: str, why: str
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int PRIMARY KEY)")')
    project.add(in_block(INDEX), in_block(statement, "DROP INDEX CONCURRENTLY by_v"))
    config = project.config(database_url)
    await bring_to_head(config)
    command = Config(str(project.ini), attributes={"read_config": lambda: config})
    with pytest.raises(MigrationFailedError, match=why):
        await asyncio.to_thread(alembic.command.downgrade, command, "r1")
    await bring_to_head(config)


@pytest.mark.parametrize("from_ledger", [False, True])
async def test_a_way_back_that_was_done_and_not_recorded_is_resumed(
    project: Project, database_url: str, observer: asyncpg.Connection, from_ledger: bool
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    newer = project.add(in_block(INDEX), in_block("DROP INDEX CONCURRENTLY by_v"))
    config = project.config(database_url)
    await bring_to_head(config)
    if from_ledger:
        newer.unlink()

    async def take_back() -> None:
        if from_ledger:
            await rollback(config, None, StepOptions())
        else:
            command = Config(str(project.ini), attributes={"read_config": lambda: config})
            await asyncio.to_thread(alembic.command.downgrade, command, "r1")

    gap = Gap(observer)
    await gap.open()
    with pytest.raises(MigrationFailedError, match="gap"):
        await take_back()
    await gap.close()
    assert await observer.fetchval("SELECT to_regclass('by_v') IS NULL")
    await take_back()
    assert (await ledger(observer))[-1] == ("r2", "downgrade")


@pytest.mark.parametrize(
    "other", ["(w)", "(v) WHERE v > 0", "(v DESC)", "USING hash (v)", "(v) WITH (fillfactor = 50)", "(v) INCLUDE (w)"]
)
async def test_an_index_of_that_name_that_is_another_one_is_not_taken_for_done(
    project: Project, database_url: str, observer: asyncpg.Connection, other: str
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int, w text)")')
    await bring_to_head(project.config(database_url))
    await observer.execute(f"CREATE INDEX by_v ON t1 {other}")
    project.add(in_block(INDEX), "pass")
    with pytest.raises(InvalidIndexError, match="it is another one: CREATE INDEX by_v ON public.t1"):
        await bring_to_head(project.config(database_url))
    assert (await ledger(observer))[-1] == ("r1", "upgrade")


@pytest.mark.parametrize(
    "alone",
    [
        f"{BLOCK}op.add_column('t1', sa.Column('c', sa.Integer()))",
        in_block("ALTER TABLE t1 ADD COLUMN c int"),
        in_block("DO $$ BEGIN ALTER TABLE t1 ADD COLUMN c int; END $$"),
    ],
)
async def test_no_reader_waits_behind_a_statement_of_an_autocommit_block(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, alone: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    path = project.add(alone, "pass")
    path.write_text(
        path.read_text().replace("from alembic import op", "import sqlalchemy as sa\nfrom alembic import op")
    )
    reader = await asyncpg.connect(database_url)
    await reader.execute("BEGIN; SELECT FROM t1")
    migrating = asyncio.create_task(bring_to_head(project.config(database_url)))
    try:
        async with asyncio.timeout(60):
            while "locks are taken (try 2" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await observer.execute("SET lock_timeout = '5s'")  # a reader waits for one try, of a tenth of a second
        for _ in range(50):
            await observer.execute("SELECT FROM t1")
            await asyncio.sleep(0.01)
    finally:
        await reader.close()
    await migrating
    assert await observer.fetchval(
        "SELECT count(*) FROM pg_attribute WHERE attname = 'c' AND attrelid = 't1'::regclass"
    )


async def test_an_index_that_is_built_concurrently_waits_for_as_long_as_it_takes(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says for whom."""
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    project.add(in_block(INDEX), "pass")
    writers = {one.get_server_pid(): one for one in [await asyncpg.connect(database_url) for _ in range(2)]}
    for writer in writers.values():
        await writer.execute("BEGIN; INSERT INTO t1 VALUES (1)")
    migrating = asyncio.create_task(bring_to_head(project.config(database_url, ddl_wait=0.1)))
    async with asyncio.timeout(90):
        while writers:  # it waits for one after the other, each for several times the limit of a try
            said = "revision r2 (1 of 1): waiting without a limit for pid {} ("
            if named := [pid for pid in writers if said.format(pid) in caplog.text]:
                assert not migrating.done()
                await writers.pop(named[0]).close()
            await asyncio.sleep(0.02)
    await migrating


@pytest.mark.parametrize(
    "statement",
    [
        "DO $$ BEGIN INSERT INTO done VALUES (1); COMMIT; ALTER TABLE t1 ADD COLUMN c int; END $$",
        "VACUUM FULL done, t1",
    ],
)
async def test_what_would_do_a_part_of_its_work_twice_waits_without_a_limit(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)"); op.execute("CREATE TABLE done (v int)")')
    await bring_to_head(project.config(database_url))
    project.add(in_block(statement), "pass")
    reader = await asyncpg.connect(database_url)
    await reader.execute("BEGIN; SELECT FROM t1")
    migrating = asyncio.create_task(bring_to_head(project.config(database_url, ddl_wait=0.1)))
    async with asyncio.timeout(90):
        while "revision r2 (1 of 1): waiting without a limit for pid" not in caplog.text:
            assert not migrating.done()
            await asyncio.sleep(0.02)
    assert "locks are taken" not in caplog.text
    await reader.close()
    await migrating
    assert await observer.fetchval("SELECT count(*) FROM done") == statement.count("INSERT")


@pytest.mark.parametrize(
    "ending",
    [
        'op.execute("COMMIT")',
        'op.execute("/* done */ end;")',
        'op.execute("ROLLBACK")',
        'op.execute("BEGIN")',
        "op.get_bind().commit()",
        "op.get_bind().rollback()",
    ],
)
async def test_a_revision_that_ends_its_transaction_is_stopped_before_it_does(
    project: Project, database_url: str, observer: asyncpg.Connection, ending: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    project.add(f'op.execute("ALTER TABLE t1 ADD COLUMN x int"); {ending}; op.execute("SELECT 1 / 0")', "pass")
    with pytest.raises(Exception, match="transaction") as refusal:
        await bring_to_head(project.config(database_url))
    assert "committed by itself" not in str(refusal.value)
    assert await observer.fetchval("SELECT count(*) FROM pg_attribute WHERE attname = 'x'") == 0


@pytest.mark.parametrize(
    ("then", "what"),
    [("SELECT 1 / 0", "division by zero"), ("SELECT 1", "it runs COMMIT or ROLLBACK by itself: leave transactions to")],
)
async def test_what_no_one_can_see_beforehand_is_said_as_it_is(
    project: Project, database_url: str, observer: asyncpg.Connection, then: str, what: str
) -> None:
    """Past SQLAlchemy, over the driver's own connection."""
    project.add()
    await bring_to_head(project.config(database_url))
    hidden = "await_only(op.get_bind().connection.driver_connection.execute('NIGEB ;TIMMOC'[::-1]))"
    path = project.add(
        f'op.execute("ALTER TABLE t1 ADD COLUMN x int"); {hidden}; op.execute("ALTER TABLE t1 ADD COLUMN y int"); '
        f'op.execute("{then}")',
        "pass",
    )
    path.write_text(
        path.read_text().replace(
            "from alembic import op", "from alembic import op\nfrom sqlalchemy.util import await_only"
        )
    )
    with pytest.raises(
        MigrationFailedError, match=f"failed: {what}.*; it has committed by itself: what it did before that stays"
    ):
        await bring_to_head(project.config(database_url))
    columns = "SELECT array_agg(attname::text ORDER BY 1) FROM pg_attribute WHERE attname IN ('x', 'y')"
    assert await observer.fetchval(columns) == ["x"]
    assert (await ledger(observer))[-1] == ("r1", "upgrade")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("ending", "stays"), [("TIMMOC", True), ("KCABLLOR", False)])
async def test_a_step_that_has_ended_its_transaction_is_not_recorded(
    project: Project, database_url: str, observer: asyncpg.Connection, ending: str, stays: bool, first: bool
) -> None:
    """Outside of a transaction whatever is written of it would stay."""
    if not first:
        project.add()
        await bring_to_head(project.config(database_url))
    hidden = f"await_only(op.get_bind().connection.driver_connection.execute('{ending}'[::-1]))"
    path = project.add(f'op.execute("CREATE TABLE x (id int)"); {hidden}', "pass")
    path.write_text(
        path.read_text().replace(
            "from alembic import op", "from alembic import op\nfrom sqlalchemy.util import await_only"
        )
    )
    said = "it has committed by itself" if stays else "nothing was changed" if first else "still at r1"
    with pytest.raises(MigrationFailedError, match=f"it runs COMMIT or ROLLBACK by itself.*{said}"):
        await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT to_regclass('x') IS NOT NULL") is stays
    before = [] if first else ["r1"]
    assert [row[0] for row in await observer.fetch("SELECT version_num FROM alembic_version")] == before
    assert await ledger(observer) == [(revision, "upgrade") for revision in before]


async def test_a_savepoint_is_no_end(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    project.add('with op.get_bind().begin_nested():\n        op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT to_regclass('t1') IS NOT NULL")
