"""Generated migrations, each of one table, to be applied by Gasket's runner and by plain Alembic alike."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from gasket.migrator.config import MigratorConfig

REPOSITORY = Path(__file__).parents[1]

_INI = "[alembic]\nscript_location = %(here)s/{folder}\npath_separator = os\n"

# The door without the house: the runner, with nothing of the application imported.
_RUNNER_ENV = """\
import os
from pathlib import Path

from alembic import context

from gasket.migrator.config import MigratorConfig
from gasket.migrator.runner import run_environment


def read_config():
    ini = Path(context.config.config_file_name)
    return MigratorConfig(database_url=os.environ["DATABASE_URL"], release="bench", ini=ini)


run_environment(context, read_config)
"""

# What a project has that follows Alembic's documentation for asyncio, with a transaction for each migration.
_PLAIN_ENV = """\
import asyncio
import os

import asyncpg
from alembic import context
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine


def migrate(connection):
    context.configure(connection=connection, target_metadata=None, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate():
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(os.environ["DATABASE_URL"]),
        poolclass=NullPool,
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if "connection" in context.config.attributes:
    migrate(context.config.attributes["connection"])
else:
    asyncio.run(connect_and_migrate())
"""

_REVISION = '''\
"""Add table{number}

Revises: {down}
Created: 2026-01-01 00:00:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "{revision}"
down_revision: str | None = {down!r}
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "table{number}",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_table{number}")),
    )


def downgrade() -> None:
    op.drop_table("table{number}")
'''


class Project:
    """A folder with `count` migrations and three ini files, whose env.py differ and whose migrations are the same.

    `gasket` has Gasket's own env.py, `runner` one that imports the migrator alone, `plain` one without Gasket.
    """

    def __init__(self, folder: Path, count: int) -> None:
        versions = folder / "versions"
        versions.mkdir(parents=True)
        environments = {
            "gasket": (REPOSITORY / "migrations" / "env.py").read_text(),
            "runner": _RUNNER_ENV,
            "plain": _PLAIN_ENV,
        }
        for name, environment in environments.items():
            location = folder / name
            location.mkdir()
            (location / "env.py").write_text(environment)
            (location / "versions").symlink_to(versions)
            (folder / f"{name}.ini").write_text(_INI.format(folder=name))
        write_revisions(versions, count)
        self.folder = folder
        self.gasket, self.runner, self.plain = (folder / f"{name}.ini" for name in environments)

    def config(self, database_url: str) -> MigratorConfig:
        """For `bring_to_head` on these files."""
        return MigratorConfig(database_url=database_url, release="bench", ini=self.runner)

    async def upgrade_plainly(self, database_url: str) -> None:
        """What `bring_to_head` does, by Alembic alone: connect, `upgrade head`, close."""

        def upgrade(connection: Connection) -> None:
            command.upgrade(Config(str(self.plain), attributes={"connection": connection}), "head")

        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url), poolclass=NullPool
        )
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
        await engine.dispose()


def write_revisions(versions: Path, count: int, *, down: str | None = None) -> str | None:
    """Write so many migrations on top of the revision `down`; returns the newest one."""
    for number in range(1, count + 1):
        revision = f"{number:012x}"
        path = versions / f"2026_01_01_{number:04d}_add_table{number}.py"
        path.write_text(_REVISION.format(number=number, revision=revision, down=down))
        down = revision
    return down
