"""The part of a serving replica that does background work, while no other replica does."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

import asyncpg

from gasket.migrator.background.worker_lock import try_worker_lock
from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import open_connection
from gasket.migrator.ledger.background import OPEN, State, Work, read_works
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.sessions import WORKING, prepare_session

log = logging.getLogger("gasket.migrator")

_LOCK_TIMEOUT = "100ms"
"""How long the work waits for a lock that another session has, before it makes room."""

_FIRST_LOOK_AFTER = 2.0
_LOOK_EVERY = 5.0
_TAKE_OVER_EVERY = 1.0
_PAUSE_AFTER_ERROR = 60.0
_WORK_ON = "gasket.migrator.background.working:work_on"


class BackgroundWorker:
    """Looks every few seconds whether there is work, and does it where no other replica does.

    `look` says what is open, without a connection of the worker's own; None where the database does not answer.
    """

    def __init__(self, config: MigratorConfig, look: Callable[[], Awaitable[Collection[Work] | None]]) -> None:
        self._config = config
        self._look = look
        self._task: asyncio.Task[None] | None = None
        self._told: str | None = None

    def start(self) -> None:
        """From now on, until `stop`. This replica serves."""
        self._task = asyncio.create_task(self._run())

    def leave(self) -> None:
        """Leave the work to another replica at once. The batch under way is rolled back."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """The same, and wait until the connection is closed, which takes 2 s at most; harmless without a start."""
        self.leave()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        await asyncio.sleep(_FIRST_LOOK_AFTER)  # a start is not slowed down
        while True:
            pause = _LOOK_EVERY
            try:
                if await self._look():
                    pause = await self._try_to_work()
            except Exception:  # a mistake of ours here must not end the work for as long as this replica serves
                log.exception("background work was ended by an unexpected error")
                pause = _PAUSE_AFTER_ERROR
            await asyncio.sleep(pause)

    async def _try_to_work(self) -> float:
        """Work while there is something to do, if nobody else does; returns the pause until the next look."""
        try:
            connection = await open_connection(self._config, migrating=True, activity=WORKING)
        except (*DRIVER_ERRORS, ValueError) as error:
            self._tell_once(f"the database of {self._config.migration_setting} cannot be reached: {describe(error)}")
            return _LOOK_EVERY
        try:
            return await self._work(connection)
        except asyncpg.InsufficientPrivilegeError as error:
            self._tell_once(
                f"this role may not do background work ({describe(error)}). Set GASKET_MIGRATION_DATABASE_URL, or run: "
                f"{database_command('background run')}"
            )
            return _PAUSE_AFTER_ERROR
        except DRIVER_ERRORS as error:
            log.warning("background work was cut short (%s); it goes on from its last batch", describe(error))
            return _TAKE_OVER_EVERY
        finally:
            await close_connection(connection)

    async def _work(self, connection: asyncpg.Connection) -> float:
        config = self._config
        if await leads_through_pooler(connection):
            self._tell_once(
                f"{config.migration_setting} leads through a connection pooler, where background work cannot be done. "
                "Set GASKET_MIGRATION_DATABASE_URL to a direct connection."
            )
            return _PAUSE_AFTER_ERROR
        await prepare_worker(connection, config.schema)
        if await connection.fetchval("SELECT current_setting('transaction_read_only')::bool"):
            self._tell_once(
                f"the server of {config.migration_setting} takes no writes; a replica looks again every 5 s"
            )
            return _LOOK_EVERY
        if not await try_worker_lock(connection, config.schema):
            return _TAKE_OVER_EVERY
        work_on: Callable[..., Awaitable[Work]] = pkgutil.resolve_name(_WORK_ON)  # most replicas never have work
        while works := await read_works(connection, config.schema, states=OPEN):
            done = await work_on(connection, config, works[0], share=config.background_share, yields=True)
            if done.state is State.RUNNING:  # a start or a command takes it over
                return _TAKE_OVER_EVERY
        return _LOOK_EVERY

    def _tell_once(self, why: str) -> None:
        if why != self._told:
            self._told = why
            log.warning("there is background work, but %s", why)


async def prepare_worker(connection: asyncpg.Connection, schema: str) -> None:
    """Set up a session for `work_on`."""
    await prepare_session(connection, schema)
    await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    # A policy that hides rows is an error then. Otherwise work would be complete while hidden rows match.
    await connection.execute("SET row_security = off")
