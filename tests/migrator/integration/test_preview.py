"""What is shown before a downgrade is confirmed, and that the step then does just that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from alembic import command

from gasket.migrator.commands.preview import Preview, preview_downgrade
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import NotArchivedError
from gasket.migrator.gate.callers import Caller
from gasket.migrator.head import bring_to_head
from tests.migrator.archive_project import ArchiveProject, manifest
from tests.migrator.integration.test_archive_chains import alembic
from tests.migrator.project import Project


def add(project: Project, up: str, down: str) -> None:
    """A revision; its statements are separated by `;`."""
    parts = [[f"op.execute({part.strip()!r})" for part in sql.split(";")] for sql in (up, down)]
    project.add(*("\n    ".join(statements) for statements in parts))


async def shown(config: MigratorConfig, *, archived: bool = True, target: str = "-1") -> str:
    preview: Preview = await preview_downgrade(config, Caller.DOWNGRADE, target, tried=True)
    return preview.text(archived=archived)


@pytest.mark.parametrize(
    ("hangs_on_it", "named"),
    [
        (
            "CREATE TABLE other.orders (customer int CONSTRAINT to_customers REFERENCES customers)",
            "foreign key to_customers of other.orders",
        ),
        ("CREATE VIEW other.report AS SELECT id FROM customers", "view other.report"),
        (
            "CREATE MATERIALIZED VIEW other.report AS SELECT id FROM customers; "
            "CREATE VIEW other.of_report AS SELECT * FROM other.report",
            "materialized view other.report, view other.of_report",
        ),
        (
            "CREATE FUNCTION other.of(customers) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function other.of(customers)",
        ),
        (
            "CREATE TABLE other.t (id int DEFAULT nextval('customers_id_seq'))",
            "default of other.t.id",
        ),
        (
            "CREATE TABLE other.t (id int); CREATE POLICY p ON other.t USING (EXISTS (SELECT FROM customers))",
            "policy p of other.t",
        ),
        (
            "CREATE TABLE other.t (id int); CREATE RULE r AS ON INSERT TO other.t DO ALSO DELETE FROM customers",
            "rule r of other.t",
        ),
    ],
)
async def test_what_cascade_takes_along_is_named_in_the_preview_and_in_the_archive(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, hangs_on_it: str, named: str
) -> None:
    """Another application's; what the revision makes and drops itself is no surprise."""
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    add(
        project,
        "CREATE TABLE customers (id serial PRIMARY KEY, v int CHECK (v > 0)); CREATE TABLE own (c int); "
        "ALTER TABLE own ADD CONSTRAINT of_ours FOREIGN KEY (c) REFERENCES customers; "
        "CREATE VIEW our_view AS SELECT v FROM customers",
        "DROP VIEW our_view; ALTER TABLE own DROP CONSTRAINT of_ours; DROP TABLE customers CASCADE; DROP TABLE own",
    )
    await bring_to_head(config)
    await observer.execute(f"CREATE SCHEMA other; {hangs_on_it}")
    words = f"CASCADE also drops {named}: not archived; they come back only if upgrade() makes them"
    text = await shown(config)
    assert words in text.splitlines()
    assert "Copying" not in text  # there is no row
    assert words in await shown(config, archived=False)
    await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    assert words in [entry["problem"] for entry in await manifest(observer)]


async def test_what_goes_with_a_column_or_stays_is_not_taken_along(
    project: ArchiveProject, observer: asyncpg.Connection
) -> None:
    """Renamed, made anew, of another type, or of the column that is dropped."""
    project.step(
        "CREATE TABLE p (id int PRIMARY KEY);\n"
        "CREATE TABLE t (id int DEFAULT 1 CONSTRAINT a REFERENCES p, v int DEFAULT 2 CONSTRAINT b REFERENCES p);\n"
        "CREATE VIEW w AS SELECT 1 AS n;\nCREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT 1",
    )
    project.step(
        "SELECT 1",
        "ALTER TABLE t RENAME TO renamed;\nALTER TABLE renamed DROP v, ALTER id TYPE bigint;\n"
        "ALTER VIEW w RENAME TO x;\nALTER FUNCTION f RENAME TO g",
    )
    await project.up()
    assert (await project.down()).not_archived == ()


async def test_rows_that_the_role_may_not_see_are_not_counted_as_none(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> None:
    role = f"role_{uuid4().hex[:12]}"
    database = await observer.fetchval("SELECT quote_ident(current_database())")
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; GRANT CREATE ON DATABASE {database} TO {role};"
        f"GRANT ALL ON SCHEMA public TO {role}"
    )
    project = Project(tmp_path)
    config = project.config(url_with(database_url, user=role, password="secret-word"))
    project.add()
    add(
        project,
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY; "
        "ALTER TABLE t FORCE ROW LEVEL SECURITY; CREATE POLICY own ON t USING (id < 0)",
        "DROP TABLE t",
    )
    await bring_to_head(config)
    await observer.execute("INSERT INTO t SELECT generate_series(1, 5000); ANALYZE t")
    text = await shown(config)
    assert "table public.t: an unknown number of rows" in text
    assert "the step of revision r2 would be refused: row-level security" in text
    assert "Copying" not in text
    with pytest.raises(NotArchivedError):
        await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")
    await observer.execute("ALTER TABLE t NO FORCE ROW LEVEL SECURITY")
    assert "table public.t: about 5,000 rows" in await shown(config)
    await observer.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_no_archive_is_promised_where_the_step_is_refused(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    project.add(
        None,
        'with op.get_context().autocommit_block():\n        op.execute("ALTER TABLE t2 RENAME TO t3")\n'
        '        op.execute("DROP TABLE t3")',
    )
    await bring_to_head(config)
    await observer.execute("INSERT INTO t2 VALUES (1)")
    text = await shown(config)
    assert "the step of revision r2 would be refused: it takes data of public.t2 away and has an autocommit" in text
    assert "Copying" not in text
    with pytest.raises(NotArchivedError, match="it takes data of public.t2 away and has an autocommit block"):
        await asyncio.to_thread(command.downgrade, alembic(project, config), "r1")


@pytest.mark.parametrize(
    "downgrade", ["UPDATE keys SET v = 1", "DELETE FROM keys WHERE id = 1", "ALTER TABLE keys DROP w"]
)
async def test_a_copy_is_announced_only_where_rows_are_copied(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, downgrade: str
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    add(project, "CREATE TABLE keys (id int PRIMARY KEY, v int, w int)", "DROP TABLE keys")
    add(project, "SELECT 1", downgrade)
    await bring_to_head(config)
    if "w" not in downgrade.split():
        await observer.execute("INSERT INTO keys VALUES (1, 2, 3)")
        assert "1 row of public.keys: not archived" in await shown(config)
    assert "Copying" not in await shown(config)
    await observer.execute("INSERT INTO keys VALUES (2, 2, 3)")
    assert ("Copying" in await shown(config)) is ("w" in downgrade.split())


async def test_a_lock_that_is_held_is_told_in_plain_words(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    project.add()
    await bring_to_head(config)
    psql = await asyncpg.connect(database_url, server_settings={"application_name": "psql"})
    await psql.execute("BEGIN; SELECT * FROM t2")
    held = f"pid {psql.get_server_pid()} (psql) holds t2, so the step could not be tried out."
    assert (await shown(config)).splitlines()[-1] == f"{held} Its rows will be archived in any case."
    assert (await shown(config, archived=False)).splitlines()[-1] == held
    await psql.close()
    assert "about 0 rows" in await shown(config)


@pytest.mark.parametrize(
    ("downgrade", "says"),
    [
        (
            'with op.get_context().autocommit_block():\n        op.execute("DROP TABLE t1")',
            "r2 has an autocommit block: if it takes rows away, it will be refused, because they cannot be archived.",
        ),
        ('[op.execute("DROP TABLE t1") for _ in op.get_bind().execute(sa.text("SELECT 1"))]', "or it will be refused."),
    ],
)
async def test_what_will_be_refused_is_not_promised_to_be_archived(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, downgrade: str, says: str
) -> None:
    """Neither while a lock is held nor after it; the step says the same."""
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    path = project.add("pass", downgrade)
    path.write_text(path.read_text().replace("from alembic", "import sqlalchemy as sa\nfrom alembic"))
    await bring_to_head(config)
    psql = await asyncpg.connect(database_url)
    await psql.execute("BEGIN; SELECT * FROM t1")
    assert (await shown(config)).endswith(says)
    await psql.close()
    if "autocommit" in downgrade:
        assert "would be refused: it takes data of public.t1 away" in await shown(config)


async def test_a_step_that_fails_when_it_is_tried_says_why_without_values(tmp_path: Path, database_url: str) -> None:
    project = Project(tmp_path)
    config = project.config(database_url)
    project.add()
    add(project, "SELECT 1", "ALTER TABLE nosuch ADD v int")
    await bring_to_head(config)
    assert (await shown(config)).splitlines()[-1] == (
        'The step fails when it is tried out: relation "nosuch" does not exist [SQLSTATE 42P01]'
    )
