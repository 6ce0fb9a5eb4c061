"""Several revisions down and up again: what one step writes into rows is no change of anybody's for the next one."""

from __future__ import annotations

import asyncio
import re
from argparse import Namespace
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.config import MigratorConfig
from gasket.migrator.head import bring_to_head
from tests.migrator.archive_project import CHANGED_SINCE, EXISTS, GONE, ArchiveProject, rows
from tests.migrator.project import Project

TABLE = ("CREATE TABLE items (id int PRIMARY KEY, name text)", "DROP TABLE items")
SLUG = ("ALTER TABLE items ADD slug text;\nUPDATE items SET slug = lower(name)", "ALTER TABLE items DROP slug")
CODE = ("ALTER TABLE items ADD code text;\nUPDATE items SET code = upper(name)", "ALTER TABLE items DROP code")
FILLING = "INSERT INTO items VALUES (1, 'One', 'my-own-slug', 'MY-CODE'), (2, 'Two', NULL, '2')"
FILLED = [(1, "One", "my-own-slug", "MY-CODE"), (2, "Two", None, "2")]
ITEMS = "SELECT id, name, slug, code FROM items ORDER BY id"


async def at_head(project: ArchiveProject, observer: asyncpg.Connection, *steps: tuple[str, str]) -> None:
    for step in steps:
        project.step(*step)
    await project.up()
    await observer.execute(FILLING)


@pytest.mark.parametrize("target", ["r2", "r1", "base"])
async def test_everything_is_as_it_was(project: ArchiveProject, observer: asyncpg.Connection, target: str) -> None:
    """At `base` the table is made anew: another oid, other numbers of columns, other versions of rows."""
    made = ("CREATE TABLE items (gone int, id int PRIMARY KEY, name text);\nALTER TABLE items DROP gone", TABLE[1])
    await at_head(project, observer, made, SLUG, CODE)
    for _ in range(2):
        await project.down(target)
        await project.up()
        assert await rows(observer, ITEMS) == FILLED


async def test_step_by_step_it_is_as_it_was(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    """With a revision in between that has nothing to do with the table."""
    await at_head(project, observer, TABLE, SLUG, ("CREATE TABLE other (id int)", "DROP TABLE other"), CODE)
    for _ in range(4):
        await project.down()
    for number in range(1, 5):
        await project.up(f"r{number}")
    assert await rows(observer, ITEMS) == FILLED


async def test_what_downgrades_write_is_no_change_either(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    """An UPDATE, a type that writes the table anew, rows that go, an UPDATE that is all there is."""
    await at_head(
        project,
        observer,
        TABLE,
        ("ALTER TABLE items ADD slug text", "UPDATE items SET name = name || '!';\nALTER TABLE items DROP slug"),
        ("ALTER TABLE items ALTER id TYPE bigint", "ALTER TABLE items ALTER id TYPE int"),
        ("SELECT 1", "TRUNCATE items"),
        ("SELECT 1", "UPDATE items SET name = name || '?'"),
        CODE,
    )
    await observer.execute("UPDATE items SET slug = 's' || id")
    await project.down("r1")
    assert await rows(observer, "SELECT * FROM items") == []
    await project.up()
    assert await rows(observer, "SELECT id, slug, code FROM items ORDER BY id") == [
        (1, "s1", "MY-CODE"),
        (2, "s2", "2"),
    ]


async def test_a_run_that_found_no_archived_values_sees_those_that_it_archives_later(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """The run asks the archive at the first step that writes rows, which is before the step that archives a column."""
    touched = ("SELECT 1", "UPDATE items SET name = name")
    await at_head(project, observer, TABLE, touched, SLUG, CODE, touched)
    await project.down("r1")
    await project.up()
    assert await rows(observer, ITEMS) == FILLED


async def test_in_partitions_everything_is_as_it_was(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    await at_head(
        project,
        observer,
        (f"{TABLE[0]} PARTITION BY RANGE (id);\nCREATE TABLE part PARTITION OF items DEFAULT", TABLE[1]),
        ("SELECT 1", "UPDATE part SET name = name"),
        SLUG,
        CODE,
    )
    for target in ("r2", "r1", "base"):
        await project.down(target)
        await project.up()
        assert await rows(observer, ITEMS) == FILLED


async def test_a_column_of_another_type_is_as_it_was(project: ArchiveProject, observer: asyncpg.Connection) -> None:
    wide = (
        "ALTER TABLE items ALTER name TYPE text",
        "ALTER TABLE items ALTER name TYPE varchar(2) USING left(name, 2)",
    )
    table = ("CREATE TABLE items (id int PRIMARY KEY, name varchar(2))", "DROP TABLE items")
    await at_head(project, observer, table, SLUG, wide, CODE)
    for target in ("r2", "r1", "base"):
        await project.down(target)
        await project.up()
        assert await rows(observer, ITEMS) == FILLED


@pytest.mark.parametrize(
    ("down", "changed_at", "up"),
    [("base", "r3", "r4"), ("base", "r2", "r4"), ("base", "r1", "r4"), ("r1", "r2", "r3"), ("r1", "r1", "r2")],
)
async def test_what_somebody_changes_on_the_way_stays_and_is_counted(
    project: ArchiveProject, observer: asyncpg.Connection, down: str, changed_at: str, up: str
) -> None:
    """Changed on the way down, before a step that hides it: of a column that went before, and of no other row."""
    await at_head(project, observer, TABLE, SLUG, ("SELECT 1", "UPDATE items SET name = name"), CODE)
    await project.down(changed_at)
    await observer.execute("UPDATE items SET name = 'Uno' WHERE id = 1")
    await project.down(down) if down != changed_at else None
    await project.up(up) if up != "r4" else None
    report = await project.up()
    [result] = report.put_back
    assert (result.name, result.rows, dict(result.left)) == ("public.items (code)", 1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT name, code FROM items ORDER BY id") == [("Uno", "UNO"), ("Two", "2")]
    slug = "uno" if changed_at == "r1" else "my-own-slug"
    assert await rows(observer, "SELECT slug FROM items ORDER BY id") == [(slug,), (None,)]


async def test_what_somebody_changes_on_the_way_up_stays_and_is_counted(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    await at_head(project, observer, TABLE, SLUG, CODE)
    await project.down("base")
    await project.up("r2")
    await observer.execute("UPDATE items SET name = 'Uno' WHERE id = 1; DELETE FROM items WHERE id = 2")
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (0, {CHANGED_SINCE: 1, GONE: 1})
    assert await rows(observer, ITEMS) == [(1, "Uno", "my-own-slug", "UNO")]


@pytest.mark.parametrize(("made", "downgrade"), [("", TABLE[1]), (TABLE[0], "TRUNCATE items")])
async def test_a_row_that_took_the_place_of_one_that_stays_is_another(
    project: ArchiveProject, observer: asyncpg.Connection, made: str, downgrade: str
) -> None:
    """What upgrade() inserts by itself: the same row to the last column, and one that was changed."""
    seeds = "INSERT INTO items VALUES (1, 'Seed'), (2, 'Two')"
    project.step(made or "SELECT 1", "SELECT 1")
    project.step(seeds if made else f"{TABLE[0]};\n{seeds}", downgrade)
    project.step(*CODE)
    await project.up()
    await observer.execute("UPDATE items SET name = 'Mine', code = 'own' || id WHERE id = 1; UPDATE items SET code = 2")
    await project.down("r1")
    first = await project.up("r2")
    assert dict(first.put_back[0].left) == {EXISTS: 1}
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})
    assert await rows(observer, "SELECT name, code FROM items ORDER BY id") == [("Seed", "SEED"), ("Two", "2")]


@pytest.mark.parametrize(
    "first", ["CREATE TABLE items (id int PRIMARY KEY, name text)", "UPDATE items SET name = name"]
)
async def test_an_autocommit_block_lets_writers_in_and_every_row_counts_as_changed(
    project: ArchiveProject, observer: asyncpg.Connection, first: str
) -> None:
    made_here = first.startswith("CREATE")
    project.step(*(TABLE if not made_here else ("SELECT 1", "SELECT 1")))
    project.step(
        f'python: op.execute("{first}")\nwith op.get_context().autocommit_block():\n    op.execute("SELECT 1")',
        TABLE[1] if made_here else "SELECT 1",
    )
    project.step(*CODE)
    await project.up()
    await observer.execute("INSERT INTO items VALUES (1, 'One', 'MY-CODE')")
    await project.down("r1")
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (0, {CHANGED_SINCE: 1})


async def test_a_step_that_has_nothing_to_do_with_the_table_does_not_wait_for_its_writers(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    await at_head(project, observer, TABLE, SLUG, ("CREATE TABLE other (id int)", "DROP TABLE other"), CODE)
    await project.down("r2")
    await observer.execute("BEGIN; UPDATE items SET name = 'Uno' WHERE id = 1")
    await project.up("r3", lock_timeout="50ms")
    await observer.execute("COMMIT")
    [result] = (await project.up()).put_back
    assert (result.rows, dict(result.left)) == (1, {CHANGED_SINCE: 1})


async def test_the_runner_tells_each_step_what_waits_for_later_ones(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    """Down through the files and, as by an older release, through the ledger; up by command, at once and one by one."""
    project = Project(tmp_path)
    config = project.config(database_url)
    for up, down in (TABLE, SLUG, CODE):
        project.add("\n    ".join(f'op.execute("{part}")' for part in up.split(";\n")), f'op.execute("{down}")')
    await bring_to_head(config)
    await observer.execute(FILLING)
    newer = {path: path.read_text() for path in sorted(project.versions.glob("*.py"))[1:]}
    for targets in (["head"], ["r2", "r3"]):
        for path in newer:
            path.unlink()
        assert await rollback(config, None, StepOptions()) == ["r3", "r2"]
        for path, text in newer.items():
            path.write_text(text)
        await asyncio.to_thread(command.downgrade, alembic(project, config), "base")
        for target in targets:
            await asyncio.to_thread(command.upgrade, alembic(project, config), target)
        assert await rows(observer, ITEMS) == FILLED


async def test_an_enums_new_value_survives_the_way_down_and_up(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """The recipe of docs/migration-recipes.md: the value stays where it was, for nothing takes it away."""
    recipes = (Path(__file__).parents[3] / "docs" / "migration-recipes.md").read_text()
    [add_value] = re.findall(r'op.execute\("(ALTER TYPE mood .*)"\)', recipes)
    project.step("CREATE TYPE mood AS ENUM ('sad')", "DROP TYPE mood")
    project.step(add_value, "python: pass")
    await project.up()
    await project.down()
    await project.up()
    assert await observer.fetchval("SELECT enum_range(NULL::mood)::text") == "{sad,glad}"


def a_key_to_rows_that_go(project: Project, validity: str) -> None:
    """r2 makes `teams`, and a foreign key to it from a column that was there before."""
    add = f"ALTER TABLE people ADD CONSTRAINT fk FOREIGN KEY (team) REFERENCES teams {validity}"
    drop = "ALTER TABLE people DROP CONSTRAINT fk"
    project.add('op.execute("CREATE TABLE people (id int PRIMARY KEY, team int)")', 'op.execute("DROP TABLE people")')
    project.add(
        f'op.execute("CREATE TABLE teams (id int PRIMARY KEY)")\n    op.execute("{add}")',
        f'op.execute("{drop}")\n    op.execute("DROP TABLE teams")',
    )
    if validity:
        project.add('op.execute("ALTER TABLE people VALIDATE CONSTRAINT fk")', f'op.execute("{drop}, {add[19:]}")')


def alembic(project: Project, config: MigratorConfig) -> Config:
    return Config(str(project.ini), attributes={"read_config": lambda: config})


@pytest.mark.parametrize("restore", [True, False])
async def test_an_upgrade_that_fails_for_want_of_archived_rows_names_the_archive(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, restore: bool
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    a_key_to_rows_that_go(project, "")
    await bring_to_head(config)
    await observer.execute("INSERT INTO teams VALUES (1), (2); INSERT INTO people VALUES (1, 2)")
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    by_command = alembic(project, config)
    by_command.cmd_opts = Namespace(x=[] if restore else ["restore=no"])
    with pytest.raises(CommandError) as failure:
        await asyncio.to_thread(command.upgrade, by_command, "head")
    for part in (
        "violates foreign key constraint",
        "comes back only after upgrade() (archive 1: 2 rows of public.teams)",
        "change the rows on which it fails, start again, and change them back",
    ):
        assert part in str(failure.value)
    assert "archive 1" in await observer.fetchval("SELECT error FROM migration_failures ORDER BY id DESC LIMIT 1")
    if restore:  # what it says to do
        await observer.execute("UPDATE people SET team = NULL")
        await asyncio.to_thread(command.upgrade, by_command, "head")
        await observer.execute("UPDATE people SET team = 2")


@pytest.mark.parametrize("constraint", ["ADD UNIQUE (code)", "ALTER code SET NOT NULL", "ADD CHECK (code < 'U')"])
async def test_values_that_the_archive_has_better_are_named_too(
    project: ArchiveProject, observer: asyncpg.Connection, constraint: str
) -> None:
    """What upgrade() computes is in the way of a constraint, which what people had written was not."""
    project.step(*TABLE)
    project.step(f"{CODE[0]};\nALTER TABLE items {constraint}", CODE[1])
    await project.up()
    await observer.execute("INSERT INTO items VALUES (1, 'Uno', 'A'), (2, 'Uno', 'B'), (3, NULL, 'C')")
    await project.down()
    with pytest.raises(DBAPIError) as failure:
        await project.up()
    [note] = failure.value.orig.__notes__  # type: ignore[union-attr]
    assert "only after upgrade() (archive 1: 3 rows of public.items (code))" in note


async def test_a_foreign_key_that_is_validated_by_the_next_revision_survives_the_way_down_and_up(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    """The recipe of docs/migration-recipes.md."""
    project = Project(tmp_path)
    config = project.config(database_url)
    a_key_to_rows_that_go(project, "NOT VALID")
    await bring_to_head(config)
    await observer.execute("INSERT INTO teams VALUES (1), (2); INSERT INTO people VALUES (1, 2)")
    for target in ("r2", "r1", "base"):
        await asyncio.to_thread(command.downgrade, alembic(project, config), target)
        await asyncio.to_thread(command.upgrade, alembic(project, config), "head")
        assert await rows(observer, "SELECT * FROM people") == [(1, 2)]
    assert await observer.fetchval("SELECT convalidated FROM pg_constraint WHERE conname = 'fk'")
