"""Once an hour, one replica compares the live database with what the revisions left."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import random
from contextlib import suppress

import asyncpg

from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import open_connection
from gasket.migrator.errors import MigratorError
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.gate.situation import read_situation
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.sessions import WATCHING, prepare_session

log = logging.getLogger("gasket.migrator")

_LOCK_CLASS = 0x67617364
"""The key of an advisory lock of its own: the replica that holds it looks."""
_FIRST_LOOK_WITHIN = (30.0, 90.0)
_LOOK_EVERY = 3600.0
_TAKE_OVER_EVERY = 300.0
_LOOK_LIMIT = 60.0
_MOST_SHOWN = 5
_FIND_DRIFT = "gasket.migrator.catalog.drift:find_drift"


class DriftWatch:
    """Compares as `status` does, over a direct connection that only reads.

    `count` is how many points differed at the last look; None while another replica looks, or nothing is known.
    `first` is from when to when the first look is, `every` the time between two, and `take_over` between two tries to
    become the replica that looks; all in seconds.
    """

    def __init__(
        self,
        config: MigratorConfig,
        *,
        first: tuple[float, float] = _FIRST_LOOK_WITHIN,
        every: float = _LOOK_EVERY,
        take_over: float = _TAKE_OVER_EVERY,
    ) -> None:
        self._config = config
        self._first = first
        self._every = every
        self._take_over = take_over
        self._told = frozenset[str]()
        self._complained = False
        self._task: asyncio.Task[None] | None = None
        self.count: int | None = None

    def start(self) -> None:
        """From now on, until `stop`. This replica serves."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave it to another replica; takes 2 s at most. Harmless without a start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        await asyncio.sleep(random.uniform(*self._first))  # a start is not slowed down
        while True:
            try:
                await self._look_while_alone()
            except (*DRIVER_ERRORS, MigratorError, ValueError) as error:
                log.info("drift was not looked for: %s", describe(error))
            self.count = None
            await asyncio.sleep(self._take_over)

    async def _look_while_alone(self) -> None:
        """Look again and again, for as long as the connection with the lock lives; return if another has it."""
        connection = await open_connection(self._config, migrating=True, activity=WATCHING)
        try:
            if await leads_through_pooler(connection):
                self._complain_of_pooler()
                return
            await prepare_session(connection, self._config.schema)
            lock = lock_arguments(self._config.schema, _LOCK_CLASS)
            if not await connection.fetchval(f"SELECT pg_try_advisory_lock({lock})"):
                return
            while True:
                async with asyncio.timeout(_LOOK_LIMIT):
                    found = await self._look(connection)
                self.count = None if found is None else len(found)
                if found is not None:
                    self._tell(found)
                await asyncio.sleep(self._every)
        finally:
            await close_connection(connection)

    async def _look(self, connection: asyncpg.Connection) -> list[str] | None:
        """The points; None where the schema is not at this release's head, before the comparison and after it."""
        find_drift = pkgutil.resolve_name(_FIND_DRIFT)  # one replica looks, and not at its start
        config = self._config
        revisions = configured_revisions(config.ini)
        before = await read_situation(connection, config.schema, revisions)
        found = await find_drift(connection, config, models=False)
        after = await read_situation(connection, config.schema, revisions)
        at_head = before.plan.state is SchemaState.AT_HEAD and after.database == before.database
        return found.differences if at_head else None

    def _tell(self, found: list[str]) -> None:
        """Once of each point, and once when all of them are gone."""
        new = [point for point in found if point not in self._told]
        if new:
            count = f"{len(found)} points" if len(found) > 1 else "1 point"
            shown = "; ".join(new[:_MOST_SHOWN]) + ("; and more" if len(new) > _MOST_SHOWN else "")
            sentence = f"The live database differs from what the revisions left, in {count}: {shown}."
            log.warning("%s See: %s", sentence, database_command("status"))
            self._config.notify("drift.detected", sentence, {"differences": found})
        elif self._told and not found:
            sentence = "The live database is again what the revisions left."
            log.info("%s", sentence)
            self._config.notify("drift.resolved", sentence, {"differences": []})
        self._told = frozenset(found)

    def _complain_of_pooler(self) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "drift is not looked for: %s leads through a connection pooler. Set GASKET_MIGRATION_DATABASE_URL to a "
                "direct connection.",
                self._config.migration_setting,
            )
