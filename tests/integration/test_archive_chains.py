"""Several revisions down and up again: what one step writes into rows is no change of anybody's for the next one."""

from __future__ import annotations

import asyncpg
import pytest

from gasket.migrator.archive.fitting import CHANGED_SINCE, EXISTS, GONE
from tests.integration.archive_project import ArchiveProject, rows

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
