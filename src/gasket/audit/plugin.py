"""What a replica does beside requests: log lines of the audit, refused sign-ins, old entries, sessions and keys."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.sessions import SessionService
from gasket.audit.outbox import MOST_AT_ONCE, log_entries
from gasket.audit.refusals import RefusedSignIns, record_refused
from gasket.audit.retention import delete_old
from gasket.backends.service import ProfileService
from gasket.db import Transactions
from gasket.keys.service import KeyService
from gasket.origin import Origin, acting
from gasket.postgres.errors import describe

_log = logging.getLogger("gasket.audit")

_EVERY = 5.0
_REFUSALS_EVERY = 60.0
_HOUR = 3600.0
_CLOSE_TIMEOUT = 2.0


class AuditPlugin(InitPlugin):
    """Works every few seconds from the start on; the database may be away, or lack the tables, at any time.

    `transaction` gives short transactions; of both numbers of days 0 is for ever; `every` is in seconds.
    """

    def __init__(
        self,
        transaction: Transactions,
        refused: RefusedSignIns,
        *,
        retention_days: int,
        orphaned_keys_days: int = 0,
        every: float = _EVERY,
    ) -> None:
        self._transaction = transaction
        self._refused = refused
        self._retention_days = retention_days
        self._orphaned_keys_days = orphaned_keys_days
        self._every = every
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False
        now = time.monotonic()
        self._next_refusals = now + _REFUSALS_EVERY
        self._next_retention = now + random.uniform(0.02, 0.2) * _HOUR

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Register the handlers."""
        app_config.on_startup.append(self._start)
        # Handlers of `on_shutdown` run when the engine is closed already, and would open connections that stay.
        app_config.lifespan.append(self._stopping)
        return app_config

    @asynccontextmanager
    async def _stopping(self, _app: Litestar) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.stop()

    async def _start(self, _app: Litestar) -> None:
        self.start()

    def start(self) -> None:
        """From now on, until `stop`."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Do once more what is due, within 2 s; what is left, other replicas do. Harmless without a start."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        last = False
        while not last:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._closing.wait()
            last = self._closing.is_set()  # what comes while it works is due once more
            try:
                await self.work()
                self._away = False
            except Exception as error:  # whatever it is: what comes next must not wait for a restart
                if not self._away:
                    self._away = True
                    _log.warning("the audit's log lines wait: %s", describe(error.__cause__ or error))

    async def work(self) -> None:
        """What is due now.

        Raises:
            Exception: of the database; what was not done is done the next time.
        """
        now = time.monotonic()
        if now >= self._next_refusals or self._closing.is_set():
            self._next_refusals = now + _REFUSALS_EVERY
            await self._record_refused()
        logged = MOST_AT_ONCE
        while logged == MOST_AT_ONCE:
            async with self._transaction() as session:
                logged = await log_entries(session)
        if now >= self._next_retention:
            await self._end_old()
            self._next_retention = now + random.uniform(0.9, 1.1) * _HOUR

    async def _record_refused(self) -> None:
        refused = self._refused.take()
        if not refused:
            return
        try:
            async with self._transaction() as session:
                await record_refused(session, refused)
        except BaseException:
            self._refused.put_back(refused)
            raise

    async def _end_old(self) -> None:
        # Sessions that are over are not deleted at a sign-in: the audit would say that who signs in has ended them.
        with acting(Origin(actor=socket.gethostname(), kind="replica", how="sql")):
            await self._in_batches(lambda session: SessionService(session).delete_over())
            if self._orphaned_keys_days:
                await self._in_batches(lambda session: _revoke_orphaned(session, self._orphaned_keys_days))
            if self._retention_days:
                await self._in_batches(lambda session: delete_old(session, days=self._retention_days))

    async def _in_batches(self, work: Callable[[AsyncSession], Awaitable[bool]]) -> None:
        """Each batch in a transaction of its own, while `work` says that there may be more."""
        more = True
        while more and not self._closing.is_set():
            async with self._transaction() as session:
                more = await work(session)


async def _revoke_orphaned(session: AsyncSession, days: int) -> bool:
    return await KeyService(session, profiles=ProfileService(session)).revoke_orphaned(days=days)
