"""Databases that our runner did not build: what they lack, what they have beyond, and when they are ours at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.catalog.difference import Difference, compare_catalogs
from gasket.migrator.catalog.read import read_catalog
from gasket.migrator.errors import AdoptionError, ScratchDatabaseError
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.names_made import names_made
from gasket.migrator.scratch.adopt import compare_with_revision
from tests.migrator.project import Project

OURS = [
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL, mood mood DEFAULT 'good', CHECK (name <> ''))",
    "CREATE INDEX item_name ON item (name)",
    "CREATE TABLE part (id int GENERATED ALWAYS AS IDENTITY, item_id int REFERENCES item)",
    "COMMENT ON COLUMN item.name IS 'what it is called'",
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    for statement in OURS:
        project.add(f"op.execute({statement!r})")
    return project


@pytest.fixture
async def live(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection: asyncpg.Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def role(live: asyncpg.Connection) -> AsyncIterator[str]:
    name = f"role_{uuid4().hex[:12]}"
    await live.execute(f"CREATE ROLE {name}")
    yield name
    await live.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def revisions_of(project: Project) -> Revisions:
    return configured_revisions(project.ini)


async def against(project: Project, database_url: str, revision: str = "r5") -> Difference:
    difference, _expected = await compare_with_revision(project.config(database_url), revisions_of(project), revision)
    return difference


async def test_the_same_built_by_hand_fits(project: Project, database_url: str, live: asyncpg.Connection) -> None:
    for statement in OURS:
        await live.execute(statement)
    found = await against(project, database_url)
    assert found.fits
    assert found.lines() == []


async def test_an_earlier_revision_can_be_meant(project: Project, database_url: str, live: asyncpg.Connection) -> None:
    for statement in OURS[:2]:
        await live.execute(statement)
    assert (await against(project, database_url, "r2")).fits
    assert (await against(project, database_url, "r3")).lines() == [
        "missing    index public.item_name: CREATE INDEX item_name ON public.item USING btree (name)"
    ]


async def test_what_is_missing_extra_or_different_is_said_line_by_line(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    await live.execute(
        "CREATE TYPE mood AS ENUM ('good'); CREATE TABLE item (mood mood DEFAULT 'good', note text, "
        "name varchar(9) NOT NULL, id serial PRIMARY KEY); CREATE INDEX item_name ON item (name);"
        "CREATE TABLE foreign_table (id serial PRIMARY KEY, a int UNIQUE); COMMENT ON TABLE foreign_table IS 'theirs';"
        "CREATE VIEW foreign_view AS SELECT 1 AS one"
    )
    found = await against(project, database_url)
    assert not found.fits
    assert found.lines() == [
        "missing    table public.part",
        "missing    comment public.item.name: what it is called",
        "missing    constraint public.item.item_name_check: CHECK ((name <> ''::text))",
        "different  column public.item.name: is 'character varying(9) NOT NULL', the revisions make it 'text NOT NULL'",
        """different  type public.mood: is "ENUM ('good')", the revisions make it "ENUM ('good', 'bad')\"""",
        "extra      table public.foreign_table",
        "extra      view public.foreign_view",
        "extra      column public.item.note: text",
    ]


async def test_one_difference_is_enough(project: Project, database_url: str, live: asyncpg.Connection) -> None:
    for statement in [*OURS, "ALTER TABLE item ALTER mood SET DEFAULT 'bad'"]:
        await live.execute(statement)
    found = await against(project, database_url)
    assert (found.fits, found.missing, found.extra) == (False, (), ())
    assert [(entry.kind, entry.name) for entry in found.different] == [("column", "public.item.mood")]


async def test_extra_objects_and_rights_of_others_are_no_reason_to_refuse(
    project: Project, database_url: str, live: asyncpg.Connection, role: str
) -> None:
    for statement in OURS:
        await live.execute(statement)
    await live.execute(
        f"CREATE TABLE theirs (); GRANT SELECT, INSERT ON item TO {role}; ALTER TABLE part OWNER TO {role}"
    )
    found = await against(project, database_url)
    assert found.fits
    assert found.lines()[1:] == [f"extra      privileges public.item to {role}: INSERT, SELECT"]
    assert found.lines()[0].startswith("extra      table public.theirs")


async def test_a_right_that_a_revision_gives_must_be_there(
    project: Project, database_url: str, live: asyncpg.Connection, role: str
) -> None:
    project.add(f'op.execute("GRANT SELECT, UPDATE ON item TO {role}")')
    for statement in OURS:
        await live.execute(statement)
    await live.execute(f"GRANT UPDATE, DELETE ON item TO {role}")
    found = await against(project, database_url, "r6")
    assert not found.fits
    assert found.lines() == [
        f"missing    privileges public.item to {role}: SELECT",
        f"extra      privileges public.item to {role}: DELETE",
    ]


async def test_a_renamed_columns_not_null_is_no_difference(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    """PostgreSQL 18 names that constraint, by the first name that the column had."""
    for statement in [*OURS, "ALTER TABLE part ALTER id DROP IDENTITY, ADD other int NOT NULL"]:
        await live.execute(statement)
    await live.execute("ALTER TABLE part DROP id; ALTER TABLE part RENAME other TO id")
    await live.execute("ALTER TABLE part ALTER id ADD GENERATED ALWAYS AS IDENTITY")
    assert (await against(project, database_url)).lines() == []


async def test_what_is_in_no_schema_or_in_another_one_must_be_there_too(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    extension = await live.fetchval(
        "SELECT name FROM pg_available_extensions WHERE name IN ('vector', 'citext') ORDER BY name LIMIT 1"
    )
    more = [
        f"CREATE EXTENSION {extension}",
        "CREATE SCHEMA app CREATE TABLE log (id int)",
        "CREATE PUBLICATION news FOR TABLE item",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    ]
    for statement in more:
        project.add(f"op.execute({statement!r})")
    for statement in OURS:
        await live.execute(statement)
    found = await against(project, database_url, "r9")
    assert not found.fits
    assert found.lines() == [
        "missing    table app.log",
        f"missing    extension {extension}",
        "missing    publication news",
        "missing    schema app",
        "different  privileges schema public to PUBLIC: is 'USAGE', the revisions make it nothing",
    ]
    for statement in more:
        await live.execute(statement)
    assert (await against(project, database_url, "r9")).lines() == []


async def test_what_an_empty_database_has_is_not_asked_of_the_live_one(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    for statement in [*OURS, "REVOKE ALL ON SCHEMA public FROM PUBLIC", "COMMENT ON SCHEMA public IS 'ours'"]:
        await live.execute(statement)
    assert (await against(project, database_url)).lines() == []


async def test_the_given_scratch_database_is_used_and_nothing_of_it_compared(
    project: Project, database_url: str, live: asyncpg.Connection, make_database: Callable[[], Awaitable[str]]
) -> None:
    for statement in OURS:
        await live.execute(statement)
    config = project.config(database_url, scratch_url=await make_database())
    difference, _expected = await compare_with_revision(config, revisions_of(project), "r5")
    assert difference.fits


async def test_another_schema(project: Project, database_url: str, live: asyncpg.Connection) -> None:
    await live.execute("CREATE SCHEMA mine; SET search_path = mine")
    for statement in OURS:
        await live.execute(statement)
    config = project.config(database_url, schema="mine")
    difference, _expected = await compare_with_revision(config, revisions_of(project), "r5")
    assert difference.lines() == []


async def test_revisions_that_cannot_be_built_are_named(project: Project, database_url: str) -> None:
    project.add('op.execute("SELECT 1/0")')
    with pytest.raises(ScratchDatabaseError, match="revision r6 cannot be built on it .*division by zero") as refusal:
        await against(project, database_url, "r6")
    assert "on the scratch database" in str(refusal.value)
    assert "the live one was not changed" in str(refusal.value)
    for part in ("start again", "the schema is", "There is no scratch database"):
        assert part not in str(refusal.value), part


async def test_two_open_connections_can_be_compared(
    live: asyncpg.Connection, make_database: Callable[[], Awaitable[str]]
) -> None:
    other = await asyncpg.connect(await make_database())
    try:
        await other.execute("CREATE TABLE t (id int)")
        found = compare_catalogs(
            await read_catalog(live, "public"), await read_catalog(other, "public"), schemas={"public"}
        )
        assert found.lines() == ["missing    table public.t"]
    finally:
        await other.close()


async def test_the_names_of_revisions_are_known_without_a_database(project: Project, database_url: str) -> None:
    project.add(
        "op.create_table('made', sa.Column('x', sa.Enum('a', name='letter')))".join(["import sqlalchemy as sa; ", ""])
    )
    project.add(
        "if op.get_bind().execute(sa.text('SELECT 1')).scalar():\n"
        "        op.create_table('asked_first')\n"
        "        op.execute('CREATE SEQUENCE asked_too')".join(["import sqlalchemy as sa\n    ", ""])
    )
    names = names_made(project.config(database_url), revisions_of(project))
    assert names == {"mood", "item", "part", "made", "letter", "asked_first", "asked_too"}


async def test_a_collision_is_a_name_of_ours_that_is_there_already(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    config, revisions, request = project.config(database_url), revisions_of(project), Request(Caller.ENSURE_VERSION)
    await pass_gate(live, config, revisions, request)
    await live.execute("CREATE TABLE theirs (); CREATE SCHEMA other; CREATE TABLE other.item ()")
    await pass_gate(live, config, revisions, request)
    await live.execute("CREATE DOMAIN mood AS int; CREATE SEQUENCE part")
    with pytest.raises(AdoptionError, match=r"no alembic_version, but mood, part, which .* are there already"):
        await pass_gate(live, config, revisions, request)


async def test_what_the_runner_has_built_itself_fits(project: Project, database_url: str) -> None:
    await bring_to_head(project.config(database_url))
    assert (await against(project, database_url)).lines() == []


async def test_an_empty_schema_is_asked_once_and_no_migration_is_loaded(
    project: Project, database_url: str, live: asyncpg.Connection
) -> None:
    revisions = revisions_of(project)
    for file in revisions.values():
        file.path.write_text("raise RuntimeError")
    await pass_gate(live, project.config(database_url), revisions, Request(Caller.ENSURE_VERSION))
