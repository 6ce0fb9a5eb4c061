"""What people and programs may ask of the schema, and do to it, while a replica serves. Each has a limit.

`gasket database` does the same from a command line. What applies revisions or reads SQL is imported at its first use.
"""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from gasket.migrator.archive.entries import Archive
from gasket.migrator.archive.look import ArchivedRows, read_archived_rows
from gasket.migrator.archive.manifest import list_archives
from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.chain import Chain, Link, Sql, Step, read_chain, read_step
from gasket.migrator.commands.status import StatusReport, report_on
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import looking
from gasket.migrator.errors import MigratorError, NotThereError
from gasket.migrator.ledger.background import Work
from gasket.migrator.ledger.read import StoredRevision, read_stored
from gasket.migrator.monitor import SchemaMonitor

if TYPE_CHECKING:
    from gasket.migrator.sql.render import Rendering

_DATABASE_WAIT = 3.0
_CHANGE_LIMIT = 10.0
_PLAN_LIMIT = 60.0
_LARGEST_NUMBER = 2**63 - 1
_MOST_RUNS = 50

_FORECAST = "gasket.migrator.commands.plan_forecast:forecast_pending"
_RENDER = "gasket.migrator.sql.render:render"
_FROM_JSON = "gasket.migrator.sql.render:from_json"
_LOAD_SCRIPTS = "gasket.migrator.revisions.loading:load_scripts"
_NAMING_THE_FILE = "gasket.migrator.revisions.loading:naming_the_file"
_CHANGE_WORK = "gasket.migrator.commands.background:change_work"

# Alembic's `op` is one for the process: only one thread at a time may call revisions. A thread outlives a request that
# is cancelled, so the lock is the thread's, and the next one waits for it with a limit.
_calling_revisions = Lock()


class SchemaOperations:
    """The verbs. `monitor` has the connection over which the application's role looks. `turn_wait` is in seconds: so
    long a plan, or the SQL of a revision, waits for another one to be made.

    Raises of each verb, beside what it names:
        MigratorError: it is refused, in a sentence.
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError: the database is away.
    """

    def __init__(self, config: MigratorConfig, monitor: SchemaMonitor, *, turn_wait: float = 5.0) -> None:
        self._config = replace(config, database_wait=_DATABASE_WAIT)
        self._monitor = monitor
        self._turn_wait = turn_wait

    async def report(self, *, rows: int, drift: bool) -> StatusReport:
        """What `gasket database status` says too; `rows` bounds the history, `drift` asks for it."""
        return await self._monitor.ask(
            lambda connection, revisions: report_on(connection, self._config, revisions, rows=rows, drift=drift)
        )

    async def chain(self, *, limit: int, offset: int = 0) -> Chain:
        """The revisions, newest first."""
        schema = self._config.schema
        return await self._monitor.ask(
            lambda connection, revisions: read_chain(connection, schema, revisions, limit=limit, offset=offset)
        )

    async def step(self, revision: str) -> Step:
        """One revision: what the ledger says of it, and its SQL.

        Raises:
            NotThereError: neither the files nor the database know it.
        """
        schema = self._config.schema
        found = await self._monitor.ask(
            lambda connection, revisions: read_step(connection, schema, revisions, revision, limit=_MOST_RUNS)
        )
        if found is None:
            raise NotThereError(
                problem=f"There is no revision {revision[:100]!r}", mend="GET /api/migrations/revisions has all of them"
            )
        link, runs = found
        upgrade, downgrade = await self._sql(link)
        return Step(link=link, runs=runs, upgrade=upgrade, downgrade=downgrade)

    async def plan(self) -> Any:
        """The `Forecast` of what is pending, as `gasket database plan` makes it. It may make a scratch database."""
        return await asyncio.to_thread(self._plan)

    async def pause(self, number: int) -> Work:
        """Pause background work; it ends the batch under way."""
        return await self._change(number, "pause")

    async def resume(self, number: int) -> Work:
        """Let a replica go on with background work."""
        return await self._change(number, "resume")

    async def archives(self) -> list[Archive]:
        """What downgrades have taken away and kept, newest first."""
        schema = self._config.schema
        async with looking(self._config, migrating=True, schema=archive_schema(schema)) as connection:
            return await list_archives(connection, schema)

    async def archived_rows(
        self, number: int, entry: int, *, cursor: str | None, limit: int, hidden: Collection[str]
    ) -> ArchivedRows:
        """Rows that an entry of an archive keeps, as `read_archived_rows` has them.

        Raises:
            NotThereError: there is none.
        """
        schema = self._config.schema
        async with looking(self._config, migrating=True, schema=archive_schema(schema)) as connection:
            return await read_archived_rows(
                connection, schema, number, entry, cursor=cursor, limit=limit, hidden=hidden
            )

    async def _change(self, number: int, change: Literal["pause", "resume"]) -> Work:
        if not 0 < number <= _LARGEST_NUMBER:
            raise NotThereError(
                problem=f"There is no background work {number}", mend="GET /api/migrations has what is unfinished"
            )
        change_work = await asyncio.to_thread(pkgutil.resolve_name, _CHANGE_WORK)
        async with asyncio.timeout(_CHANGE_LIMIT):
            work: Work = await change_work(self._config, number, change)
        return work

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not _calling_revisions.acquire(timeout=self._turn_wait):
            raise MigratorError("This replica is making a plan already; nothing was changed. Try again in a minute.")
        try:
            yield
        finally:
            _calling_revisions.release()

    def _plan(self) -> Any:
        """In a thread with a loop of its own: Alembic and the rules keep a loop busy, and requests must not wait."""

        async def within_limit() -> Any:
            async with asyncio.timeout(_PLAN_LIMIT):
                return await pkgutil.resolve_name(_FORECAST)(self._config)

        with self._alone():
            try:
                return asyncio.run(within_limit())
            except TimeoutError:
                raise MigratorError(
                    f"The plan was not made within {_PLAN_LIMIT:.0f} s; nothing was changed. "
                    "Make it from a command line: gasket database plan"
                ) from None

    async def _sql(self, link: Link) -> tuple[Sql | None, Sql | None]:
        if link.has_file:
            return await asyncio.to_thread(self._render, link.revision)
        stored: dict[str, StoredRevision] = await self._monitor.ask(
            lambda connection, _revisions: read_stored(connection, self._config.schema)
        )
        from_json = pkgutil.resolve_name(_FROM_JSON)
        kept = stored.get(link.revision)
        return None, _text_of(from_json(kept.downgrade_sql)) if kept and kept.downgrade_sql else None

    def _render(self, revision: str) -> tuple[Sql, Sql]:
        with self._alone():
            with pkgutil.resolve_name(_NAMING_THE_FILE)():
                module = self._scripts.get_revision(revision).module
            render = pkgutil.resolve_name(_RENDER)
            both = [render(function, metadata=self._config.metadata) for function in (module.upgrade, module.downgrade)]
        upgrade, downgrade = map(_text_of, both)
        return upgrade, downgrade

    @cached_property
    def _scripts(self) -> Any:
        """Alembic's ScriptDirectory. The files do not change under a process."""
        return pkgutil.resolve_name(_LOAD_SCRIPTS)(self._config.ini)


def _text_of(rendering: Rendering) -> Sql:
    return Sql(statements=[statement.sql for statement in rendering.statements], reason=rendering.reason)
