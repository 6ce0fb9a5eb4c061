"""Migrations of a test's own, driven by Alembic through the archive, as the runner drives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gasket.migrator.archive.keep import ArchiveReport, archiving
from gasket.migrator.archive.restore import RestoreReport, restore_archive, upgrade_restoring
from gasket.migrator.archive.schema import check_archive_rights
from gasket.migrator.archive.trial import Known, TrialStep
from gasket.migrator.sql.render import render
from gasket.migrator.synchronous import run_sync
from gasket.postgres.quoting import quote_identifier
from gasket.postgres.sessions import prepare_session
from tests.migrator.project import Project

ENV = """
from alembic import context

context.config.attributes["run"](context)
"""

# Why rows stay in the archive, as people read it.
CHANGED_SINCE = "its row was changed since, and has a value"
EXISTS = "another row has its key"
GONE = "its row is gone"
MISFIT = "a value does not fit the type of its column"
NO_PARTITION = "no partition takes it"
ORPHANED = "the row it refers to is gone"

Watch = Callable[[Connection], None]


@dataclass(kw_only=True)
class Run:
    """How one command is run, and what its steps reported."""

    url: str | None = None
    digest: str | None = "digest"
    archives: bool = True
    """Whether the rights to the archive are asked for first, as before a downgrade."""
    discard: bool = False
    strong: bool = False
    lock_timeout: str = "2s"
    before_real: Watch = lambda _connection: None
    """Called between the copy and the real downgrade, or between upgrade() and the end of its step."""
    known: Known = field(default_factory=Known)
    archived: list[ArchiveReport] = field(default_factory=list)
    restored: list[RestoreReport] = field(default_factory=list)


class ArchiveProject(Project):
    """`down` and `up` are Alembic's commands, each step wrapped in ours, on a connection of their own."""

    def __init__(self, directory: Path, url: str, schema: str = "public") -> None:
        super().__init__(directory)
        (directory / "migrations" / "env.py").write_text(ENV)
        self.url = url
        self.schema = schema

    def step(self, upgrade: str, downgrade: str) -> str:
        """The next revision; statements of SQL, separated by a blank line or `;` at the end of a line."""
        self.add(_statements(upgrade), _statements(downgrade))
        return self.chain[-1]

    async def up(self, revision: str = "head", **options: Any) -> RestoreReport:
        """`alembic upgrade`; the report of its last step."""
        run = Run(**options)
        await self.alembic(lambda config: command.upgrade(config, revision), run)
        return run.restored[-1]

    async def down(self, revision: str = "-1", **options: Any) -> ArchiveReport:
        """`alembic downgrade`; the report of its last step."""
        return (await self.down_to(revision, **options))[-1]

    async def down_to(self, revision: str, **options: Any) -> list[ArchiveReport]:
        """The same; the report of each step."""
        run = Run(**options)
        await self.alembic(lambda config: command.downgrade(config, revision), run)
        return run.archived

    async def restore(self, number: int) -> RestoreReport:
        """`archive restore NUMBER`."""
        found: list[RestoreReport] = []

        def put_back(connection: Connection) -> None:
            with connection.begin():
                found.append(restore_archive(connection, self.schema, number))

        await self.connected(put_back, Run())
        return found[0]

    async def alembic(self, work: Callable[[Config], None], run: Run) -> None:
        """A command whose steps are wrapped."""

        def in_greenlet(connection: Connection) -> None:
            def environment(context: Any) -> None:
                context.configure(
                    connection=connection, version_table_schema=self.schema, transaction_per_migration=True
                )
                self._wrap(context.get_context(), run)
                with context.begin_transaction():
                    context.run_migrations()

            work(Config(str(self.ini), attributes={"run": environment}))

        await self.connected(in_greenlet, run)

    async def connected(self, work: Callable[[Connection], None], run: Run) -> None:
        """Call `work` on a new session of the migrator's kind."""
        config = self.config(run.url or self.url, schema=self.schema)
        connection: asyncpg.Connection = await asyncpg.connect(config.migration_url, statement_cache_size=0)
        try:
            await prepare_session(connection, config.schema)
            if self.schema != "public":
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(self.schema)}")
            await connection.execute(f"SET lock_timeout = '{run.lock_timeout}'")
            if run.archives:
                await check_archive_rights(connection, self.schema)
            await run_sync(connection, work)
        finally:
            await connection.close(timeout=5)

    def _wrap(self, context: MigrationContext, run: Run) -> None:
        find_steps = context._migrations_fn
        assert find_steps is not None

        def wrapped(heads: Any, ctx: MigrationContext) -> Any:
            for step in find_steps(heads, ctx):
                step.migration_fn = self._attempt(context, step, run)
                yield step

        context._migrations_fn = wrapped

    def _attempt(self, context: MigrationContext, step: Any, run: Run) -> Callable[[], None]:
        real, revision = step.migration_fn, step.revision.revision

        def downgrade() -> None:
            with archiving(
                context,
                schema=self.schema,
                step=TrialStep(revision, render(step.revision.module.downgrade), real),
                digest=run.digest,
                release="1.0",
                discard=run.discard,
                strong=run.strong,
                known=run.known,
            ) as report:
                assert context.connection is not None
                run.before_real(context.connection)
                real()
            run.archived.append(report)

        def upgrade() -> None:
            def run_upgrade() -> None:
                real()
                assert context.connection is not None
                run.before_real(context.connection)

            run.restored.append(
                upgrade_restoring(
                    context,
                    schema=self.schema,
                    revision=revision,
                    digests=dict.fromkeys(self.chain[self.chain.index(revision) :], run.digest),
                    run_upgrade=run_upgrade,
                    render_upgrade=lambda: render(step.revision.module.upgrade),
                    restore=True,
                    strong=run.strong,
                )
            )

        return upgrade if step.is_upgrade else downgrade


async def there_and_back(
    project: ArchiveProject, observer: asyncpg.Connection, filling: str, *, meanwhile: str = ""
) -> RestoreReport:
    """To head and fill the tables; take the last revision back, let others do things `meanwhile`, apply it again.

    Returns the report of that last step.
    """
    await project.up()
    await observer.execute(filling)
    await project.down()
    if meanwhile:
        await observer.execute(meanwhile)
    return await project.up()


async def rows(observer: asyncpg.Connection, query: str) -> list[tuple[Any, ...]]:
    """What a query finds, as plain tuples."""
    return [tuple(row) for row in await observer.fetch(query)]


async def manifest(observer: asyncpg.Connection, archive: str = "gasket_archive") -> list[asyncpg.Record]:
    """The book of the archive, in the order in which it was written."""
    rows: list[asyncpg.Record] = await observer.fetch(f'SELECT * FROM "{archive}".manifest ORDER BY id')
    return rows


async def kept(observer: asyncpg.Connection, table: str, archive: str = "gasket_archive") -> list[tuple[Any, ...]]:
    """The rows that the newest archive has of a table, without the archive's own columns, sorted."""
    entry = [row for row in await manifest(observer, archive) if row["object_name"] == table][-1]
    rows = await observer.fetch(f'SELECT * FROM "{archive}"."{entry["stored_in"]}"')
    found = [tuple(value for name, value in row.items() if not name.startswith("gasket_")) for row in rows]
    return sorted(found, key=repr)


def _statements(sql: str) -> str:
    """Python for it; what begins with `python:` is taken as it is."""
    if sql.startswith("python:"):
        return "\n    ".join(sql.removeprefix("python:").strip().splitlines())
    parts = [part.strip() for part in sql.split(";\n") if part.strip()]
    return "\n    ".join(f"op.execute({part!r})" for part in parts) or "pass"
