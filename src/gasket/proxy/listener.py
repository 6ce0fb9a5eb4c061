"""Listens for changed keys, profiles and backends (PostgreSQL's NOTIFY), and drops them from the directories."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

import asyncpg

from gasket.postgres.connections import open_connection
from gasket.postgres.errors import describe
from gasket.postgres.poolers import leads_through_pooler
from gasket.proxy.directory import KeyDirectory

log = logging.getLogger("gasket.gateway")

TTL_BEHIND_POOLER = 2.0
"""Seconds for which a key is cached where LISTEN does not work."""

_HEARTBEAT = 10.0
_HEARTBEAT_TIMEOUT = 5.0
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 5.0


class ChangeListener:
    """One connection that LISTENs for as long as the replica serves.

    While it is down, what the directories know lives to its time to live and no longer; when it is back, they forget
    everything before the first notification counts, for some may have been missed.
    """

    def __init__(
        self, database_url: str, *, schema: str, application_name: str, directories: Sequence[KeyDirectory]
    ) -> None:
        self._url = database_url
        self._channel = f"gasket_{schema}"
        self._application_name = application_name
        self._directories = directories
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def start(self) -> None:
        """Listen from now on, in the background. A second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Harmless when it was never started."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause, complained = _FIRST_PAUSE, False
        while True:
            try:
                connection = await open_connection(self._url, application_name=self._application_name)
                try:
                    if await leads_through_pooler(connection):
                        self._give_up()
                        return
                    await self._listen(connection)
                    if complained:
                        log.info("receiving key changes again")
                    pause, complained = _FIRST_PAUSE, False
                    await self._until_lost(connection)
                finally:
                    connection.terminate()
                reason = "the connection was lost"
            except Exception as error:  # whatever it is: not to hear again would be worse
                reason = describe(error)
            if not complained:
                complained = True
                log.warning(
                    "not receiving key changes (%s): cached keys expire after at most %.0f s; reconnecting",
                    reason,
                    self._directories[0].ttl,
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        self._lost.clear()
        connection.add_termination_listener(lambda _connection: self._lost.set())
        await connection.add_listener(self._channel, self._heard)
        self._forget_all()

    async def _until_lost(self, connection: asyncpg.Connection) -> None:
        """A host that vanished sends no word of it; so ask now and then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT):
                    await self._lost.wait()
                    return
            await connection.execute("SELECT 1", timeout=_HEARTBEAT_TIMEOUT)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        what, _, which = str(payload).partition(":")
        for directory in self._directories:
            match what:
                case "key":
                    directory.forget_key(which)
                case "profile" if which.isdigit():
                    directory.forget_profile(int(which))
                case "backend" if which.isdigit():
                    directory.forget_backend(int(which))
                case _:  # of a newer release
                    directory.forget_all()

    def _forget_all(self) -> None:
        for directory in self._directories:
            directory.forget_all()

    def _give_up(self) -> None:
        for directory in self._directories:
            directory.ttl = min(directory.ttl, TTL_BEHIND_POOLER)
        self._forget_all()
        log.warning(
            "the database is reached through a connection pooler, where LISTEN does not work: a changed key is "
            "noticed after up to %.0f s. Set GASKET_MIGRATION_DATABASE_URL to a direct connection.",
            self._directories[0].ttl,
        )
