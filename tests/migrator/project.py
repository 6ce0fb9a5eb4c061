"""A folder of migrations that a test writes, and readers of what the migrator recorded in a database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from gasket.migrator.config import MigratorConfig

ENV = """
from alembic import context
from gasket.migrator.runner import run_environment

run_environment(context, context.config.attributes.get("read_config"))
"""
FILE = '''"""{revision}"""
from alembic import op

revision: str = "{revision}"
down_revision: str | None = {down!r}
backward_compatible: bool = {compatible}
downgrade_is_empty: str = "where it is"


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''

CONCURRENTLY = (
    "with op.get_context().autocommit_block():\n"
    '        op.execute("CREATE {unique} INDEX CONCURRENTLY IF NOT EXISTS by_v ON t1 (v)")'
)
"""An upgrade that builds an index; `{unique}` is nothing or UNIQUE."""
BOOKS = [
    "alembic_version",
    "migration_background",
    "migration_catalog",
    "migration_failures",
    "migration_ledger",
    "migration_progress",
]
"""The tables of the migrator in the schema of the application."""
GATE = """
CREATE SCHEMA gate;
CREATE TABLE gate.closed AS SELECT true;
CREATE FUNCTION gate.wait() RETURNS void LANGUAGE plpgsql AS
    'BEGIN WHILE EXISTS (SELECT FROM gate.closed) LOOP PERFORM pg_sleep(0.01); END LOOP; END'
"""
"""A step that calls the function stays where it is until the table is empty."""


class Project:
    """A directory of migrations in a chain: `add` writes the next file."""

    def __init__(self, directory: Path) -> None:
        self.ini = directory / "alembic.ini"
        self.versions = directory / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        self.ini.write_text("[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n")
        (directory / "migrations" / "env.py").write_text(ENV)
        self.chain: list[str] = []

    def add(self, upgrade: str | None = None, downgrade: str | None = None, *, compatible: bool = True) -> Path:
        number = len(self.chain) + 1
        revision = f"r{number}"
        path = self.versions / f"2026_{number:04d}.py"
        path.write_text(
            FILE.format(
                revision=revision,
                down=self.chain[-1] if self.chain else None,
                compatible=compatible,
                upgrade=upgrade or f'op.execute("CREATE TABLE t{number} (id int PRIMARY KEY)")',
                downgrade=downgrade or f'op.execute("DROP TABLE t{number}")',
            )
        )
        self.chain.append(revision)
        return path

    def config(self, database_url: str, **changes: object) -> MigratorConfig:
        values = {
            "database_url": database_url,
            "release": "1.0",
            "ini": self.ini,
            "database_wait": 10,
            "lock_wait": 0.5,
        }
        return MigratorConfig(**{**values, **changes})  # type: ignore[arg-type]


async def tables(observer: asyncpg.Connection, schema: str = "public") -> list[str]:
    rows = await observer.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1 ORDER BY 1", schema)
    return [row[0] for row in rows]


async def ledger(observer: asyncpg.Connection) -> list[tuple[str, str]]:
    rows = await observer.fetch("SELECT revision, direction FROM migration_ledger ORDER BY id")
    return [(row[0], row[1]) for row in rows]


async def is_true(observer: asyncpg.Connection, query: str) -> None:
    """Wait until the query returns true."""
    while not await observer.fetchval(query):  # noqa: ASYNC110  # it happens in the database
        await asyncio.sleep(0.01)
